"""The HTTP interface: catalog, errors, limits, authentication, operations."""

import gzip
import json
import socket
import stat
import subprocess
import sys
import uuid

import pytest
import requests
from conftest import Server, wait_until

T0 = 1767225600  # 2026-01-01


def error(r, status, kind, *words):
    assert r.status_code == status, (r.status_code, r.text)
    body = r.json()["error"]
    assert body["kind"] == kind, body
    for word in words:
        assert word in body["message"], (word, body["message"])


def test_catalog_rules(server, fleet):
    r = server.post("/api/sites", json={"name": "C", "industryType": "space"})
    error(r, 400, "invalid", "industryType", "space", "residential")
    error(server.post("/api/sites", json={"nam": "C"}), 400, "invalid", "`nam`", "`name`")
    error(server.post("/api/sites", json={"name": "C", "metadata": {"timezone": "Mars/X"}}), 400, "invalid", "Mars/X")
    error(server.post("/api/sites", json={"name": " "}), 400, "invalid", "site name")
    error(server.post("/api/sites", data="{"), 400, "invalid")
    error(server.get("/api/sites/12"), 400, "invalid", "`12`", "uuid")
    error(server.get(f"/api/sites/{uuid.uuid4()}"), 404, "not_found")
    error(server.get("/api/sites?limt=1"), 400, "invalid", "`limt`", "`limit`")
    error(server.get("/api/nothing"), 404, "not_found", "/api/nothing")
    meter = {"siteId": fleet.site_b, "name": "m", "category": "CONS"}
    error(server.post("/api/meters", json=meter | {"parentMeterId": fleet.main}), 400, "invalid", "on site")
    error(server.post("/api/meters", json=meter | {"category": "X"}), 400, "invalid", "PROD", "CONS", "STOR", "INJ")
    error(server.post("/api/meters", json=meter | {"id": fleet.main}), 409, "conflict", "already exists")
    error(server.post("/api/meters", json=meter | {"siteId": str(uuid.uuid4())}), 400, "invalid", "does not exist")
    child = server.post("/api/meters", json={"siteId": fleet.site_a, "parentMeterId": fleet.main, "name": "c", "category": "CONS"}).json()
    error(server.request("PATCH", f"/api/meters/{fleet.main}", json={"parentMeterId": child["id"]}), 400, "invalid", "cycle")
    error(server.request("DELETE", f"/api/meters/{fleet.main}"), 409, "conflict", "cascade")
    error(server.request("DELETE", f"/api/sites/{fleet.site_a}"), 409, "conflict", "cascade")
    server.write(f"power,entity_id={child['id']} value=1 1767225600")
    error(server.request("DELETE", f"/api/meters/{child['id']}"), 409, "conflict", "readings")
    changed = server.request("PATCH", f"/api/meters/{child['id']}", json={"name": "renamed", "capacity": 5, "description": "d"})
    assert changed.json()["name"] == "renamed" and changed.json()["capacity"] == 5
    changed = server.request("PATCH", f"/api/meters/{child['id']}", json={"description": None})
    assert changed.json()["description"] is None and changed.json()["capacity"] == 5
    tree = server.get(f"/api/meters?siteId={fleet.site_a}&tree=true").json()
    assert [m["name"] for m in tree] == ["main", "pv"] and tree[0]["children"][0]["name"] == "renamed"
    assert [s["name"] for s in tree[1]["sources"]] == ["inv1", "inv2"]
    assert len(server.get(f"/api/energy-sources?meterId={fleet.pv}").json()) == 2
    first = server.get("/api/sites?limit=1")
    rest = server.get(f"/api/sites?limit=1&cursor={first.headers['X-Next-Cursor']}")
    assert {s["id"] for s in first.json() + rest.json()} == {fleet.site_a, fleet.site_b}
    assert "X-Next-Cursor" not in rest.headers
    assert server.get("/api/portfolios").json() == server.get("/api/sites").json()
    assert server.request("DELETE", f"/api/sites/{fleet.site_a}?cascade=true").status_code == 204
    assert [m["name"] for m in server.get("/api/meters").json()] == ["b main"]


