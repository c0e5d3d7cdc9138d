"""Tools that bring their own way of asking: Superset, and the JDBC driver of Postgres, on which DBeaver, Tableau and others stand."""

import glob
import json
import os
import pathlib
import subprocess

import jpype
import jpype.imports
import pytest

T0 = 1772323200  # 2026-03-01
HOURS = 24 * 40


@pytest.fixture
def full(server, fleet):
    for metric in ("power", "energy"):
        server.write("\n".join(f"{metric},entity_id={fleet.main} value={n % 24} {T0 + 3600 * n}" for n in range(HOURS)))
        server.flush()
    server.fleet = fleet
    return server


def test_superset(full, tmp_path):
    python = os.environ.get("TEST_SUPERSET", "")
    assert os.path.exists(python), "run the tests with tests/run: it installs Superset"
    (tmp_path / "superset_config.py").write_text(
        f"SECRET_KEY = 'only for this test, and no longer than it'\nSQLALCHEMY_DATABASE_URI = 'sqlite:///{tmp_path}/superset.db'\nWTF_CSRF_ENABLED = False\n"
    )
    env = os.environ | {"SUPERSET_CONFIG_PATH": str(tmp_path / "superset_config.py"), "SUPERSET_HOME": str(tmp_path)}
    run = lambda *args: subprocess.run(list(map(str, args)), env=env, capture_output=True, text=True, timeout=300)
    made = run(pathlib.Path(python).with_name("superset"), "db", "upgrade")
    assert made.returncode == 0, made.stderr[-3000:]
    uri = f"postgresql+psycopg2://superset:{full.token}@127.0.0.1:{full.postgres_port}/wattlake"
    done = run(python, pathlib.Path(__file__).with_name("ask_superset.py"), uri, "measurements", "2026-03-03T00:00:00", "2026-03-05T12:00:00")
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["schemas"] == ["public"]
    assert {"measurements", "meters", "sites", "latest", "rollup_daily"} <= set(said["tables"])
    assert {("timestamp", "TIMESTAMP WITH TIME ZONE", True), ("value", "DOUBLE PRECISION", False)} <= set(map(tuple, said["columns"]))
    buckets = {"PT15M": 60, "PT1H": 60, "P1D": 3, "P1W": 1, "P1M": 1, "P3M": 1, "P1Y": 1, "None": 60}
    assert {grain: len(rows) for grain, rows in said["charts"].items()} == {grain: 2 * count for grain, count in buckets.items()}
    days = [row["mean"] for row in said["charts"]["P1D"] if row["metric"] == "power"]
    assert days == [11.5, 11.5, 5.5]


@pytest.fixture(scope="session")
def java():
    jars = glob.glob("/usr/share/java/postgresql.jar")
    assert jars, "run the tests with tests/run: it installs the JDBC driver of Postgres"
    if not jpype.isJVMStarted():
        jpype.startJVM(classpath=jars)
    from java.sql import DriverManager

    connections = []

    def connect(server):
        url = f"jdbc:postgresql://127.0.0.1:{server.postgres_port}/wattlake"
        connections.append(DriverManager.getConnection(url, "java", server.token))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


def rows(results):
    width = range(1, results.getMetaData().getColumnCount() + 1)
    found = []
    while results.next():
        found.append([None if results.getString(n) is None else str(results.getString(n)) for n in width])
    return found


def test_jdbc_asks(full, java):
    from java.sql import SQLException, Timestamp
    from java.time import Instant, OffsetDateTime

    db = java(full)
    asked = db.prepareStatement("SELECT count(*), avg(value) FROM measurements WHERE metric = ? AND timestamp >= ? AND value > ?")
    # After the fifth time the driver has the server keep the statement.
    for _ in range(8):
        asked.setString(1, "power")
        asked.setTimestamp(2, Timestamp.from_(Instant.ofEpochSecond(T0 + 86_400)))
        asked.setDouble(3, 20.5)
        # As a text from the server it is 22, as a text that the driver makes of a number 22.0.
        [[count, mean]] = rows(asked.executeQuery())
        assert (count, float(mean)) == (str(3 * 39), 22)
    asked.setObject(2, OffsetDateTime.parse("2026-04-09T02:00:00+02:00"))
    [[count, mean]] = rows(asked.executeQuery())
    assert (count, float(mean)) == ("3", 22)
    described = db.prepareStatement("SELECT timestamp, value, unit FROM measurements WHERE value < ?")
    columns = described.getMetaData()
    assert [str(columns.getColumnTypeName(n)) for n in (1, 2, 3)] == ["timestamptz", "float8", "text"]
    assert described.getParameterMetaData().getParameterTypeName(1) == "float8"
    # Portions of a hundred rows through a cursor.
    db.setAutoCommit(False)
    portions = db.createStatement()
    portions.setFetchSize(100)
    found = portions.executeQuery("SELECT timestamp, value, metadata FROM measurements WHERE metric = 'power' ORDER BY timestamp")
    for hour in range(HOURS):
        assert found.next()
        assert found.getTimestamp(1).toInstant().getEpochSecond() == T0 + 3600 * hour
        assert found.getDouble(2) == hour % 24 and found.getObject(3) is None
    assert not found.next()
    db.commit()
    db.setAutoCommit(True)
    with pytest.raises(SQLException) as refused:
        db.createStatement().executeUpdate("DELETE FROM measurements")
    assert refused.value.getSQLState() == "25006"
    slow = db.createStatement()
    slow.setQueryTimeout(1)
    with pytest.raises(SQLException) as cancelled:
        rows(slow.executeQuery("SELECT count(*) FROM measurements a, measurements b, measurements c, measurements d WHERE a.value + b.value > c.value * d.value"))
    assert cancelled.value.getSQLState() == "57014"
    assert db.isValid(5)


def test_jdbc_looks_around(full, java):
    about = java(full).getMetaData()
    assert about.getDatabaseProductName() == "PostgreSQL"
    assert ["wattlake"] in rows(about.getCatalogs())
    assert {row[0] for row in rows(about.getSchemas())} == {"pg_catalog", "public"}
    tables = {row[2] for row in rows(about.getTables(None, "public", "%", ["TABLE", "VIEW"]))}
    assert tables == {"energy_sources", "latest", "measurements", "meter_tree", "meters", "rollup_daily", "rollup_hourly", "sites"}
    columns = {row[3]: row[5] for row in rows(about.getColumns(None, "public", "measurements", "%"))}
    assert columns["timestamp"] == "timestamptz" and columns["value"] == "float8" and columns["metric"] == "text"
    for nothing in [
        about.getPrimaryKeys(None, "public", "meters"),
        about.getImportedKeys(None, "public", "meters"),
        about.getExportedKeys(None, "public", "meters"),
        about.getIndexInfo(None, "public", "meters", False, True),
        about.getTablePrivileges(None, "public", "meters"),
        about.getBestRowIdentifier(None, "public", "meters", 2, True),
    ]:
        assert rows(nothing) == []
    assert {"float8", "text", "timestamptz", "bool"} <= {row[0] for row in rows(about.getTypeInfo())}
    assert rows(about.getFunctions(None, "%", "%")) and rows(about.getTableTypes())
    rows(about.getProcedures(None, "%", "%"))
    rows(about.getClientInfoProperties())
