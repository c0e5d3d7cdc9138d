"""The command line: demo, import, sql, status, config; and real data when it is there."""

import gzip
import json
import subprocess

import pandas as pd
import pytest
import requests

from conftest import BINARY, SHARED, Server, wait_until

HOUSEHOLDS = SHARED / "datasets" / "sgsc_smart_meter10" / "smart_meter10.csv.gz"
MAPPING = """
site = "Households"
timestamp = "reading_datetime"
time_zone = "Australia/Brisbane"
entity = "customer_id"
[[values]]
column = "general_supply_kwh"
metric = "energy"
unit = "kWh"
"""


def own_households(path):
    """Three households over two months, half-hourly, with gaps."""
    rows = []
    for customer in (101, 102, 103):
        for i, at in enumerate(pd.date_range("2013-01-15", "2013-03-15", freq="30min", inclusive="left")):
            if (i * 7 + customer) % 50:
                rows.append((customer, at.isoformat(), round(((i * 37 + customer * 11) % 200) / 1000, 3)))
    frame = pd.DataFrame(rows, columns=["customer_id", "reading_datetime", "general_supply_kwh"])
    frame.to_csv(path, index=False, compression="gzip")


def check_households(server, csv, map_file, through_server):
    frame = pd.read_csv(csv)
    frame["at"] = pd.to_datetime(frame.reading_datetime).dt.tz_localize("Australia/Brisbane")
    if not through_server:
        server.stop()
    dry = json.loads(server.cli("import", str(csv), "--map", str(map_file), "--dry-run", "--json").stdout)
    assert dry["report"]["accepted"] == len(frame) and dry["report"]["rejected"] == 0
    done = json.loads(server.cli("import", str(csv), "--map", str(map_file), "--json").stdout)["report"]
    assert (done["accepted"], done["rejected"], done["registered"]) == (len(frame), 0, frame.customer_id.nunique())
    if not through_server:
        server.start()
    again = json.loads(server.cli("import", str(csv), "--map", str(map_file), "--json").stdout)["report"]
    assert again["accepted"] == len(frame) and "registered" not in again
    server.flush()
    meters = {m["name"]: m["id"] for m in server.get("/api/meters").json()}
    assert set(meters) == {str(c) for c in frame.customer_id.unique()}
    (site,) = server.get("/api/sites").json()
    r = server.request("PATCH", f"/api/sites/{site['id']}", json={"metadata": {"timezone": "Australia/Brisbane"}})
    assert r.status_code == 200 and site["name"] == "Households"
    # Counts and sums in SQL.
    rows = server.sql("SELECT m.name, count(*) AS n, sum(r.value) AS kwh FROM measurements r JOIN meters m ON m.id = r.entity_id "
                      "GROUP BY m.name")
    want = frame.groupby("customer_id").general_supply_kwh.agg(["size", "sum"])
    assert {r["name"]: (r["n"], round(r["kwh"], 6)) for r in rows} == {
        str(c): (int(n), round(s, 6)) for c, n, s in want.itertuples()}
    # Energy by month and day per meter, and the top days, as rollups.
    span = {"metric": "energy", "by": "meter", "from": "2012-01-01", "to": "2015-01-01", "tz": "Australia/Brisbane"}
    names = {v: k for k, v in meters.items()}
    for bucket, freq in (("1mo", "%Y-%m-01"), ("1d", "%Y-%m-%d")):
        got = server.get("/api/rollup", params=span | {"bucket": bucket}).json()
        got = {(names[r["meterId"]], r["bucketStart"][:10]): round(r["value"], 6) for r in got}
        want = frame.groupby(["customer_id", frame["at"].dt.strftime(freq)]).general_supply_kwh.sum()
        assert got == {(str(c), day): round(v, 6) for (c, day), v in want.items()}, bucket
    total = {r["bucketStart"][:10]: r["value"] for r in server.get("/api/rollup", params=span | {"bucket": "1d", "by": "total"}).json()}
    top = sorted(total, key=lambda d: (-round(total[d], 6), d))[:10]
    want = frame.groupby(frame["at"].dt.strftime("%Y-%m-%d")).general_supply_kwh.sum().round(6)
    assert top == sorted(want.index, key=lambda d: (-want[d], d))[:10]
    keys = "SELECT count(*) AS n FROM (SELECT DISTINCT entity_id, metric, timestamp FROM measurements)"
    assert server.sql(keys) == [{"n": len(frame)}]


@pytest.mark.parametrize("through_server", [True, False])
def test_import_of_households(server, tmp_path, through_server):
    own_households(tmp_path / "homes.csv.gz")
    (tmp_path / "map.toml").write_text(MAPPING)
    check_households(server, tmp_path / "homes.csv.gz", tmp_path / "map.toml", through_server)


def test_import_of_real_households(start, tmp_path):
    if not HOUSEHOLDS.exists():
        pytest.skip("optional real data is not here")
    server = start(settings={"query.timeout": "120s"})
    (tmp_path / "map.toml").write_text(MAPPING)
    check_households(server, HOUSEHOLDS, tmp_path / "map.toml", False)


