"""What no query may do, on every protocol: change anything, read files, tell about the server, or take it down."""

import concurrent.futures
import contextlib
import itertools
import pathlib
import threading
import time

import psycopg
import pytest
import requests
from conftest import SCALE, Fleet, wait_until
from protocols import Protocols, Refused, flight

START = 1772323200  # 2026-03-01

# {dir} is a folder that must stay empty.
FORBIDDEN = """
CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'
CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{dir}/x.parquet'
CREATE UNBOUNDED EXTERNAL TABLE t STORED AS CSV LOCATION '/dev/stdin'
COPY (SELECT 1) TO '{dir}/copy.csv'
COPY measurements TO '{dir}/copy.parquet' STORED AS PARQUET
COPY sites TO PROGRAM 'touch {dir}/program'
COPY sites FROM '/etc/passwd'
COPY sites FROM STDIN
INSERT INTO sites VALUES (1)
INSERT INTO measurements SELECT * FROM measurements
INSERT OVERWRITE sites SELECT * FROM sites
UPDATE sites SET name = 'x'
DELETE FROM measurements
TRUNCATE measurements
MERGE INTO sites USING meters ON true WHEN MATCHED THEN DELETE
CREATE TABLE t (a int)
CREATE TABLE t AS SELECT 1
CREATE TEMPORARY TABLE t (a int)
CREATE VIEW v AS SELECT 1
CREATE OR REPLACE VIEW sites AS SELECT 1
CREATE MATERIALIZED VIEW v AS SELECT 1
CREATE SCHEMA s
CREATE DATABASE d
CREATE FUNCTION f() RETURNS int RETURN 1
CREATE FUNCTION f(int) RETURNS int LANGUAGE c AS '/lib/x.so'
CREATE INDEX i ON sites (name)
CREATE EXTENSION plpythonu
CREATE ROLE r SUPERUSER
CREATE USER u
CREATE SEQUENCE q
CREATE TRIGGER t AFTER INSERT ON sites EXECUTE FUNCTION f()
DROP TABLE measurements
DROP VIEW IF EXISTS sites
DROP SCHEMA public CASCADE
DROP DATABASE wattlake
DROP FUNCTION time_bucket
ALTER TABLE sites ADD COLUMN x int
ALTER TABLE sites RENAME TO other
ALTER ROLE postgres SUPERUSER
GRANT ALL ON sites TO public
REVOKE ALL ON sites FROM public
SET datafusion.runtime.memory_limit = '100G'
SET datafusion.runtime.temp_directory = '{dir}'
SET datafusion.execution.target_partitions = 1000
RESET datafusion.runtime.memory_limit
PREPARE p AS SELECT 1
EXECUTE p
EXPLAIN ANALYZE SELECT 1
EXPLAIN ANALYZE COPY (SELECT 1) TO '{dir}/explained.csv'
EXPLAIN INSERT INTO sites VALUES (1)
VACUUM
ANALYZE sites
CALL f()
DO 'BEGIN END'
LOAD '/lib/x.so'
LISTEN x
NOTIFY x
LOCK TABLE sites
COMMENT ON TABLE sites IS 'x'
SELECT * INTO t FROM sites
SELECT * FROM '/etc/passwd'
SELECT * FROM 'file:///etc/passwd'
SELECT * FROM "/etc/passwd"
SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_parquet('s3://bucket/key')
SELECT * FROM parquet_metadata('/etc/passwd')
SELECT pg_read_file('/etc/passwd')
SELECT lo_import('/etc/passwd')
SELECT * FROM pg_ls_dir('/')
SELECT * FROM information_schema.df_settings
SELECT * FROM information_schema.routines
WITH x AS (DELETE FROM sites RETURNING *) SELECT * FROM x
WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n
SELECT 1; DROP TABLE sites
""".strip().splitlines()


