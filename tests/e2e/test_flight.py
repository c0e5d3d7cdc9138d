"""Arrow Flight SQL with ADBC's driver and with pyarrow's own client."""

import datetime as dt

import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from adbc_driver_flightsql import DatabaseOptions, dbapi

START = 1772323200  # 2026-03-01
DRIVER = adbc_driver_manager


def connect(server, token=None, **options):
    options = options or {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token or server.token}"}
    return dbapi.connect(f"grpc://127.0.0.1:{server.flight_port}", db_kwargs=options, autocommit=True)


@pytest.fixture
def full(server, fleet):
    lines = [f"power,entity_id={fleet.main} value={n} {START + 60 * n}" for n in range(2000)]
    server.write("\n".join(lines[:1000]))
    server.flush()
    server.write("\n".join(lines[1000:]))
    server.fleet = fleet
    return server


def test_questions(full):
    with connect(full) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT timestamp, value, metric FROM measurements ORDER BY timestamp")
        table = cursor.fetch_arrow_table()
        assert table.schema.types == [pa.timestamp("us", "UTC"), pa.float64(), pa.string()]
        assert table["value"].to_pylist() == [float(n) for n in range(2000)]
        cursor.execute("SELECT count(*) FROM measurements WHERE value < ? AND metric = ?", (10.5, "power"))
        assert cursor.fetchall() == [(11,)]
        cursor.execute("SELECT name FROM meters WHERE category = $1 ORDER BY name LIMIT $2", ("CONS", 1))
        assert cursor.fetchall() == [("b main",)]
        since = dt.datetime.fromtimestamp(START + 6000, dt.timezone.utc)
        cursor.execute("SELECT count(*) FROM measurements WHERE timestamp >= ?", (since,))
        assert cursor.fetchall() == [(1900,)]
        cursor.execute("SELECT 1 WHERE false")
        assert cursor.fetchall() == []
        for text, what in [
            ("SELECT nonsense FROM sites", "No field named"),
            ("INSERT INTO sites VALUES (1)", "only queries"),
            ("SELECT 1; SELECT 2", "one query at a time"),
            ("SELECT 1/0", "zero"),
        ]:
            with pytest.raises(DRIVER.Error, match=what):
                cursor.execute(text)
                cursor.fetchall()
        with pytest.raises(DRIVER.Error):
            cursor.adbc_ingest("sites", pa.table({"a": [1]}), mode="append")
        # One row of parameters at a time.
        with pytest.raises(DRIVER.Error):
            cursor.executemany("SELECT ?", [(1,), (2,)])
            cursor.fetchall()


def test_what_there_is(full):
    with connect(full) as connection:
        (catalog,) = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        assert catalog["catalog_name"] == "wattlake"
        (schema,) = catalog["catalog_db_schemas"]
        tables = {table["table_name"]: [c["column_name"] for c in table["table_columns"]] for table in schema["db_schema_tables"]}
        assert {"measurements", "latest", "sites", "meters", "energy_sources", "meter_tree"} <= set(tables)
        assert tables["measurements"][:3] == ["entity_id", "entity_type", "timestamp"]
        assert connection.adbc_get_table_types() == ["BASE TABLE"]
        assert connection.adbc_get_info()["vendor_name"] == "Wattlake"
        assert connection.adbc_get_table_schema("meters").names[:3] == ["id", "site_id", "parent_meter_id"]
        few = connection.adbc_get_objects(depth="tables", table_name_filter="m%").read_all().to_pylist()
        names = [table["table_name"] for schema in few[0]["catalog_db_schemas"] for table in schema["db_schema_tables"]]
        assert sorted(names) == ["measurements", "meter_tree", "meters"]


def test_tokens(full):
    for options, what in [
        ({DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer wl_no_no"}, "not valid"),
        ({DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer"}, "a token is needed"),
        ({"username": "anyone", "password": "wrong"}, "not valid"),
    ]:
        with pytest.raises(DRIVER.Error, match=what):
            connect(full, **options).cursor().execute("SELECT 1")
    # Names of any length: the header is in base64, and this driver leaves out the padding.
    for name in ("a", "me", "all"):
        with connect(full, username=name, password=full.token) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]
    with pytest.raises(DRIVER.Error, match="lacks the scope read"):
        connect(full, full.new_token("--scope", "write")).cursor().execute("SELECT 1")
    with connect(full, full.new_token("--scope", "read", "--site", full.fleet.site_b)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM meters")
        assert cursor.fetchall() == [("b main",)]
    # Every call, not only those of this driver.
    client = flight.connect(f"grpc://127.0.0.1:{full.flight_port}")
    call = flight.FlightCallOptions(timeout=10)
    for ask in [
        lambda: list(client.list_flights(options=call)),
        lambda: list(client.list_actions(call)),
        lambda: client.do_get(flight.Ticket(b"x"), call).read_all(),
        lambda: client.get_flight_info(flight.FlightDescriptor.for_command(b"x"), call),
        lambda: list(client.do_action(flight.Action("CreatePreparedStatement", b""), call)),
    ]:
        with pytest.raises(flight.FlightUnauthenticatedError):
            ask()


def test_hostile_calls(full):
    client = flight.connect(f"grpc://127.0.0.1:{full.flight_port}")
    call = flight.FlightCallOptions(timeout=20, headers=[(b"authorization", f"Bearer {full.token}".encode())])
    for data in [b"", b"x", b"\xff" * 100, b"\x0a\x7f" + b"y" * 10]:
        for ask in [
            lambda: client.do_get(flight.Ticket(data), call).read_all(),
            lambda: client.get_flight_info(flight.FlightDescriptor.for_command(data), call),
            lambda: list(client.do_action(flight.Action("CreatePreparedStatement", data), call)),
            lambda: list(client.do_action(flight.Action("nonsense", data), call)),
        ]:
            with pytest.raises((flight.FlightError, pa.ArrowException)):
                ask()
    with connect(full) as connection, connection.cursor() as cursor:
        # A closed statement, and one of somebody else, are not there.
        handles = []
        for _ in range(20):
            cursor.adbc_prepare("SELECT 1")
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)] and handles == []


def test_ten_million_rows_stream(start):
    """More than a query may hold in memory, through a connection that takes its time."""
    server = start(settings={"query.memory": "64MiB", "query.timeout": "5m"})
    with connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value, value * 2 AS twice, 'row number ' || value AS name FROM generate_series(1, 10000000)")
        reader, rows, total, before = cursor.fetch_record_batch(), 0, 0, None
        for batch in reader:
            rows += batch.num_rows
            total += pa.compute.sum(batch["twice"]).as_py() if batch.num_rows else 0
            if rows > 500_000 and before is None:
                before = server.memory()
    assert (rows, total) == (10_000_000, 10_000_000 * 10_000_001)
    assert server.memory() < before + (128 << 20)
