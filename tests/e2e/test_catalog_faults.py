"""A catalog database that goes away, loses answers, or is locked by somebody else."""

import concurrent.futures
import sqlite3
import threading
import time

import pytest
import requests

from conftest import SCALE, Fleet, wait_until
from toxic import TcpProxy

T0 = 1_767_225_600


@pytest.fixture
def proxied(postgres):
    """A database behind a proxy: the proxy and the address for the server."""
    url = postgres()
    host, name = url.split("@")[1].split("/")
    proxy = TcpProxy((host.split(":")[0], int(host.split(":")[1])))
    yield proxy, f"postgres://wattlake@127.0.0.1:{proxy.port}/{name}"
    proxy.close()


class Writer:
    """Writes one reading after the other in the background; remembers which were acknowledged."""

    def __init__(self, server, meter, first=0):
        self.server, self.meter, self.next, self.acked, self.statuses = server, meter, first, set(), []
        self.is_over, self.session = False, requests.Session()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.is_over:
            n, self.next = self.next, self.next + 1
            r = self.session.post(self.server.url + "/api/v2/write", headers={"Authorization": f"Bearer {self.server.token}"}, timeout=60, params={"bucket": "b", "precision": "s"}, data=f"power,entity_id={self.meter} value={n} {T0 + n}".encode())
            self.statuses.append(r.status_code)
            if r.status_code == 204:
                self.acked.add(n)

    def stop(self):
        self.is_over = True
        self.thread.join()

    def check(self, server):
        acked = set(self.acked)
        rows = server.sql("SELECT value FROM measurements")
        values = [int(r["value"]) for r in rows]
        assert len(values) == len(set(values)), "a reading is there twice"
        assert acked <= set(values), "an acknowledged reading is lost"
        assert set(values) <= set(range(self.next))


def test_writes_and_questions_go_on_while_postgres_is_away(start, proxied):
    proxy, url = proxied
    server = start(settings={"catalog.url": url, "flush.interval": "200ms", "compaction.interval": "300ms"})
    fleet = Fleet(server)
    writer = Writer(server, fleet.main)
    for _ in range(3):
        time.sleep(0.5)
        proxy.is_down = True
        proxy.cut_all()
        before = len(writer.acked)
        time.sleep(2 * SCALE)
        wait_until(lambda: len(writer.acked) > before + 20, "acknowledgements while Postgres is away")
        writer.check(server)
        proxy.is_down = False
        snapshot = server.get("/api/status").json()["engine"]["snapshotId"]
        wait_until(lambda: server.get("/api/status").json()["engine"]["snapshotId"] > snapshot, "a flush after Postgres came back", 30)
    writer.stop()
    assert set(writer.statuses) == {204}
    server.flush()
    writer.check(server)
    server.kill()
    server.start()
    writer.check(server)
    assert {p["kind"] for p in server.post("/api/verify").json()["problems"]} <= {"orphan"}


def test_an_answer_to_commit_that_is_lost_doubles_and_loses_nothing(start, proxied):
    proxy, url = proxied
    server = start(settings={"catalog.url": url, "flush.interval": "100ms", "compaction.interval": "250ms"})
    fleet = Fleet(server)
    commits = [0]

    def every_second_commit(data):
        if b"COMMIT" not in data:
            return False
        commits[0] += 1
        return commits[0] % 2 == 0

    proxy.on_request = every_second_commit
    # The client asks what became of it before the database has got it, every other time.
    proxy.delay = lambda: proxy.cuts % 2 * 0.4
    writer = Writer(server, fleet.main)
    wait_until(lambda: proxy.cuts >= 20, "lost answers", 120)
    proxy.on_request = lambda data: False
    writer.stop()
    server.flush()
    writer.check(server)
    assert "its answer was lost" in server.log_text()
    status = server.get("/api/status").json()["engine"]
    assert status["archiveRows"] == len(server.sql("SELECT value FROM measurements"))
    server.kill()
    server.start()
    writer.check(server)
    assert {p["kind"] for p in server.post("/api/verify").json()["problems"]} <= {"orphan"}


def test_a_lock_of_somebody_else_is_waited_for(start):
    server = start(settings={"flush.interval": "200ms"})
    fleet = Fleet(server)
    writer = Writer(server, fleet.main)
    for _ in range(3 * SCALE):
        outsider = sqlite3.connect(server.dir / "catalog.db", isolation_level=None)
        outsider.execute("BEGIN IMMEDIATE")
        changed = threading.Thread(target=lambda: statuses.append(server.request("PATCH", f"/api/meters/{fleet.main}", json={"description": "x"}).status_code))
        statuses = []
        changed.start()
        time.sleep(1.5)
        server.sql("SELECT count(*) FROM measurements JOIN meters ON meters.id = entity_id")
        outsider.execute("ROLLBACK")
        outsider.close()
        changed.join()
        assert statuses == [200]
    writer.stop()
    assert set(writer.statuses) == {204}
    writer.check(server)


def test_clients_that_go_away_spoil_no_connection(start, postgres):
    server = start(settings={"catalog.url": postgres()})
    fleet = Fleet(server)

    def go_away(n):
        body = {"name": f"site {n}"} if n % 2 else {"description": f"{n}"}
        method, path = ("POST", "/api/sites") if n % 2 else ("PATCH", f"/api/meters/{fleet.main}")
        try:
            requests.request(method, server.url + path, json=body, headers={"Authorization": f"Bearer {server.token}"}, timeout=(5, 0.0005 + (n % 40) / 4000))
        except requests.RequestException:
            pass

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(go_away, range(600 * SCALE)))
    for n in range(100):
        r = server.post("/api/sites", json={"name": f"after {n}"})
        assert r.status_code == 201, r.text
    names = {site["name"] for site in server.sql("SELECT name FROM sites")}
    assert {f"after {n}" for n in range(100)} <= names
