"""The Postgres wire protocol with the clients that people use: psql, drivers, SQLAlchemy."""

import asyncio
import contextlib
import datetime as dt
import json
import pathlib
import random
import re
import socket
import struct
import subprocess
import threading
import time
import uuid

import asyncpg
import psycopg
import pytest
import requests
import sqlalchemy as sa
from adbc_driver_flightsql import DatabaseOptions
from adbc_driver_flightsql import dbapi as flightsql
from adbc_driver_postgresql import dbapi as adbc_postgres
from conftest import BINARY, POSTGRES, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

START = 1772323200  # 2026-03-01
ROWS = 20_000


@pytest.fixture
def full(server, fleet):
    """A server with readings in files and in memory."""
    lines = [f"power,entity_id={fleet.main} value={n % 100} {START + 60 * n}" for n in range(ROWS)]
    server.write("\n".join(lines[: ROWS // 2]))
    server.flush()
    server.write("\n".join(lines[ROWS // 2 :]))
    server.fleet = fleet
    return server


@pytest.fixture
def db(full):
    with psycopg.connect(**full.postgres(), autocommit=True) as connection:
        yield connection


def psql(server, *commands, check=True, env=None):
    args = [f"{POSTGRES}/psql", "-X", "-h", "127.0.0.1", "-p", str(server.postgres_port), "-U", "anyone", "wattlake"]
    for command in commands:
        args += ["-c", command]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, env={"PGPASSWORD": server.token} | (env or {}))
    assert not check or (done.returncode == 0 and "ERROR" not in done.stderr), done.stderr
    return done


def test_psql(full, tmp_path):
    out = psql(full, "\\dt", "\\d meters", "\\dn", "\\l", "\\du", "\\di", "\\dv", "\\dx").stdout
    assert all(f" {table} " in out for table in ["measurements", "latest", "sites", "meters", "energy_sources", "meter_tree"])
    assert 'Table "public.meters"' in out and "timestamp with time zone" in out and "not null" in out
    out = psql(full, "SELECT name, active FROM meters ORDER BY name", "SHOW timezone", "EXPLAIN SELECT 1").stdout
    assert " b main | t" in out and " UTC" in out and "physical_plan" in out
    file = tmp_path / "out.csv"
    psql(full, f"\\copy (SELECT timestamp, value FROM measurements ORDER BY 1) TO '{file}' CSV HEADER")
    lines = file.read_text().splitlines()
    assert lines[0] == "timestamp,value" and len(lines) == ROWS + 1 and lines[1] == "2026-03-01 00:00:00+00,0"
    assert "COPY 3" in psql(full, "COPY sites (name) TO STDOUT", "\\copy meters to '/dev/null'").stdout


def test_texts_are_those_of_postgres(full, postgres):
    """Numbers and times, in rows and in COPY, as a real Postgres writes them."""
    random.seed(7)
    numbers = [0, -0.5, 99, 0.1 + 0.2, 1e-4, 9.9999e-5, 1e14, 999999999999999.9, 1e15, 1.2345678901234567e17, 5e-324, 1.7976931348623157e308]
    numbers += [random.uniform(-1, 1) * 10 ** random.randint(-30, 30) for _ in range(200)]
    times = ["1700-01-01 00:00:00", "1969-12-31 23:59:59.999999", "2026-03-01 12:30:00", "2026-03-01 12:30:00.25", "2199-12-31 23:59:59.5"]
    values = ", ".join(f"({n}, '{number!r}', '{times[n % len(times)]}')" for n, number in enumerate(numbers))
    query = f"""SELECT n, CAST(x AS double precision), CAST(x AS double precision) * 0 + n, CAST(t AS timestamp), CAST(t || 'Z' AS timestamptz)
      FROM (VALUES {values}) AS v (n, x, t) ORDER BY n"""
    real = subprocess.run([f"{POSTGRES}/psql", "-X", "-At", "-c", query, "-c", f"COPY ({query}) TO STDOUT", postgres()],
                          capture_output=True, text=True, timeout=60, env={"PGTZ": "UTC"})
    assert real.returncode == 0, real.stderr
    ours = psql(full, "\\pset format unaligned", "\\pset tuples_only on", query, f"COPY ({query}) TO STDOUT").stdout
    ours = [line for line in ours.splitlines() if "|" in line or "\t" in line]
    assert len(ours) == 2 * len(numbers)
    for mine, theirs in zip(ours, real.stdout.splitlines(), strict=True):
        # Postgres does not take the shortest text if that lies on the very border to the next number.
        (number, mine), (other, theirs) = (re.split(r"[|\t]", line, maxsplit=2)[1:] for line in (mine, theirs))
        assert mine == theirs and float(number) == float(other)
        assert number == other or ("e+" in number and "e+" in other and len(number) < len(other)), (number, other)


def test_psycopg(full, db):
    fleet = full.fleet
    since = dt.datetime.fromtimestamp(START, dt.timezone.utc)
    count = "SELECT count(*) FROM measurements WHERE timestamp >= %s AND metric = %s AND value < %s"
    assert db.execute(count, (since + dt.timedelta(minutes=100), "power", 50.5)).fetchone() == ((ROWS - 100) // 100 * 51,)
    for form in ("%s", "%b", "%t"):
        query = f"SELECT name FROM meters WHERE id = {form}"
        assert db.execute(query, (uuid.UUID(fleet.main),)).fetchall() == [("main",)], "an id as uuid"
        assert db.execute(query, (fleet.main,)).fetchall() == [("main",)], "an id as text"
    assert db.execute("SELECT name FROM meters WHERE id = ANY(%s)", ([fleet.main],)).fetchall() == [("main",)]
    assert len(db.execute("SELECT 1 FROM measurements LIMIT %s OFFSET %s", (7, 3)).fetchall()) == 7
    columns = "timestamp, value, metric, metadata, (value > 50) AS high, count(*) OVER () AS n"
    query = f"SELECT {columns} FROM measurements WHERE value > 98 ORDER BY timestamp LIMIT 1"
    row = (since + dt.timedelta(minutes=99), 99.0, "power", None, True, ROWS // 100)
    assert db.execute(query).fetchone() == row, "as text"
    assert db.cursor(binary=True).execute(query).fetchone() == row, "in binary"
    # Who fetches from a cursor says how; a cursor is BINARY for those who cannot.
    whole = f"SELECT {columns} FROM measurements ORDER BY timestamp"
    expected = db.execute(whole).fetchall()
    for binary in (False, True):
        with db.transaction():
            cursor = db.cursor("some", binary=binary).execute(whole)
            found = cursor.fetchmany(1) + cursor.fetchmany(7) + [r for _ in range(3) for r in cursor.fetchmany(20_000)] + cursor.fetchall()
            assert found == expected, binary
            db.execute(f"DECLARE own {'BINARY' if binary else ''} CURSOR FOR SELECT value, metric FROM measurements WHERE value > 98 ORDER BY timestamp")
            answer = db.pgconn.exec_(b"FETCH 1 FROM own")
            value = answer.get_value(0, 0)
            assert (struct.unpack(">d", value)[0] if binary else float(value)) == 99.0 and answer.fformat(0) == binary
    for n in (1, 2, 3):
        assert db.execute("SELECT %s::bigint + 1", (n,), prepare=True).fetchone() == (n + 1,)
    buckets = "SELECT time_bucket('1 day', timestamp, 'Europe/Berlin') AS day, count(*) FROM measurements GROUP BY 1 ORDER BY 1"
    assert db.execute(buckets).fetchall()[:2] == [(since - dt.timedelta(hours=1), 1380), (since + dt.timedelta(hours=23), 1440)]
    assert sum(1 for _ in db.cursor().stream("SELECT value FROM measurements")) == ROWS
    with db.cursor().copy("COPY (SELECT value FROM measurements ORDER BY timestamp) TO STDOUT (FORMAT binary)") as copy:
        copy.set_types(["float8"])
        assert [row[0] for row in copy.rows()] == [n % 100 for n in range(ROWS)]
    with psycopg.connect(**full.postgres(), autocommit=True) as other, other.pipeline():
        answers = [other.execute(f"SELECT {n}") for n in range(20)]
        assert [answer.fetchone()[0] for answer in answers] == list(range(20))


def test_cursors_and_transactions(full, db):
    with psycopg.connect(**full.postgres()) as transaction:
        with transaction.cursor("rows") as cursor:
            cursor.itersize = 3000
            cursor.execute("SELECT value FROM measurements ORDER BY timestamp")
            assert [row[0] for row in cursor] == [n % 100 for n in range(ROWS)]
        with pytest.raises(psycopg.errors.UndefinedColumn):
            transaction.execute("SELECT nonsense FROM sites")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            transaction.execute("SELECT 1")
        transaction.rollback()
        assert transaction.execute("SELECT 1").fetchone() == (1,)
        transaction.execute("SAVEPOINT a")
        transaction.execute("ROLLBACK TO SAVEPOINT a")
        transaction.commit()
        # A repeatable-read transaction sees one state, also through a flush.
        transaction.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        count = lambda connection: connection.execute("SELECT count(*) FROM measurements").fetchone()[0]
        assert count(transaction) == ROWS
        full.write(f"power,entity_id={full.fleet.main} value=1 {START - 60}")
        full.flush()
        assert (count(transaction), count(db)) == (ROWS, ROWS + 1)
        transaction.commit()
        assert count(transaction) == ROWS + 1
    with pytest.raises(psycopg.errors.NoActiveSqlTransaction):
        db.execute("DECLARE c CURSOR FOR SELECT 1")
    db.execute("DECLARE c CURSOR WITH HOLD FOR SELECT value FROM measurements ORDER BY timestamp DESC")
    assert [len(db.execute(f"FETCH {n} FROM c").fetchall()) for n in ("NEXT", "10", "FORWARD 5")] == [1, 10, 5]
    db.execute("CLOSE c")
    with pytest.raises(psycopg.errors.InvalidCursorName):
        db.execute("FETCH 1 FROM c")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_sqlalchemy_reflects(full, driver):
    """What Superset and other tools ask through SQLAlchemy."""
    url = sa.URL.create(f"postgresql+{driver}", "anyone", full.token, "127.0.0.1", full.postgres_port, "wattlake")
    engine = sa.create_engine(url)
    found = sa.inspect(engine)
    tables = {"measurements", "latest", "sites", "meters", "energy_sources", "meter_tree"}
    assert "public" in found.get_schema_names() and tables <= set(found.get_table_names("public"))
    types = {column["name"]: str(column["type"]) for column in found.get_columns("measurements")}
    assert types["timestamp"] == "TIMESTAMP" and types["value"] == "DOUBLE PRECISION" and types["metric"] == "TEXT"
    assert found.get_pk_constraint("meters")["constrained_columns"] == []
    assert found.get_foreign_keys("meters") == found.get_indexes("meters") == found.get_view_names() == []
    metadata = sa.MetaData()
    metadata.reflect(bind=engine)
    assert tables <= set(metadata.tables)
    meters = metadata.tables["meters"]
    with engine.connect() as connection:
        query = sa.select(meters.c.name).where(meters.c.category == "PROD").order_by(meters.c.name)
        assert connection.execute(query).scalars().all() == ["pv"]
        query = sa.text("SELECT count(*) FROM measurements WHERE value >= :least AND timestamp < :before")
        values = {"least": 50, "before": dt.datetime.fromtimestamp(START + 6000, dt.timezone.utc)}
        assert connection.execute(query, values).scalar() == 50
    engine.dispose()


def test_asyncpg(full):
    async def work():
        options = full.postgres()
        connect = {"database": options.pop("dbname")} | options
        pool = await asyncpg.create_pool(**connect, min_size=1, max_size=2)
        async with pool.acquire() as connection:
            rows = await connection.fetch("SELECT name FROM meters WHERE category = $1 LIMIT $2", "PROD", 5)
            async with connection.transaction():
                values = [row[0] async for row in connection.cursor("SELECT value FROM measurements ORDER BY timestamp")]
        await pool.close()
        return rows[0]["name"], values

    assert asyncio.run(work()) == ("pv", [n % 100 for n in range(ROWS)])


def test_adbc(full):
    url = f"postgresql://anyone:{full.token}@127.0.0.1:{full.postgres_port}/wattlake"
    with adbc_postgres.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT timestamp, value, metric FROM measurements ORDER BY timestamp")
        table = cursor.fetch_arrow_table()
    assert table.num_rows == ROWS and table["value"].to_pylist()[:101] == [n % 100 for n in range(101)]


def test_grafana(full, db):
    """What Grafana's data source asks for its query builder, and its macros as it expands them."""
    tables = db.execute("""SELECT CASE WHEN quote_ident(table_schema) IN ('public') THEN quote_ident(table_name)
        ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS "table" FROM information_schema.tables
        WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog', '_timescaledb_cache')
        ORDER BY CASE WHEN quote_ident(table_schema) IN ('public') THEN 0 ELSE 1 END, 1""").fetchall()
    assert ("measurements",) in tables
    columns = db.execute("""SELECT quote_ident(column_name) AS "column", data_type AS "type" FROM information_schema.columns
        WHERE quote_ident(table_name) = 'measurements'""").fetchall()
    assert "timestamp" in [name.strip('"') for name, _ in columns]
    assert db.execute("SELECT current_setting('server_version_num')::int / 100 AS version").fetchone() == (1600,)
    between = "timestamp BETWEEN '2026-03-01T00:00:00Z' AND '2026-03-01T01:00:00Z'"  # $__timeFilter(timestamp)
    group = "floor(extract(epoch FROM timestamp)/300)*300"  # $__timeGroup(timestamp, '5m')
    rows = db.execute(f"SELECT {group} AS time, avg(value) FROM measurements WHERE {between} GROUP BY 1 ORDER BY 1").fetchall()
    assert rows[0] == (START, 2.0) and len(rows) == 13
    epoch = "extract(epoch FROM timestamp) >= 1772323200 AND extract(epoch FROM timestamp) <= 1772323260"  # $__unixEpochFilter
    assert db.execute(f"SELECT count(*) FROM measurements WHERE {epoch}").fetchone() == (2,)


def test_grafana_dashboards(full, db):
    """Each panel of config/grafana, its macros and variables filled in, answers with the columns that it needs."""
    folder = pathlib.Path(__file__).parents[2] / "config/grafana/dashboards"
    full.write(f"energy,entity_id={full.fleet.main} value=2 {START}")
    between = f"BETWEEN '{dt.datetime.fromtimestamp(START - 86_400, dt.timezone.utc).isoformat()}' AND '2026-04-01T00:00:00Z'"
    asked = 0
    for board in sorted(folder.glob("*.json")):
        board = json.loads(board.read_text())
        queries = [(v["query"], "table", v["name"]) for v in board["templating"]["list"]]
        queries += [(t["rawSql"], t["format"], p["title"]) for p in board["panels"] for t in p["targets"]]
        for text, form, title in queries:
            text = re.sub(r"\$__timeFilter\(([\w.]+)\)", rf"\1 {between}", text).replace("$site", full.fleet.site_a)
            assert "$" not in text, title
            answer = db.execute(text)
            names, rows = [column.name for column in answer.description], answer.fetchall()
            if form == "time_series":
                assert names == ["time", "metric", "value"], title
            assert rows or title == "Register increase by day", title
            asked += 1
    assert asked == 12


def test_tokens(full, db):
    bad = full.postgres(password="wl_nonsense")
    with pytest.raises(psycopg.OperationalError, match="not a valid token"):
        psycopg.connect(**bad)
    writer = full.new_token("--scope", "write")
    with pytest.raises(psycopg.OperationalError, match="lacks the scope read"):
        psycopg.connect(**full.postgres(password=writer))
    limited = full.new_token("--scope", "read", "--site", full.fleet.site_b)
    with psycopg.connect(**full.postgres(password=limited)) as connection:
        assert connection.execute("SELECT name FROM meters").fetchall() == [("b main",)]
        assert connection.execute("SELECT count(*) FROM measurements").fetchone() == (0,)


def test_time_is_limited_also_while_rows_flow_and_a_query_can_be_cancelled(full, db):
    long = "SELECT count(*) FROM measurements a, measurements b, measurements c WHERE a.value + b.value > c.value"
    db.execute("SET statement_timeout = '300ms'")
    with pytest.raises(psycopg.errors.QueryCanceled, match="query.timeout"):
        db.execute(long)
    with pytest.raises(psycopg.errors.QueryCanceled, match="query.timeout"):
        for _ in db.cursor().stream("SELECT a.value FROM measurements a, measurements b, measurements c WHERE a.value + b.value + c.value = 3"):
            pass
    db.execute("RESET statement_timeout")
    with psycopg.connect(**full.postgres(), autocommit=True) as other:
        threading.Timer(0.5, other.cancel).start()
        with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
            other.execute(long)
        assert other.execute("SELECT 1").fetchone() == (1,)


def test_limits_of_connections(start):
    server = start(settings={"postgres.max_connections": 3, "postgres.idle_timeout": "2s"})
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(**server.postgres(), autocommit=True)) for _ in range(3)]
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(**server.postgres())
        connections.pop().close()

        def has_place():
            with contextlib.suppress(psycopg.OperationalError):
                return psycopg.connect(**server.postgres()).close() is None

        wait_until(has_place, "a place")
        # A thousand statements fit, and no more; each gives its place back, and one that is wrong takes none.
        connection = connections[0]
        for n in range(20):
            assert connection.pgconn.prepare(f"wrong {n}".encode(), b"SELECT nonsense").error_message
        for n in range(1000):
            connection.pgconn.prepare(f"s{n}".encode(), b"SELECT 1")
        refused = connection.pgconn.prepare(b"one more", b"SELECT 1")
        assert b"close some" in refused.error_message
        connection.execute("DEALLOCATE s7")
        assert not connection.pgconn.prepare(b"one more", b"SELECT 1").error_message
        time.sleep(2.5)
        with pytest.raises(psycopg.OperationalError, match="idle"):
            connections[1].execute("SELECT 1")


def test_hostile_bytes_end_a_connection_and_nothing_else(full, db):
    def say(data, wait=True):
        with socket.create_connection(("127.0.0.1", full.postgres_port), timeout=30) as s:
            with contextlib.suppress(OSError):
                s.sendall(data)
                return s.recv(1 << 16) if wait else b""
            return b""

    hello = struct.pack("!ii", 0, 196608) + b"user\0x\0database\0wattlake\0\0"
    hello = struct.pack("!i", len(hello)) + hello[4:]
    password = full.token.encode() + b"\0"
    login = hello + b"p" + struct.pack("!i", len(password) + 4) + password
    before = full.memory()
    for data in [
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        b"\0" * 64,
        struct.pack("!ii", 1 << 30, 196608),
        hello + b"p" + struct.pack("!i", 1 << 29) + b"x" * 100,
        login + b"Q" + struct.pack("!i", 1 << 30) + b"SELECT 1" * 400_000,
        login + b"Q" + struct.pack("!i", -5) + b"x",
        login + b"B" + struct.pack("!i", 20) + b"\0\0" + b"\x7f\xff" * 8,
        login + b"E" + struct.pack("!i", 9) + b"\0" + struct.pack("!i", -1),
        login + b"\xff" * 50,
    ]:
        say(data)
    # After a wrong password nothing is answered, whatever follows.
    wrong = hello + b"p" + struct.pack("!i", 6) + b"x\0" + b"Q" + struct.pack("!i", 13) + b"SELECT 1\0"
    with socket.create_connection(("127.0.0.1", full.postgres_port), timeout=30) as s:
        s.sendall(wrong)
        answer = b"".join(iter(lambda: s.recv(1 << 16), b""))
    assert b"28P01" in answer and b"not authenticated" not in answer and answer.count(b"SFATAL") == 1
    assert full.memory() < before + (256 << 20)
    assert db.execute("SELECT 1").fetchone() == (1,)


def test_a_client_that_goes_away_takes_its_query_along(full, db):
    running = lambda: sum(float(l.split()[-1]) for l in full.get("/metrics").text.splitlines() if l.startswith("wattlake_queries_running "))
    long = b"SELECT count(*) FROM measurements a, measurements b, measurements c WHERE a.value + b.value > c.value"
    connections = [psycopg.connect(**full.postgres(), autocommit=True) for _ in range(3)]
    for connection in connections:
        connection.pgconn.send_query(long)
    wait_until(lambda: running() == 3, "three queries at work")
    for connection in connections:
        connection.close()
    wait_until(lambda: running() == 0, "their end", 2)


def certificate(folder):
    cert, key = folder / "cert.pem", folder / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.timezone.utc)
    made = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), now, now + dt.timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False).sign(private, hashes.SHA256())
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(*pem))
    return cert, key


def test_with_a_certificate_nothing_but_tls_is_spoken(tmp_path, start):
    cert, key = certificate(tmp_path)
    server = start(settings={"tls.cert": cert, "tls.key": key})
    assert server.sql("SELECT 1 AS one") == [{"one": 1}]
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(f"http://127.0.0.1:{server.port}/ready", timeout=5)
    good = server.postgres(host="localhost", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=str(cert))
    with psycopg.connect(**good) as connection:
        assert connection.pgconn.ssl_in_use and connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="TLS only"):
        psycopg.connect(**good | {"sslmode": "disable"})
    options = {
        DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {server.token}",
        DatabaseOptions.TLS_ROOT_CERTS.value: cert.read_text(),
    }
    url = f"grpc+tls://localhost:{server.flight_port}"
    with flightsql.connect(url, db_kwargs=options, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_a_bad_certificate_or_an_open_address_refuses_the_start(tmp_path):
    cert, key = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, foreign = certificate(other)
    (tmp_path / "empty.pem").write_text("")

    def refused(*settings):
        args = [BINARY, "serve", "--data-dir", str(tmp_path / "d"), "--set", "http.listen=127.0.0.1:0", "--set", "flight.listen="]
        for setting in settings:
            args += ["--set", setting]
        done = subprocess.run(args, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "belong together" in refused(f"tls.cert={cert}")
    for chain, private in [(tmp_path / "nowhere", key), (tmp_path / "empty.pem", key), (cert, tmp_path / "empty.pem"), (cert, foreign), (key, cert)]:
        assert "tls." in refused(f"tls.cert={chain}", f"tls.key={private}")
    assert "loopback" in refused("postgres.listen=0.0.0.0:0")
