#!/usr/bin/env python3
"""Asks a running server the questions of a fleet's users and prints how long each answer took.

  queries.py --url http://127.0.0.1:8787 --token TOKEN --entities entities.csv --year 2025 --month 1 [--rounds 5] [--duckdb 'lake/measurements/month=*/*.parquet']

The data: power (kW), energy_total (kWh, a register), voltage, soc and temperature of some hundred devices every quarter of an
hour or hour. `entities.csv` has a header with entity_id, kind, site_id. Times are milliseconds of the whole answer as Arrow (SQL) or JSON
(rollup), median of the rounds, warm. Standard library only, but with --duckdb: then DuckDB (packages duckdb, pyarrow) is asked the same
of the same files, question by question in turn, and the answers are compared.
"""

import argparse
import csv
import json
import statistics
import time
import urllib.parse
import urllib.request

ap = argparse.ArgumentParser()
ap.add_argument("--url", default="http://127.0.0.1:8787")
ap.add_argument("--token", default="")
ap.add_argument("--entities", required=True)
ap.add_argument("--year", type=int, default=2025)
ap.add_argument("--month", type=int, default=6)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--duckdb", metavar="GLOB", help="the data files of a server without corrections")
a = ap.parse_args()

inverters = [row for row in csv.DictReader(open(a.entities)) if row["kind"] == "inverter"]
E = inverters[min(99, len(inverters) - 1)]
Y, M = a.year, a.month
DAY, NEXT_DAY = f"{Y}-{M:02}-15", f"{Y}-{M:02}-16"
WEEK, WEEK_END = f"{Y}-{M:02}-09", f"{Y}-{M:02}-16"
FROM, TO = f"{Y}-{M:02}-01", f"{Y + M // 12}-{M % 12 + 1:02}-01"
YEAR, YEAR_END = f"{Y}-01-01", f"{Y + 1}-01-01"
between = lambda x, y: f"timestamp >= TIMESTAMP '{x}T00:00:00Z' AND timestamp < TIMESTAMP '{y}T00:00:00Z'"
# Sources and meters with their site, category and capacity.
ENTITIES = """(SELECT s.id, m.site_id, m.category, s.capacity, s.source_type FROM energy_sources s JOIN meters m ON m.id = s.meter_id
  UNION ALL SELECT m.id, m.site_id, m.category, m.capacity, 'meter' FROM meters m) e"""

SQL = {
    "q01 last value of every series": "SELECT * FROM latest",
    "q02 one entity, power, one day": f"SELECT timestamp, value FROM measurements WHERE entity_id = '{E['entity_id']}' AND metric = 'power' AND {between(DAY, NEXT_DAY)} ORDER BY timestamp",
    "q03 one entity, daily mean, max, count": f"SELECT date_trunc('day', timestamp) AS d, avg(value), max(value), count(*) FROM measurements WHERE entity_id = '{E['entity_id']}' AND metric = 'power' AND {between(YEAR, YEAR_END)} GROUP BY 1 ORDER BY 1",
    "q04 monthly energy by site and category": f"SELECT e.site_id, e.category, t.mo, sum(t.kwh) FROM (SELECT entity_id, date_trunc('month', timestamp) AS mo, max(value) - min(value) AS kwh FROM measurements WHERE metric = 'energy_total' AND {between(YEAR, YEAR_END)} GROUP BY 1, 2) t JOIN {ENTITIES} ON e.id = t.entity_id GROUP BY 1, 2, 3",
    "q05 top 10 sites by specific yield": f"SELECT e.site_id, sum(t.kwh) / sum(e.capacity) AS y FROM (SELECT entity_id, max(value) - min(value) AS kwh FROM measurements WHERE metric = 'energy_total' AND {between(FROM, TO)} GROUP BY 1) t JOIN {ENTITIES} ON e.id = t.entity_id WHERE e.source_type = 'solar' GROUP BY 1 ORDER BY 2 DESC LIMIT 10",
    "q07 fleet power by category, 15 min, one day": f"SELECT e.category, p.timestamp, sum(p.value) FROM measurements p JOIN {ENTITIES} ON e.id = p.entity_id WHERE p.metric = 'power' AND p.{between(DAY, NEXT_DAY).replace('AND timestamp', 'AND p.timestamp')} GROUP BY 1, 2",
    "q08 p95 of power per entity and month": f"SELECT entity_id, date_trunc('month', timestamp) AS mo, percentile_cont(0.95) WITHIN GROUP (ORDER BY value) FROM measurements WHERE metric = 'power' AND {between(YEAR, YEAR_END)} GROUP BY 1, 2",
    "q09 gaps in power, one month": f"SELECT entity_id, count(*), max(gap) FROM (SELECT entity_id, timestamp - lag(timestamp) OVER (PARTITION BY entity_id ORDER BY timestamp) AS gap FROM measurements WHERE metric = 'power' AND {between(FROM, TO)}) WHERE gap > INTERVAL '30 minutes' GROUP BY 1",
    "q10 capacity factor per inverter and month": f"SELECT e.id, t.mo, t.mean / e.capacity FROM (SELECT entity_id, date_trunc('month', timestamp) AS mo, avg(value) AS mean FROM measurements WHERE metric = 'power' AND {between(YEAR, YEAR_END)} GROUP BY 1, 2) t JOIN {ENTITIES} ON e.id = t.entity_id WHERE e.source_type = 'solar'",
    "q11 temperature by zone, type and month": f"SELECT s.time_zone, e.source_type, t.mo, sum(t.s) / sum(t.n), max(t.hi) FROM (SELECT entity_id, date_trunc('month', timestamp) AS mo, sum(value) AS s, count(*) AS n, max(value) AS hi FROM measurements WHERE metric = 'temperature' GROUP BY 1, 2) t JOIN {ENTITIES} ON e.id = t.entity_id JOIN sites s ON s.id = e.site_id GROUP BY 1, 2, 3",
    "q12 count by month and quality": "SELECT date_trunc('month', timestamp) AS mo, quality, count(*) FROM measurements GROUP BY 1, 2",
    "q13 count, mean, max by metric": "SELECT metric, count(*), avg(value), max(value) FROM measurements GROUP BY 1",
    "q14 sum and count by metric, one month": f"SELECT metric, count(*), sum(value) FROM measurements WHERE {between(FROM, TO)} GROUP BY 1",
}
ROLLUPS = {
    "q06 one site, power by category, 15 min, one week": dict(siteId=E["site_id"], metric="power", bucket="15m", by="category", **{"from": WEEK, "to": WEEK_END}),
    "q15 monthly energy by site, own zones": dict(metric="energy_total", bucket="1mo", by="site", **{"from": YEAR, "to": YEAR_END}),
}


