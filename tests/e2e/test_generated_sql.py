"""Generated SQL against itself and against DuckDB: what a filter splits is the whole (ternary logic partitioning), a filter finds what it
is true of (non-optimising reference), and all protocols answer the same.

TEST_SCALE=10 asks more than five thousand queries; TEST_SEED gives other ones."""

import collections
import datetime as dt
import io
import os
import random

import duckdb
import psycopg
import pyarrow as pa
from adbc_driver_flightsql import DatabaseOptions
from adbc_driver_flightsql import dbapi as flightsql
from conftest import SCALE, Fleet

UTC = dt.timezone.utc
START = int(dt.datetime(2026, 1, 20, tzinfo=UTC).timestamp())
HOURS = 24 * 80
PREDICATES = 45 * SCALE
COLUMNS = "m.entity_id, m.metric, m.timestamp, m.value, m.unit, m.quality, m.metadata, t.name, t.category"
FROM = "FROM measurements m LEFT JOIN meters t ON t.id = m.entity_id"
# Without the join, where files may say it all.
ALONE = "FROM measurements m"


def fill(server, fleet, rng):
    """Hourly readings with gaps, corrections, deletions, and some that are still in memory."""
    entities = [fleet.main, fleet.inv1, fleet.inv2, fleet.b_main]
    lines = []
    for entity in entities:
        for metric in ("power", "temperature"):
            for hour in range(HOURS):
                if rng.random() < 0.3:
                    quality = rng.choice(["good"] * 8 + ["estimated", "bad"])
                    note = ',metadata="{\\"n\\":1}"' if rng.random() < 0.05 else ""
                    value = rng.choice([0, rng.randint(-80, 800) / 8])
                    lines.append(f'{metric},entity_id={entity} value={value},quality="{quality}"{note} {START + hour * 3600}')
    server.write("\n".join(lines))
    server.post("/api/compact", params={"all": "true"})
    server.write("\n".join(rng.sample(lines, 30)))
    server.flush()
    server.write(f"power,entity_id={fleet.main} value=12.5 {START + 3600}\npower,entity_id={fleet.main} value=2 {START + HOURS * 3600}")


class Generator:
    def __init__(self, rng, fleet):
        self.rng, self.fleet = rng, fleet

    def time(self):
        at = START + self.rng.choice([self.rng.randrange(HOURS) * 3600, 12 * 86_400, 40 * 86_400])
        return f"TIMESTAMP '{dt.datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}'"

    def number(self, joined):
        constant = self.rng.randint(-80, 800) / 8
        return self.rng.choice([
            "m.value", "m.value", f"m.value - {constant}", f"abs(m.value - {constant})", "m.value * 2", "round(m.value)", "date_part('hour', m.timestamp)",
            "length(m.metric)", f"nullif(m.value, 0)", f"coalesce(nullif(m.value, 0), {constant})", "CASE WHEN m.quality = 'good' THEN m.value END",
        ] + (["length(t.name)"] if joined else []))

    def text(self, joined):
        return self.rng.choice(["m.metric", "m.quality", "m.unit", "m.entity_id", "m.metadata", "upper(m.metric)"] + (["t.name", "t.category"] if joined else []))

    def word(self):
        return f"'{self.rng.choice(['power', 'temperature', 'good', 'bad', 'kW', 'CONS', 'main', 'POWER', '', self.fleet.main])}'"

    def predicate(self, joined, depth=2):
        rng = self.rng
        again = lambda: self.predicate(joined, depth - 1)
        if depth and rng.random() < 0.6:
            return rng.choice([lambda: f"({again()} AND {again()})", lambda: f"({again()} OR {again()})", lambda: f"(NOT {again()})",
                               lambda: f"({again()} IS NULL)", lambda: f"({again()} IS TRUE)"])()
        compare = rng.choice(["<", "<=", "=", "<>", ">", ">="])
        return rng.choice([
            lambda: f"({self.number(joined)} {compare} {rng.randint(-80, 800) / 8})",
            lambda: f"({self.number(joined)} {compare} {self.number(joined)})",
            lambda: f"({self.number(joined)} BETWEEN {rng.randint(-10, 50)} AND {rng.randint(0, 100)})",
            lambda: f"({self.text(joined)} {compare} {self.word()})",
            lambda: f"({self.text(joined)} {rng.choice(['IN', 'NOT IN'])} ({self.word()}, {self.word()}))",
            lambda: f"({self.text(joined)} LIKE '{rng.choice(['%o%', 'p%', '%', 'k_', '_ood'])}')",
            lambda: f"({self.text(joined)} IS {rng.choice(['NULL', 'NOT NULL'])})",
            lambda: f"(m.timestamp {compare} {self.time()})",
            lambda: f"(m.timestamp BETWEEN {self.time()} AND {self.time()})",
            lambda: f"(date_trunc('{rng.choice(['month', 'day'])}', m.timestamp) {compare} {self.time()})",
        ])()


