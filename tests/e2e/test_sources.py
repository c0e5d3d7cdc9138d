"""Polling simulated vendors: weeks in minutes, with a server that is killed again and again."""

import datetime
import json
import os
import random
import struct
import subprocess
import time

import pytest
import requests

from conftest import BINARY, free_port, wait_until

SYSTEMS = int(os.environ.get("TEST_SYSTEMS", "2"))
FAULTS = int(os.environ.get("TEST_FAULTS", "0"))
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
DAY = 86_400
QUARTER = 900
SECRETS = ["canary-", "access-", "refresh-solar", "refresh-enph"]


def epoch(text):
    return int(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def system(vendor, n):
    name = f"{vendor}-{n}"
    return {"vendor": vendor, "id": name, "zone": ZONES[n % len(ZONES)], "peak": 5.0 + n,
            # Every other system of SolarEdge is known by its owner's grant only.
            "key": f"canary-key-{name}" if vendor == "enphase" or n % 2 == 0 else None,
            "clientId": f"client-{name}", "clientSecret": f"canary-secret-{name}", "refreshToken": f"canary-grant-{name}"}


class World:
    """Simulated vendors, a server that polls them, and the time for both."""

    def __init__(self, tmp_path, start, systems, begin, *flags, every="3h", budget=None):
        self.clock_file = tmp_path / "clock"
        self.clock_file.write_bytes(b"\0" * 8)
        self.set(begin)
        self.systems, self.port = systems, free_port()
        (tmp_path / "systems.json").write_text(json.dumps(systems))
        env = {"TEST_CLOCK_FILE": str(self.clock_file)}
        self.vendors = subprocess.Popen(
            [BINARY, "simulate", "--listen", f"127.0.0.1:{self.port}", "--systems", str(tmp_path / "systems.json"), *flags],
            env=os.environ | env, stdout=subprocess.DEVNULL)
        wait_until(lambda: self.vendors_answer(), "the simulated vendors")
        self.server = start(env=env, settings={"flush.interval": "5s"})
        self.sources = {s["id"]: self.create(s, every, budget) for s in systems}

    def vendors_answer(self):
        assert self.vendors.poll() is None, "the simulated vendors ended"
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/simulator/violations", timeout=5).ok
        except requests.ConnectionError:
            return False

    def create(self, system, every, budget):
        streams = ["energy", "meters", "days"] if system["vendor"] == "solaredge" else ["production", "consumption", "days"]
        base = f"http://127.0.0.1:{self.port}" + ("/v2" if system["vendor"] == "solaredge" else "")
        metadata = {"useAPI": True, "apiProvider": system["vendor"], "systemId": system["id"], "baseUrl": base, "local": True,
                    "updateFrequency": every, "streams": streams, "budget": budget, "clientId": system["clientId"],
                    "clientSecret": system["clientSecret"], "refreshToken": system["refreshToken"]}
        if system["key"]:
            metadata["apiKey"] = system["key"]
        body = {"site": {"name": system["id"], "metadata": {"timezone": system["zone"]}}, "meters": [
            {"name": "roof", "category": "PROD", "readingFrequency": "15min", "sources": [
                {"name": system["id"], "sourceType": "solar", "metadata": metadata}]}]}
        created = self.server.post("/api/onboarding/complete", json=body)
        assert created.status_code == 201, created.text
        return created.json()["sourceIds"][0]

    def set(self, seconds):
        self.now = seconds
        with open(self.clock_file, "r+b") as file:
            file.write(struct.pack("<q", int(seconds * 1_000_000)))

    def status(self):
        return {s["id"]: s for s in self.server.get("/api/status").json()["sources"]}

    def settle(self):
        """Waits until every source has had its turns; answers when the next one is."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            status = self.status()
            turns = [s["nextTurn"] for s in status.values() if s["nextTurn"]]
            is_settled = len(status) == len(self.sources) and not any(s["isBusy"] for s in status.values())
            if is_settled and all(datetime.datetime.fromisoformat(t.replace("Z", "+00:00")).timestamp() > self.now for t in turns):
                return min(map(epoch, turns), default=None)
            time.sleep(0.002)
        raise AssertionError(f"sources were busy for a minute: {status}")

    def run_until(self, end, step=600):
        """Lets the time pass, not in smaller steps than those."""
        while True:
            following = self.settle()
            if following is None or following >= end:
                break
            self.set(max(following + 1, min(self.now + step, end)))
        self.set(end)
        self.settle()

    def kill_and_start(self):
        self.server.kill()
        self.server.start()

    def violations(self, kills=0):
        """What the vendors were done that must not be. Who is killed before it reads of a pause knows nothing of it."""
        seen = requests.get(f"http://127.0.0.1:{self.port}/simulator/violations", timeout=60).json()["violations"]
        unknown = [v for v in seen if v.endswith("called in a pause")]
        return seen if len(unknown) > kills else [v for v in seen if v not in unknown]

    def compare(self, begin, end):
        """What is stored is what was measured, in a span that is whole quarters."""
        begin, end = -(-begin // QUARTER) * QUARTER, end // QUARTER * QUARTER
        compared = 0
        for system, source in self.sources.items():
            for metric in ["energy", "consumption_energy"]:
                rows = self.server.sql(
                    "SELECT date_part('epoch', timestamp)::BIGINT AS t, value FROM measurements WHERE entity_id = $1 AND metric = $2 "
                    "AND timestamp >= to_timestamp_seconds($3::BIGINT) AND timestamp < to_timestamp_seconds($4::BIGINT)",
                    params=[source, metric, begin, end])
                stored = {row["t"]: row["value"] * 1000 for row in rows}
                assert len(stored) == len(rows), f"{system} {metric}: doubled readings"
                url = f"http://127.0.0.1:{self.port}/simulator/measured/{system}/{metric.split('_')[0]}"
                measured = dict(requests.get(url, params={"from": begin, "to": end}, timeout=60).json())
                missing, more = sorted(measured.keys() - stored.keys()), sorted(stored.keys() - measured.keys())
                wrong = {t: (stored[t], v) for t, v in measured.items() if t in stored and abs(stored[t] - v) > 1e-6}
                assert not (missing or more or wrong), (
                    f"{system} {metric}: {len(missing)} missing from {missing[:1]}, {len(more)} not measured from {more[:1]}, "
                    f"{len(wrong)} wrong {dict(list(wrong.items())[:3])}; {self.status()[source]}")
                compared += len(measured)
        return compared

    def end(self):
        self.vendors.kill()
        self.vendors.wait()


@pytest.fixture
def world(tmp_path, start):
    worlds = []

    def make(*args, **kwargs):
        worlds.append(World(tmp_path, start, *args, **kwargs))
        return worlds[-1]

    yield make
    for one in worlds:
        one.end()


def told_secrets(world):
    """Files of the server and its log that hold what was given as a secret, or a token."""
    files = [f for f in world.server.dir.rglob("*") if f.is_file()] + [world.server.dir.parent / f"{world.server.dir.name}.log"]
    assert len(files) > 5
    return [(str(f), s) for f in files for s in SECRETS if s.encode() in f.read_bytes()]


def test_a_bad_month_with_a_kill_every_day(world):
    """Outages, errors, garbage, pauses, tokens that end early, the change of the clock: nothing missing, doubled or wrong."""
    begin = epoch("2026-03-10T07:12:00Z")
    w = world([system(v, n) for n in range(SYSTEMS) for v in ("solaredge", "enphase")], begin, "--bad-days", "7")
    rng = random.Random(11)
    month = 31
    for day in range(month):
        w.run_until(begin + day * DAY + rng.randrange(DAY))
        # In the middle of whatever is due six hours later.
        w.set(w.now + 6 * 3600)
        time.sleep(rng.random() * 0.05)
        w.kill_and_start()
    # Vendors fill and correct what they have shown for days.
    w.run_until(begin + (month + 10) * DAY)
    assert w.violations(kills=month) == []
    assert w.compare(begin, begin + month * DAY) > 2 * SYSTEMS * 2 * month * 70
    assert all(s["connectionStatus"] in ("connected", "failing") for s in w.status().values()), w.status()
    w.server.flush()
    assert told_secrets(w) == []


def test_no_refresh_token_is_lost_in_a_crash(world):
    w = world([system("solaredge", 1), system("enphase", 0)], epoch("2026-04-01T00:00:00Z"), every="1h")
    w.settle()
    for round in range(max(FAULTS, 3)):
        # Whichever refreshes first takes the process with it, with the new token in hand.
        w.server.stop()
        w.server.env["FAILPOINTS"] = random.choice(["poll.after_refresh=return", "poll.after_refresh=1*off->return"])
        w.set(w.now + DAY + 3600)
        w.server.process = subprocess.Popen([BINARY, "serve", *w.server.flags()], env=w.server.env,
                                            stdout=w.server.log, stderr=w.server.log)
        w.server.process.wait(60)
        del w.server.env["FAILPOINTS"]
        w.server.start()
        w.run_until(w.now + 3600)
        assert {s["connectionStatus"] for s in w.status().values()} == {"connected"}, (round, w.status())
    assert w.violations() == []


def test_history_is_fetched_whatever_happens_to_the_server(world):
    now = epoch("2026-04-10T07:12:00Z")
    w = world([system("solaredge", 0), system("enphase", 1)], now, "--bad-days", "5", every="6h")
    w.settle()
    days = 30 if FAULTS < 50 else 300
    begin, end = now - (days + 10) * DAY, now - 10 * DAY
    text = lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat()
    for source in w.sources.values():
        path = f"/api/energy-sources/{source}/backfill"
        plan = w.server.post(path, json={"from": text(begin), "to": text(end), "dryRun": True}).json()
        assert plan["calls"] > 4 and plan["estimatedEnd"] > "2026-04-10", plan
        assert w.server.post(path, json={"from": text(begin), "to": text(end)}).status_code == 200
        assert w.server.post(path, json={"from": text(begin), "to": text(end)}).status_code == 409
    rng = random.Random(5)
    for kill in range(max(FAULTS, 8)):
        time.sleep(rng.random() * 0.1)
        w.server.kill()
        # Not while calls are under way: they would be counted at another time than they arrive.
        w.set(w.now + rng.randrange(900))
        w.server.start()
    while any(job["state"] == "running" for job in w.server.get("/api/jobs").json()):
        w.run_until(w.now + 3 * 3600)
        assert w.now < now + 120 * DAY
    jobs = w.server.get("/api/jobs").json()
    assert [job["state"] for job in jobs] == ["done", "done"] and all(job["progress"] == 1 for job in jobs), jobs
    w.compare(begin, end)
    assert w.violations(kills=max(FAULTS, 8)) == []


def test_a_users_path(world):
    """A source is created, tested, polled; the newest value is there; history follows; the command line tells of it."""
    now = epoch("2026-06-15T12:02:00Z")
    w = world([system("solaredge", 0)], now, "--generous", every="1d", budget={"perMinute": 1000, "perMonth": 10_000})
    source = w.sources["solaredge-0"]
    path = f"/api/energy-sources/{source}"
    tested = w.server.post(path + "/test").json()
    assert tested["connectionStatus"] == "connected" and tested["lastTested"].startswith("2026-06-15T12:02:00"), tested
    polled = w.server.post(path + "/poll").json()
    assert polled["connectionStatus"] == "connected" and polled["readings"] > 50 and polled["lastError"] is None, polled
    metadata = w.server.get(path).json()["metadata"]
    assert metadata["connectionStatus"] == "connected" and metadata["apiKey"] == metadata["clientSecret"] == "***"
    latest = {row["metric"]: row for row in w.server.get(f"/api/latest?entityId={source}").json()}
    assert latest["energy"]["timestamp"].startswith("2026-06-15T11:45") and latest["energy"]["value"] > 0, latest
    plan = w.server.cli("backfill", "--source", source, "--from", "2026-06-01", "--to", "2026-06-10", "--dry-run").stdout
    assert "calls for energy, meters, days" in plan, plan
    done = w.server.cli("backfill", "--source", source, "--from", "2026-06-01", "--to", "2026-06-10").stdout
    assert "readings in" in done, done
    w.compare(epoch("2026-06-01T22:00:00Z"), epoch("2026-06-09T22:00:00Z"))
    assert "no gaps" in w.server.cli("gaps").stdout
    assert "connected" in w.server.cli("status").stdout
    # What is wrong is said in words that tell what to do.
    for change, status, words in [
        ({"apiKey": "wrong"}, "unauthorized", "Invalid API key"),
        ({"apiKey": "canary-key-solaredge-0", "local": False}, "misconfigured", "metadata.local"),
        ({"local": True, "systemId": "../../etc"}, "misconfigured", "metadata.systemId"),
        ({"systemId": "solaredge-0", "updateFrequency": "often"}, "misconfigured", "cron"),
        ({"updateFrequency": "1h", "streams": ["enery"]}, "misconfigured", "energy, power"),
        ({"streams": None, "baseUrl": "http://127.0.0.1:9/v2"}, "failing", "127.0.0.1:9"),
    ]:
        assert w.server.request("PATCH", path, json={"metadata": change}).status_code == 200
        tested = w.server.post(path + "/test").json()
        assert tested["connectionStatus"] == status and words in tested["message"], tested
        assert "canary" not in tested["message"] and w.server.get(path).json()["metadata"]["lastError"] == tested["message"]
    # Without a server the command does the work itself.
    fixed = {"metadata": {"baseUrl": f"http://127.0.0.1:{w.port}/v2", "streams": ["energy"]}}
    assert w.server.request("PATCH", path, json=fixed).status_code == 200
    w.server.stop()
    done = w.server.cli("backfill", "--source", source, "--from", "2026-05-20", "--to", "2026-05-25", "--json").stdout
    assert json.loads(done)["state"] == "done"