@pytest.fixture
def full(server, fleet):
    lines = [f"power,entity_id={fleet.main} value={n % 1000} {START + n}" for n in range(200_000)]
    server.write("\n".join(lines))
    server.flush()
    server.fleet = fleet
    return server


def test_forbidden_statements(full, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    before = full.sql("SELECT count(*) AS n, sum(value) AS s FROM measurements")
    passwords = pathlib.Path("/etc/passwd").read_text().splitlines()[0]
    with contextlib.ExitStack() as stack:
        for name, ask in Protocols(full, stack).all().items():
            for text in FORBIDDEN:
                text = text.format(dir=empty)
                with pytest.raises(Refused) as refused:
                    rows = ask(text)
                    pytest.fail(f"{name}: {text} answered {rows}")
                assert passwords not in str(refused.value) and str(full.dir) not in str(refused.value), (name, text)
    assert list(empty.iterdir()) == []
    assert full.sql("SELECT count(*) AS n, sum(value) AS s FROM measurements") == before


def test_nothing_is_told_about_the_server(full):
    secrets = [str(full.dir), full.token, pathlib.Path("/etc/hostname").read_text().strip() or "?"]
    questions = [
        "EXPLAIN SELECT * FROM measurements WHERE value > 3",
        "EXPLAIN VERBOSE SELECT * FROM measurements",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM pg_catalog.pg_settings",
        "SELECT * FROM pg_catalog.pg_database",
        "SELECT * FROM pg_catalog.pg_tables",
    ]
    with contextlib.ExitStack() as stack:
        protocols = Protocols(full, stack)
        for text in questions:
            for ask in (protocols.http, protocols.flight, lambda text: protocols.postgres(lambda: protocols.db.execute(text))):
                answer = str(ask(text))
                assert not any(secret in answer for secret in secrets), text
        assert protocols.db.execute("SHOW ALL").fetchall()


def same(value):
    """One form for the values of all protocols."""
    if isinstance(value, float):
        return value + 0.0  # no minus zero
    return value.isoformat() if hasattr(value, "isoformat") else value


def test_all_protocols_answer_the_same(full):
    questions = [
        "SELECT count(*), min(value), max(value), avg(value) FROM measurements",
        "SELECT metric, unit, quality, count(*) FROM measurements GROUP BY 1, 2, 3",
        "SELECT name, category, capacity, active FROM meters ORDER BY name",
        "SELECT value, value / 7 AS seventh, -value AS minus FROM measurements ORDER BY timestamp LIMIT 50",
        "SELECT 0.1 + 0.2 AS a, 1e300 AS b, -0.0 AS c, 9007199254740993 AS d, 'ä\"''ü' AS e, NULL AS f, true AS g",
        "SELECT time_bucket('1h', timestamp) < now() AS past, count(*) FROM measurements GROUP BY 1",
        "SELECT m.name, l.value FROM latest l JOIN meters m ON m.id = l.entity_id",
    ]
    with contextlib.ExitStack() as stack:
        asked = Protocols(full, stack).all()
        for text in questions:
            answers = {name: [tuple(map(same, row)) for row in ask(text)] for name, ask in asked.items() if name != "Postgres, cursor"}
            assert len({str(rows) for rows in answers.values()}) == 1, (text, answers)


WIDE = "SELECT a.value FROM measurements a, measurements b, measurements c, measurements d WHERE a.value + b.value + c.value > d.value"
EVIL = {
    "a long sum": "SELECT " + "+".join(["1"] * 20_000),
    "a long chain": "SELECT count(*) FROM sites WHERE " + " OR ".join(["active"] * 20_000),
    "deep brackets": "SELECT " + "(" * 10_000 + "1" + ")" * 10_000,
    "many tables": "WITH " + ", ".join(f"c{n} AS (SELECT {n})" for n in range(8000)) + " SELECT 1",
    "a long list": "SELECT count(*) FROM measurements WHERE value IN (" + ", ".join(map(str, range(100_000))) + ")",
    "a text of two gigabytes": "SELECT repeat('a', 2000000000)",
    "wide padding": "SELECT lpad('a', 2000000000, 'b')",
    "ten billion numbers": "SELECT sum(value) FROM generate_series(1, 9876543210)",
    "an endless range": "SELECT range(0, 9000000000000000)",
    "a product of all": f"SELECT count(*) FROM ({WIDE})",
    "all in random order": "SELECT max(n) FROM (SELECT row_number() OVER (ORDER BY random()) AS n FROM measurements a, (VALUES (1), (2), (3)) b)",
    "one array of all": "SELECT length(array_to_string(array_agg(a.entity_id), ',')) FROM measurements a, (SELECT 1 FROM measurements LIMIT 100) b",
    "many distinct": "SELECT count(DISTINCT a.value * 1e9 + b.value + c.value / 1e6) FROM measurements a, measurements b, (SELECT value FROM measurements LIMIT 10) c",
    "a huge pattern": "SELECT count(*) FROM measurements WHERE regexp_replace(entity_id, '(" + "a?" * 5000 + "){1000}', 'x') = 'y'",
    "a pattern that backtracks": "SELECT count(*) FROM measurements WHERE regexp_like(repeat('a', 1000), '^(a+)+$|(a|aa)+b')",
    "recursion": "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "a sort of all": "SELECT a.entity_id, a.metric, a.unit FROM measurements a, (SELECT 1 FROM measurements LIMIT 50) b ORDER BY a.value, a.entity_id",
    "doubling texts": "WITH a AS (SELECT repeat('x', 1000000) AS t), b AS (SELECT concat(" + ", ".join(["t"] * 500) + ") AS t FROM a) SELECT length(concat(" + ", ".join(["t"] * 500) + ")) FROM b",
}


def test_evil_queries(start):
    """Each ends, and the server lives, keeps its memory and takes readings all the while."""
    server = start(settings={"query.timeout": "3s", "query.spill": "1GiB"})
    fleet = Fleet(server)
    server.write("\n".join(f"power,entity_id={fleet.main} value={n % 1000} {START + n}" for n in range(300_000)))
    server.flush()
    pid, stop, written, failures = server.process.pid, threading.Event(), itertools.count(), []

    def ingest():
        session = requests.Session()
        for n in written:
            if stop.is_set():
                return
            body = f"power,entity_id={fleet.pv} value=1 {START + n}"
            r = session.post(f"{server.url}/api/v2/write?precision=s", data=body, headers={"Authorization": f"Bearer {server.token}"}, timeout=30)
            if r.status_code != 204:
                failures.append(r.text)
            time.sleep(0.01)

    writer = threading.Thread(target=ingest)
    writer.start()
    most = 0
    try:
        for name, text in EVIL.items():
            began = time.monotonic()
            with contextlib.suppress(requests.exceptions.ChunkedEncodingError):
                r = requests.post(f"{server.url}/api/sql", json={"query": text}, headers={"Authorization": f"Bearer {server.token}"}, timeout=35)
                assert r.status_code in (200, 400, 422), (name, r.status_code, r.text[:300])
            with psycopg.connect(**server.postgres(), autocommit=True) as db, contextlib.suppress(psycopg.Error):
                db.execute("SET statement_timeout = '1s'")
                db.execute(text)
            assert server.process.poll() is None, f"{name}: the server died"
            most = max(most, server.memory())
            print(f"{name}: {time.monotonic() - began:.1f} s, {server.memory() >> 20} MiB")
        # Prepared and never closed, declared and never fetched, asked and never read.
        with contextlib.ExitStack() as stack:
            db = stack.enter_context(psycopg.connect(**server.postgres(), autocommit=True))
            with pytest.raises(psycopg.Error, match="close some"):
                for n in range(1500):
                    answer = db.pgconn.prepare(f"s{n}".encode(), b"SELECT 1")
                    if answer.error_message and b"query.timeout" not in answer.error_message:
                        raise psycopg.Error(answer.error_message.decode())
            with pytest.raises(psycopg.Error, match="too many queries|portals"):
                for n in range(20):
                    db.execute(f"DECLARE c{n} CURSOR WITH HOLD FOR {WIDE}")
            silent = psycopg.connect(**server.postgres(), autocommit=True)
            stack.callback(silent.pgconn.finish)
            silent.pgconn.send_query(b"SELECT * FROM measurements a, (SELECT 1 FROM measurements LIMIT 100) b")
            # Their turns come back to others when nobody has read for a while.
            answered = lambda: server.post("/api/sql", json={"query": "SELECT 1 AS one"}).status_code == 200
            wait_until(answered, "a turn", 45)
        most = max(most, server.memory())
    finally:
        stop.set()
        writer.join()
    assert not failures and server.process.pid == pid
    assert most < (1 << 30) + (512 << 20), f"{most >> 20} MiB"
    found = server.sql(f"SELECT count(*) AS n FROM measurements WHERE entity_id = '{fleet.pv}'")
    assert found[0]["n"] == next(written) - 1
    assert "panicked" not in server.log_text()


def test_a_storm_of_queries(full):
    """So many run, some wait, the rest is told to come again; nothing else fails."""
    question = {"query": "SELECT count(*) FROM measurements a, (SELECT 1 FROM measurements LIMIT 3) b WHERE a.value > 1"}

    def ask(_):
        r = full.post("/api/sql", json=question)
        assert r.status_code in (200, 429), r.text
        if r.status_code == 429:
            assert r.json()["error"]["kind"] == "overloaded" and r.headers["Retry-After"]
        return r.status_code

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(ask, range(1000)))
    assert statuses.count(200) >= 8
    assert full.post("/api/sql", json=question).status_code == 200


