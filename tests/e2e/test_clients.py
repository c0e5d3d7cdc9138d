"""InfluxDB's own Python clients write unchanged."""

import datetime as dt

NOW = dt.datetime(2026, 1, 5, 12, tzinfo=dt.timezone.utc)


def stored(server):
    return server.sql("SELECT m.name, r.metric, r.value, r.timestamp FROM measurements r JOIN meters m ON m.id = r.entity_id "
                      "ORDER BY 1, 2, 4")


def test_influxdb_1_client(server):
    from influxdb import InfluxDBClient

    client = InfluxDBClient(host="127.0.0.1", port=server.port, username="any", password=server.token, database="house")
    assert client.ping()
    assert client.get_list_database() == []
    client.create_database("house")
    point = {"measurement": "power", "tags": {"room": "kitchen sink"}, "time": NOW, "fields": {"value": 1.5, "note": "x"}}
    assert client.write_points([point], time_precision="s")
    assert client.get_list_database() == [{"name": "house"}]
    assert stored(server) == [{"name": "power,room=kitchen sink", "metric": "power", "value": 1.5, "timestamp": "2026-01-05T12:00:00Z"}]


def test_influxdb_2_client(server):
    from influxdb_client import InfluxDBClient, Point
    from influxdb_client.client.write_api import SYNCHRONOUS

    with InfluxDBClient(url=server.url, token=server.token, org="any", enable_gzip=True) as client:
        assert client.ping() and client.health().status == "pass"
        write = client.write_api(write_options=SYNCHRONOUS)
        write.write("house", record=[Point("inverter").tag("id", "7").field("power", 2.5).field("voltage", 230).time(NOW)])
        try:
            write.write("house", record="inverter,id=7 power=1 1\nnonsense")
            raise AssertionError("a bad line is an error")
        except Exception as error:
            assert getattr(error, "status", None) == 400 and "line 2" in str(error.body), error
    assert [(r["metric"], r["value"]) for r in stored(server)] == [("power", 1.0), ("power", 2.5), ("voltage", 230.0)]


def test_influxdb_3_client(server):
    from influxdb_client_3 import InfluxDBClient3, Point

    with InfluxDBClient3(host=server.url, token=server.token, database="house") as client:
        client.write(Point("meter").tag("serial", "a b").field("power", 4.25).time(NOW))
    assert [(r["name"], r["metric"], r["value"]) for r in stored(server)] == [("meter,serial=a b", "power", 4.25)]


def test_arrow_and_parquet_bodies(server, fleet):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "entity_id": pa.array([fleet.main] * 3).dictionary_encode(),
        "timestamp": pa.array([NOW, NOW + dt.timedelta(hours=1), NOW + dt.timedelta(hours=2)], pa.timestamp("ms", "UTC")),
        "metric": ["power"] * 3, "value": pa.array([1, 2, 3], pa.int32()), "unit": ["kW", "W", "MW"],
    })
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    r = server.post("/api/measurements", data=sink.getvalue(), headers={"Content-Type": "application/vnd.apache.arrow.stream"})
    assert r.json() == {"accepted": 3, "rejected": 0, "errors": []}, r.text
    sink = io.BytesIO()
    pq.write_table(table, sink)
    r = server.post("/api/measurements", data=sink.getvalue(), headers={"Content-Type": "application/vnd.apache.parquet"})
    assert r.json()["accepted"] == 3, r.text
    for kind in ("application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"):
        r = server.post("/api/measurements", data=sink.getvalue()[:300], headers={"Content-Type": kind})
        assert r.status_code == 400 and r.json()["error"]["kind"] == "invalid", r.text
    query = "SELECT timestamp, value FROM measurements ORDER BY timestamp"
    arrow = server.post("/api/sql?format=arrow", json={"query": query})
    values = pa.ipc.open_stream(arrow.content).read_all()["value"].to_pylist()
    parquet = server.post("/api/sql", json={"query": query}, headers={"Accept": "application/vnd.apache.parquet"})
    assert pq.read_table(io.BytesIO(parquet.content))["value"].to_pylist() == values == [1.0, 0.002, 3000.0]
    csv = server.get("/api/sql", params={"q": query, "format": "csv"}).text.splitlines()
    assert csv[0] == "timestamp,value" and len(csv) == 4
    assert len(server.get("/api/sql", params={"q": query, "format": "ndjson"}).text.splitlines()) == 3