def test_onboarding_is_one_transaction(server):
    parent = str(uuid.uuid4())
    body = {"site": {"name": "S"}, "meters": [
        {"id": parent, "name": "p", "category": "CONS"},
        {"name": "c", "category": "CONS", "parentMeterId": parent},
        {"name": "bad", "category": "CONS", "parentMeterId": str(uuid.uuid4())}]}
    error(server.post("/api/onboarding/complete", json=body), 400, "invalid", "`bad`", "does not exist")
    assert server.get("/api/sites").json() == []
    body["meters"].pop()
    assert len(server.post("/api/onboarding/complete", json=body).json()["meterIds"]) == 2


def test_api_keys_are_secret(server, fleet):
    secret = "hunter2-hunter2"
    r = server.post("/api/energy-sources", json={"meterId": fleet.pv, "name": "api", "sourceType": "solar",
                    "metadata": {"apiKey": secret, "apiProvider": "x", "nested": {"password": secret}}})
    source = r.json()
    assert source["metadata"]["apiKey"] == "***" and source["metadata"]["nested"]["password"] == "***"
    kept = server.request("PATCH", f"/api/energy-sources/{source['id']}", json={"metadata": {"apiKey": "***", "apiProvider": "y"}})
    assert kept.json()["metadata"] == {"apiKey": "***", "apiProvider": "y", "nested": {"password": "***"}}
    assert secret not in json.dumps(server.sql("SELECT * FROM energy_sources"))
    server.stop()
    everything = b"".join(p.read_bytes() for p in server.dir.rglob("*") if p.is_file()) + server.log_text().encode()
    assert secret.encode() not in everything
    for name in ("secrets.key", "admin-token"):
        assert stat.S_IMODE((server.dir / name).stat().st_mode) == 0o600
    import sqlite3

    db = sqlite3.connect(server.dir / "catalog.db")
    stored = [json.loads(m) for (m,) in db.execute("SELECT metadata FROM energy_sources WHERE name = 'api'")]
    db.close()
    assert stored[0]["apiKey"].startswith("enc:v1:") and stored[0]["nested"]["password"].startswith("enc:v1:")


def test_bad_writes_lose_nothing_else(start):
    server = start(settings={"ingest.max_body_bytes": "1MiB", "ingest.auto_register": "false"})
    site = server.post("/api/onboarding/complete", json={"site": {"name": "S"}, "meters": [{"name": "m", "category": "CONS"}]}).json()
    (m,) = site["meterIds"]
    row = {"entityId": m, "timestamp": "2026-01-01T00:00:00Z", "metric": "power", "value": 1}
    post = lambda data, kind="application/json", **kw: server.post(
        "/api/measurements", data=data, headers={"Content-Type": kind} | kw.pop("headers", {}), **kw)
    rows = [row, row | {"unit": "kWh"}, row | {"timestamp": "1969-01-01T00:00:00Z"}, row | {"timestamp": "2999-01-01T00:00:00Z"},
            row | {"entityId": str(uuid.uuid4())}, row | {"entityId": "nobody"}, row | {"value": None}, row | {"valu": 1}]
    report = post(json.dumps(rows)).json()
    assert report["accepted"] == 1 and report["rejected"] == 7
    assert [(e["row"], e["kind"]) for e in report["errors"]] == [
        (1, "unknown_unit"), (2, "invalid"), (3, "future_timestamp"), (4, "unknown_entity"), (5, "unknown_entity"),
        (6, "invalid"), (7, "invalid")]
    error(post(json.dumps(rows), params={"atomic": "true"}), 422, "unprocessable")
    error(post("", kind="application/json"), 400, "invalid", "empty")
    error(post("[1,"), 400, "invalid", "JSON")
    error(post(b'["\xff"]'), 400, "invalid", "UTF-8")
    error(post("x", kind="image/png"), 400, "invalid", "image/png", "text/csv")
    error(post("x" * (2 << 20), kind="text/csv"), 413, "too_large", "ingest.max_body_bytes")
    bomb = gzip.compress(b"\0" * (100 << 20))
    error(post(bomb, headers={"Content-Encoding": "gzip"}), 413, "too_large")
    error(post(bomb[:50], headers={"Content-Encoding": "gzip"}), 400, "invalid", "decompress")
    error(post(b"x", headers={"Content-Encoding": "br"}), 400, "invalid", "zstd")
    error(post("{}", params={"precison": "s"}), 400, "invalid", "`precison`", "`precision`")
    lines = f"power,entity_id={m} value=2 1767225700\nnope\npower,entity_id={m} value=NaN 1\npower,host=x value=1 1\n"
    r = server.post("/api/v2/write", params={"bucket": "b", "precision": "s"}, data=lines)
    assert r.status_code == 400 and r.json()["code"] == "invalid"
    assert all(f"line {n}" in r.json()["message"] for n in (2, 3, 4)), r.text
    r = server.post("/write", params={"db": "b", "precision": "s"}, data=lines)
    assert r.status_code == 400 and "line 2" in r.json()["error"] and "X-Influxdb-Version" in r.headers
    r = server.post("/api/v3/write_lp", params={"db": "b", "precision": "second"}, data=lines)
    assert r.status_code == 400 and [e["line_number"] for e in r.json()["data"]] == [2, 3, 4]
    assert server.post("/api/v2/write", params={"bucket": "b"}, data=b"").status_code in (204, 400)
    assert [r["value"] for r in server.sql("SELECT value FROM measurements ORDER BY timestamp")] == [1.0, 2.0]
    assert server.process.poll() is None


