"""What keeps the archive small, sound and recoverable: compaction, deletes, retention, snapshots, verify, backup, bulk imports."""

import csv
import json
import os
import random
import shutil
from datetime import datetime, timedelta, timezone

import pytest

from conftest import Fleet, wait_until

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z
DIGEST = "SELECT entity_id, metric, count(*) AS n, sum(value) AS s, min(timestamp) AS a, max(timestamp) AS b FROM measurements GROUP BY 1, 2 ORDER BY 1, 2"


def fill(server, fleet, flushes=10, days=70):
    """Readings of two and a half months in several files, with corrections."""
    rng = random.Random(4)
    for n in range(flushes):
        lines = []
        for i in range(300):
            e, metric = rng.choice([fleet.main, fleet.inv1, fleet.b_main]), rng.choice(["power", "energy"])
            lines.append(f"{metric},entity_id={e} value={rng.randint(0, 400) / 4} {T0 + 900 * rng.randint(0, 96 * days)}")
        server.write("\n".join(lines))
        server.flush()


def data_files(server):
    return sorted((server.dir / "lake" / "measurements").glob("month=*/*.parquet"))


def test_compaction_changes_no_answer(server, fleet, duck):
    fill(server, fleet)
    digest, rollup = server.sql(DIGEST), {"metric": "energy", "bucket": "1d", "by": "category", "from": "2026-01-01", "to": "2026-04-01"}
    before = server.get("/api/rollup", params=rollup).json()
    status = server.get("/api/status").json()["engine"]
    planned = server.post("/api/compact", params={"all": "true", "dryRun": "true"}).json()
    assert planned["compactedFiles"] == status["dataFiles"] > 20
    assert server.get("/api/status").json()["engine"]["snapshotId"] == status["snapshotId"], "a dry run changes nothing"
    done = server.post("/api/compact", params={"all": "true"}).json()
    assert done["compactions"] >= 3
    after = server.get("/api/status").json()["engine"]
    assert (after["dataFiles"], after["deleteFiles"], after["archiveRows"]) == (3, 0, status["archiveRows"])
    assert server.sql(DIGEST) == digest
    assert server.get("/api/rollup", params=rollup).json() == before
    db = duck(f"sqlite:{server.dir}/catalog.db")
    assert db.sql("SELECT count(*) FROM lake.measurements").fetchone()[0] == status["archiveRows"]
    version = status["snapshotId"]
    assert db.sql(f"SELECT count(*) FROM lake.measurements AT (VERSION => {version})").fetchone()[0] == status["archiveRows"]
    db.close()
    assert "0 files merged" in server.cli("compact", "--all").stdout


def test_deleted_rows_are_gone_for_everyone_and_named_states_stay(server, fleet, duck):
    fill(server, fleet, flushes=3)
    rows = server.sql("SELECT count(*) AS n FROM measurements")[0]["n"]
    assert server.post("/api/snapshots", json={"name": "before-cleanup"}).status_code == 201
    assert server.post("/api/snapshots", json={"name": "before-cleanup"}).status_code == 409
    condition = f"entity_id = '{fleet.inv1}' AND timestamp >= TIMESTAMP '2026-01-15T00:00:00Z'"
    expected = server.sql(f"SELECT count(*) AS n FROM measurements WHERE {condition}")[0]["n"]
    r = server.request("DELETE", "/api/measurements", params={"entityId": fleet.inv1, "from": "2026-01-15"})
    assert r.json() == {"deleted": expected} and expected > 50
    # What is in memory goes, too.
    server.write(f"power,entity_id={fleet.main} value=1 {T0 + 7}")
    r = server.request("DELETE", "/api/measurements", params={"entityId": fleet.main, "metric": "power", "from": "2026-01-01T00:00:07Z", "to": "2026-01-01T00:00:08Z"})
    assert r.json() == {"deleted": 1}
    assert server.sql("SELECT count(*) AS n FROM measurements")[0]["n"] == rows - expected
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS n FROM measurements")[0]["n"] == rows - expected, "durable"
    db = duck(f"sqlite:{server.dir}/catalog.db")
    assert db.sql("SELECT count(*) FROM lake.measurements").fetchone()[0] == rows - expected
    db.close()
    assert server.sql("SELECT count(*) AS n FROM measurements", asOf="before-cleanup")[0]["n"] == rows
    assert "before-cleanup" in server.cli("snapshot", "list").stdout
    out = server.cli("sql", "--as-of", "before-cleanup", "--format", "csv", "SELECT count(*) AS n FROM measurements")
    assert out.stdout.split() == ["n", str(rows)]
    r = server.post("/api/sql", json={"query": "SELECT 1", "asOf": "no-such-name"})
    assert r.status_code == 404 and "no-such-name" in r.text
    assert server.request("DELETE", "/api/measurements").status_code == 400, "says which rows"
    assert server.request("DELETE", "/api/measurements", params={"entityID": fleet.main}).status_code == 400
    # Deleting an entity with everything on it takes its readings along.
    assert server.request("DELETE", f"/api/sites/{fleet.site_b}", params={"cascade": "true"}).status_code == 204
    assert server.sql(f"SELECT count(*) AS n FROM measurements WHERE entity_id = '{fleet.b_main}'") == [{"n": 0}]


