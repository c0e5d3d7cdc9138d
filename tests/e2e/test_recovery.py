"""Starting on what a crash or a broken disk left behind."""

import subprocess

from conftest import BINARY, Fleet

T0 = 1_767_225_600


def lines(meter, start, n):
    return "\n".join(f"power,entity_id={meter} value={i} {T0 + 900 * i}" for i in range(start, start + n))


def test_a_torn_tail_is_forgiven_and_damage_is_not(server):
    fleet = Fleet(server)
    for i in range(6):
        server.write(lines(fleet.main, i * 10, 10))
    server.kill()
    (segment,) = (server.dir / "wal").glob("*.wal")
    whole = segment.read_bytes()
    # The last record torn: five are left, without a human.
    segment.write_bytes(whole[:-7])
    server.start()
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 50}]
    assert "torn_bytes" in server.log_text()
    server.kill()
    segments = sorted((server.dir / "wal").glob("*.wal"))
    backup = segments[0].read_bytes()
    damaged = bytearray(backup)
    damaged[len(damaged) // 2] ^= 4
    segments[0].write_bytes(damaged)
    before = {p: p.read_bytes() for p in (server.dir / "wal").iterdir()}
    done = server.cli("serve", check=False)
    assert done.returncode == 1 and segments[0].name in done.stderr and "offset" in done.stderr, done.stderr
    assert {p: p.read_bytes() for p in (server.dir / "wal").iterdir()} == before
    assert "wattlake repair" in done.stderr
    # Repair keeps the other frames and sets the damaged file aside.
    done = server.cli("repair")
    assert "damaged places" in done.stdout and segments[0].name in done.stdout
    assert (server.dir / "wal-quarantine" / segments[0].name).read_bytes() == damaged
    server.start()
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 40}]


def test_a_clean_stop_leaves_nothing_in_the_log(server):
    fleet = Fleet(server)
    server.write(lines(fleet.main, 0, 100))
    server.stop()
    assert not list((server.dir / "wal").glob("*.wal"))
    assert not (server.dir / "catalog.db-wal").exists()
    server.start()
    status = server.get("/api/status").json()["engine"]
    assert (status["archiveRows"], status["memoryRows"]) == (100, 0)


def test_a_lost_file_is_an_error_and_not_a_short_answer(server):
    fleet = Fleet(server)
    server.write(lines(fleet.main, 0, 10))
    server.flush()
    (file,) = server.dir.glob("lake/measurements/month=*/*.parquet")
    file.rename(file.with_suffix(".gone"))
    r = server.post("/api/sql", json={"query": "SELECT sum(value) FROM measurements"})
    assert r.status_code == 500, r.text
    file.with_suffix(".gone").rename(file)
    assert server.sql("SELECT sum(value) AS s FROM measurements") == [{"s": 45.0}]


def test_unwritable_places_are_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = subprocess.run([BINARY, "serve", "--data-dir", str(blocked / "data")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 74 and str(blocked) in done.stderr
    done = subprocess.run([BINARY, "serve", "--data-dir", str(tmp_path / "d"), "--set", "catalog.url=postgres://x@127.0.0.1:1/none"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "catalog database is not available" in done.stderr, done.stderr


def test_a_wrong_key_file_opens_no_secret(server):
    fleet = Fleet(server)
    server.post("/api/energy-sources", json={"meterId": fleet.pv, "name": "x", "sourceType": "solar", "metadata": {"apiKey": "k"}})
    server.stop()
    (server.dir / "secrets.key").write_text("not a key")
    done = server.cli("serve", check=False)
    assert done.returncode == 1 and "secrets.key" in done.stderr


def test_a_failing_store_loses_nothing(start, s3):
    server = start(settings=s3 | {"storage.url": "s3://missing-bucket/x", "flush.interval": "300ms", "storage.s3.spool": "0B"})
    fleet = Fleet(server)
    server.write(lines(fleet.main, 0, 20))
    assert server.post("/api/flush").status_code == 503
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 20}]
    assert server.get("/api/status").json()["engine"]["lastFlushError"]
    server.write(lines(fleet.main, 20, 20))
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 40}]
    import requests

    assert requests.put(s3["storage.s3.endpoint"] + "/missing-bucket", timeout=5).ok
    server.flush()
    assert server.get("/api/status").json()["engine"]["archiveRows"] == 40