def test_sql_is_read_only_and_bounded(start):
    server = start(settings={"query.memory": "16MiB", "query.max_rows": "1000", "query.timeout": "5s"})
    for text in ["CREATE TABLE x (a int)", "COPY (SELECT 1) TO '/tmp/x'", "INSERT INTO sites VALUES (1)", "SET a = 1",
                 "SELECT 1; SELECT 2", "DROP TABLE sites", "CREATE EXTERNAL TABLE e STORED AS CSV LOCATION '/etc/passwd'",
                 "SELECT * FROM '/etc/passwd'", "SELECT * FROM nothing", "SELEC 1", "", "EXPLAIN ANALYZE SELECT 1",
                 "SELECT " + "+".join(["1"] * 20000), "SELECT " + "+".join(["1"] * 2000),
                 "SELECT * FROM sites WHERE " + " OR ".join(["active"] * 20000), "SELECT " + "(" * 5000 + "1" + ")" * 5000,
                 "SELECT " + "-" * 900 + "1", "WITH " + ",".join(f"c{i} AS (SELECT 1)" for i in range(20000)) + " SELECT 1"]:
        error(server.post("/api/sql", json={"query": text}), 400, "invalid")
    assert server.sql("SELECT " + "+".join(["1"] * 500) + " AS n") == [{"n": 500}]
    big = "SELECT count(*) FROM (SELECT DISTINCT a.value * 1000000 + b.value FROM generate_series(1, 3000) a, generate_series(1, 3000) b)"
    r = server.post("/api/sql", json={"query": big})
    assert r.status_code in (400, 422), r.text
    error(server.post("/api/sql", json={"query": "SELECT * FROM generate_series(1, 2000)"}), 422, "unprocessable", "query.max_rows")
    assert server.sql("SELECT $1 AS a, $2 AS b", params=["x", 2]) == [{"a": "x", "b": 2}]
    assert server.process.poll() is None and server.sql("SELECT 1 AS one") == [{"one": 1}]


def test_slow_and_hungry_queries_end(start):
    server = start(settings={"query.memory": "16MiB", "query.timeout": "2s"})
    endless = "SELECT sum(value % 7) FROM generate_series(1, 1000000000000)"
    error(server.post("/api/sql", json={"query": endless}), 422, "unprocessable", "query.timeout")
    hungry = "SELECT sum(a.value * b.value) FROM generate_series(1, 4000000) a, generate_series(1, 4000000) b"
    error(server.post("/api/sql", json={"query": hungry}), 422, "unprocessable", "query.memory")
    assert server.sql("SELECT 1 AS one") == [{"one": 1}]


