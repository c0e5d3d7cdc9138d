"""An object store that answers with errors, loses answers, stalls, lies, or is away."""

import random
import threading
import time

import boto3
import pytest

from conftest import SCALE, Fleet, wait_until
from test_catalog_faults import Writer
from toxic import HttpProxy

T0 = 1_767_225_600
COUNT = "SELECT count(*) AS n, sum(value) AS s FROM measurements"


@pytest.fixture
def toxic(s3, request):
    """A store behind a proxy: the proxy, the settings for the server, and a client past the proxy."""
    host, port = s3["storage.s3.endpoint"].removeprefix("http://").split(":")
    proxy = HttpProxy((host, int(port)))
    prefix = request.node.name.replace("[", "-").replace("]", "")
    settings = s3 | {"storage.url": f"s3://lake/{prefix}", "storage.s3.endpoint": f"http://127.0.0.1:{proxy.port}"}
    client = boto3.client("s3", endpoint_url=s3["storage.s3.endpoint"], region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
    objects = lambda: {o["Key"] for page in client.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix + "/") for o in page.get("Contents", [])}
    yield proxy, settings, client, objects
    proxy.close()


def engine(server):
    return server.get("/api/status").json()["engine"]


def drained(server):
    return lambda: engine(server)["spooledBytes"] == 0


QUICK = {"flush.interval": "200ms", "compaction.interval": "400ms"}


def test_half_of_all_requests_fail(start, toxic):
    proxy, settings, _, _ = toxic
    server = start(settings=settings | QUICK)
    writer = Writer(server, Fleet(server).main)
    proxy.toxics.errors = 0.5
    time.sleep(5 * SCALE)
    wait_until(lambda: proxy.counts.get("errors", 0) > 20, "failing requests")
    proxy.toxics.errors = 0.0
    writer.stop()
    assert set(writer.statuses) == {204}
    wait_until(drained(server), "an empty spool", 60)
    server.flush()
    writer.check(server)
    server.kill()
    server.start()
    writer.check(server)
    assert {p["kind"] for p in server.post("/api/verify").json()["problems"]} <= {"orphan"}


def test_answers_to_uploads_are_lost(start, toxic):
    proxy, settings, _, _ = toxic
    server = start(settings=settings | QUICK)
    writer = Writer(server, Fleet(server).main)
    proxy.toxics.lost_answers = 0.34
    wait_until(lambda: proxy.counts.get("lost_answers", 0) >= 15 * SCALE, "lost answers", 60 * SCALE)
    proxy.toxics.lost_answers = 0.0
    writer.stop()
    assert set(writer.statuses) == {204}
    wait_until(drained(server), "an empty spool", 60)
    server.flush()
    writer.check(server)
    problems = server.post("/api/verify").json()["problems"]
    assert {p["kind"] for p in problems} <= {"orphan"} and len(problems) <= proxy.counts["lost_answers"] + engine(server)["dataFiles"]


def test_bodies_that_are_cut_or_altered_are_not_believed(start, toxic):
    proxy, settings, _, _ = toxic
    # Without a cache every question asks the store.
    server = start(settings=settings | {"storage.s3.cache": "0B"})
    fleet = Fleet(server)
    for n in range(4):
        server.write("\n".join(f"power,entity_id={fleet.main} value={(i * 7919 % 1000) / 8} {T0 + 60 * (5000 * n + i)}" for i in range(5000)))
        server.flush()
    truth = server.sql(COUNT)
    proxy.toxics.only = "/month"
    wrong = right = 0
    for share in ("altered", "truncated"):
        setattr(proxy.toxics, share, 0.3)
        for _ in range(60 * SCALE):
            r = server.post("/api/sql", json={"query": COUNT})
            if r.status_code == 200:
                assert r.json() == truth
                right += 1
            else:
                assert ".parquet" in r.text or "object storage" in r.text, r.text
                wrong += 1
        setattr(proxy.toxics, share, 0.0)
    assert proxy.counts["altered"] > 30 and proxy.counts["truncated"] > 30 and right > 10
    wait_until(lambda: server.post("/api/sql", json={"query": COUNT}).status_code == 200, "an answer", 60)
    assert server.sql(COUNT) == truth