def test_old_readings_and_snapshots_go_and_their_objects_follow(start):
    settings = {"retention": '[{ metric = "voltage", keep = "90d" }]', "snapshots.keep": "1ms", "snapshots.grace": "30s"}
    server = start(settings=settings)
    fleet = Fleet(server)
    now = int(datetime.now(timezone.utc).timestamp())
    lines = [f"{m},entity_id={fleet.main} value=1 {now - 86400 * d}" for m in ("voltage", "power") for d in range(1, 200)]
    server.write("\n".join(lines))
    server.flush()
    server.post("/api/snapshots", json={"name": "all"})
    planned = server.post("/api/compact", params={"dryRun": "true", "force": "true"}).json()
    assert planned["retentionRows"] >= 100
    done = server.post("/api/compact", params={"force": "true"}).json()
    assert done["retentionRows"] == 110 and "deletionsPaused" not in done
    counts = {r["metric"]: r["n"] for r in server.sql("SELECT metric, count(*) AS n FROM measurements GROUP BY 1")}
    assert counts == {"voltage": 89, "power": 199}
    objects = len(data_files(server))
    # What has a name stays, with its objects; without it both go after the grace.
    assert server.sql("SELECT count(*) AS n FROM measurements", asOf="all")[0]["n"] == 398
    assert server.request("DELETE", "/api/snapshots/all").status_code == 204
    assert server.post("/api/compact", params={"all": "true", "force": "true"}).json()["expiredFiles"] > 0
    assert server.post("/api/sql", json={"query": "SELECT 1", "asOf": "all"}).status_code == 404
    assert len(data_files(server)) >= objects, "objects stay for the grace"
    server.stop()
    # A day without a clock: an orphan and objects past their grace.
    orphan = data_files(server)[0].parent / "0123456789abcdef.parquet"
    orphan.write_bytes(b"x")
    os.utime(orphan, (now - 2 * 86400, now - 2 * 86400))
    server.start()

    def swept():
        report = server.post("/api/compact", params={"force": "true"}).json()
        swept.total += report["sweptObjects"]
        live = server.get("/api/status").json()["engine"]["dataFiles"]
        return swept.total > 0 and not orphan.exists() and len(data_files(server)) == live

    swept.total = 0
    wait_until(swept, "the sweep", seconds=90)
    assert server.cli("verify").returncode == 0