def test_tokens_and_scopes(server, fleet):
    assert server.get("/health", token="").status_code == 200
    assert server.request("GET", "/ping", token="").status_code == 204
    for path in ("/api/sites", "/api/sql?q=SELECT 1", "/metrics", "/api/status"):
        error(server.get(path, token=""), 401, "unauthorized", "Bearer")
        error(server.get(path, token="wl_000000000000_x"), 401, "unauthorized")
    make = lambda *flags: server.cli("token", "create", "--name", "t", *flags).stdout.strip()
    read, write, only_b = make("--scope", "read"), make("--scope", "write"), make("--scope", "read", "--scope", "write", "--site", fleet.site_b)
    import time

    time.sleep(2.1)
    line = f"power,entity_id={fleet.main} value=1 1767225600"
    at = {"bucket": "b", "precision": "s"}
    error(server.post("/api/v2/write", token=read, params=at, data=line), 403, "forbidden", "write")
    assert server.post("/api/v2/write", token=write, params=at, data=line).status_code == 204
    error(server.get("/api/sites", token=write), 403, "forbidden", "read")
    error(server.post("/api/sites", token=read, json={"name": "x"}), 403, "forbidden", "admin")
    assert server.get("/api/sites", token=read).status_code == 200
    # A token for one site neither sees nor writes the other.
    assert [s["id"] for s in server.get("/api/sites", token=only_b).json()] == [fleet.site_b]
    error(server.get(f"/api/sites/{fleet.site_a}", token=only_b), 404, "not_found")
    assert server.post("/api/sql", token=only_b, json={"query": "SELECT count(*) AS n FROM measurements"}).json() == [{"n": 0}]
    assert server.post("/api/v2/write", token=only_b, params=at, data=line).status_code == 400
    assert server.post("/api/v2/write", token=only_b, params=at, data=line.replace(fleet.main, fleet.b_main)).status_code == 204
    assert server.post("/api/sql", token=only_b, json={"query": "SELECT count(*) AS n FROM measurements"}).json() == [{"n": 1}]
    # InfluxDB's ways to send a token.
    import requests

    for auth in [{"headers": {"Authorization": f"Token {write}"}}, {"headers": {"Authorization": f"Token user:{write}"}},
                 {"auth": ("user", write)}, {"params": at | {"u": "x", "p": write}}]:
        r = requests.post(server.url + "/write", data=line, **({"params": at} | auth))
        assert r.status_code == 204, r.text
    listed = server.cli("token", "list").stdout
    assert "admin" in listed and read.split("_", 2)[2] not in listed
    server.cli("token", "revoke", write.split("_")[1])
    time.sleep(2.1)
    error(server.post("/write", token=write, params=at, data=line), 401, "unauthorized")
    assert server.token not in server.log_text().split("shown once): ")[0]


def test_reading_back(server, fleet):
    server.write("\n".join(f"power,entity_id={fleet.main} value={i} {1767225600 + 900 * i}" for i in range(10)))
    server.write(f"soc,entity_id={fleet.inv1} value=5,quality=\"estimated\" 1767225600")
    first = server.get("/api/measurements", params={"entityId": fleet.main, "limit": 4})
    rows = first.json()
    while "X-Next-Cursor" in first.headers:
        first = server.get("/api/measurements", params={"entityId": fleet.main, "limit": 4, "cursor": first.headers["X-Next-Cursor"]})
        rows += first.json()
    assert [r["value"] for r in rows] == [float(i) for i in range(10)] and len({r["id"] for r in rows}) == 10
    assert rows[0]["id"] == server.sql("SELECT measurement_id(entity_id, metric, timestamp) AS id FROM measurements WHERE value = 0")[0]["id"]
    some = server.get("/api/measurements", params={"metric": "power", "from": "2026-01-01T01:00:00Z", "to": "2026-01-01T01:30:00Z"})
    assert [r["value"] for r in some.json()] == [4.0, 5.0]
    error(server.get("/api/measurements?from=soon"), 400, "invalid", "from", "soon")
    latest = {(r["entityId"], r["metric"]): r for r in server.get("/api/latest").json()}
    assert latest[fleet.main, "power"]["value"] == 9.0 and latest[fleet.inv1, "soc"]["quality"] == "estimated"
    assert len(server.get("/api/latest", params={"meterId": fleet.pv}).json()) == 1
    server.flush()
    server.write(f"power,entity_id={fleet.main} value=77 {1767225600 + 9 * 900}")
    assert server.get("/api/latest", params={"entityId": fleet.main, "metric": "power"}).json()[0]["value"] == 77.0
    tree = server.get(f"/api/hierarchy/{fleet.site_a}").json()
    assert tree["meters"][0]["latest"]["power"]["value"] == 77.0
    error(server.get(f"/api/hierarchy/{uuid.uuid4()}"), 404, "not_found")