def test_a_stalled_body_is_given_up_and_asked_for_again(start, toxic):
    proxy, settings, _, _ = toxic
    server = start(settings=settings | {"storage.s3.cache": "0B"})
    fleet = Fleet(server)
    server.write("\n".join(f"power,entity_id={fleet.main} value={i} {T0 + 60 * i}" for i in range(5000)))
    server.flush()
    truth = server.sql(COUNT)
    proxy.toxics.only, proxy.toxics.stalled = "/month", 1.0
    slow = threading.Thread(target=lambda: answers.append(server.post("/api/sql", json={"query": COUNT})))
    answers = []
    slow.start()
    wait_until(lambda: proxy.counts.get("stalled", 0) >= 1, "a stalled body")
    proxy.toxics.stalled = 0.0
    # Others are answered meanwhile.
    assert server.sql(COUNT) == truth
    slow.join(40)
    assert not slow.is_alive() and answers[0].status_code == 200 and answers[0].json() == truth


def test_writes_go_into_the_spool_while_the_store_is_away_until_that_is_full(start, toxic, duck, s3):
    proxy, settings, _, objects = toxic
    limits = {"storage.s3.spool": "1MiB", "memory.budget": "4MiB", "flush.max_bytes": "256KiB"}
    server = start(settings=settings | QUICK | limits)
    fleet = Fleet(server)
    server.write(f"power,entity_id={fleet.main} value=0 {T0}")
    server.flush()
    proxy.toxics.is_down = True
    rows, refused, rng = 1, 0, random.Random(5)
    for n in range(3000):
        lines = "\n".join(f"power,entity_id={fleet.main} value={rng.random()} {T0 + 1 + 500 * n + i}" for i in range(500))
        status = server.post("/api/v2/write", params={"bucket": "b", "precision": "s"}, data=lines.encode()).status_code
        assert status in (204, 429)
        rows += 500 if status == 204 else 0
        # A flush that is under way makes room once more, until the spool is full as well.
        refused = 0 if status == 204 else refused + 1
        if refused == 6:
            break
        time.sleep(0.5 if refused else 0)
    assert refused == 6, "memory is bounded"
    memory = server.memory()
    for _ in range(SCALE):
        time.sleep(1)
        r = server.post("/api/v2/write", params={"bucket": "b", "precision": "s"}, data=lines.encode())
        assert r.status_code == 429 and int(r.headers["Retry-After"]) >= 1
    assert server.memory() < memory + (32 << 20)
    waiting = engine(server)
    assert 512 << 10 < waiting["spooledBytes"] <= 1 << 20
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": rows}], "what is spooled is read from there"
    # The spool and the log outlive the process.
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": rows}]
    proxy.toxics.is_down = False
    wait_until(drained(server), "an empty spool", 60)
    wait_until(lambda: server.post("/api/v2/write", params={"bucket": "b", "precision": "s"}, data=f"power,entity_id={fleet.main} value=1 {T0 - 1}".encode()).status_code == 204, "an accepted write")
    server.flush()
    wait_until(drained(server), "an empty spool", 60)
    assert server.sql("SELECT count(*) AS n FROM measurements") == [{"n": rows + 1}]
    assert not [f for f in (server.dir / "spool").rglob("*") if f.is_file()]
    db = duck(f"sqlite:{server.dir}/catalog.db", s3=s3)
    assert db.sql("SELECT count(*) FROM lake.measurements").fetchone() == (rows + 1,)
    assert {p["kind"] for p in server.post("/api/verify").json()["problems"]} <= {"orphan"}


def test_without_a_spool_the_log_waits(start, toxic):
    proxy, settings, _, _ = toxic
    server = start(settings=settings | QUICK | {"storage.s3.spool": "0B"})
    writer = Writer(server, Fleet(server).main)
    proxy.toxics.is_down = True
    wait_until(lambda: engine(server)["lastFlushError"], "a failing flush", 60)
    assert "object storage" in engine(server)["lastFlushError"]
    proxy.toxics.is_down = False
    wait_until(lambda: engine(server)["lastFlushError"] is None, "a flush", 90)
    writer.stop()
    assert set(writer.statuses) == {204}
    writer.check(server)