def plain(value):
    """A value as all protocols can give it."""
    if isinstance(value, dt.datetime):
        return value.astimezone(UTC).isoformat()
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def bag(rows):
    return collections.Counter(tuple(map(plain, row)) for row in rows)


def test_generated_queries(server, fleet):
    seed = int(os.environ.get("TEST_SEED", "20260120"))
    rng = random.Random(seed)
    fill(server, fleet, rng)
    asked = 0

    def ask(query):
        nonlocal asked
        asked += 1
        r = server.post("/api/sql", params={"format": "arrow"}, json={"query": query})
        assert r.status_code == 200, f"seed {seed}: {query}: {r.text}"
        return pa.ipc.open_stream(io.BytesIO(r.content)).read_all()

    rows = lambda query: bag(zip(*(column.to_pylist() for column in ask(query).columns)))
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")
    for name in ("measurements", "meters"):
        table = ask(f"SELECT * FROM {name}")
        duck.register("table_of_rows", table)
        duck.execute(f"CREATE TABLE {name} AS FROM table_of_rows")
        duck.unregister("table_of_rows")
    flight = flightsql.connect(f"grpc://127.0.0.1:{server.flight_port}", db_kwargs={DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {server.token}"}, autocommit=True)
    generator = Generator(rng, fleet)
    split = 0
    with psycopg.connect(**server.postgres(), autocommit=True) as pg, flight, flight.cursor() as cursor:
        for n in range(PREDICATES):
            joined = rng.random() < 0.4
            source = FROM if joined else ALONE
            p = generator.predicate(joined)
            base = rng.choice(["true", generator.predicate(joined, 1)])
            columns = COLUMNS if joined else COLUMNS.split(", t.")[0]
            what = f"seed {seed}: {source} WHERE {base}, {p}"
            parts = [p, f"NOT {p}", f"{p} IS NULL"]
            # The rows of a whole are those of its parts.
            whole = rows(f"SELECT {columns} {source} WHERE {base}")
            pieces = [rows(f"SELECT {columns} {source} WHERE {base} AND ({part})") for part in parts]
            assert sum(pieces, collections.Counter()) == whole, what
            split += sum(map(bool, pieces)) > 1
            # So are what is made of them.
            key = rng.choice(["m.metric", "m.entity_id", "m.quality", "date_trunc('month', m.timestamp)", "date_trunc('day', m.timestamp)"])
            sums = f"SELECT {key} AS k, count(*) AS n, sum(m.value) AS s, min(m.value) AS lo, max(m.value) AS hi {source}"
            grouped = rows(f"{sums} WHERE {base} GROUP BY 1")
            union = " UNION ALL ".join(f"{sums} WHERE {base} AND ({part}) GROUP BY 1" for part in parts)
            assert rows(f"SELECT k, sum(n), sum(s), min(lo), max(hi) FROM ({union}) GROUP BY 1") == grouped, what
            # A filter finds what it is true of.
            found = f"SELECT count(*) {source} WHERE {p}"
            reference = f"SELECT coalesce(sum(CASE WHEN p THEN 1 ELSE 0 END), 0) FROM (SELECT {p} AS p {source})"
            assert rows(found) == rows(reference), what
            # Other eyes see the same.
            for query in [f"SELECT {columns} {source} WHERE {base} AND {p}", f"{sums} WHERE {p} GROUP BY 1"]:
                answer = rows(query)
                assert answer == bag(duck.sql(query).fetchall()), f"DuckDB, {what}: {query}"
                if n % 3 == 0:
                    assert bag(pg.execute(query).fetchall()) == answer, f"Postgres wire, {what}: {query}"
                    cursor.execute(query)
                    assert bag(cursor.fetchall()) == answer, f"Flight SQL, {what}: {query}"
                    asked += 2
    assert asked > 10 * PREDICATES and split > PREDICATES / 4, (asked, split)