def test_operations(server, fleet):
    server.write(f"power,entity_id={fleet.main} value=1 1767225600")
    before = server.get("/api/status").json()["engine"]
    assert before["memoryRows"] == 1 and before["archiveRows"] == 0
    snapshot = server.flush()
    after = server.get("/api/status").json()["engine"]
    assert (after["memoryRows"], after["archiveRows"], after["snapshotId"]) == (0, 1, snapshot)
    text = server.get("/metrics").text
    assert "wattlake_readings_stored_total 1" in text and "wattlake_wal_sync_seconds" in text
    assert server.get("/health").json()["status"] == "pass"
    assert "wal" in {p.name for p in server.dir.iterdir()}
    assert list(server.dir.glob("lake/measurements/month=2026-01/*.parquet"))
    # A second process on the same directory ends at once, with 73.
    second = Server(server.dir)
    done = second.cli("serve", check=False)
    assert done.returncode == 73 and str(server.process.pid) in done.stderr


def test_overload_is_answered_429(start):
    server = start(settings={"ingest.max_inflight_bytes": "1000B"})
    r = server.post("/api/v2/write", params={"bucket": "b"}, data="x" * 5000)
    assert r.status_code == 429 and "Retry-After" in r.headers, r.text


def test_limits_of_readings(server, fleet):
    row = {"entityId": fleet.main, "timestamp": "2026-01-01T00:00:00Z", "metric": "power", "value": 1}
    rows = [row, row | {"metric": "m" * 129}, row | {"metric": "own", "unit": "u" * 33}, row | {"metadata": {"a": "x" * 4096}},
            row | {"entityId": "e" * 201}]
    report = server.post("/api/measurements", json=rows).json()
    assert (report["accepted"], [e["row"] for e in report["errors"]]) == (1, [1, 2, 3, 4]), report
    for e, word in zip(report["errors"], ["metric", "unit", "metadata", "200"], strict=True):
        assert word in e["message"], e
    many = server.post("/api/measurements", json=[row | {"value": None}] * 300).json()
    assert many["rejected"] == 300 and len(many["errors"]) == 100


@pytest.mark.parametrize("bomb", ["pages", "rows"])
def test_parquet_bombs_are_refused(server, fleet, bomb):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    n = 10_000_000 if bomb == "pages" else 3_000_000
    one = lambda value: pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), n), pa.array([value]))
    value = pa.repeat(0.0, n) if bomb == "pages" else one(0.0)
    table = pa.table({"entity_id": one(fleet.main), "timestamp": one("2026-01-01T00:00:00Z"), "metric": one("power"), "value": value})
    body = io.BytesIO()
    pq.write_table(table, body, compression="zstd", use_dictionary=["entity_id", "timestamp", "metric"] + ["value"] * (bomb == "rows"))
    assert body.tell() < 200_000
    r = server.post("/api/measurements", data=body.getvalue(), headers={"Content-Type": "application/vnd.apache.parquet"})
    error(r, 413, "too_large", "would decode to")


def test_lengths_that_an_arrow_stream_only_claims_take_no_memory(server, fleet):
    """A server that may not have all memory in the world lives on, whatever a body of some kilobytes claims to be."""
    import resource
    import struct

    import pyarrow as pa

    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (32 << 30, 32 << 30))
    table = pa.table({"timestamp": pa.array([1767225600_000000 + n for n in range(1000)], pa.timestamp("us", "UTC")), "entity_id": [fleet.main] * 1000,
                      "metric": ["power"] * 1000, "value": [1.5] * 1000})

    def stream(compression=None):
        body = pa.BufferOutputStream()
        with pa.ipc.new_stream(body, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table)
        return body.getvalue().to_pybytes()

    def post(body):
        return server.post("/api/measurements", data=body, headers={"Content-Type": "application/vnd.apache.arrow.stream"})

    for compression in (None, "zstd", "lz4"):
        assert post(stream(compression)).json() == {"accepted": 1000, "rejected": 0, "errors": []}
    plain = stream()
    schema = 8 + struct.unpack_from("<I", plain, 4)[0]
    metadata = schema + 8 + struct.unpack_from("<I", plain, schema + 4)[0]
    length = struct.pack("<q", len(plain) - 8 - metadata)
    assert plain[schema:metadata].count(length) == 1
    for claimed in (-5, 1 << 33, 1 << 40, 1 << 46):
        body = plain[:schema] + plain[schema:metadata].replace(length, struct.pack("<q", claimed)) + plain[metadata:]
        error(post(body), 400, "invalid", "claims lengths")
    for compression in ("zstd", "lz4"):
        whole = stream(compression)
        place = whole.index(struct.pack("<q", 8000), schema + 8)
        for claimed in (1 << 33, 1 << 40, 1 << 46):
            error(post(whole[:place] + struct.pack("<q", claimed) + whole[place + 8:]), 413, "too_large", "would decode to")
    # No row is lost with the bad ones.
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": 1000}]


