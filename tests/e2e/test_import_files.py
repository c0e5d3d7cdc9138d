"""Files of vendors and utilities: imported, and compared with an independent reading of the same files."""

import csv
import datetime as dt
import gzip
import io
import json
import re
import signal
import subprocess
import tarfile
import zipfile
from zoneinfo import ZoneInfo

import nemreader
import pandas as pd
import psycopg
import pytest

from conftest import BINARY, SHARED, wait_until

FIXTURES = SHARED / "fixtures"
real = pytest.mark.skipif(not FIXTURES.exists(), reason="optional real data is not there")


def stored(server, metric, entity=None):
    """Seconds and values of a metric; all entities that have it, or one by its external id."""
    rows = server.sql("SELECT entity_id, date_part('epoch', timestamp)::BIGINT AS t, value, quality FROM measurements WHERE metric = $1 ORDER BY 1, 2",
                      params=[metric])
    names = {m["id"]: m["metadata"].get("externalId") for m in server.get("/api/meters?limit=10000").json()}
    found = {}
    for row in rows:
        found.setdefault(names[row["entity_id"]], []).append((row["t"], row["value"], row["quality"]))
    return found if entity is None else found[entity]


def run(server, *args, check=True):
    done = server.cli("import", *map(str, args), "--json", check=check)
    return json.loads(done.stdout)


def utc(text, zone):
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


@real
@pytest.mark.parametrize("name", ["actual_interval", "different_interval_length", "month_solar", "multiple_meters", "no_scheduled_read", "substituted_interval"])
def test_nem12_as_an_independent_reader_has_it(start, name):
    server, file = start(), FIXTURES / "nem12" / f"Example_NEM12_{name}.csv"
    run(server, file)
    expected = {}
    factor = {"WH": 1e-3, "KWH": 1, "KVARH": 1, "VARH": 1e-3, None: 1, "": 1}
    for nmi, channels in nemreader.read_nem_file(str(file)).readings.items():
        for suffix, readings in channels.items():
            for r in readings:
                # The market's time, which it reads without a zone.
                at = int(r.t_start.replace(tzinfo=dt.timezone(dt.timedelta(hours=10))).timestamp())
                expected.setdefault(f"{nmi}/{suffix}", {})[at] = (r.read_value * factor[(r.uom or "").upper()], r.quality_method)
    found = {}
    for metric in ("import_energy", "export_energy", "energy", "reactive_energy"):
        found |= stored(server, metric)
    assert found.keys() == expected.keys()
    for entity, rows in found.items():
        assert [t for t, *_ in rows] == sorted(expected[entity])
        assert [v for _, v, _ in rows] == pytest.approx([expected[entity][t][0] for t, *_ in rows], abs=1e-9)
        assert all((quality == "good") == expected[entity][t][1].startswith("A") for t, _, quality in rows if expected[entity][t][1])


@real
def test_many_meters_of_a_zip_and_market_data_that_is_refused(start, tmp_path):
    server = start()
    report = run(server, FIXTURES / "nem12" / "Example_NEM12_ManyNMIs.zip", "--site", "market")
    assert report["report"]["rejected"] == 0 and report["stored"]["new"] == report["report"]["accepted"] == sum(s["readings"] for s in report["series"])
    rejects = tmp_path / "refused.csv"
    report = run(server, FIXTURES / "nem12" / "invalid", "--rejects", rejects, check=False)
    refused = list(csv.DictReader(rejects.open()))
    assert {(r["file"].rsplit("_", 1)[-1], r["line"]) for r in refused} == {("300.csv", "3"), ("300.csv", "4"), ("300.csv", "5"), ("interval.csv", "3")}
    assert report["report"]["rejected"] == 4 and "values of 15 minutes" in refused[0]["reason"], refused
    out = server.cli("import", FIXTURES / "nem12" / "invalid", check=False)
    assert out.returncode == 1 and "4 lines were refused" in out.stderr