def test_import_of_real_solar_sites(server, tmp_path):
    folder = SHARED / "datasets" / "pv_real_sites"
    if not folder.exists():
        pytest.skip("optional real data is not here")
    (tmp_path / "east.toml").write_text(
        'timestamp = "measured_on"\nentity_name = "SERF East"\n[[values]]\ncolumn = "ac_power"\nmetric = "power"\nunit = "kW"\n')
    file = folder / "pvanalytics_serf_east_15min_ac_power.csv"
    frame = pd.read_csv(file)
    done = json.loads(server.cli("import", str(file), "--map", str(tmp_path / "east.toml"), "--json").stdout)["report"]
    assert (done["accepted"], done["rejected"]) == (frame.ac_power.notna().sum(), 0)
    row = server.sql("SELECT count(*) AS n, sum(value) AS s, min(timestamp) AS a, max(timestamp) AS b FROM measurements")[0]
    at = pd.to_datetime(frame.measured_on, utc=True)
    assert row["n"] == frame.ac_power.notna().sum() and abs(row["s"] - frame.ac_power.sum()) < 1e-6
    assert pd.Timestamp(row["a"]) == at.min() and pd.Timestamp(row["b"]) == at.max()
    daily = server.get("/api/rollup", params={"metric": "power", "bucket": "1d", "agg": "max", "tz": "Etc/GMT+7",
                       "from": "2016-01-01", "to": "2018-01-01"}).json()
    want = frame.groupby(at.dt.tz_convert("Etc/GMT+7").dt.strftime("%Y-%m-%d")).ac_power.max().dropna()
    assert {r["bucketStart"][:10]: r["value"] for r in daily} == dict(want)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_file_is_cut_where_no_row_changes_its_meaning(start, tmp_path, format):
    """Local times through the end of summer time, cells with line ends, and parts much smaller than the file."""
    server = start(settings={"ingest.max_body_bytes": "8KiB"} if format == "csv" else {})
    if format == "csv":
        at = pd.date_range("2025-10-25", periods=300, freq="15min", tz="Europe/Berlin")
    else:
        # The hour that comes twice lies at the 200,000th row, where a part ends.
        at = pd.date_range(end="2025-10-26T02:15+01:00", periods=50_000, freq="15min").tz_convert("Europe/Berlin")
        at = at.append(pd.date_range(at[-1], periods=500, freq="15min")[1:])
    rows = [(m, k, t, float(i)) for i, t in enumerate(at) for m in ("m1", "m2") for k in ("power", "energy")]
    frame = pd.DataFrame(rows, columns=["meter", "metric", "at", "value"])
    local = frame.assign(at=frame["at"].dt.tz_localize(None), note='say "hi"\nand, bye')
    (tmp_path / "map.toml").write_text('timestamp = "at"\nentity = "meter"\ntime_zone = "Europe/Berlin"\n')
    local.to_csv(tmp_path / "a.csv", index=False) if format == "csv" else local.to_parquet(tmp_path / "a.parquet")
    done = server.cli("import", str(tmp_path / f"a.{format}"), "--map", str(tmp_path / "map.toml"), "--json")
    assert json.loads(done.stdout)["report"] == {"accepted": len(frame), "rejected": 0, "errors": [], "registered": 2}
    got = server.sql("SELECT m.name, r.metric, CAST(r.timestamp AS BIGINT) AS us, r.value FROM measurements r "
                     "JOIN meters m ON m.id = r.entity_id")
    micros = frame["at"].dt.tz_convert("UTC").astype("datetime64[us, UTC]").astype("int64")
    want = set(zip(frame.meter, frame.metric, micros, frame.value))
    assert len(got) == len(want) and {(r["name"], r["metric"], r["us"], r["value"]) for r in got} == want


def test_a_file_that_breaks_off_stores_nothing_through_a_server_either(start, tmp_path):
    server = start(settings={"ingest.max_body_bytes": "1KiB"})
    rows = [f"m,{i},power,1" for i in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["entity_id,timestamp,metric,value", *rows, '"' + "never closed\n" * 100]))
    done = server.cli("import", str(tmp_path / "a.csv"), "--precision", "s", check=False)
    assert done.returncode == 1 and "nothing was stored" in done.stderr, done.stderr
    dry = server.cli("import", str(tmp_path / "a.csv"), "--precision", "s", "--dry-run", check=False)
    assert dry.returncode == 1 and "stored" not in dry.stderr, dry.stderr
    assert "a.csv: a row after row 100 is longer than 512 bytes; is a quote" in done.stderr
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 0}]