def test_an_object_that_somebody_deleted_or_replaced_is_an_error_that_names_it(start, toxic):
    proxy, settings, client, objects = toxic
    server = start(settings=settings | {"storage.s3.cache": "0B"})
    fleet = Fleet(server)
    for n in range(2):
        server.write("\n".join(f"power,entity_id={fleet.main} value={n} {T0 + 60 * (100 * n + i)}" for i in range(100)))
        server.flush()
    first, second = sorted(o for o in objects() if "month=" in o)
    kept = {key: client.get_object(Bucket="lake", Key=key)["Body"].read() for key in (first, second)}
    client.put_object(Bucket="lake", Key=second, Body=kept[first])
    server.stop()
    server.start()
    r = server.post("/api/sql", json={"query": COUNT})
    assert r.status_code >= 500 and second.rsplit("/", 1)[1] in r.text, r.text
    client.delete_object(Bucket="lake", Key=second)
    r = server.post("/api/sql", json={"query": COUNT})
    assert r.status_code >= 500 and second.rsplit("/", 1)[1] in r.text, r.text
    client.put_object(Bucket="lake", Key=second, Body=kept[second])
    assert server.sql(COUNT)[0]["n"] == 200


def test_what_was_read_is_not_fetched_again_and_the_cache_has_a_limit(start, toxic):
    proxy, settings, _, _ = toxic
    limit = 3 << 20
    server = start(settings=settings | {"storage.s3.cache": "3MiB"})
    fleet = Fleet(server)
    rng = random.Random(3)
    for n in range(8):
        # Their sums are exact in any order.
        server.write("\n".join(f"power,entity_id={fleet.main} value={rng.randrange(1 << 24) / 2**24} {T0 + 86400 * 31 * n + 30 * i}" for i in range(60_000)))
        server.flush()
    one = "SELECT count(*) AS n, sum(value) AS s FROM measurements WHERE timestamp < '2026-01-31T00:00:00Z'"
    truth = server.sql(one)
    time.sleep(0.5)
    before = proxy.counts["GET"]
    for _ in range(5):
        assert server.sql(one) == truth
    assert proxy.counts["GET"] == before, "it was fetched again"
    server.stop()
    server.start()
    before = proxy.counts["GET"]
    assert server.sql(one) == truth
    # Only the journal was looked at.
    assert proxy.counts["GET"] <= before + 2
    used = lambda: sum(f.stat().st_size for f in (server.dir / "cache").iterdir())
    total = server.sql(COUNT)
    for _ in range(3):
        assert server.sql(COUNT) == total
    wait_until(lambda: 0 < used() <= limit, "a cache within its limit")
    # Damage on the local disk is found and fetched anew.
    for part in (server.dir / "cache").iterdir():
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    assert server.sql(COUNT) == total and server.sql(one) == truth


def test_questions_never_lose_their_files_to_compaction_and_collection(start):
    server = start(settings={"flush.interval": "100ms", "compaction.interval": "100ms", "snapshots.keep": "1ms", "snapshots.grace": "2s", "query.timeout": "2s"})
    fleet = Fleet(server)
    stop = threading.Event()
    wrong, swept = [], []

    def ask():
        while not stop.is_set():
            r = server.post("/api/sql", json={"query": "SELECT count(*) AS a, (SELECT count(*) FROM measurements) AS b, count(DISTINCT timestamp) AS c FROM measurements"})
            if r.status_code != 200 or len({*r.json()[0].values()}) != 1:
                wrong.append(r.text)

    def tidy():
        while not stop.is_set():
            swept.append(server.post("/api/compact", params={"all": "true", "force": "true"}).json()["sweptObjects"])

    threads = [threading.Thread(target=f) for f in (ask, ask, tidy)]
    for thread in threads:
        thread.start()
    for n in range(120 * SCALE):
        server.write("\n".join(f"power,entity_id={fleet.main} value={n} {T0 + 60 * (20 * n + i - 7)}" for i in range(30)))
        time.sleep(0.08)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert sum(swept) > 0, "nothing was collected: the test proves too little"