@real
def test_green_button_by_hand(start):
    server = start()
    run(server, FIXTURES / "green_button", "--site", "utility", check=False)
    days = stored(server, "day_import_energy", "redacted_user_id/0")
    assert days == [(1760853600, 49.6, "good"), (1760940000, 23.03, "good")]
    assert stored(server, "day_export_energy", "redacted_user_id/0") == [(1760853600, 11.0, "good"), (1760940000, 29.52, "good")]
    assert [v for _, v, _ in stored(server, "day_net_energy", "redacted_user_id/0")] == [38.6, -6.49]
    assert stored(server, "peak_power", "redacted_user_id/0")[0][1] == 10672
    rows = stored(server, "import_energy", "9B6C7066/5446AF3F")
    # 2012-03-01 00:00 of New York; the first value of the file is 282 Wh, estimated by a linear interpolation.
    assert rows[0] == (1330578000, pytest.approx(0.282), "estimated") and len(rows) == 480
    text = (FIXTURES / "green_button" / "test_usage_data_1.xml").read_text()
    values = [int(part.split("</value>")[0]) for part in text.split("<value>")[1:]]
    assert sum(v for _, v, _ in rows) == pytest.approx(sum(values[:480]) / 1000)


@real
def test_solaredge_dumps_by_pandas(start):
    server = start()
    folder = FIXTURES / "solaredge_v1"
    run(server, folder, "--time-zone", "Europe/Amsterdam", "--entity", "roof", "--site", "roof")
    expected = {}
    for name in ("energy_quarter_hour_2023-07-10.json", "energy_hour_2024_07.json"):
        values = pd.DataFrame(json.loads((folder / name).read_text())["energy"]["values"]).dropna()
        for date, value in zip(values["date"], values["value"]):
            expected[utc(date[:19], "Europe/Amsterdam")] = value / 1000
    details = json.loads((folder / "energyDetails_quarter_hour_energy-sparks.json").read_text())["energyDetails"]["meters"]
    of = {m["type"]: {utc(v["date"], "Europe/Amsterdam"): v["value"] / 1000 for v in m["values"] if "value" in v} for m in details}
    for metric, kind in [("energy", "Production"), ("consumption_energy", "Consumption"), ("export_energy", "FeedIn"), ("import_energy", "Purchased")]:
        wanted = of[kind] | (expected if metric == "energy" else {})
        assert {t: v for t, v, _ in stored(server, metric, "roof")} == pytest.approx(wanted), metric