def test_import_of_other_formats(server, tmp_path):
    site = server.post("/api/onboarding/complete", json={"site": {"name": "S"}, "meters": [{"name": "m", "category": "CONS"}]}).json()
    (m,) = site["meterIds"]
    (tmp_path / "a.lp").write_text(f"power,entity_id={m} value=1 1767225600000000000\nbroken\n")
    done = server.cli("import", str(tmp_path / "a.lp"), check=False)
    assert done.returncode == 1 and "1 readings stored, 1 refused" in done.stdout and "line 2" in done.stderr
    (tmp_path / "b.ndjson").write_bytes(gzip.compress(json.dumps(
        {"entityId": m, "timestamp": "2026-01-01T01:00:00Z", "metric": "power", "value": 2}).encode()))
    server.cli("import", str(tmp_path / "b.ndjson"))
    frame = pd.DataFrame({"entity_id": [m], "timestamp": pd.to_datetime(["2026-01-01T02:00:00Z"]), "metric": ["power"], "value": [3.0]})
    frame.to_parquet(tmp_path / "c.parquet")
    server.cli("import", str(tmp_path / "c.parquet"))
    assert [r["value"] for r in server.sql("SELECT value FROM measurements ORDER BY timestamp")] == [1.0, 2.0, 3.0]
    (tmp_path / "x.bin").write_bytes(bytes(range(256)))
    for args, word in [((str(tmp_path / "none.csv"),), "none.csv"), ((str(tmp_path / "x.bin"),), "--format"),
                       ((str(tmp_path / "a.lp"), "--map", str(tmp_path / "none.toml")), "none.toml")]:
        done = server.cli("import", *args, check=False)
        assert done.returncode in (1, 2, 74) and word in done.stderr, done.stderr


def test_sql_and_status_with_and_without_a_server(server, fleet):
    server.write(f"power,entity_id={fleet.main} value=1.5 1767225600")
    query = "SELECT metric, value FROM measurements"
    for _ in range(2):
        assert "| power  | 1.5   |" in server.cli("sql", query).stdout
        assert server.cli("sql", query, "--format", "csv").stdout.split() == ["metric,value", "power,1.5"]
        assert json.loads(server.cli("sql", query, "--format", "json").stdout) == [{"metric": "power", "value": 1.5}]
        status = json.loads(server.cli("status", "--json").stdout)
        assert status["engine"]["archiveRows"] + status["engine"]["memoryRows"] == 1
        assert "engine.walSequence" in server.cli("status").stdout
        done = server.cli("sql", "DROP TABLE sites", check=False)
        assert done.returncode == 1 and "only queries" in done.stderr
        server.stop()


def test_config(tmp_path):
    run = lambda *args: subprocess.run([BINARY, *args], capture_output=True, text=True, cwd=tmp_path)
    assert run("config", "check").returncode == 0
    (tmp_path / "wattlake.toml").write_text("[http]\nlissten = 'x'\n")
    done = run("config", "check")
    assert done.returncode == 2 and "http.lissten" in done.stderr and "http.listen" in done.stderr
    (tmp_path / "wattlake.toml").write_text("[storage.s3]\nsecret_key = 'hunter2'\n")
    shown = run("config", "print")
    assert "hunter2" not in shown.stdout and 'interval = "5m"' in shown.stdout
    assert run("serve", "--set", "http.listen=0.0.0.0:1x").returncode == 2
    assert run("nonsense").returncode == 2


def test_listening_beyond_loopback_needs_a_token(tmp_path):
    done = subprocess.run([BINARY, "demo", "--data-dir", str(tmp_path / "d"), "--set", "http.listen=0.0.0.0:0"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "loopback" in done.stderr


def test_demo(start):
    server = start("demo", command=("demo", "--days", "3"))
    wait_until(lambda: "Try in another terminal" in server.log_text(), "the welcome")
    kinds = server.sql("SELECT source_type, count(*) AS n FROM energy_sources GROUP BY 1 ORDER BY 1")
    assert {k["source_type"] for k in kinds} == {"battery", "ev", "grid", "solar"}
    sites, meters = server.get("/api/sites").json(), server.get("/api/meters").json()
    assert len({s["metadata"]["timezone"] for s in sites}) == len(sites) - 1 == 3 and 18 <= len(meters) <= 26
    assert {m["category"] for m in meters} == {"PROD", "CONS", "STOR", "INJ"}
    assert max(r["depth"] for r in server.sql("SELECT depth FROM meter_tree")) == 2
    count = lambda: server.sql("SELECT count(*) AS n FROM measurements WHERE metric = 'power'")[0]["n"]
    before = count()
    wait_until(lambda: count() > before, "live readings", 10)
    commands = [l.strip() for l in server.log_text().splitlines() if l.strip().startswith("curl '")]
    assert commands
    out = subprocess.run(commands[0], shell=True, capture_output=True, text=True).stdout
    assert out.startswith("bucketStart,bucketEnd,category") and "PROD" in out
    polled = lambda: server.sql("SELECT count(DISTINCT entity_id) AS n FROM measurements m JOIN energy_sources e ON e.id = m.entity_id "
                                "WHERE metric = 'energy' AND e.metadata LIKE '%useAPI%'")[0]["n"]
    wait_until(lambda: polled() == 2 and {j["state"] for j in server.get("/api/jobs").json()} == {"done"}, "the polled history")
    server.stop()
    server.start()
    assert len(server.get("/api/sites").json()) == 4
    other = Server(server.dir.parent / "other")
    other.cli("token", "create", "--name", "x", "--scope", "read")
    assert requests.get(server.url + "/health").ok
