"""Rollups against hand-made expectations and a slow oracle over the raw rows."""

import datetime as dt
import random
import re
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
from conftest import Fleet

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z


def rollup(server, **params):
    r = server.get("/api/rollup", params=params)
    assert r.status_code == 200, r.text
    return r.json()


def values(rows, group=None):
    return [(r["bucketStart"], *([r[group]] if group else []), round(r["value"], 6)) for r in rows]


def test_no_double_counting(server, fleet):
    child = server.post("/api/meters", json={"siteId": fleet.site_a, "parentMeterId": fleet.main, "name": "c", "category": "CONS"}).json()["id"]
    solar = server.post("/api/meters", json={"siteId": fleet.site_a, "parentMeterId": fleet.main, "name": "roof", "category": "PROD"}).json()["id"]
    lines = [f"energy,entity_id={child} value=3 {T0 + h * 3600}" for h in range(3)]
    lines += [f"energy,entity_id={fleet.main} value=10 {T0 + h * 3600}" for h in range(2)]  # none in the third hour
    lines += [f"energy,entity_id={solar} value=2 {T0 + h * 3600}" for h in range(3)]
    lines += [f"energy,entity_id={fleet.inv1} value=1 {T0}", f"energy,entity_id={fleet.inv2} value=4 {T0}"]
    lines += [f"energy,entity_id={fleet.pv} value=6 {T0 + 3600}", f"energy,entity_id={fleet.inv1} value=1 {T0 + 3600}"]
    server.write("\n".join(lines))
    span = {"siteId": fleet.site_a, "metric": "energy", "bucket": "1h", "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T03:00:00Z", "tz": "UTC"}
    hour = lambda h: f"2026-01-01T0{h}:00:00Z"
    # Own readings shadow what is below, of the same category only; without them the level below counts, bucket by bucket.
    assert values(rollup(server, by="category", **span), "category") == [
        (hour(0), "CONS", 10.0), (hour(0), "PROD", 2 + 1 + 4), (hour(1), "CONS", 10.0), (hour(1), "PROD", 2 + 6.0),
        (hour(2), "CONS", 3.0), (hour(2), "PROD", 2.0)]
    assert values(rollup(server, by="category", mode="leaves", **span), "category") == [
        (hour(0), "CONS", 3.0), (hour(0), "PROD", 7.0), (hour(1), "CONS", 3.0), (hour(1), "PROD", 3.0),
        (hour(2), "CONS", 3.0), (hour(2), "PROD", 2.0)]
    assert values(rollup(server, by="category", mode="own", **span), "category") == [
        (hour(0), "CONS", 10.0), (hour(1), "CONS", 10.0), (hour(1), "PROD", 6.0)]
    # In one bucket for all hours the meters' own readings shadow everything below: 2 * 10 + 6 + 3 * 2.
    assert values(rollup(server, **(span | {"bucket": "all"})))[0][1] == 32.0
    own = rollup(server, by="meter", mode="own", **span)
    assert {r["meterId"] for r in own} == {fleet.main, fleet.pv, child, solar}
    one = rollup(server, entityId=fleet.inv2, **{k: v for k, v in span.items() if k != "siteId"})
    assert values(one) == [(hour(0), 4.0)]
    # A scope that names a meter and its parent counts once.
    both = rollup(server, meterId=[fleet.main, child], **{k: v for k, v in span.items() if k != "siteId"})
    assert values(both)[0] == (hour(0), 12.0)


def test_days_of_each_site_through_summer_time(server, fleet):
    start = int(dt.datetime(2026, 3, 27, tzinfo=dt.timezone.utc).timestamp())
    # Only Berlin changes here; New York did on the 8th.
    server.write("\n".join(f"energy,entity_id={e} value=1 {start + 900 * i}" for e in (fleet.main, fleet.b_main) for i in range(96 * 5)))
    span = {"metric": "energy", "bucket": "1d", "by": "site", "from": "2026-03-28", "to": "2026-03-31"}
    a = [r for r in rollup(server, siteId=fleet.site_a, tz="Europe/Berlin", **span)]
    assert [(r["bucketStart"], r["value"], r["coverage"]) for r in a] == [
        ("2026-03-28T00:00:00+01:00", 96.0, 1.0), ("2026-03-29T00:00:00+01:00", 92.0, 1.0), ("2026-03-30T00:00:00+02:00", 96.0, 1.0)]
    both = rollup(server, **span)
    assert {r["bucketStart"][-6:] for r in both if r["siteId"] == fleet.site_b} == {"-04:00"}
    # One row for both sites: local days are lined up by their date.
    total = rollup(server, **(span | {"by": "total"}))
    assert [r["value"] for r in total if r["bucketStart"].startswith("2026-03-29")] == [92.0 + 96.0]


