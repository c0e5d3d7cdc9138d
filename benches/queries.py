#!/usr/bin/env python3
"""Asks a server the questions of a fleet's users and prints how long each answer took, beside other engines on the same data.

  queries.py --url http://127.0.0.1:8787 --token TOKEN --entities entities.csv --year 2025 --month 1 [--rounds 5]
    [--files 'lake/measurements/month=*/*.parquet' --peers duckdb-files,duckdb,chdb --scratch DIR]
    [--cold --serve 'wattlake serve --data-dir DIR ...']

The data: power (kW), energy_total (kWh, a register), voltage, soc and temperature of some hundred devices every quarter of an
hour or hour. `entities.csv` has a header with entity_id, kind, site_id. Times are milliseconds of the whole answer as Arrow (SQL) or JSON
(rollup), median of the rounds, warm. Standard library only, but with --peers (packages duckdb, chdb, pyarrow, pytz): they are asked the same, question by
question in turn, and answers are compared with those of DuckDB. `duckdb-files` reads the server's files (which must be without corrections), `duckdb`
and `chdb` have a table of their own in the order of metric, entity and time, made from them in --scratch if it is not there.

With --cold each question is asked once, of a process that was just started, after the system dropped its page cache (as root); the server
is started by this program.
"""

import argparse
import csv
import json
import multiprocessing
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

ap = argparse.ArgumentParser()
ap.add_argument("--url", default="http://127.0.0.1:8787")
ap.add_argument("--token", default="")
ap.add_argument("--entities", required=True)
ap.add_argument("--year", type=int, default=2025)
ap.add_argument("--month", type=int, default=6)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--only", default="", metavar="q01,q02", help="some of the questions")
ap.add_argument("--files", metavar="GLOB", help="the data files of the server")
ap.add_argument("--peers", default="", metavar="NAMES", help="duckdb-files, duckdb, chdb")
ap.add_argument("--scratch", default=".", metavar="DIR")
ap.add_argument("--cold", action="store_true")
ap.add_argument("--serve", metavar="COMMAND", help="starts the server, for --cold")
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


# What other engines ask in words of their own.
LATEST = "SELECT entity_id, arg_max(entity_type, timestamp), metric, max(timestamp), arg_max(value, timestamp), arg_max(unit, timestamp), arg_max(quality, timestamp) FROM measurements GROUP BY 1, 3"
GAPS = f"""SELECT entity_id, count(*), max(gap) FROM (SELECT entity_id, toUnixTimestamp64Micro(timestamp) - lagInFrame(toNullable(toUnixTimestamp64Micro(timestamp))) OVER
  (PARTITION BY entity_id ORDER BY timestamp ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS gap FROM measurements WHERE metric = 'power' AND {between(FROM, TO)}) WHERE gap > 1800000000 GROUP BY 1"""
TABLES = ("sites", "meters", "energy_sources")


def in_clickhouse(name, query):
    query = {"q01": LATEST.replace("arg_max", "argMax"), "q09": GAPS}.get(name[:3], query)
    query = query.replace("percentile_cont(0.95) WITHIN GROUP (ORDER BY value)", "quantileExactInclusive(0.95)(value)")
    return re.sub(r"TIMESTAMP '(\S+)T00:00:00Z'", r"toDateTime64('\1 00:00:00', 6, 'UTC')", query)


class DuckDB:
    """DuckDB over the files, or with a table of its own; the fleet as tables."""

    def __init__(self, has_table):
        import duckdb

        file = os.path.join(a.scratch, "duckdb.db")
        is_new = not os.path.exists(file)
        self.db = duckdb.connect(file) if has_table else duckdb.connect()
        self.db.execute("SET TimeZone = 'UTC'")
        if not has_table:
            self.db.execute(f"CREATE VIEW measurements AS SELECT * FROM read_parquet('{a.files}', hive_partitioning = false)")
        elif is_new:
            # Without a zone, as its own users have it: its functions of dates are much faster then.
            self.db.execute(f"""CREATE TABLE measurements AS SELECT * REPLACE (timestamp::TIMESTAMP AS timestamp, created_at::TIMESTAMP AS created_at)
              FROM read_parquet('{a.files}', hive_partitioning = false) ORDER BY metric, entity_id, timestamp""")
        for table in TABLES:
            self.db.execute(f"CREATE OR REPLACE TABLE {table} AS FROM read_parquet('{a.scratch}/{table}.parquet')")

    def ask(self, name, query):
        return self.db.sql(LATEST if name[:3] == "q01" else query).to_arrow_table()


class ClickHouse:
    """ClickHouse in this process, with tables of its own."""

    def __init__(self):
        from chdb.session import Session

        path = os.path.join(a.scratch, "chdb")
        is_new = not os.path.exists(path)
        self.db = Session(path)
        if is_new:
            self.db.query("CREATE DATABASE w")
            self.db.query(f"CREATE TABLE w.measurements ENGINE MergeTree ORDER BY (metric, entity_id, timestamp) AS SELECT * FROM file('{a.files}', Parquet)")
            self.db.query("OPTIMIZE TABLE w.measurements FINAL")
            for table in TABLES:
                self.db.query(f"CREATE TABLE w.{table} ENGINE MergeTree ORDER BY id AS SELECT * FROM file('{a.scratch}/{table}.parquet', Parquet)")
        self.db.query("USE w")

    def ask(self, name, query):
        import pyarrow

        answer = self.db.query(in_clickhouse(name, query), "ArrowStream").bytes()
        return pyarrow.ipc.open_stream(answer).read_all()