def test_verify_finds_every_planted_damage(server, fleet):
    fill(server, fleet, flushes=4)
    assert "sound" in server.cli("verify").stdout
    server.stop()
    files = data_files(server)
    flipped, cut, gone = files[0], files[1], files[2]
    originals = {f: f.read_bytes() for f in (flipped, cut, gone)}
    damaged = bytearray(originals[flipped])
    damaged[len(damaged) // 3] ^= 1
    flipped.write_bytes(damaged)
    cut.write_bytes(originals[cut][:-9])
    gone.unlink()
    report = server.cli("verify", "--json", check=False)
    assert report.returncode == 1
    problems = {p["path"].rsplit("/", 1)[1]: p["kind"] for p in json.loads(report.stdout)["problems"]}
    assert problems == {flipped.name: "altered", cut.name: "altered", gone.name: "missing"}
    quick = json.loads(server.cli("verify", "--quick", "--json", check=False).stdout)
    assert {p["kind"] for p in quick["problems"]} == {"altered", "missing"} and len(quick["problems"]) == 2
    for file, content in originals.items():
        file.write_bytes(content)
    assert server.cli("verify").returncode == 0


def test_a_backup_made_while_writing_is_restored_whole(start, tmp_path):
    server = start()
    fleet = Fleet(server)
    fill(server, fleet, flushes=4)
    server.write(f"power,entity_id={fleet.main} value=77 {T0 + 3}")
    folder = tmp_path / "backup"
    out = server.cli("backup", str(folder))
    digest = server.sql(DIGEST)
    assert "snapshot" in out.stdout
    server.write(f"power,entity_id={fleet.main} value=78 {T0 + 4}")
    refused = server.cli("backup", str(folder), check=False)
    assert refused.returncode == 1 and "not empty" in refused.stderr
    assert server.post("/api/backup", json={"directory": "relative"}).status_code == 400
    server.stop()
    other = start("restored")
    other.stop()
    shutil.rmtree(other.dir)
    assert other.cli("restore", str(folder)).returncode == 0
    other.start()
    # Tokens come with the catalog.
    rows = other.post("/api/sql", json={"query": DIGEST}, token=server.token)
    assert rows.json() == digest
    assert other.post("/api/verify", token=server.token).json()["problems"] == []
    other.stop()
    again = other.cli("restore", str(folder), check=False)
    assert again.returncode == 1 and "not empty" in again.stderr
    # A backup that was tampered with restores nothing.
    victim = next((folder / "lake").rglob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    shutil.rmtree(other.dir)
    refused = other.cli("restore", str(folder), check=False)
    assert refused.returncode == 1 and victim.name in refused.stderr and not other.dir.exists()


@pytest.mark.parametrize("through_server", [False, True])
def test_a_bulk_import_in_random_order_ends_in_few_files(start, tmp_path, duck, through_server):
    server = start(settings={"memory.budget": "6MiB", "flush.max_bytes": "1MiB"})
    fleet = Fleet(server)
    rng = random.Random(9)
    begin = datetime(2023, 1, 1, tzinfo=timezone.utc)
    rows = [(rng.choice([fleet.main, fleet.inv1, fleet.inv2]), begin + timedelta(minutes=15 * i)) for i in range(96 * 365 * 3)]
    rng.shuffle(rows)
    path = tmp_path / "history.csv"
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["entity_id", "timestamp", "metric", "value", "unit"])
        for e, t in rows:
            out.writerow([e, t.strftime("%Y-%m-%dT%H:%M:%SZ"), "power", round(rng.random() * 10, 3), "kW"])
    if not through_server:
        server.stop()
    before = server.cli("status", "--json").stdout
    out = server.cli("import", str(path), "--json")
    report = json.loads(out.stdout)
    assert (report["report"]["accepted"], report["report"]["rejected"]) == (len(rows), 0)
    assert report["stored"].pop("batch") > 0 and report["stored"] == {"new": len(rows), "corrected": 0, "identical": 0}
    status = json.loads(server.cli("status", "--json").stdout)["engine"]
    assert status["snapshotId"] == json.loads(before)["engine"]["snapshotId"] + 1, "one commit"
    months = {}
    for file in data_files(server):
        months.setdefault(file.parent.name, []).append(file)
    assert len(months) == 36 and max(map(len, months.values())) <= 3
    again = json.loads(server.cli("import", str(path), "--json").stdout)
    assert again["stored"] == {"new": 0, "corrected": 0, "identical": len(rows), "batch": None}
    assert json.loads(server.cli("status", "--json").stdout)["engine"]["snapshotId"] == status["snapshotId"]
    if not through_server:
        server.start()
    db = duck(f"sqlite:{server.dir}/catalog.db")
    ours = server.sql("SELECT entity_id, count(*) AS n, sum(value) AS s FROM measurements GROUP BY 1 ORDER BY 1")
    theirs = db.sql(f"SELECT entity_id, count(*), sum(value) FROM read_csv('{path}') GROUP BY 1 ORDER BY 1").fetchall()
    lake = db.sql("SELECT entity_id, count(*), sum(value) FROM lake.measurements GROUP BY 1 ORDER BY 1").fetchall()
    db.close()
    for a, b, c in zip(ours, theirs, lake, strict=True):
        assert (a["entity_id"], a["n"]) == (str(b[0]), b[1]) == (c[0], c[1])
        assert abs(a["s"] - b[2]) < 1e-6 and abs(c[2] - b[2]) < 1e-6


def test_an_import_through_a_server_is_seen_when_it_is_finished(server, fleet, tmp_path):
    count = lambda: server.sql("SELECT count(*) AS n FROM measurements")[0]["n"]
    part = lambda first: "\n".join(f"power,entity_id={fleet.main} value={i} {T0 + 60 * i}" for i in range(first, first + 100)).encode()
    query = {"format": "line-protocol", "precision": "s"}
    path = f"/api/imports/{server.post('/api/imports').json()['id']}"
    for first in (0, 100, 50):
        r = server.post(path, params=query, data=part(first))
        assert r.status_code == 200 and r.json()["accepted"] == 100, r.text
    bad = server.post(path, params=query, data=b"power value=x 1\n" + part(200))
    assert (bad.json()["accepted"], bad.json()["rejected"]) == (100, 1)
    assert server.post(path, params={"format": "nonsense"}, data=b"").status_code == 400
    assert count() == 0, "nothing is seen before it is finished"
    # Only some at a time; one that is given up makes room and leaves nothing.
    other = f"/api/imports/{server.post('/api/imports').json()['id']}"
    assert server.post("/api/imports").status_code == 429
    assert server.post(other, params=query, data=part(1000)).status_code == 200
    assert server.request("DELETE", other).status_code == 204
    assert server.post(other, params=query, data=part(1000)).status_code == 404
    finished = server.post(f"{path}/finish").json()
    assert finished.pop("batch") > 0 and finished == {"new": 300, "corrected": 0, "identical": 0}
    assert server.post(f"{path}/finish").status_code == 404
    assert server.post("/api/imports/nonsense/finish").status_code == 400
    assert count() == 300
    assert not list((server.dir / "tmp").rglob("*.parquet"))
    # A file that breaks off stores nothing.
    broken = tmp_path / "broken.csv.gz"
    import gzip

    text = "entity_id,metric,timestamp,value,unit\n" + "\n".join(f"{fleet.main},power,2026-03-01T00:{i // 60:02}:{i % 60:02}Z,{i},kW" for i in range(3000))
    broken.write_bytes(gzip.compress(text.encode())[:-20])
    done = server.cli("import", str(broken), check=False)
    assert done.returncode == 1 and "nothing was stored" in done.stderr, done.stderr
    assert count() == 300
    assert server.post("/api/imports").status_code == 201


def test_a_postgres_archive_is_backed_up_and_restored(start, postgres, tmp_path):
    server = start(settings={"catalog.url": postgres()})
    fleet = Fleet(server)
    fill(server, fleet, flushes=4)
    server.write(f"power,entity_id={fleet.main} value=77 {T0 + 3}")
    server.cli("backup", str(tmp_path / "backup"))
    digest, sites = server.sql(DIGEST), server.get("/api/sites").json()
    server.write(f"power,entity_id={fleet.main} value=78 {T0 + 4}")
    server.stop()
    other = start("restored")
    other.stop()
    shutil.rmtree(other.dir)
    other.settings["catalog.url"] = postgres()
    other.cli("restore", str(tmp_path / "backup"))
    other.start()
    assert other.sql(DIGEST) == digest and other.get("/api/sites").json() == sites
    assert other.post("/api/verify").json()["problems"] == []
    # Into a database that has an archive already, nothing is restored.
    other.stop()
    shutil.rmtree(other.dir)
    assert "not empty" in other.cli("restore", str(tmp_path / "backup"), check=False).stderr


@pytest.mark.parametrize("where", ["local", "s3", "postgres"])
def test_a_lost_catalog_is_rebuilt_from_the_storage(start, duck, s3, postgres, where):
    settings = {"local": {}, "s3": s3 | {"storage.url": "s3://lake/lost"}}.get(where) or ({"catalog.url": postgres()} if where == "postgres" else {})
    server = start(settings=settings)
    fleet = Fleet(server)
    fill(server, fleet, flushes=5)
    server.post("/api/compact", params={"all": "true"})
    fill(server, fleet, flushes=1)
    server.request("DELETE", "/api/measurements", params={"entityId": str(fleet.inv1), "from": "2026-01-01T00:00:00Z", "to": "2026-01-09T00:00:00Z"})
    server.stop()
    server.start()
    server.write(f"power,entity_id={fleet.main} value=77 {T0 + 3}")
    digest, sites, meters = server.sql(DIGEST), server.get("/api/sites").json(), server.get("/api/meters").json()
    server.kill()
    if where == "postgres":
        server.settings["catalog.url"] = postgres()
    else:
        for file in server.dir.glob("catalog.db*"):
            file.unlink()
    # A server on a new catalog would hide the archive: it does not start.
    refused = server.cli("serve", check=False)
    assert refused.returncode == 1 and "rebuild-catalog" in refused.stderr
    if where != "postgres":
        assert "move it away" in server.cli("rebuild-catalog", check=False).stderr
        (server.dir / "catalog.db").rename(server.dir / "catalog.broken")
    out = server.cli("rebuild-catalog").stdout
    assert "2 sites" in out and "missing" not in out
    server.start()
    assert server.sql(DIGEST) == digest
    assert (server.get("/api/sites").json(), server.get("/api/meters").json()) == (sites, meters)
    # Files of earlier snapshots belong to nobody now; they are collected like any orphan.
    assert {p["kind"] for p in server.post("/api/verify").json()["problems"]} <= {"orphan"}
    if where == "local":
        server.flush()
        db = duck(f"sqlite:{server.dir}/catalog.db")
        assert db.sql("SELECT count(*) FROM lake.measurements").fetchone()[0] == sum(row["n"] for row in digest)


def test_the_delta_table_shows_the_same_rows(server, fleet):
    import duckdb
    from deltalake import DeltaTable

    from conftest import extension

    table = server.dir / "lake" / "measurements"

    def theirs():
        db = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"})
        db.sql("SET TimeZone = 'UTC'")
        db.sql(f"LOAD '{extension('duckdb_extension_delta', 'delta')}'")
        rows = DeltaTable(str(table)).to_pyarrow_table()
        ask = "SELECT entity_id, metric, timestamp, value, unit, quality, entity_type FROM {} ORDER BY 1, 2, 3"
        by_duckdb = db.sql(ask.format(f"delta_scan('{table}')")).fetchall()
        by_deltalake = db.sql(ask.format("rows")).fetchall()
        assert by_duckdb == by_deltalake
        assert db.sql(f"SELECT count(*) FROM delta_scan('{table}') WHERE month = '2026-02'").fetchone()[0] == sum(
            1 for row in by_duckdb if row[2].month == 2
        )
        return by_duckdb

    def ours():
        rows = server.sql("SELECT entity_id, metric, timestamp, value, unit, quality, entity_type FROM measurements ORDER BY 1, 2, 3")
        return [(r["entity_id"], r["metric"], datetime.fromisoformat(r["timestamp"]), *list(r.values())[3:]) for r in rows]

    def same():
        found = [(a, b, t.astimezone(timezone.utc), *rest) for a, b, t, *rest in theirs()]
        assert found == ours()

    fill(server, fleet, flushes=3)
    out = server.cli("export", "--format", "delta").stdout
    assert "Delta version 0" in out
    same()
    # Corrections and deletions: Delta readers of version 1 know no deleted rows.
    server.write("\n".join(f"power,entity_id={fleet.main} value=-1 {T0 + 900 * i}" for i in range(0, 6000, 97)))
    server.request("DELETE", "/api/measurements", params={"entityId": str(fleet.inv1), "from": "2026-01-02T00:00:00Z", "to": "2026-01-05T00:00:00Z"})
    assert server.post("/api/export", json={"format": "delta"}).json()["version"] == 1
    same()
    assert server.post("/api/export", json={"format": "delta"}).json() | {"rows": 0, "files": 0} == {"version": 1, "files": 0, "rows": 0, "added": 0, "removed": 0}
    assert server.post("/api/export", json={"format": "iceberg"}).status_code == 400
    server.post("/api/compact", params={"all": "true"})
    # Past two checkpoints; the log does not grow for ever.
    for i in range(140):
        server.write(f"power,entity_id={fleet.main} value={i} {T0 + i}")
        server.post("/api/export", json={"format": "delta"})
    same()
    log = sorted(p.name for p in (table / "_delta_log").iterdir())
    assert DeltaTable(str(table)).version() == 141 and f"{128:020}.checkpoint.parquet" in log
    for i in range(60):
        server.write(f"power,entity_id={fleet.main} value={i} {T0 + 1000 + i}")
        server.post("/api/export", json={"format": "delta"})
    log = sorted(p.name for p in (table / "_delta_log").iterdir())
    assert f"{127:020}.json" not in log and f"{129:020}.json" in log and f"{64:020}.checkpoint.parquet" not in log
    same()
    # Nothing of it is taken for an orphan.
    assert server.post("/api/verify").json()["problems"] == []
    server.stop()
    assert "Delta version 201" in server.cli("export", "--format", "delta").stdout
    # A log that somebody else wrote to is left alone.
    (table / "_delta_log" / f"{202:020}.json").write_text('{"commitInfo":{"engineInfo":"other"}}\n')
    server.start()
    server.write(f"power,entity_id={fleet.main} value=5 {T0 + 5000}")
    refused = server.post("/api/export", json={"format": "delta"})
    assert refused.status_code == 409 and "another writer" in refused.json()["error"]["message"]


def test_a_server_keeps_the_delta_table_up_to_date(start):
    from deltalake import DeltaTable

    server = start(settings={"delta.interval": "100ms", "compaction.interval": "100ms", "flush.interval": "100ms"})
    fleet = Fleet(server)
    server.write("\n".join(f"power,entity_id={fleet.main} value={i} {T0 + 900 * i}" for i in range(50)))
    table = server.dir / "lake" / "measurements"

    def shown():
        try:
            return DeltaTable(str(table)).to_pyarrow_table().num_rows == 50
        except Exception:
            return False

    wait_until(shown, "a Delta version with all rows")