def test_limits_of_the_catalog_and_of_questions(server, fleet):
    site = {"name": "C"}
    error(server.post("/api/sites", json=site | {"name": "n" * 201}), 400, "invalid", "site name", "200")
    error(server.post("/api/sites", json=site | {"description": "d" * 4001}), 400, "invalid", "description", "4000")
    error(server.post("/api/sites", json=site | {"metadata": {"a": "x" * (64 << 10)}}), 400, "invalid", "metadata", "65536")
    for path in ("/api/sites", "/api/measurements"):
        error(server.get(path + "?limit=10001"), 400, "invalid", "limit", "10000")
    error(server.post("/api/sql", json={"query": "SELECT '" + "x" * (256 << 10) + "'"}), 400, "invalid")
    span = {"metric": "power", "bucket": "5m", "from": "2000-01-01", "to": "2026-01-01"}
    r = server.get("/api/rollup", params=span)
    assert r.status_code in (400, 422) and "bucket" in r.json()["error"]["message"], r.text


def test_connections_beyond_the_limit_wait(start):
    server = start(settings={"http.max_connections": "2"})
    ask = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(3)]
    for connection in opened[:2]:
        connection.sendall(ask)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    opened[2].sendall(ask)
    opened[2].settimeout(1)
    with pytest.raises(TimeoutError):
        opened[2].recv(4096)
    opened[0].close()
    opened[2].settimeout(30)
    assert opened[2].recv(4096).startswith(b"HTTP/1.1 200")


def test_queries_beyond_the_limit_are_answered_429(start):
    server = start(settings={"query.max_concurrent": "1", "query.max_rows": "1000000000"})
    with server.get("/api/sql?format=csv&q=SELECT * FROM generate_series(1, 500000000)", stream=True) as endless:
        chunks = endless.iter_content(100)
        assert next(chunks)
        error(server.get("/api/sql?q=SELECT 1"), 429, "overloaded", "query.max_concurrent")
    wait_until(lambda: server.get("/api/sql?q=SELECT 1").status_code == 200, "the end of the abandoned query")


def test_a_source_says_why_it_cannot_be_polled(server, fleet):
    path = f"/api/energy-sources/{fleet.inv1}"
    tested = server.post(path + "/test").json()
    assert tested["connectionStatus"] == "not_configured" and "metadata.apiProvider" in tested["message"]
    patch = {"metadata": {"useAPI": True, "apiProvider": "acme", "apiKey": "hunter2"}}
    assert server.request("PATCH", path, json=patch).status_code == 200
    tested = server.post(path + "/test").json()
    assert tested["connectionStatus"] == "unsupported" and "acme" in tested["message"]
    kept = server.get(path).json()["metadata"]
    noted = {"connectionStatus": tested["connectionStatus"], "lastTested": tested["lastTested"], "lastError": tested["message"]}
    assert kept == patch["metadata"] | {"apiKey": "***"} | noted
    error(server.post(path + "/poll"), 422, "unprocessable", "acme")
    error(server.post(path + "/backfill", json={"from": "2026-01-01", "to": "2026-02-01"}), 422, "unprocessable", "acme")
    error(server.post(path + "/backfill", json={"from": "2026-02-01", "to": "2026-01-01"}), 400, "invalid", "not before")
    error(server.post(path + "/backfill", json={"from": "2026-02-01"}), 400, "invalid", "to")
    assert server.get("/api/jobs").json() == []
    error(server.get("/api/jobs/1"), 404, "not_found", "1")