PEERS = {"duckdb-files": lambda: DuckDB(False), "duckdb": lambda: DuckDB(True), "chdb": ClickHouse}


def ask(path, body=None):
    request = urllib.request.Request(a.url + path, data=body and json.dumps(body).encode(), headers={"Authorization": f"Bearer {a.token}"})
    with urllib.request.urlopen(request) as response:
        return response.read()


def timed(what):
    started = time.perf_counter()
    answer = what()
    return (time.perf_counter() - started) * 1e3, answer


def drop_page_cache():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Started:
    """The server, for as long as it takes."""

    def __enter__(self):
        self.process = subprocess.Popen(shlex.split(a.serve), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                return ask("/ready")
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def cold_child(peer, name, query, pipe):
    opened = PEERS[peer]()
    pipe.send(timed(lambda: opened.ask(name, query).num_rows)[0])


def cold(peer, name, path, body):
    """Milliseconds of a process that has read nothing yet."""
    drop_page_cache()
    if peer is None:
        with Started():
            return timed(lambda: ask(path, body))[0]
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=cold_child, args=(peer, name, body["query"], there))
    process.start()
    there.close()
    ms = here.recv()
    process.join()
    return ms


def differ(ours, theirs):
    """Whether two answers differ; numbers by more than 1e-9 of them. Lengths of time are written differently and left out."""
    import pyarrow

    def rows(table):
        keep = [c for c in table.columns if not (pyarrow.types.is_duration(c.type) or pyarrow.types.is_interval(c.type))]
        numbers = lambda row: [v for v in row if isinstance(v, float)]
        others = lambda row: tuple(str(v).removesuffix("+00:00") for v in row if not isinstance(v, float))
        return sorted((others(row), numbers(row)) for row in zip(*(c.to_pylist() for c in keep)))

    ours, theirs = rows(pyarrow.ipc.open_stream(ours).read_all()), rows(theirs)
    near = lambda x, y: abs(x - y) <= 1e-9 * max(abs(x), abs(y))
    return len(ours) != len(theirs) or any(
        a != b or len(x) != len(y) or not all(map(near, x, y)) for (a, x), (b, y) in zip(ours, theirs)
    )


def save_fleet():
    import pyarrow
    import pyarrow.parquet

    for table in TABLES:
        rows = pyarrow.ipc.open_stream(ask("/api/sql?format=arrow", {"query": f"SELECT * FROM {table}"})).read_all()
        pyarrow.parquet.write_table(rows, os.path.join(a.scratch, f"{table}.parquet"))


def warm(peers, name, path, body):
    """Milliseconds of the server and of each peer, and whose answer differs."""
    rounds, differs = {None: []} | {peer: [] for peer in peers}, []
    for n in range(a.rounds + 1):
        ms, ours = timed(lambda: ask(path, body))
        rounds[None].append(ms)
        for peer, opened in peers.items() if "query" in (body or {}) else ():
            ms, theirs = timed(lambda: opened.ask(name, body["query"]))
            rounds[peer].append(ms)
            # ClickHouse has other types for dates and counts.
            if n == 0 and peer != "chdb" and differ(ours, theirs):
                differs.append(peer)
    return {peer: statistics.median(ms[1:]) for peer, ms in rounds.items() if ms}, differs


def main():
    names = [name for name in a.peers.split(",") if name]
    unknown = set(names) - set(PEERS)
    if unknown or (names and not a.files) or (a.cold and not a.serve):
        sys.exit(f"--peers are of {', '.join(PEERS)} and need --files; --cold needs --serve")
    if names and a.cold:
        with Started():
            save_fleet()
    elif names:
        save_fleet()
    # Tables are made before anything is measured.
    peers = {name: PEERS[name]() for name in names} if not a.cold else dict.fromkeys(names)
    questions = {name: ("/api/sql?format=arrow", {"query": query}) for name, query in SQL.items()}
    questions |= {name: ("/api/rollup?" + urllib.parse.urlencode(params), None) for name, params in ROLLUPS.items()}
    print("| question | ms |" + "".join(f" {name}, ms | ratio |" for name in names))
    print("|---|---:|" + "---:|---:|" * len(names))
    ratios = {name: [] for name in names}
    for name, (path, body) in sorted(questions.items()):
        if a.only and name[:3] not in a.only.split(","):
            continue
        try:
            if a.cold:
                asked = [None, *names] if body else [None]
                times = {peer: statistics.median(cold(peer, name, path, body) for _ in range(a.rounds)) for peer in asked}
                differs = []
            else:
                times, differs = warm(peers, name, path, body)
        except urllib.error.HTTPError as error:
            print(f"| {name} | failed: {error.read()[:200].decode()} |", flush=True)
            continue
        ours = times.pop(None)
        for peer, theirs in times.items():
            ratios[peer].append(ours / theirs)
        cells = [f" {times[peer]:.0f} | {ours / times[peer]:.3f} |" if peer in times else " | |" for peer in names]
        print(f"| {name} | {ours:.0f} |{''.join(cells)}" + "".join(f" answer of {peer} differs" for peer in differs), flush=True)
    for peer, found in ratios.items():
        if found:
            print(f"geometric mean of {len(found)} ratios to {peer}: {statistics.geometric_mean(found):.3f}")


main()