# What has no table in DuckDB.
IN_DUCKDB = {"q01 last value of every series": "SELECT entity_id, arg_max(entity_type, timestamp), metric, max(timestamp), arg_max(value, timestamp), arg_max(unit, timestamp), arg_max(quality, timestamp) FROM measurements GROUP BY 1, 3"}


def ask(path, body=None):
    request = urllib.request.Request(a.url + path, data=body and json.dumps(body).encode(), headers={"Authorization": f"Bearer {a.token}"})
    with urllib.request.urlopen(request) as response:
        return response.read()


def timed(what):
    started = time.perf_counter()
    answer = what()
    return (time.perf_counter() - started) * 1e3, answer


def open_duckdb():
    """DuckDB with the files as `measurements`, and the fleet as tables of its own."""
    import duckdb
    import pyarrow

    db = duckdb.connect()
    db.execute(f"CREATE VIEW measurements AS SELECT * FROM read_parquet('{a.duckdb}', hive_partitioning = false)")
    for table in ("sites", "meters", "energy_sources"):
        rows = pyarrow.ipc.open_stream(ask("/api/sql?format=arrow", {"query": f"SELECT * FROM {table}"})).read_all()
        db.register("rows", rows)
        db.execute(f"CREATE TABLE {table} AS FROM rows")
        db.unregister("rows")
    return db


def differ(ours, theirs):
    """Whether two answers differ; numbers by more than 1e-9 of them. Lengths of time are written differently and left out."""
    import pyarrow

    def rows(table):
        keep = [c for c in table.columns if not (pyarrow.types.is_duration(c.type) or pyarrow.types.is_interval(c.type))]
        numbers = lambda row: [v for v in row if isinstance(v, float)]
        others = lambda row: tuple(str(v) for v in row if not isinstance(v, float))
        return sorted((others(row), numbers(row)) for row in zip(*(c.to_pylist() for c in keep)))

    ours, theirs = rows(pyarrow.ipc.open_stream(ours).read_all()), rows(theirs)
    near = lambda x, y: abs(x - y) <= 1e-9 * max(abs(x), abs(y))
    return len(ours) != len(theirs) or any(
        a != b or len(x) != len(y) or not all(map(near, x, y)) for (a, x), (b, y) in zip(ours, theirs)
    )


db = open_duckdb() if a.duckdb else None
questions = {name: ("/api/sql?format=arrow", {"query": query}) for name, query in SQL.items()}
questions |= {name: ("/api/rollup?" + urllib.parse.urlencode(params), None) for name, params in ROLLUPS.items()}
print("| question | ms | answer bytes |" + (" DuckDB, ms | ratio |" if db else ""))
print("|---|---:|---:|" + ("---:|---:|" if db else ""))
for name, (path, body) in sorted(questions.items()):
    try:
        rounds, others = [], []
        for _ in range(a.rounds + 1):
            rounds.append(timed(lambda: ask(path, body)))
            if db and name in SQL:
                others.append(timed(lambda: db.sql(IN_DUCKDB.get(name, SQL[name])).to_arrow_table()))
        ms = statistics.median(ms for ms, _ in rounds[1:])
        line = f"| {name} | {ms:.0f} | {len(rounds[0][1])} |"
        if others:
            other = statistics.median(ms for ms, _ in others[1:])
            line += f" {other:.0f} | {ms / other:.2f} |"
            if differ(rounds[0][1], others[0][1]):
                line += " the answers differ"
        elif db:
            line += " | |"
        print(line, flush=True)
    except urllib.error.HTTPError as error:
        print(f"| {name} | failed: {error.read()[:200].decode()} | |", flush=True)
