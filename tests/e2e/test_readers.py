"""DuckDB attached to the catalog sees exactly what the server answers, while it runs and after it stopped."""

import random

import pytest

from conftest import Fleet

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z

QUESTIONS = [
    "SELECT count(*) AS n, sum(value) AS s FROM {t}",
    "SELECT date_trunc('day', timestamp) AS day, metric, count(*) AS n, sum(value) AS s FROM {t} GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT entity_id, metric, count(*) AS n, min(value) AS lo, max(value) AS hi FROM {t} GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT quality, unit, entity_type, count(*) AS n FROM {t} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    "SELECT count(*) AS n FROM {t} WHERE timestamp >= TIMESTAMPTZ '2026-01-10 00:00:00+00' AND metric = 'power'",
]


def normal(rows):
    def cell(v):
        if isinstance(v, float):
            return f"{v:.9g}"
        return str(v).replace("T", " ").removesuffix("Z").removesuffix("+00:00")

    return [[cell(v) for v in row] for row in rows]


def compare(server, db, extra=()):
    for question in [*QUESTIONS, *extra]:
        ours = normal(list(row.values()) for row in server.sql(question.format(t="measurements").replace("TIMESTAMPTZ", "TIMESTAMP")))
        theirs = normal(db.sql(question.format(t="lake.measurements")).fetchall())
        assert ours == theirs, question
    assert int(normal(db.sql("SELECT count(*) FROM lake.measurements").fetchall())[0][0]) > 0


def iso(seconds):
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def workload(server, fleet, seed, steps, model):
    """Random readings with duplicates, corrections and deletions, flushed and compacted at random."""
    rng = random.Random(seed)
    entities = [fleet.main, fleet.pv, fleet.inv1, fleet.inv2, fleet.b_main]
    for _ in range(steps):
        lines = []
        for _ in range(rng.randint(1, 120)):
            e, metric = rng.choice(entities), rng.choice(["power", "energy"])
            at = T0 + 900 * rng.randint(0, 96 * 45)
            value = rng.randint(0, 40) / 4
            lines.append(f"{metric},entity_id={e} value={value} {at}")
            model[e, metric, at] = value
        again = rng.sample(sorted(model), min(len(model), 20))
        for e, metric, at in again:
            lines.append(f"{metric},entity_id={e} value={model[e, metric, at]} {at}")
        server.write("\n".join(lines))
        if rng.random() < 0.4:
            server.flush()
        if rng.random() < 0.2:
            e, metric = rng.choice(entities), rng.choice(["power", "energy"])
            start = T0 + 900 * rng.randint(0, 96 * 45)
            end = start + 900 * rng.randint(1, 960)
            params = {"entityId": str(e), "metric": metric, "from": iso(start), "to": iso(end)}
            gone = [key for key in model if key[0] == e and key[1] == metric and start <= key[2] < end]
            assert server.request("DELETE", "/api/measurements", params=params).json() == {"deleted": len(gone)}
            for key in gone:
                del model[key]
        if rng.random() < 0.15:
            everything = rng.random() < 0.5
            assert server.post("/api/compact", params={"all": everything and "true" or "false"}).status_code == 200


def check_model(server, model):
    rows = server.sql("SELECT entity_id, metric, timestamp, value FROM measurements")
    from datetime import datetime

    found = {(r["entity_id"], r["metric"], int(datetime.fromisoformat(r["timestamp"]).timestamp())): r["value"] for r in rows}
    assert len(found) == len(rows), "a key is there twice"
    assert found == model


def run(server, db_of, seed):
    fleet, model = Fleet(server), {}
    server.write("\n".join(f"power,entity_id={fleet.main} value={i} {T0 + 900 * i}" for i in range(200)))
    model |= {(fleet.main, "power", T0 + 900 * i): float(i) for i in range(200)}
    server.flush()
    server.write(f"power,entity_id={fleet.main} value=1000.5 {T0}\npower,entity_id={fleet.main} value=1 {T0 + 900}")
    model[fleet.main, "power", T0] = 1000.5
    check_model(server, model)
    server.flush()
    assert server.get("/api/status").json()["engine"]["deleteFiles"] == 1, "a correction is a delete file"
    workload(server, fleet, seed, 14, model)
    check_model(server, model)
    server.flush()
    check_model(server, model)
    db = db_of()
    compare(server, db)
    assert db.sql("SELECT count(*) FROM lake.measurements").fetchone()[0] == len(model)
    assert server.cli("verify").returncode == 0
    # An earlier snapshot is still what it was.
    assert db.sql("SELECT count(*) FROM lake.measurements AT (VERSION => 2)").fetchall() == [(200,)]
    db.close()
    # The same after a restart and after the end.
    server.stop()
    db = db_of()
    assert db.sql("SELECT count(*) FROM lake.measurements").fetchone()[0] == len(model)
    assert abs(db.sql("SELECT sum(value) FROM lake.measurements").fetchone()[0] - sum(model.values())) < 1e-6
    db.close()
    server.start()
    check_model(server, model)


@pytest.mark.parametrize("seed", [1, random.randrange(1 << 30)])
def test_sqlite_catalog(start, duck, seed):
    print("seed", seed)
    server = start()
    run(server, lambda: duck(f"sqlite:{server.dir}/catalog.db"), seed)


def test_postgres_catalog(start, duck, postgres):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    url = postgres()
    server = start(settings={"catalog.url": url})
    user, host, port, name = "wattlake", "127.0.0.1", url.rsplit(":", 1)[1].split("/")[0], url.rsplit("/", 1)[1]
    run(server, lambda: duck(f"postgres:host={host} port={port} user={user} dbname={name}", schema="lake"), seed)


def test_s3_storage(start, duck, s3):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    server = start(settings=s3)
    run(server, lambda: duck(f"sqlite:{server.dir}/catalog.db", s3=s3), seed)


def test_as_of_shows_the_archive_of_then(server, fleet):
    import time
    from datetime import datetime, timezone

    server.write(f"power,entity_id={fleet.main} value=1 {T0}")
    server.flush()
    time.sleep(0.05)
    then = datetime.now(timezone.utc).isoformat()
    server.write(f"power,entity_id={fleet.main} value=2 {T0}\npower,entity_id={fleet.main} value=3 {T0 + 900}")
    server.flush()
    query = "SELECT value FROM measurements ORDER BY timestamp"
    assert [r["value"] for r in server.sql(query)] == [2.0, 3.0]
    assert [r["value"] for r in server.sql(query, asOf=then)] == [1.0]