@real
def test_tables_of_vendors_by_pandas(start):
    server, folder = start(), FIXTURES / "csv_exports"
    names = ["ameren_electric_first1200", "dsmrreader-export-hour", "homewizard_15min_elec", "influxdb_chronograf", "sma_webui_daily", "united_power_hourly_sample"]
    files = [folder / f"{name}.csv" for name in names] + [folder / f"shelly_em3_phase{p}_first3000.csv" for p in "ABC"]
    report = run(server, *files, FIXTURES / "enphase_csv", "--time-zone", "Europe/Amsterdam", "--site", "all", check=False)
    assert report["report"]["rejected"] == 0, report["report"]["errors"][:3]

    def check(metric, entity, frame, column, zone, factor=1, format=None):
        times = pd.to_datetime(frame.iloc[:, 0], format=format)
        times = times.dt.tz_localize(zone, ambiguous="infer", nonexistent="shift_forward") if times.dt.tz is None else times
        wanted = pd.Series(pd.to_numeric(column, errors="coerce").values * factor, index=[int(t.timestamp()) for t in times]).dropna()
        rows = stored(server, metric, entity)
        assert {t: v for t, v, _ in rows} == pytest.approx(wanted.to_dict()), (metric, entity)

    enphase = pd.read_csv(FIXTURES / "enphase_csv" / "9999999_custom_report.csv")
    check("energy", "9999999_custom_report", enphase, enphase.iloc[:, 1], "Europe/Amsterdam", 1e-3, "%m/%d/%Y %H:%M")
    ameren = pd.read_csv(folder / "ameren_electric_first1200.csv", skiprows=10)
    check("import_energy", "72621898", ameren, ameren.iloc[:, 5], "America/Chicago", 1, "%m/%d/%Y %H:%M")
    dsmr = pd.read_csv(folder / "dsmrreader-export-hour.csv")
    dsmr.iloc[:, 0] = pd.to_datetime(dsmr.iloc[:, 0], utc=True).astype(str)
    check("import_energy", "dsmrreader-export-hour", dsmr, dsmr.iloc[:, 1] + dsmr.iloc[:, 2], None, 1, "ISO8601")
    check("gas_volume", "dsmrreader-export-hour", dsmr, dsmr.iloc[:, 5], None, 1, "ISO8601")
    homewizard = pd.read_csv(folder / "homewizard_15min_elec.csv")
    check("import_energy_total", "homewizard_15min_elec", homewizard, homewizard.iloc[:, 1] + homewizard.iloc[:, 2], "Europe/Amsterdam")
    for phase in "ABC":
        shelly = pd.read_csv(folder / f"shelly_em3_phase{phase}_first3000.csv")
        check("import_energy", f"shelly_em3_phase{phase}_first3000", shelly.drop_duplicates(shelly.columns[0], keep="last"),
              shelly.drop_duplicates(shelly.columns[0], keep="last").iloc[:, 1], "UTC", 1e-3)
    sma = pd.read_csv(folder / "sma_webui_daily.csv", skiprows=9, header=None)
    check("energy_total", "XXXXXXXXXX", sma, sma.iloc[:, 1], "Europe/Amsterdam", 1e-3, "%d.%m.%Y %H:%M:%S")
    nisc = [line.strip() for line in (folder / "united_power_hourly_sample.csv").read_text().splitlines() if " to " in line]
    nisc = [(line[:16], float(line.split(",")[1])) for line in nisc]
    for metric, sign, block in [("export_energy", -1, nisc[:48]), ("import_energy", 1, nisc[48:96]), ("net_energy", 1, nisc[96:])]:
        wanted = {utc(t, "Europe/Amsterdam"): sign * v for t, v in block}
        assert {t: v for t, v, _ in stored(server, metric, "united_power_hourly_sample")} == pytest.approx(wanted), metric


ENPHASE = "Date/Time,Energy Produced (Wh)\n" + "".join(f"{m:02}/{d:02}/2023 {h:02}:00,{m * d + h}\n" for m, d in [(10, 28), (10, 29), (3, 26)]
                                                        for h in ([0, 1, 2, 2, 3, 4] if (m, d) == (10, 29) else [0, 1, 3, 4]))


def test_archives_folders_and_patterns_are_one_import(start, tmp_path):
    server = start()
    folder = tmp_path / "exports"
    (folder / "deep").mkdir(parents=True)
    part = lambda n: f"power,entity_id=m{n} value={n} 1767225600000000000\n".encode()
    (folder / "deep" / "1.lp").write_bytes(part(1))
    (folder / "2.gz").write_bytes(gzip.compress(part(2)))
    (folder / "notes.docx").write_bytes(b"\x00\x01nothing that we know")
    (folder / ".hidden.lp").write_bytes(part(99))
    with zipfile.ZipFile(folder / "3.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../etc/3.lp", part(3))
        archive.writestr("__MACOSX/3.lp", part(99))
        archive.writestr("roof.csv", ENPHASE)
    with tarfile.open(folder / "4.tar.gz", "w:gz") as archive:
        for name, data in [("./a/4.lp", part(4)), ("/etc/5.lp", part(5))]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    report = run(server, folder, "--time-zone", "Europe/Berlin", "--site", "exports", "--dry-run")
    assert report["stored"] == {"new": 5 + 14, "corrected": 0, "identical": 0, "batch": None} and server.get("/api/meters").json() == []
    assert {s["entity"] for s in report["series"]} == {"m1", "m2", "m3", "m4", "m5", "roof"}
    assert len(report["unknownFiles"]) == 1 and "notes.docx" in report["unknownFiles"][0]
    report = run(server, folder, "--time-zone", "Europe/Berlin", "--site", "exports")
    assert report["stored"]["new"] == 19 and report["report"]["registered"] == 6, report
    assert not (tmp_path / "etc").exists()
    meters = {m["name"]: m for m in server.get("/api/meters").json()}
    assert (meters["roof"]["category"], meters["roof"]["readingFrequency"]) == ("PROD", "hourly")
    # Again changes nothing; a pattern names some of it.
    report = run(server, str(folder / "*.gz"), folder / "3.zip", "--time-zone", "Europe/Berlin", "--site", "exports")
    assert report["stored"] == {"new": 0, "corrected": 0, "identical": 19 - 1, "batch": None}, report
    autumn = [(t, v) for t, v, _ in stored(server, "energy", "roof") if t >= utc("2023-10-29T00:00", "Europe/Berlin")]
    start_of_day = utc("2023-10-29T00:00", "Europe/Berlin")
    assert [t for t, _ in autumn] == [start_of_day + 3600 * h for h in range(6)]
    for wrong, words in [([tmp_path / "no.csv"], "cannot read"), ([str(tmp_path / "*.nothing")], "no file matches"), ([folder / "notes.docx"], "--format"),
                         ([folder / "3.zip"], "--time-zone Europe/Berlin"), ([folder, "--time-zone", "Mars/Base"], "no zone"),
                         ([folder, "--format", "xls"], "green-button"), ([folder, "--dst", "maybe"], "sequence, earlier")]:
        failed = server.cli("import", *map(str, wrong), check=False)
        assert failed.returncode in (1, 2, 74) and words in failed.stderr, failed.stderr


