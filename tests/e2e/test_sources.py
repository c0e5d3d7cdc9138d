"""Polling simulated vendors: weeks in minutes, with a server that is killed again and again."""

import datetime
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import ssl
import struct
import subprocess
import threading
import time
import urllib.parse
import zoneinfo

import pytest
import requests

from conftest import BINARY, free_port, wait_until

SYSTEMS = int(os.environ.get("TEST_SYSTEMS", "2"))
FAULTS = int(os.environ.get("TEST_FAULTS", "0"))
# In spring of 2026 the clocks of these go forward, back by half an hour, ...
ZONES = ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Asia/Kathmandu", "America/St_Johns"]
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

    def __init__(self, tmp_path, start, systems, begin, *flags, every="3h", budget=None, known=()):
        self.clock_file = tmp_path / "clock"
        self.clock_file.write_bytes(b"\0" * 8)
        self.set(begin)
        self.systems, self.port = systems, free_port()
        (tmp_path / "systems.json").write_text(json.dumps([*systems, *known]))
        # The zone of the machine is none of anybody's business.
        zone = random.choice([*ZONES, "UTC", "Pacific/Apia"])
        print("TZ", zone)
        env = {"TEST_CLOCK_FILE": str(self.clock_file), "TZ": zone}
        self.vendors = subprocess.Popen(
            [BINARY, "simulate", "--listen", f"127.0.0.1:{self.port}", "--systems", str(tmp_path / "systems.json"), *flags],
            env=os.environ | env, stdout=subprocess.DEVNULL)
        wait_until(lambda: self.vendors_answer(), "the simulated vendors")
        self.server = start(env=env, settings={"flush.interval": "5s"})
        self.sources = {f"{s['id']}{'/'.join(s.get('streams', []))}": self.create(s, every, budget) for s in systems}

    def vendors_answer(self):
        assert self.vendors.poll() is None, "the simulated vendors ended"
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/simulator/violations", timeout=5).ok
        except requests.ConnectionError:
            return False

    def create(self, system, every, budget):
        streams = ["energy", "meters", "days"] if system["vendor"] == "solaredge" else ["production", "consumption", "days"]
        streams = system.get("streams", streams)
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

    def compare(self, begin, end, only=None):
        """What is stored is what was measured, in a span that is whole quarters."""
        begin, end = int(-(-begin // QUARTER) * QUARTER), int(end // QUARTER * QUARTER)
        compared = 0
        for system, source in self.sources.items():
            if only and system != only:
                continue
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


STEPS = ["poll.after_refresh", "poll.before_call", "poll.before_store", "poll.after_store"]


def test_no_refresh_token_is_lost_in_a_crash_at_any_step(world):
    w = world([system("solaredge", 1), system("enphase", 0)], epoch("2026-04-01T00:00:00Z"), every="1h")
    w.settle()
    for round in range(max(FAULTS, len(STEPS))):
        # Whichever comes by first, or second, takes the process with it: after a refresh with the new token in hand.
        w.server.stop()
        w.server.env["FAILPOINTS"] = STEPS[round % len(STEPS)] + random.choice(["=return", "=1*off->return"])
        w.set(w.now + DAY + 3600)
        w.server.process = subprocess.Popen([BINARY, "serve", *w.server.flags()], env=w.server.env,
                                            stdout=w.server.log, stderr=w.server.log)
        assert w.server.process.wait(60) != 0
        del w.server.env["FAILPOINTS"]
        w.server.start()
        w.run_until(w.now + 3600)
        assert {s["connectionStatus"] for s in w.status().values()} == {"connected"}, (round, w.status())
    assert w.violations() == []


def test_sources_of_one_grant_renew_it_once(world):
    """A refresh token that is used twice is one that somebody else has: the vendor would end the grant."""
    one = system("enphase", 0)
    w = world([one, one | {"streams": ["consumption"]}], epoch("2026-04-01T00:00:00Z"), every="1h", budget={"perMinute": 1000, "perMonth": 50_000})
    w.run_until(w.now + 5 * DAY, step=7200)
    tokens = requests.get(f"http://127.0.0.1:{w.port}/simulator/violations", timeout=60).json()["refreshes"]
    assert tokens == {one["id"]: pytest.approx(5, abs=1)}, tokens
    assert [s["connectionStatus"] for s in w.status().values()] == ["connected"] * 2 and w.violations() == []


def test_history_is_fetched_whatever_happens_to_the_server(world):
    now = epoch("2026-04-10T07:12:00Z")
    systems = [system(vendor, n) for n in range(max(1, SYSTEMS // 2)) for vendor in ("solaredge", "enphase")]
    w = world(systems, now, "--bad-days", "5", every="6h")
    w.settle()
    days = 30 if FAULTS < 50 else 365
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
    assert len(jobs) == len(systems) and all(job["state"] == "done" and job["progress"] == 1 for job in jobs), jobs
    w.compare(begin, end)
    assert w.violations(kills=max(FAULTS, 8)) == []


def test_days_of_a_changed_clock_are_whole(world):
    """Six zones, both changes of a year, both vendors: as many quarters as the day has, each once, and sums of all resolutions are the same."""
    zones = [*ZONES[:3], "America/St_Johns", "America/Santiago", "Pacific/Auckland"]
    systems = [system(vendor, n) | {"zone": zone} for n, zone in enumerate(zones) for vendor in ("solaredge", "enphase")]
    budget = {"perMinute": 10_000, "perMonth": 1_000_000}
    w = world(systems, epoch("2026-12-20T12:00:00Z"), "--generous", every="1d", budget=budget)
    w.settle()
    date = lambda zone, day: datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo(zone)) + datetime.timedelta(days=day)
    length = lambda zone, day: date(zone, day + 1).timestamp() - date(zone, day).timestamp()
    changes = {zone: [day for day in range(360) if length(zone, day) != DAY] for zone in zones}
    assert all(len(days) == 2 for days in changes.values()), changes
    for change in range(2):
        for one in systems:
            day = changes[one["zone"]][change]
            begin, end = date(one["zone"], day - 1), date(one["zone"], day + 2)
            job = w.server.post(f"/api/energy-sources/{w.sources[one['id']]}/backfill", json={"from": begin.isoformat(), "to": end.isoformat()})
            assert job.status_code == 200, job.text
        wait_until(lambda: all(job["state"] == "done" for job in w.server.get("/api/jobs").json()), "the history")
    for one in systems:
        for day in changes[one["zone"]]:
            begin, end = date(one["zone"], day), date(one["zone"], day + 1)
            w.compare(begin.timestamp() - DAY, end.timestamp() + DAY, only=one["id"])
            quarters = int(length(one["zone"], day)) // QUARTER
            assert quarters in (92, 94, 98, 100)
            span = {"entityId": w.sources[one["id"]], "metric": "energy", "from": begin.isoformat(), "to": end.isoformat(), "tz": one["zone"]}
            sums = []
            for bucket, each in [("1d", quarters), ("1h", 4), ("30min", 2), ("15min", 1)]:
                rows = w.server.get("/api/rollup", params=span | {"bucket": bucket, "fill": "null"}).json()
                # Where the offset is no whole hour, the first and the last hour of a day are parts.
                assert len({r["bucketStart"] for r in rows}) == len(rows) and len(rows) - quarters // each in (0, 1), (one, bucket, len(rows))
                sums.append(sum(r["value"] or 0 for r in rows))
            assert sums[1:] == pytest.approx(sums[:1] * 3) and sums[0] > 1, sums
            # The vendor's own total of that local day is the same.
            total = w.server.sql("SELECT value FROM measurements WHERE entity_id = $1 AND metric = 'day_energy' AND timestamp = $2::TIMESTAMPTZ",
                                 params=[w.sources[one["id"]], begin.isoformat()])
            assert [row["value"] for row in total] == pytest.approx(sums[:1]), (one, day)


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
    status = w.server.cli("status").stdout
    assert "connectionStatus=connected" in status and "credential=solaredge-" in status and "canary" not in status, status
    # What is wrong is said in words that tell what to do.
    credentials = {name: w.systems[0][known] for name, known in [("apiKey", "key"), ("clientSecret",) * 2, ("refreshToken",) * 2]}
    for change, status, words in [
        ({"apiKey": "wrong"}, "unauthorized", "Invalid API key"),
        ({"apiKey": "canary-key-solaredge-0", "local": False}, "misconfigured", "metadata.local"),
        ({"local": True, "systemId": "../../etc"}, "misconfigured", "metadata.systemId"),
        ({"systemId": "solaredge-0", "updateFrequency": "often"}, "misconfigured", "cron"),
        ({"updateFrequency": "1h", "streams": ["enery"]}, "misconfigured", "energy, power"),
        ({"streams": None, "baseUrl": "http://127.0.0.1:9/v2"} | credentials, "failing", "127.0.0.1:9"),
    ]:
        assert w.server.request("PATCH", path, json={"metadata": change}).status_code == 200
        tested = w.server.post(path + "/test").json()
        assert tested["connectionStatus"] == status and words in tested["message"], tested
        assert "canary" not in tested["message"] and w.server.get(path).json()["metadata"]["lastError"] == tested["message"]
    # Without a server the command does the work itself.
    fixed = {"metadata": {"baseUrl": f"http://127.0.0.1:{w.port}/v2", "streams": ["energy"]} | credentials}
    assert w.server.request("PATCH", path, json=fixed).status_code == 200
    w.server.stop()
    done = w.server.cli("backfill", "--source", source, "--from", "2026-05-20", "--to", "2026-05-25", "--json").stdout
    assert json.loads(done)["state"] == "done"


def test_a_job_is_cancelled_once_and_gaps_are_listed(world):
    now = epoch("2026-04-10T07:12:00Z")
    w = world([system("enphase", 0), system("solaredge", 0)], now, every="6h")
    w.settle()
    enphase, solaredge = w.sources.values()
    begun = w.server.post(f"/api/energy-sources/{solaredge}/backfill", json={"from": "2025-01-01", "to": "2026-04-01"}).json()
    job = f"/api/jobs/{begun['id']}"
    assert begun["state"] == "running" and begun["callsPlanned"] > 400
    # Ten calls a minute, and the time stands still.
    wait_until(lambda: w.server.get(job).json()["calls"] > 0, "the first calls")
    cancelled = w.server.request("DELETE", job).json()
    assert cancelled["state"] == "cancelled" and 0 < cancelled["progress"] < 0.1, cancelled
    assert w.server.request("DELETE", job).status_code == 409 and w.server.get(f"/api/jobs/{enphase}").status_code == 404
    w.kill_and_start()
    w.run_until(now + 11 * DAY)
    after = w.server.get(job).json()
    # A call that was under way may have come to its end.
    assert after["state"] == "cancelled" and after["calls"] <= cancelled["calls"] + 1, after
    # What was never measured, or came late, is in the ledger, the newest first.
    gaps = w.server.get("/api/gaps", params={"sourceId": enphase}).json()
    assert gaps and [g["from"] for g in gaps] == sorted((g["from"] for g in gaps), reverse=True)
    assert {g["sourceId"] for g in gaps} == {enphase} and {g["state"] for g in gaps} <= {"open", "filled", "empty"}
    closed = [g for g in gaps if g["state"] != "open"]
    assert closed and all(g["proof"] and g["asked"] >= 1 for g in closed), gaps[:3]
    assert w.server.get("/api/gaps", params={"sourceId": enphase, "state": closed[0]["state"], "limit": 1}).json()[0]["state"] == closed[0]["state"]
    assert w.server.get("/api/gaps?state=lost").status_code == 400
    pages, cursor = [], {}
    while len(pages) < len(gaps):
        page = w.server.get("/api/gaps", params={"sourceId": enphase, "limit": 2} | cursor)
        pages += page.json()
        cursor = {"cursor": page.headers.get("x-next-cursor")}
    assert pages == gaps and cursor == {"cursor": None}
    assert w.server.get("/api/gaps?cursor=x").status_code == 400
    table = w.server.cli("gaps", "--source", enphase).stdout
    assert closed[0]["proof"] in table and "energy" in table, table


def test_a_fleets_key_shows_its_sites_and_makes_sources_of_them(world, tmp_path):
    fleet = [system("solaredge", n) | {"key": "canary-key-fleet", "id": f"{100 + n}"} for n in range(3)]
    w = world([], epoch("2026-06-15T12:02:00Z"), "--generous", known=fleet)
    metadata = {"apiProvider": "solaredge", "apiKey": "canary-key-fleet", "baseUrl": f"http://127.0.0.1:{w.port}/v2", "local": True,
                "budget": {"perMinute": 1000, "perMonth": 10_000}}
    ask = lambda **more: w.server.post("/api/discovery", json={"metadata": metadata} | more)
    found = ask().json()
    assert [(f["systemId"], f["timezone"], f["sourceId"]) for f in found] == [(f["id"], f["zone"], None) for f in fleet]
    assert w.server.get("/api/sites").json() == []
    assert ask(create=["999"]).status_code == 422
    found = ask(create=["101"]).json()
    made = [f["sourceId"] for f in found]
    assert made[0] is made[2] is None and made[1]
    site = w.server.get("/api/sites").json()[0]
    assert site["name"] == "Site 101" and site["metadata"]["timezone"] == "Australia/Lord_Howe"
    source = w.server.get(f"/api/energy-sources/{made[1]}").json()
    assert source["metadata"]["apiKey"] == "***" and source["metadata"]["systemId"] == "101" and source["capacity"] == 6.0
    wait_until(lambda: w.status().get(made[1], {}).get("readings", 0) > 50, "readings")
    out = w.server.cli("discover", "--like", made[1], "--create", "all").stdout
    assert out.count("ACTIVE") == 3 and "canary" not in out, out
    assert len(w.server.get("/api/sites").json()) == 3 and w.server.cli("discover", "--like", made[1], "--create", "all").returncode == 0
    assert len(w.server.get("/api/sites").json()) == 3
    bad = w.server.post("/api/discovery", json={"metadata": metadata | {"apiKey": "wrong"}})
    assert bad.status_code == 422 and "Invalid API key" in bad.text
    # Credentials that are there go to no other address.
    elsewhere = {"metadata": {"baseUrl": "http://127.0.0.1:9/v2"}}
    bad = w.server.post("/api/discovery", json=elsewhere | {"like": made[1]})
    assert bad.status_code == 422 and "only" in bad.text, bad.text
    bad = w.server.request("PATCH", f"/api/energy-sources/{made[1]}", json=elsewhere)
    assert bad.status_code == 400 and "metadata.apiKey: give it anew, since baseUrl changes" in bad.text, bad.text
    assert w.server.request("PATCH", f"/api/energy-sources/{made[1]}", json={"metadata": elsewhere["metadata"] | {"apiKey": "k"}}).status_code == 200


def test_a_list_without_an_end_is_not_read_for_ever(start, device):
    sites = lambda query: {"sites": {"site": [{"siteId": 1000 * int(query["page"][0]) + n, "name": "x"} for n in range(50)]}}
    Device.answers = {"/v2/sites": sites}
    server = start()
    metadata = {"apiProvider": "solaredge", "apiKey": "canary-key", "baseUrl": f"{device}/v2", "local": True, "budget": {"perMinute": 1000, "perMonth": 10_000}}
    found = server.post("/api/discovery", json={"metadata": metadata}).json()
    assert len(found) == 2500 and len(Device.asked) == 50


def test_devices_are_found_and_what_they_measure_gets_a_meter(world):
    fleet = [system("solaredge", n) | {"key": "canary-key-fleet", "id": f"{100 + n}"} for n in range(2)]
    enphase = system("enphase", 7)
    w = world([], epoch("2026-06-15T12:02:00Z"), "--generous", known=[*fleet, enphase])
    budget = {"perMinute": 1000, "perMonth": 10_000}
    metadata = {"apiProvider": "solaredge", "apiKey": "canary-key-fleet", "baseUrl": f"http://127.0.0.1:{w.port}/v2", "local": True, "budget": budget}
    ask = lambda **more: w.server.post("/api/discovery", json={"metadata": metadata, "devices": True} | more).json()
    found = ask()
    assert w.server.get("/api/sites").json() == [] and [len(f["devices"]) for f in found] == [2, 2]
    inverter, meter = found[0]["devices"]
    assert (inverter["kind"], inverter["serialNumber"], inverter["model"]) == ("inverter", "7E12", "SE5000H")
    assert (meter["kind"], meter["measures"]) == ("meter", "consumption")
    made = ask(create=["100"])
    assert "devices" in made[0] and "devices" not in made[1]
    source = w.server.get(f"/api/energy-sources/{made[0]['sourceId']}").json()
    meters = {m["name"]: m for m in w.server.get("/api/meters").json()}
    assert sorted(meters) == ["Consumption", "Solar"] and meters["Consumption"]["category"] == "CONS"
    assert source["metadata"]["targets"] == {"consumption": meters["Consumption"]["id"]}
    assert source["metadata"]["streams"] == ["energy", "power", "days", "meters"]
    consumption = lambda: w.server.get("/api/latest", params={"entityId": meters["Consumption"]["id"]}).json()
    wait_until(lambda: [r["metric"] for r in consumption()] == ["energy"], "consumption at its meter")
    out = w.server.cli("discover", "--like", made[0]["sourceId"], "--devices").stdout
    assert "meter consumption WND-3Y-400-MB M-1" in out, out
    metadata = {"apiProvider": "enphase", "apiKey": enphase["key"], "clientId": enphase["clientId"], "clientSecret": enphase["clientSecret"],
                "refreshToken": enphase["refreshToken"], "baseUrl": f"http://127.0.0.1:{w.port}", "local": True, "budget": budget}
    found = w.server.post("/api/discovery", json={"metadata": metadata, "devices": True}).json()
    assert [(d["kind"], d["measures"]) for d in found[0]["devices"]] == [("meter", "production"), ("meter", "consumption")]


class Device(http.server.BaseHTTPRequestHandler):
    """A device that answers what a test says."""

    answers = {}
    asked = []
    # A password that is asked for by digest (RFC 7616, SHA-256), and one that begins a session.
    digest = None
    session = None

    def is_known(self):
        if Device.session:
            return self.headers.get("Cookie") == f"Token={Device.session}"
        if not Device.digest:
            return True
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', self.headers.get("Authorization", "")))
        sha = lambda *parts: hashlib.sha256(":".join(parts).encode()).hexdigest()
        if given.get("nonce") != "n0nce" or given.get("uri") != self.path:
            return False
        return given["response"] == sha(sha("admin", "shelly", Device.digest), "n0nce", given["nc"], given["cnonce"], "auth", sha("GET", self.path))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Device.asked.append((self.path, body))
        self.send_response(200 if body["secret"] == "canary-password" else 403)
        self.send_header("Set-Cookie", f"Token={Device.session}; HttpOnly")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_GET(self):
        Device.asked.append((self.path, self.headers.get("Authorization")))
        if not self.is_known():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Digest realm="shelly", qop="auth", algorithm=SHA-256, nonce="n0nce"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = Device.answers.get(self.path.split("?")[0])
        if callable(answer):
            answer = answer(urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query))
        body = json.dumps(answer).encode()
        self.send_response(200 if answer is not None else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def device():
    Device.answers, Device.asked, Device.digest, Device.session = {}, [], None, None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Device)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_device_is_polled_by_a_preset_or_a_mapping(start, device):
    server = start(settings={"sources.archive": "1MiB"})
    body = {"site": {"name": "home", "metadata": {"timezone": "Europe/Berlin"}}, "meters": [
        {"name": "grid", "category": "CONS", "sources": [{"name": "meter", "sourceType": "grid", "metadata": {
            "useAPI": True, "apiProvider": "http_json", "preset": "shelly_gen2", "baseUrl": device, "local": True,
            "updateFrequency": "5s", "auth": {"kind": "bearer", "token": "canary-jwt"}}}]}]}
    minutes = lambda query: {"keys": [f"{p}_total_act_{k}" for p in "abc" for k in ("energy", "ret_energy")], "data": [
        {"ts": int(query["ts"][0]) // 60 * 60, "period": 60, "values": [[1, 0, 2, 0, 3, 0.5]] * 10}]}
    Device.answers = {"/rpc/Shelly.GetStatus": {"em:0": {"total_act_power": 558.965}, "emdata:0": {"total_act": 2589773.39, "total_act_ret": 1026.61},
                                                "sys": {"uptime": 5}}, "/rpc/EMData.GetData": minutes}
    source = server.post("/api/onboarding/complete", json=body).json()["sourceIds"][0]
    latest = lambda: {row["metric"]: row["value"] for row in server.get(f"/api/latest?entityId={source}").json()}
    wait_until(lambda: "import_energy" in latest(), "readings")
    found = latest()
    expected = {"grid_power": 0.558965, "import_energy_total": 2589.77339, "import_energy": 0.006}
    assert found == pytest.approx(found | expected), found
    assert {auth for _, auth in Device.asked} == {"Bearer canary-jwt"}
    # What a mapping misses is shown, without a call when an answer is given.
    path = f"/api/energy-sources/{source}"
    run = server.post(path + "/dry-run", json={"stream": "status"}).json()[0]
    assert run["count"] == 3 and run["leftOver"] == ["$['sys']['uptime']"] and run["unmatched"] == [], run
    asked = len([p for p, _ in Device.asked if "GetStatus" in p])
    (server.dir.parent / "answer.json").write_text(json.dumps({"em:0": {"total_act_pwr": 1}}))
    out = server.cli("dry-run", "--source", source, "--stream", "status", "--answer", str(server.dir.parent / "answer.json")).stdout
    assert "not found: the value of grid_power" in out and "not used: $['em:0']['total_act_pwr']" in out, out
    # A mapping of one's own; answers that were kept are decoded again as it says.
    assert server.request("PATCH", path, json={"metadata": {"preset": None, "updateFrequency": "1d", "requests": [
        {"name": "status", "path": "/rpc/Shelly.GetStatus", "map": [{"rows": "$.sys", "values": [
            {"metric": "uptime", "path": "$.uptime", "unit": "s"}]}]}]}}).status_code == 200
    replayed = server.post(path + "/replay", json={"from": "now-1h", "to": "now"}).json()
    assert replayed["answers"] >= 1 and replayed["readings"] >= 1, replayed
    wait_until(lambda: latest().get("uptime") == 5, "the readings of the new mapping")
    Device.answers = {"/rpc/Shelly.GetStatus": {"sys": {}}}
    polled = server.post(path + "/poll").json()
    assert "the mapping found nothing: the value of uptime" in polled["lastError"], polled
    for change, words in [({"requests": [{"name": "x", "path": "/", "map": [{"rows": "$[", "values": []}]}]}, "JSONPath"),
                          ({"requests": None}, "metadata.preset"), ({"preset": "shely"}, "shelly_gen2"),
                          ({"preset": "tasmota", "auth": {"kind": "magic"}}, "metadata.auth")]:
        assert server.request("PATCH", path, json={"metadata": change}).status_code == 200
        tested = server.post(path + "/test").json()
        assert tested["connectionStatus"] == "misconfigured" and words in tested["message"], tested
    server.flush()
    files = [f for f in server.dir.rglob("*") if f.is_file()]
    assert not [f for f in files if b"canary" in f.read_bytes()] and any(".json.zst" in f.name for f in files)
    assert "canary" not in server.log_text()


def test_pages_programs_and_ways_to_be_known(start, device):
    server = start(settings={"sources.archive": "1MiB"})
    request = {"name": "list", "path": "/list", "query": {"size": "2"}, "pages": {"items": "$.items[*]", "param": "page"},
               "with": {"names": "/names"}, "jq": """
                   .names as $names | .answer[].items[]
                   | {metric: $names[.kind], time: .at, value: .v, unit: "W", quality: (if .ok then "good" else "estimated" end)}"""}
    metadata = {"useAPI": True, "apiProvider": "http_json", "baseUrl": device, "local": True, "updateFrequency": "1d", "requests": [request],
                "budget": {"perMinute": 10_000, "perMonth": 1_000_000}}
    body = {"site": {"name": "home"}, "meters": [{"name": "grid", "category": "CONS", "sources": [
        {"name": "list", "sourceType": "grid", "metadata": metadata}]}]}
    now = int(time.time()) - 3600
    items = [{"at": now + n, "kind": "abc"[n % 3], "v": n, "ok": n != 4} for n in range(5)]
    Device.answers = {"/list": lambda query: {"items": items[2 * int(query["page"][0]) - 2:][:2]},
                      "/names": {"a": "power", "b": "grid_power", "c": "battery_power"}}
    source = server.post("/api/onboarding/complete", json=body).json()["sourceIds"][0]
    path = f"/api/energy-sources/{source}"
    rows = lambda: server.sql("SELECT metric, value, quality FROM measurements ORDER BY timestamp")
    wait_until(lambda: len(rows()) == 5, "readings")
    names = ["power", "grid_power", "battery_power", "power", "grid_power"]
    assert [(r["metric"], r["value"] * 1000, r["quality"]) for r in rows()] == [
        (names[n], pytest.approx(n), "estimated" if n == 4 else "good") for n in range(5)]
    assert [p for p, _ in Device.asked][:5] == [f"/list?size=2&page={n}" for n in (1, 2, 3, 4)] + ["/names"]
    replayed = server.post(path + "/replay", json={"from": "now-1h", "to": "now"}).json()
    assert replayed["readings"] == 5 and replayed["unread"] == 0, replayed
    # A program that is none, fails, never ends or takes all memory is told of; the server lives on.
    for program, status, words in [(".a[", "misconfigured", "jq: it ends too early"), (".a)", "misconfigured", "jq: unexpected at `)`"),
                                   ("frob(.)", "misconfigured", "`frob` is not defined"), (".answer | error(\"no\")", "pending", 'jq: "no"'),
                                   ("\"x\" * 3000000000", "pending", "stopped"), ("[range(3000000)]", "pending", "yields more than 16777216 bytes"), ("def f: f; f", "pending", "jq program"),
                                   ("env", "pending", "no reading: ")]:
        changed = {"requests": [request | {"jq": program}]}
        assert server.request("PATCH", path, json={"metadata": changed}).status_code == 200
        polled = server.post(path + "/poll").json()
        assert polled["connectionStatus"] == status and words in polled["lastError"], polled
        # Nothing of the server's own surroundings is seen by a program.
        assert "HOME" not in polled["lastError"] and "PATH" not in polled["lastError"], polled
    Device.answers["/list"] = lambda query: {"items": [1]}
    assert server.request("PATCH", path, json={"metadata": {"requests": [request]}}).status_code == 200
    assert "more than 100 pages" in server.post(path + "/poll").json()["lastError"]
    # By digest, each call twice; by a session, once for many.
    plain = {"requests": [{"name": "x", "path": "/x?a=1", "map": [{"values": [{"metric": "power", "path": "$.p", "unit": "W"}]}]}]}
    Device.answers["/x"] = {"p": 7}
    Device.digest = "canary-password"
    auth = {"kind": "digest", "user": "admin", "password": "canary-password"}
    assert server.request("PATCH", path, json={"metadata": plain | {"auth": auth}}).status_code == 200
    assert server.post(path + "/test").json()["connectionStatus"] == "connected"
    assert server.request("PATCH", path, json={"metadata": {"auth": auth | {"password": "canary-wrong"}}}).status_code == 200
    assert server.post(path + "/test").json()["connectionStatus"] == "unauthorized"
    Device.session = "s1"
    auth = {"kind": "login", "path": "/login", "body": {"secret": "{password}"}, "password": "canary-password",
            "take": {"cookie": "Token"}, "put": {"cookie": "Token"}, "user": None, "name": None, "token": None}
    assert server.request("PATCH", path, json={"metadata": {"auth": auth}}).status_code == 200
    Device.asked.clear()
    for _ in range(3):
        assert server.post(path + "/test").json()["connectionStatus"] == "connected"
    assert [p for p, _ in Device.asked].count("/login") == 1
    # A session that is over is begun anew.
    Device.session = "s2"
    assert server.post(path + "/test").json()["connectionStatus"] == "connected"
    assert [p for p, _ in Device.asked].count("/login") == 2
    server.flush()
    assert not [f for f in server.dir.rglob("*") if f.is_file() and b"canary" in f.read_bytes()]
    assert "canary" not in server.log_text()


class Mosquitto:
    """A real broker, with a password."""

    def __init__(self, dir):
        self.dir, self.port, self.process = dir, free_port(), None
        dir.mkdir()
        dir.chmod(0o777)
        passwords = dir / "passwords"
        subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "user", "canary-password"], check=True, capture_output=True)
        passwords.chmod(0o644)
        (dir / "conf").write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\npersistence true\npersistence_location {dir}/\n")
        self.start()

    def start(self):
        binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        assert os.path.exists(binary), "mosquitto is missing; tests/run installs it"
        self.process = subprocess.Popen([binary, "-c", str(self.dir / "conf")], stderr=subprocess.DEVNULL)
        wait_until(lambda: self.publish("up", "1", check=False).returncode == 0, "the broker")

    def publish(self, topic, payload, check=True):
        return subprocess.run(["mosquitto_pub", "-p", str(self.port), "-u", "user", "-P", "canary-password", "-q", "1", "-t", topic,
                               "-m", payload], capture_output=True, check=check)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def broker(tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    yield broker
    broker.stop()


def test_messages_of_a_broker_are_stored_once_whoever_falls_over(start, broker):
    server = start()
    metadata = {"useAPI": True, "apiProvider": "mqtt", "brokerUrl": f"mqtt://127.0.0.1:{broker.port}", "local": True, "user": "user",
                "password": "canary-password", "topics": [
                    {"topic": "tele/+/SENSOR", "map": [{"rows": "$.payload", "device": "{topic(1)}",
                        "time": {"path": "$.Time", "format": "%Y-%m-%dT%H:%M:%S"},
                        "values": [{"metric": "power", "path": "$.ENERGY.Power", "unit": "W"},
                                   {"metric": "energy_total", "path": "$.ENERGY.Total", "unit": "kWh"}]}]},
                    {"topic": "evcc/site/grid/power", "map": [{"values": [{"metric": "grid_power", "path": "$.payload", "unit": "W"}]}]}]}
    body = {"site": {"name": "home", "metadata": {"timezone": "Europe/Berlin"}}, "meters": [
        {"name": "grid", "category": "CONS", "sources": [{"name": "broker", "sourceType": "grid", "metadata": metadata}]},
        {"name": "plug", "category": "CONS", "metadata": {"externalId": "plug-1"}}]}
    made = server.post("/api/onboarding/complete", json=body).json()
    source, plug = made["sourceIds"][0], made["meterIds"][1]
    path = f"/api/energy-sources/{source}"
    state = lambda: server.get(path).json()["metadata"].get("connectionStatus")
    wait_until(lambda: state() == "connected", "the connection")
    assert server.post(path + "/test").json()["connectionStatus"] == "connected"
    assert server.post(path + "/poll").status_code == 422
    sensor = lambda n: json.dumps({"Time": f"2026-01-01T12:00:{n:02}", "ENERGY": {"Power": n, "Total": 100 + n}})
    power = lambda: server.sql("SELECT value, timestamp FROM measurements WHERE metric = 'power' AND entity_id = $1 ORDER BY timestamp",
                               params=[plug])
    broker.publish("tele/plug-1/SENSOR", sensor(0))
    broker.publish("tele/unknown/SENSOR", sensor(0))
    broker.publish("evcc/site/grid/power", "-1250.5")
    broker.publish("evcc/site/grid/power", "unavailable")
    broker.publish("tele/plug-1/SENSOR", "no JSON")
    wait_until(lambda: len(power()) == 1, "the first reading")
    assert power()[0] == {"value": 0, "timestamp": "2026-01-01T11:00:00Z"}
    grid = lambda: server.sql("SELECT value FROM measurements WHERE metric = 'grid_power'")
    wait_until(lambda: [row["value"] for row in grid()] == [-1.2505], "the bare number")
    wait_until(lambda: next(s for s in server.get("/api/status").json()["sources"])["refused"] == 2, "what belongs to nobody")
    # What is too large to be read does not come again and again.
    huge = server.dir.parent / "huge"
    huge.write_bytes(b"1" * (2 << 20))
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-u", "user", "-P", "canary-password", "-q", "1", "-t", "tele/plug-1/SENSOR", "-f", str(huge)],
                   check=True, capture_output=True)
    wait_until(lambda: next(s for s in server.get("/api/status").json()["sources"])["refused"] == 3, "what is too large")
    # What is published while nobody listens comes later.
    for n in range(1, 31):
        if n in (5, 15):
            server.kill()
        if n in (10, 20):
            server.start()
        broker.publish("tele/plug-1/SENSOR", sensor(n))
    wait_until(lambda: [row["value"] * 1000 for row in power()] == pytest.approx(range(31)), "all of them")
    broker.stop()
    wait_until(lambda: state() == "failing", "the end of the connection")
    broker.start()
    wait_until(lambda: state() == "connected", "the connection after the broker is back")
    broker.publish("tele/plug-1/SENSOR", sensor(31))
    wait_until(lambda: len(power()) == 32, "a reading after that")
    for change, status, words in [({"password": "canary-wrong"}, "failing", "refuses us"), ({"local": False}, "failing", "metadata.local"),
                                  ({"topics": []}, "misconfigured", "topics"), ({"brokerUrl": "http://x", "password": "canary-wrong"}, "misconfigured", "mqtt://")]:
        assert server.request("PATCH", path, json={"metadata": change}).status_code == 200
        tested = server.post(path + "/test").json()
        assert tested["connectionStatus"] == status and words in tested["message"] and "canary" not in str(tested), tested
    server.flush()
    assert not [f for f in server.dir.rglob("*") if f.is_file() and b"canary" in f.read_bytes()]
    assert "canary" not in server.log_text()


def test_what_comes_by_itself_is_watched_for_gaps(start, broker, tmp_path):
    """A plug by MQTT and a meter that is pushed to: holes are listed a day later, filled, or empty a week later; kills do not matter."""
    begin, clock = 1_772_409_600, tmp_path / "clock"  # 2026-03-02

    def set_day(day):
        clock.write_bytes(struct.pack("<q", int((begin + day * DAY + 3600) * 1_000_000)))

    set_day(0)
    server = start(env={"TEST_CLOCK_FILE": str(clock)})
    rows = {"rows": "$.payload[*]", "time": {"path": "$.t", "format": "epoch_s"}}
    metadata = {"useAPI": True, "apiProvider": "mqtt", "brokerUrl": f"mqtt://127.0.0.1:{broker.port}", "local": True, "user": "user",
                "password": "canary-password", "topics": [
                    {"topic": "tele/+", "map": [rows | {"device": "{topic(1)}", "values": [{"metric": "power", "path": "$.w", "unit": "W"}]}]},
                    {"topic": "grid", "map": [rows | {"values": [{"metric": "grid_power", "path": "$.w", "unit": "W"}]}]}]}
    body = {"site": {"name": "home"}, "meters": [
        {"name": "grid", "category": "CONS", "sources": [{"name": "broker", "sourceType": "grid", "metadata": metadata}]},
        {"name": "plug", "category": "CONS", "metadata": {"externalId": "plug-1"}},
        {"name": "pushed", "category": "CONS"}]}
    made = server.post("/api/onboarding/complete", json=body).json()
    source, (_, plug, pushed) = made["sourceIds"][0], made["meterIds"]
    wait_until(lambda: server.get(f"/api/energy-sources/{source}").json()["metadata"].get("connectionStatus") == "connected", "the connection")
    hole = range(begin + 3 * DAY + 3 * 3600, begin + 3 * DAY + 5 * 3600)
    count = lambda: server.sql("SELECT count(*) AS n FROM measurements")[0]["n"]
    gaps = lambda **params: [(g["from"], g["to"], g["state"]) for g in server.get("/api/gaps", params=params).json()]
    expected = 0
    for day in range(11):
        times = [t for t in range(begin + day * DAY, begin + (day + 1) * DAY, 300) if t not in hole]
        set_day(day + 1)
        for topic in ("tele/plug-1", "grid"):
            broker.publish(topic, json.dumps([{"t": t, "w": 100} for t in times]))
        server.write("\n".join(f"power,entity_id={pushed} value=1 {t}" for t in times))
        expected += 3 * len(times)
        wait_until(lambda: count() == expected, f"the readings of day {day}", 60)
        if day % 3 == 1:
            server.kill()
            server.start()
        span = ("2026-03-05T03:00:00Z", "2026-03-05T05:00:00Z")
        if day == 4:
            wait_until(lambda: len(gaps(state="open")) == 3, "the holes of day 3", 60)
            assert gaps() == [(*span, "open")] * 3
            assert gaps(sourceId=source) == [(*span, "open")] and gaps(entityId=plug) == [(*span, "open")]
            shown = server.cli("gaps", "--entity", pushed, "--state", "open").stdout
            assert "2026-03-05T03:00:00Z" in shown and "live" in shown and "300" in shown
            # Somebody brings what was missing.
            server.write("\n".join(f"power,entity_id={plug} value=2 {t}" for t in hole if t % 300 == 0))
            expected += len(hole) // 300
        if day == 6:
            wait_until(lambda: gaps(entityId=plug) == [(*span, "filled")], "what was brought", 60)
    wait_until(lambda: not gaps(state="open"), "the end of the wait", 60)
    assert gaps(entityId=plug) == [(*span, "filled")] and gaps(entityId=pushed) == gaps(sourceId=source) == [(*span, "empty")]
    proofs = {g["entityId"]: g["proof"] for g in server.get("/api/gaps").json()}
    assert "nobody can be asked" in proofs[pushed] and "readings for all of it" in proofs[plug]
    # Whoever sees another site sees none of it; what is deleted has no gaps.
    other = server.post("/api/sites", json={"name": "other"}).json()["id"]
    token = server.cli("token", "create", "--name", "other", "--scope", "read", "--site", other).stdout.strip()
    wait_until(lambda: server.get("/api/gaps", token=token).status_code == 200, "the token")
    assert server.get("/api/gaps", token=token).json() == []
    assert server.request("DELETE", f"/api/meters/{pushed}?cascade=true").status_code < 300
    assert len(gaps()) == 2


def test_a_gateway_with_a_certificate_of_its_own_is_known_by_it(start, device, tmp_path):
    def serve(name, port=0):
        key, cert = tmp_path / f"{name}.key", tmp_path / f"{name}.crt"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}", "-keyout", str(key),
                        "-out", str(cert)], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        gateway = http.server.ThreadingHTTPServer(("127.0.0.1", port), Device)
        gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        return gateway

    gateway = serve("envoy")
    Device.answers = {"/production.json": {"production": [{"type": "eim", "activeCount": 1, "readingTime": 1767225600, "wNow": 488.154,
                                                           "whLifetime": 3183793.303}], "consumption": []}}
    server = start()
    body = {"site": {"name": "home"}, "meters": [{"name": "roof", "category": "PROD", "sources": [
        {"name": "gateway", "sourceType": "solar", "metadata": {
            "useAPI": True, "apiProvider": "http_json", "preset": "iq_gateway", "baseUrl": f"https://127.0.0.1:{gateway.server_port}",
            "local": True, "updateFrequency": "1d", "auth": {"kind": "bearer", "token": "canary-jwt"}}}]}]}
    source = server.post("/api/onboarding/complete", json=body).json()["sourceIds"][0]
    path = f"/api/energy-sources/{source}"
    polled = server.post(path + "/poll").json()
    assert "certificate" in polled["lastError"] and Device.asked == [], polled
    tested = server.post(path + "/test").json()
    assert tested["connectionStatus"] == "connected" and "is pinned now" in tested["message"], tested
    assert len(server.get(path).json()["metadata"]["pinSha256"]) == 64
    polled = server.post(path + "/poll").json()
    assert polled["connectionStatus"] == "connected", polled
    latest = {row["metric"]: row["value"] for row in server.get(f"/api/latest?entityId={source}").json()}
    assert latest == pytest.approx({"power": 0.488154, "energy_total": 3183.793303})
    # Somebody else at its address gets nothing.
    port, asked = gateway.server_port, len(Device.asked)
    gateway.shutdown()
    gateway.server_close()
    gateway = serve("thief", port)
    tested = server.post(path + "/test").json()
    assert tested["connectionStatus"] == "failing" and len(Device.asked) == asked, tested
    gateway.shutdown()