def test_quality_coverage_and_fill(server, fleet):
    good = [f"power,entity_id={fleet.main} value=4 {T0 + 900 * i}" for i in (0, 1, 2, 8, 9, 10, 11)]
    server.write("\n".join(good + [f'power,entity_id={fleet.main} value=8,quality="estimated" {T0 + 900 * 3}',
                                   f'power,entity_id={fleet.main} value=999,quality="bad" {T0 + 900 * 9 + 60}']))
    span = {"entityId": fleet.main, "metric": "power", "bucket": "1h", "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T03:00:00Z", "tz": "UTC"}
    first, last = rollup(server, **span)
    assert (first["value"], first["count"], first["coverage"], first["estimatedShare"], first["unit"]) == (5.0, 4, 1.0, 0.25, "kW")
    assert last["value"] == 4.0
    assert rollup(server, quality="good", **span)[0]["coverage"] == 0.75
    assert rollup(server, quality="bad", agg="max", **span)[0]["value"] == 999
    filled = {f: [r["value"] for r in rollup(server, fill=f, **span)] for f in ("null", "zero", "prev", "linear")}
    assert filled == {"null": [5, None, 4], "zero": [5, 0, 4], "prev": [5, 5, 4], "linear": [5, 4.5, 4]}
    for bad in ({"bucket": "1x"}, {"agg": "median"}, {"mode": "x"}, {"by": "x"}, {"fill": "x"}, {"quality": "x"}, {"tz": "x"},
                {"from": "x"}, {"metrik": "x"}, {"entityId": "x"}, {"from": "2026-02-01"}):
        r = server.get("/api/rollup", params=span | bad)
        assert r.status_code == 400 and list(bad.values())[0] in r.text + "2026-02-01", (bad, r.text)
    assert server.get("/api/rollup", params=span | {"format": "csv"}).text.startswith("bucketStart,bucketEnd,value,unit,count")


def test_more_files_than_are_merged_at_once(server, fleet):
    """Up to 512 files are merged in their order; more are sorted, with the same answer."""
    start = 1767225600
    for i in range(520):
        server.write(f"energy,entity_id={fleet.main} value=0.25 {start + 60 * (i * 7 % 520)}")
        server.flush()
        if i in (510, 519):
            span = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}
            (row,) = rollup(server, metric="energy", bucket="all", **span)
            assert (row["value"], row["count"]) == (0.25 * (i + 1), i + 1)
    assert server.get("/api/status").json()["engine"]["dataFiles"] == 520


def test_generated_questions_equal_a_slow_oracle(server):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    fleet = Fleet(server)
    entities = {fleet.main: ("CONS", 900), fleet.inv1: ("PROD", 900), fleet.inv2: ("PROD", 900), fleet.b_main: ("CONS", 3600)}
    zones = {fleet.main: "Europe/Berlin", fleet.inv1: "Europe/Berlin", fleet.inv2: "Europe/Berlin", fleet.b_main: "America/New_York"}
    start = int(dt.datetime(2025, 10, 20, tzinfo=dt.timezone.utc).timestamp())
    model = {}
    for e, (_, cadence) in entities.items():
        for i in range(0, 20 * 86400, cadence):
            if rng.random() < 0.9:
                model[e, start + i] = (rng.randint(0, 80) / 8, rng.choice(["good"] * 8 + ["estimated", "bad"]))
    rows = [f'energy,entity_id={e} value={v},quality="{q}" {t}' for (e, t), (v, q) in model.items()]
    rng.shuffle(rows)
    for i in range(0, len(rows), 1500):
        server.write("\n".join(rows[i:i + 1500]))
        if rng.random() < 0.5:
            server.flush()
    for _ in range(40):
        bucket, by = rng.choice(["1h", "1d", "1w", "1mo"]), rng.choice(["total", "category", "entity"])
        tz = rng.choice(["Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia", "UTC"])
        a = start + rng.randrange(0, 18 * 86400, 900)
        b = a + rng.randrange(900, 9 * 86400, 900)
        iso = lambda t: dt.datetime.fromtimestamp(t, dt.timezone.utc).isoformat()
        got = {(r["bucketStart"], r.get("category") or r.get("entityId")): (round(r["value"], 6), r["count"])
               for r in rollup(server, metric="energy", bucket=bucket, by=by, tz=tz, **{"from": iso(a), "to": iso(b)})}
        want = {}
        for (e, t), (v, q) in model.items():
            if a <= t < b and q != "bad":
                local = dt.datetime.fromtimestamp(t, ZoneInfo(tz))
                if bucket == "1h":
                    key = dt.datetime.fromtimestamp(t - t % 3600, ZoneInfo(tz))
                else:
                    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
                    key = {"1d": day, "1w": day - dt.timedelta(days=day.weekday()), "1mo": day.replace(day=1)}[bucket]
                key = key.astimezone(dt.timezone.utc)
                group = {"total": None, "category": entities[e][0], "entity": e}[by]
                s, n = want.get((key, group), (0, 0))
                want[key, group] = (s + v, n + 1)
        got = {(dt.datetime.fromisoformat(k).astimezone(dt.timezone.utc), g): v for (k, g), v in got.items()}
        want = {k: (round(s, 6), n) for k, (s, n) in want.items()}
        assert got == want, (bucket, by, tz, iso(a), iso(b))