def test_archives_that_are_traps_are_refused(start, tmp_path):
    server = start()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"0" * (100 << 20))
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:200])
    for name, words in [("bomb.zip", "far more than it is"), ("book.xlsx", "save its sheet as CSV"), ("cut.zip", "no sound zip")]:
        failed = server.cli("import", str(tmp_path / name), check=False)
        assert failed.returncode != 0 and words in failed.stderr, failed.stderr


PROFILE = """
delimiter = ";"
decimal = ","
entity = "{Zaehler}"
null_values = ["k.A."]
min = 0
[time]
columns = ["Datum", "Zeit"]
format = "%d.%m.%Y %H:%M"
zone = "Europe/Berlin"
label = "end"
length = 900
[[values]]
columns = ["Bezug"]
metric = "import_energy"
unit = "kWh"
[quality]
column = "Status"
map = { W = "good", E = "estimated", F = "bad", N = "skip" }
"""


def test_a_table_of_ones_own(start, tmp_path):
    server = start()
    (tmp_path / "map.toml").write_text(PROFILE)
    rows = ["01.02.2026;00:15;a;1,5;W", "01.02.2026;00:30;a;k.A.;W", "01.02.2026;00:45;a;2;N", "01.02.2026;01:00;a;3;E", "01.02.2026;01:15;b;-1;W",
            "01.02.2026;01:30;b;1.000,5;W", "32.02.2026;01:30;b;1;W", "01.02.2026;01:45;b;4;X"]
    (tmp_path / "x.csv").write_text("Datum;Zeit;Zaehler;Bezug;Status\n" + "\n".join(rows) + "\n")
    report = run(server, tmp_path / "x.csv", "--map", tmp_path / "map.toml", "--rejects", tmp_path / "no.csv", check=False)
    at = utc("2026-02-01T00:00", "Europe/Berlin")
    assert stored(server, "import_energy") == {"a": [(at, 1.5, "good"), (at + 2700, 3, "estimated")], "b": [(at + 3600, -1, "bad")]}
    refused = [(r["line"], r["reason"]) for r in csv.DictReader((tmp_path / "no.csv").open())]
    assert [line for line, _ in refused] == ["7", "8", "9"] and "`1.000,5` is no number" in refused[0][1] and report["report"]["rejected"] == 3, refused
    for change, words in [(("[time]", "[tme]"), "unknown field"), (("columns = [\"Bezug\"]", "columns = [\"Bzug\"]"), "it has none of the columns Bzug"),
                          (("length = 900\n", ""), "`length`"), (("Europe/Berlin", "Europe/Bärlin"), "no zone"), (("entity = \"{Zaehler}\"", "entity = \"{Zahl}\""), "no column `Zahl`")]:
        (tmp_path / "wrong.toml").write_text(PROFILE.replace(*change))
        failed = server.cli("import", str(tmp_path / "x.csv"), "--map", str(tmp_path / "wrong.toml"), check=False)
        assert failed.returncode in (1, 2) and words in failed.stderr, failed.stderr


