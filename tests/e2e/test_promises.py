"""Promises that hold at any size: small here, as large as TEST_SCALE says by hand."""

import contextlib
import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time

import psycopg
from conftest import BINARY, SCALE, Fleet
from protocols import Protocols

T0 = 1_735_689_600  # 2025-01-01T00:00:00Z
DIGEST = (
    "SELECT entity_id, metric, count(*) AS n, sum(value) AS s, min(value) AS lo, max(value) AS hi, min(timestamp) AS a, max(timestamp) AS b "
    "FROM measurements GROUP BY 1, 2 ORDER BY 1, 2"
)


def test_the_same_readings_in_any_order_and_as_often_as_you_like(server):
    rng = random.Random(11)
    entities = Fleet.meters(server, 4 * SCALE)
    rows = [(e, T0 + 900 * i, rng.randint(0, 4000) / 8) for e in entities for i in range(4000)]
    expected = None
    for _ in range(3):
        rng.shuffle(rows)
        at = 0
        while at < len(rows):
            size = rng.choice([1, 50, 3000, 20_000])
            server.write("\n".join(f"power,entity_id={e} value={v} {t}" for e, t, v in rows[at : at + size]))
            at += size
            if rng.random() < 0.1:
                server.flush()
        found = server.sql(DIGEST)
        assert sum(row["n"] for row in found) == len(rows)
        assert expected is None or found == expected
        expected = found
    server.post("/api/compact", params={"all": "true"})
    assert server.sql(DIGEST) == expected


def test_an_import_that_is_killed_and_repeated_is_the_import(start, tmp_path):
    reference = start("reference", settings={"ingest.import_spill": "1GiB"})
    rng = random.Random(5)
    entities = Fleet.meters(reference, 4 * SCALE)
    rows = [(e, T0 + 900 * i, rng.randint(0, 4000) / 8) for e in entities for i in range(8000 * min(4, SCALE))]
    rng.shuffle(rows)
    file = tmp_path / "year.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["entity_id", "metric", "timestamp", "value", "unit"])
        for n, (e, t, v) in enumerate(rows):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
            writer.writerow((e, "power", at, v, "kW"))
            if n % 997 == 0:
                writer.writerow((e, "power", at, "wrong", "kW"))
    reference.stop()
    victims = []
    for name in ("victim", "import.before_catalog", "import.after_catalog"):
        victims.append(start(name))
        victims[-1].stop()
        shutil.rmtree(victims[-1].dir)
        # The same fleet.
        shutil.copytree(reference.dir, victims[-1].dir)
    victim = victims[0]
    small = ["--set", "memory.budget=2MiB", "--set", "flush.max_bytes=1MiB"]
    started = time.monotonic()
    refused = [tmp_path / "refused-once.csv", tmp_path / "refused.csv"]
    assert "lines were refused" in reference.cli("import", str(file), "--rejects", str(refused[0]), *small, check=False).stderr
    took = time.monotonic() - started
    reference.start()
    expected = reference.sql(DIGEST)
    assert sum(row["n"] for row in expected) == len(rows)
    killed, resumed = 0, set()
    with_refused = ["--rejects", str(refused[1]), *small]
    for n in itertools.count():
        process = subprocess.Popen([BINARY, "import", str(file), *victim.flags(), *with_refused], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=victim.env)
        time.sleep(rng.random() * took * 1.1)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
        killed += process.returncode == -signal.SIGKILL
        resumed |= set(re.findall(r"broke off: (\d+) readings", said))
        if n >= (10 if SCALE < 10 else 4 * SCALE) and killed >= 3 and resumed:
            break
        assert n < 100 * SCALE, (killed, resumed)
    # Right before and right after the commit.
    for dies in victims[1:]:
        env = victim.env | {"FAILPOINTS": f"{dies.dir.name}=return"}
        done = subprocess.run([BINARY, "import", str(file), *dies.flags(), *small], capture_output=True, text=True, env=env)
        assert done.returncode != 0 and dies.dir.name in done.stderr
        stored = json.loads(dies.cli("verify", "--json").stdout)["rows"]
        assert stored == (len(rows) if "after" in dies.dir.name else 0)
    for victim in victims:
        out = victim.cli("import", str(file), "--json", *(with_refused if victim is victims[0] else small), check=False)
        report = json.loads(out.stdout)
        assert report["report"]["accepted"] == len(rows) and [f["accepted"] for f in report["files"]] == [len(rows)]
        victim.start()
        assert victim.sql(DIGEST) == expected, out.stdout
        assert {p["kind"] for p in victim.post("/api/verify").json()["problems"]} <= {"orphan"}
        victim.stop()
    # Each refused line once, whoever wrote it down.
    assert refused[0].read_text() == refused[1].read_text() and refused[0].read_text().count("wrong") == -(-len(rows) // 997)


def test_what_was_acknowledged_is_in_the_next_answer_of_every_protocol(start):
    server = start(settings={"flush.interval": "100ms", "compaction.interval": "150ms"})
    fleet = Fleet(server)
    with contextlib.ExitStack() as stack:
        asks = itertools.cycle(Protocols(server, stack).all().items())
        for n in range(350 * SCALE):
            server.write(f"power,entity_id={fleet.main} value={n} {T0 + n}")
            name, ask = next(asks)
            rows = ask(f"SELECT value FROM measurements WHERE entity_id = '{fleet.main}' AND timestamp = to_timestamp_seconds({T0 + n})")
            assert rows == [(float(n),)], (n, name)


def test_a_query_and_a_transaction_see_one_state(start):
    """While readings come in, are corrected and deleted, flushed and compacted."""
    server = start(settings={"flush.interval": "100ms", "compaction.interval": "150ms"})
    fleet = Fleet(server)
    done, failed = threading.Event(), []

    def work():
        rng, n = random.Random(3), 0
        try:
            while not done.is_set():
                server.write("\n".join(f"power,entity_id={fleet.main} value={rng.random()} {T0 + rng.randrange(n + 50)}" for n in range(n, n + 50)))
                n += 50
                if rng.random() < 0.1:
                    body = {"entityId": fleet.main, "from": "2025-01-01T00:00:00Z", "to": f"2025-01-01T00:{rng.randrange(10, 60)}:00Z"}
                    assert server.request("DELETE", "/api/measurements", params=body).ok
        except Exception as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    twice = "SELECT a.n AS first, b.n AS second FROM (SELECT count(*) AS n FROM measurements) a, (SELECT count(*) AS n FROM measurements WHERE value >= 0) b"
    seen = set()
    try:
        with contextlib.ExitStack() as stack:
            asks = itertools.cycle(Protocols(server, stack).all().items())
            db = stack.enter_context(psycopg.connect(**server.postgres()))
            db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            for n in range(70 * SCALE):
                name, ask = next(asks)
                ((first, second),) = ask(twice)
                assert first == second, name
                with db.transaction():
                    counts = {db.execute("SELECT count(*) FROM measurements").fetchone()[0] for _ in range(3)}
                assert len(counts) == 1
                seen |= {first} | counts
    finally:
        done.set()
        worker.join()
    assert not failed, failed
    assert len(seen) > 20, "nothing changed meanwhile"