def test_rollup_tables_say_what_the_endpoint_says(server, fleet):
    """Of files, of memory and of corrections, in the calendar of each site."""
    def fill(days, value):
        for entity, metric, step in [(fleet.main, "power", 900), (fleet.b_main, "energy", 3600), (fleet.inv1, "energy", 3600)]:
            server.write("\n".join(f"{metric},entity_id={entity} value={value + n % 7} {T0 + n * step}" for n in range(days * 86_400 // step)))

    fill(4, 1)
    server.flush()
    server.post("/api/compact", params={"all": "true"})
    fill(1, 5)  # corrections
    server.write(f"energy,entity_id={fleet.b_main} value=9 {T0 + 5 * 86_400}")
    for table, bucket in [("rollup_daily", "1d"), ("rollup_hourly", "1h")]:
        rows = server.sql(f"SELECT * FROM {table} ORDER BY entity_id, bucket_start")
        want = []
        for metric in ("energy", "power"):
            span = {"metric": metric, "bucket": bucket, "by": "entity", "from": "2025-12-25", "to": "2026-01-20", "mode": "own"}
            want += rollup(server, **span, entityId=[fleet.main, fleet.b_main, fleet.inv1])
        at = lambda text: dt.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
        key = lambda row: (row["entityId"], at(row["bucketStart"]))
        got = [(r["entity_id"], at(r["bucket_start"]), at(r["bucket_end"]), r["value"], r["unit"], r["count"], r["coverage"]) for r in rows]
        assert len(got) > 10
        assert got == [(r["entityId"], at(r["bucketStart"]), at(r["bucketEnd"]), r["value"], r["unit"], r["count"], r["coverage"]) for r in sorted(want, key=key)]
        # A range that cuts a bucket leaves it out or shows it whole.
        cut = server.sql(f"SELECT * FROM {table} WHERE bucket_start > '2026-01-02T10:30:00Z' AND bucket_start <= '2026-01-03T12:00:00Z' ORDER BY entity_id, bucket_start")
        assert cut == [r for r in rows if at("2026-01-02T10:30:00Z") < at(r["bucket_start"]) <= at("2026-01-03T12:00:00Z")] and cut
        some = server.sql(f"SELECT * FROM {table} WHERE metric = 'energy' AND entity_id = '{fleet.inv1}' ORDER BY bucket_start")
        assert some == [r for r in rows if r["entity_id"] == fleet.inv1] and some


def test_hours_of_many_readings_are_those_of_the_rows(server):
    """Files sum up hours of many readings; what was corrected, deleted or came since counts all the same."""
    meters = [{"name": f"meter {n}", "category": "CONS", "readingFrequency": "1min"} for n in range(36)]
    meters = server.post("/api/onboarding/complete", json={"site": {"name": "many"}, "meters": meters}).json()["meterIds"]
    rng, start = random.Random(4), 1772323200  # 2026-03-01

    def write(which, minutes, share=1.0):
        lines = [f"temperature,entity_id={meter} value={rng.randrange(-400, 800) / 16} {start + 60 * minute}"
                 for meter in which for minute in minutes if rng.random() < share]
        for n in range(0, len(lines), 50_000):
            server.write("\n".join(lines[n : n + 50_000]))

    write(meters, range(14 * 1440), 0.98)
    write(meters[:3], range(14 * 1440, 14 * 1440 + 300))
    server.flush()
    server.post("/api/compact", params={"all": "true"})
    used = lambda: float(re.search(r"^wattlake_rollup_summaries_total (\S+)", server.get("/metrics").text + "\nwattlake_rollup_summaries_total 0", re.M)[1])
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")

    def compare():
        rows = pa.ipc.open_stream(server.post("/api/sql", params={"format": "arrow"}, json={
            "query": "SELECT entity_id, timestamp, value FROM measurements WHERE metric = 'temperature'"}).content).read_all()
        theirs = duck.sql("""SELECT entity_id, epoch_us(date_trunc('hour', timestamp)) AS at, avg(value), count(*), min(value), max(value) FROM rows
          GROUP BY ALL ORDER BY 1, 2""").fetchall()
        ours = server.sql("""SELECT entity_id, CAST(EXTRACT(epoch FROM bucket_start) AS bigint) * 1000000 AS at, value, count FROM rollup_hourly
          WHERE metric = 'temperature' ORDER BY 1, 2""")
        near = lambda a, b: abs(a - b) <= 1e-9 * max(1, abs(b))
        assert len(ours) == len(theirs)
        for mine, (entity, at, mean, count, _, _) in zip(ours, theirs):
            assert (mine["entity_id"], mine["at"], mine["count"]) == (entity, at, count) and near(mine["value"], mean), (mine, mean)
        range_ = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-16T00:00:00Z", "by": "entity", "bucket": "1h", "metric": "temperature"}
        for how, column in [("min", 4), ("max", 5)]:
            found = rollup(server, agg=how, **range_)
            assert sorted((row["entityId"], row["value"]) for row in found) == sorted((row[0], row[column]) for row in theirs)
        return len(theirs)

    hours = compare()
    assert used() > 2 * hours, "hours stand for their rows"
    before = used()
    write(meters, range(2000, 2200), 0.3)
    server.flush()
    r = server.request("DELETE", "/api/measurements", params={"metric": "temperature", "entityId": meters[0], "from": "2026-03-05T00:30:00Z", "to": "2026-03-05T03:10:00Z"})
    assert r.status_code == 200, r.text
    write(meters[:9], range(9000, 9100), 0.5)
    write(meters, range(14 * 1440 + 300, 14 * 1440 + 400))
    compare()
    assert used() - before > 2 * hours, "most of them still do"


def test_energy_balance(start):
    server = start(settings={"carbon.factors.grid": "0.5"})
    fleet = Fleet(server)
    day = lambda entity, metric, value: f"{metric},entity_id={entity} value={value} {T0 + 43_200}"
    server.write("\n".join([
        day(fleet.inv1, "energy", 6), day(fleet.inv2, "energy", 4), day(fleet.main, "energy", 7),
        day(fleet.main, "import_energy", 2), day(fleet.main, "export_energy", 5), day(fleet.b_main, "energy", 3),
    ]))
    r = server.get("/api/balance", params={"from": "2026-01-01", "to": "2026-01-02", "tz": "UTC"})
    assert r.status_code == 200, r.text
    rows = {row["siteId"]: row for row in r.json()}
    a, b = rows[fleet.site_a], rows[fleet.site_b]
    assert (a["production"], a["consumption"], a["import"], a["export"], a["unaccounted"]) == (10.0, 7.0, 2.0, 5.0, 0.0)
    assert (a["selfConsumption"], a["selfConsumptionShare"], round(a["selfSufficiency"], 9)) == (5.0, 0.5, round(5 / 7, 9))
    assert round(a["carbon"], 9) == round(10 * 0.041 + 2 * 0.5, 9)
    assert (b["production"], b["import"], b["export"], b["selfSufficiency"], b["carbon"]) == (0.0, 3.0, 0.0, 0.0, 1.5)
    only = server.get("/api/balance", params={"from": "2026-01-01", "to": "2026-01-02", "siteId": fleet.site_b, "format": "csv"})
    assert only.text.splitlines()[0].startswith("bucketStart,bucketEnd,siteId,production") and len(only.text.splitlines()) == 2