def test_one_token_leaves_turns_to_others(start):
    server = start(settings={"query.max_concurrent": 3, "query.max_concurrent_per_token": 2, "query.timeout": "20s"})
    fleet = Fleet(server)
    server.write("\n".join(f"power,entity_id={fleet.main} value={n} {START + n}" for n in range(3000)))
    other = server.new_token("--scope", "read")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        long = [pool.submit(server.post, "/api/sql", json={"query": f"SELECT count(*) FROM ({WIDE})"}) for _ in range(2)]
        running = lambda: "wattlake_queries_running 2" in server.get("/metrics").text
        wait_until(running, "two queries at work")
        refused = server.post("/api/sql", json={"query": "SELECT 1"})
        assert refused.status_code == 429 and "max_concurrent_per_token" in refused.text
        assert server.post("/api/sql", json={"query": "SELECT 1"}, token=other).status_code == 200
        assert all(answer.result().status_code == 422 for answer in long)


def test_abandoned_queries_give_everything_back(full):
    """Sockets, spill files, turns and memory of queries whose client goes away."""
    descriptors = lambda: len(list(pathlib.Path(f"/proc/{full.process.pid}/fd").iterdir()))
    spilled = lambda: sum(f.stat().st_size for f in (full.dir / "tmp").rglob("*") if f.is_file())
    running = lambda: "wattlake_queries_running 0" in full.get("/metrics").text
    question = "SELECT a.entity_id, a.value FROM measurements a, (SELECT 1 FROM measurements LIMIT 20) b ORDER BY a.value, a.entity_id"
    full.sql("SELECT 1")
    before = descriptors()
    for _ in range(20 * SCALE):
        with requests.Session() as session:
            for _ in range(5):
                with contextlib.suppress(requests.RequestException):
                    session.post(f"{full.url}/api/sql", json={"query": question}, headers={"Authorization": f"Bearer {full.token}"}, timeout=0.1)
    wait_until(running, "the end of all queries", 5)
    wait_until(lambda: spilled() == 0, "the end of spill files", 5)
    wait_until(lambda: descriptors() <= before + 5, "the end of connections", 5)