@pytest.mark.parametrize("through_server", [True, False])
def test_an_import_is_undone_as_far_as_nobody_changed_it(start, tmp_path, through_server):
    server = start()
    at = 1767225600
    line = lambda n, value: f"power,entity_id=m value={value} {at + 900 * n}\n"
    lines = lambda values: "".join(line(n, v) for n, v in values.items())
    (tmp_path / "first.lp").write_text(lines({0: 1, 1: 1, 2: 1}))
    (tmp_path / "wrong.lp").write_text(lines({1: 7, 2: 7, 3: 7, 4: 7}))
    run(server, tmp_path / "first.lp", "--precision", "s", "--site", "s")
    batch = run(server, tmp_path / "wrong.lp", "--precision", "s", "--site", "s")["stored"]["batch"]
    server.write(line(2, 9), precision="s")
    if not through_server:
        server.stop()
    undo = lambda *args, check=True: server.cli("import", "--undo", str(batch), *args, check=check)
    dry = json.loads(undo("--dry-run", "--json").stdout)["undone"]
    assert dry == {"removed": 2, "restored": 1, "kept": 1}
    out = undo().stdout
    assert "2 readings are gone, 1 are as they were before, 1 were changed since and stay" in out, out
    assert json.loads(undo("--json").stdout)["undone"]["removed"] == 0
    missing = server.cli("import", "--undo", "1", check=False)
    assert missing.returncode == 1 and "no import" in missing.stderr, missing.stderr
    if not through_server:
        server.start()
    assert [v for _, v, _ in stored(server, "power", "m")] == [1, 1, 9]
    if through_server:
        token = server.new_token("--scope", "write")
        assert server.post("/api/imports/undo", json={"batch": batch}, token=token).status_code == 403


SCHEMA = """
CREATE TYPE category AS ENUM ('PROD', 'CONS', 'STOR', 'INJ');
CREATE TABLE portfolios (id int); CREATE TABLE asset_types (id int);
CREATE TABLE sites (id uuid PRIMARY KEY, name varchar(100), location text, industry_type text, description text, metadata jsonb, active boolean);
CREATE TABLE meters (id uuid PRIMARY KEY, site_id uuid, parent_meter_id uuid, name text, category category, reading_frequency text, capacity numeric,
  description text, metadata jsonb, active boolean);
CREATE TABLE energy_sources (id uuid PRIMARY KEY, meter_id uuid, name text, source_type text, capacity real, metadata jsonb);
CREATE TABLE measurements (entity_type text, entity_id uuid, "timestamp" TIME_TYPE, metric text, value numeric, unit text, quality text);
INSERT INTO sites VALUES ('00000000-0000-4000-8000-000000000001', 'Bakery', 'Lane 1', 'weird', NULL, '{"timezone": "Europe/Berlin"}', true);
INSERT INTO meters VALUES ('00000000-0000-4000-8000-000000000012', '00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000011', 'child', 'PROD', '15min', 5.5, NULL, NULL, true),
  ('00000000-0000-4000-8000-000000000011', '00000000-0000-4000-8000-000000000001', NULL, 'main', 'CONS', 'hourly', NULL, NULL, '{"a": 1}', true),
  ('00000000-0000-4000-8000-000000000013', '00000000-0000-4000-8000-000000000099', NULL, 'lost', 'CONS', 'hourly', NULL, NULL, NULL, true);
INSERT INTO energy_sources VALUES ('00000000-0000-4000-8000-000000000021', '00000000-0000-4000-8000-000000000012', 'roof', 'solar', 5, '{"apiKey": "canary-key"}');
INSERT INTO measurements SELECT 'meter', '00000000-0000-4000-8000-000000000011', TIMESTAMP '2025-01-01' + i * INTERVAL '1 minute', 'energy', i / 10.0, 'kWh', NULL FROM generate_series(0, 99999) i;
INSERT INTO measurements VALUES ('energy_source', '00000000-0000-4000-8000-000000000021', '2025-01-01', 'power', 2500, 'W', 'estimated'),
  ('meter', '00000000-0000-4000-8000-000000000077', '2025-01-01', 'power', 1, 'W', 'good'), ('meter', '00000000-0000-4000-8000-000000000011', '2025-01-01', 'power', NULL, 'W', 'good');
"""