def test_every_route_asks_for_its_scope(server):
    """The table of routes times every scope: nothing answers to less than its rule."""
    import pathlib
    import re
    import time

    source = (pathlib.Path(__file__).parents[2] / "query-api/src/http/routes.rs").read_text()
    table = re.findall(r'route\("([^"]+)", (?:Needs\((\w+)\)|(Open)), (.*)\),$', source, re.M)
    assert len(table) > 30
    tokens = {s: server.cli("token", "create", "--name", s, "--scope", s).stdout.strip() for s in ("read", "write", "admin")}
    time.sleep(2.1)
    checked = 0
    for path, scope, is_open, handler in table:
        for method in re.findall(r"\b(get|post|patch|delete|head)\(", handler):
            url = re.sub(r"\{\w+\}", "not-a-uuid", path)
            for name, token in [("none", ""), *tokens.items()]:
                status = server.request(method.upper(), url, token=token, data=b"").status_code
                if is_open:
                    assert status in (200, 204), (method, path, name, status)
                elif name == "none":
                    assert status == 401, (method, path, status)
                elif name not in ("admin", scope.lower()):
                    assert status == 403, (method, path, name, status)
                else:
                    assert status not in (401, 403), (method, path, name, status)
                checked += 1
    assert checked > 4 * len(table) - 1


def test_an_answer_that_has_not_changed_is_not_sent_again(server, fleet):
    server.write(f"power,entity_id={fleet.main} value=1 {T0}")
    fixed = {"metric": "power", "from": "2026-01-01", "to": "2026-01-02"}
    for path, params in [("/api/latest", {}), ("/api/rollup", fixed)]:
        first = server.get(path, params=params)
        tag = first.headers["ETag"]
        again = lambda **headers: server.get(path, params=params, headers={"If-None-Match": tag} | headers)
        unchanged = again()
        assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", tag)
        # Another question, another token, a reading, a change of the fleet.
        assert server.get(path, params=params | {"metric": "energy"}, headers={"If-None-Match": tag}).status_code == 200
        other = server.new_token("--scope", "read")
        assert server.request("GET", path, token=other, params=params, headers={"If-None-Match": tag}).status_code == 200
        assert again().status_code == 304
        server.write(f"power,entity_id={fleet.main} value=2 {T0}")
        changed = again()
        assert changed.status_code == 200 and changed.headers["ETag"] != tag
        tag = changed.headers["ETag"]
        server.flush()
        assert again().status_code == 200, "another snapshot"
        tag = again().headers["ETag"]
        server.request("PATCH", f"/api/sites/{fleet.site_a}", json={"metadata": {"timezone": "Asia/Tokyo"}})
        assert again().status_code == 200
    assert "ETag" not in server.get("/api/rollup", params=fixed | {"to": "now"}).headers


def test_answers_are_compressed_for_who_asks(server, fleet):
    server.write("\n".join(f"power,entity_id={fleet.main} value={n} {T0 + n}" for n in range(5000)))
    query = {"q": "SELECT * FROM measurements"}
    plain = requests.get(server.url + "/api/sql", params=query, headers={"Authorization": f"Bearer {server.token}", "Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers and len(plain.json()) == 5000
    for encoding in ("gzip", "zstd"):
        headers = {"Authorization": f"Bearer {server.token}", "Accept-Encoding": encoding}
        raw = requests.get(server.url + "/api/sql", params=query, headers=headers, stream=True).raw
        assert raw.headers["Content-Encoding"] == encoding
        assert len(raw.read(decode_content=False)) < len(plain.content) / 5
        for format in ("json", "csv", "arrow"):
            want = server.get("/api/sql", params=query | {"format": format}, headers={"Accept-Encoding": "identity"})
            assert server.get("/api/sql", params=query | {"format": format}, headers={"Accept-Encoding": "gzip"}).content == want.content
    parquet = server.get("/api/sql", params=query | {"format": "parquet"}, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in parquet.headers


def test_the_description_of_the_interface_is_true(server, fleet):
    """Generated requests: no server errors, and nothing but what /api/openapi.json says."""
    server.write(f"power,entity_id={fleet.main} value=1 {T0}")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/openapi.json", "--header", f"Authorization: Bearer {server.token}",
         "--checks", checks, "--max-examples", "15", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--request-timeout", "30",
         "--exclude-path", "/api/backup", "--exclude-path", "/api/export", "--no-color"],
        capture_output=True, text=True, timeout=500, cwd=server.dir.parent,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "panicked" not in server.log_text()