@pytest.mark.parametrize("through_server", [True, False])
def test_a_database_of_the_same_tables_is_copied_with_its_ids(start, postgres, tmp_path, through_server):
    url = postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        connection.execute(SCHEMA.replace("TIME_TYPE", "timestamp" if through_server else "timestamptz"))
    server = start()
    if not through_server:
        server.stop()
    zone = ["--time-zone", "UTC"] if through_server else []
    if through_server:
        failed = server.cli("import", url, check=False)
        assert failed.returncode == 1 and "--time-zone" in failed.stderr, failed.stderr
    dry = run(server, url, *zone, "--dry-run", check=False)
    # What the import that was refused for its times has made is there already.
    assert (dry["created"], dry["existing"]) == ((0, 4) if through_server else (4, 0)) and dry["ignoredTables"] == ["asset_types", "portfolios"]
    assert dry["report"]["accepted"] == 100_001 and dry["report"]["rejected"] == 3 and dry["stored"]["new"] == 100_001, dry
    first = run(server, url, *zone, "--rejects", tmp_path / "no.csv", check=False)
    if not through_server:
        server.start()
    assert first["created"] + first["existing"] == 4 and first["stored"]["new"] == 100_001 and "canary" not in str(first)
    refused = [r["reason"] for r in csv.DictReader((tmp_path / "no.csv").open())]
    assert len(refused) == 3 and any("000000000013" in r for r in refused) and any("000000000077" in r for r in refused) and any("1 rows without" in r for r in refused), refused
    meters = {m["name"]: m for m in server.get("/api/meters").json()}
    assert meters["child"]["parentMeterId"] == meters["main"]["id"] == "00000000-0000-4000-8000-000000000011" and meters["child"]["capacity"] == 5.5
    assert meters["main"]["readingFrequency"] == "hourly" and meters["main"]["metadata"] == {"a": 1}
    (site,) = server.get("/api/sites").json()
    assert (site["name"], site["industryType"], site["metadata"]["timezone"]) == ("Bakery", "other", "Europe/Berlin")
    (source,) = server.get("/api/energy-sources").json()
    assert source["metadata"]["apiKey"] == "***" and not [f for f in server.dir.rglob("*") if f.is_file() and b"canary" in f.read_bytes()]
    totals = server.sql("SELECT metric, count(*) AS n, sum(value) AS total, min(timestamp) AS first FROM measurements GROUP BY 1 ORDER BY 1")
    assert totals == [{"metric": "energy", "n": 100_000, "total": pytest.approx(sum(range(100_000)) / 10), "first": "2025-01-01T00:00:00Z"},
                      {"metric": "power", "n": 1, "total": 2.5, "first": "2025-01-01T00:00:00Z"}]
    again = run(server, url, *zone, check=False)
    assert again["created"] == 0 and again["existing"] == 4 and again["stored"] == {"new": 0, "corrected": 0, "identical": 100_001, "batch": None}
    # A dry run tells what another import would do; a name that is taken is no sign that the meter is there already.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE measurements SET value = value + 1 WHERE metric = 'power'")
        for n in (14, 15):
            connection.execute(f"""INSERT INTO meters VALUES ('00000000-0000-4000-8000-0000000000{n}', '00000000-0000-4000-8000-000000000001', NULL, 'new', 'CONS',
                '15min', NULL, NULL, '{{"externalId": "twice"}}', true)""")
            connection.execute(f"INSERT INTO measurements VALUES ('meter', '00000000-0000-4000-8000-0000000000{n}', '2025-01-01', 'energy', 1, 'kWh', NULL)")
    dry = run(server, url, *zone, "--dry-run", check=False)
    assert dry["created"] == 2 and dry["stored"] == {"new": 2, "corrected": 1, "identical": 100_000, "batch": None}
    third = run(server, url, *zone, check=False)
    assert third["created"] == 1 and third["existing"] == 4 and {k: third["stored"][k] for k in ("new", "corrected")} == {"new": 1, "corrected": 1}
    assert any("twice" in e["message"] for e in third["report"]["errors"]), third["report"]["errors"]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE measurements ALTER value TYPE text USING value::text || ' kWh'")
    broken = server.cli("import", url, *zone, check=False)
    assert broken.returncode == 1 and "invalid input syntax" in broken.stderr, broken.stderr
    wrong = server.cli("import", "postgres://nobody:canary-password@127.0.0.1:1/x", check=False)
    assert wrong.returncode == 1 and "canary" not in wrong.stderr, wrong.stderr


def test_a_database_that_nobody_wrote_to_goes_on_after_a_kill(start, postgres):
    url = postgres()
    query = lambda sql: psycopg.connect(url, autocommit=True).execute(sql)
    query(SCHEMA.replace("TIME_TYPE", "timestamptz"))
    query("""INSERT INTO measurements SELECT 'meter', '00000000-0000-4000-8000-000000000012', TIMESTAMPTZ '2025-01-01Z' + i * INTERVAL '1 minute', 'power', i, 'W', NULL
             FROM generate_series(0, 299999) i""")
    server = start()
    server.stop()
    small = ["--set", "memory.budget=2MiB", "--set", "flush.max_bytes=1MiB"]
    command = [BINARY, "import", url, *server.flags(), *small]

    def kill_once_some_of_it_is_on_disk():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=server.env)
        wait_until(lambda: process.poll() is not None or [*server.dir.glob("imports/*/checkpoint.json")], "a run on disk", 60)
        process.kill()
        said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL and [*server.dir.glob("imports/*/checkpoint.json")], said

    kill_once_some_of_it_is_on_disk()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=server.env)
    went_on = re.search(r"broke off: (\d+) readings", done.stderr)
    assert went_on and int(went_on[1]) >= 65_536, done.stderr
    report = json.loads(done.stdout)
    assert report["report"]["accepted"] == 400_001 and report["stored"]["new"] == 400_001 and report["report"]["rejected"] == 3
    assert not [*server.dir.glob("imports/*")]
    # Somebody writes before it goes on: it begins anew, and has what was written to rows that were read before.
    query("UPDATE measurements SET value = value + 1 WHERE metric = 'power' AND \"timestamp\" < '2025-01-02'")
    kill_once_some_of_it_is_on_disk()
    query("UPDATE measurements SET value = value + 1 WHERE metric = 'power' AND \"timestamp\" < '2025-01-02'")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=server.env)
    assert "broke off" not in done.stderr, done.stderr
    server.start()
    total = query("SELECT sum(value) FROM measurements WHERE metric = 'power' AND entity_id::text LIKE '%12'").fetchone()[0]
    found = server.sql("SELECT count(*) AS n, sum(value) AS total FROM measurements WHERE metric = 'power' AND entity_id = $1",
                       params=["00000000-0000-4000-8000-000000000012"])
    assert found == [{"n": 300_000, "total": pytest.approx(float(total) / 1000)}]


def test_thirteen_years_of_one_meter_are_a_file_a_month_and_one_commit(start, tmp_path):
    server = start()
    first = utc("2012-01-01T00:00", "UTC")
    count = (utc("2025-01-01T00:00", "UTC") - first) // 300
    with open(tmp_path / "years.csv", "w") as out:
        out.write("timestamp,entity_id,metric,value,unit\n")
        out.writelines(f"{first + 300 * i},m,energy,{i % 1000},Wh\n" for i in range(count))
    before = server.get("/api/status").json()["engine"]["snapshotId"]
    report = run(server, tmp_path / "years.csv", "--precision", "s", "--site", "s")
    after = server.get("/api/status").json()["engine"]["snapshotId"]
    assert report["stored"]["new"] == count == 1_367_712
    assert after - before == 1
    files = {f.parent.name for f in server.dir.rglob("*.parquet")}
    assert len(files) == 13 * 12 == len(list(server.dir.rglob("*.parquet")))
