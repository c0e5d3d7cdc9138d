#!/usr/bin/env python3
"""Reads the same rows over each protocol and prints how many came a second.

  protocols.py --url http://127.0.0.1:8787 --postgres 'host=127.0.0.1 port=8788 user=x password=TOKEN' --flight grpc://127.0.0.1:8789
    --token TOKEN [--rows 5000000] [--rounds 3]

The best of the rounds, one protocol after the other in each. Packages psycopg, adbc-driver-flightsql, pyarrow.
"""

import argparse
import time
import urllib.parse
import urllib.request

import adbc_driver_flightsql.dbapi as flight
import psycopg
import pyarrow as pa

ap = argparse.ArgumentParser()
ap.add_argument("--url", required=True)
ap.add_argument("--postgres", required=True)
ap.add_argument("--flight", required=True)
ap.add_argument("--token", required=True)
ap.add_argument("--rows", type=int, default=5_000_000)
ap.add_argument("--rounds", type=int, default=3)
a = ap.parse_args()

SQL = f"SELECT entity_id, metric, timestamp, value FROM measurements LIMIT {a.rows}"


def http(accept):
    """Rows of Arrow, bytes of others."""
    request = urllib.request.Request(f"{a.url}/api/sql?" + urllib.parse.urlencode({"q": SQL}),
                                     headers={"Authorization": f"Bearer {a.token}", "Accept": accept})
    with urllib.request.urlopen(request) as answer:
        if accept == "text/csv":
            lines = 0
            while block := answer.read(1 << 20):
                lines += block.count(b"\n")
            return lines - 1
        return sum(batch.num_rows for batch in pa.ipc.open_stream(answer))


def flight_sql():
    options = {"adbc.flight.sql.authorization_header": f"Bearer {a.token}"}
    with flight.connect(a.flight, db_kwargs=options) as connection, connection.cursor() as cursor:
        cursor.execute(SQL)
        return sum(batch.num_rows for batch in cursor.fetch_record_batch())


def postgres(binary):
    """As a driver reads them, some thousand at a time, made into Python objects."""
    with psycopg.connect(a.postgres) as connection, connection.cursor("c", binary=binary) as cursor:
        cursor.itersize = 50_000
        cursor.execute(SQL)
        rows = 0
        while some := cursor.fetchmany(50_000):
            rows += len(some)
        return rows


WAYS = {
    "HTTP, Arrow": lambda: http("application/vnd.apache.arrow.stream"),
    "HTTP, CSV": lambda: http("text/csv"),
    "Flight SQL": flight_sql,
    "Postgres wire, text": lambda: postgres(False),
    "Postgres wire, binary": lambda: postgres(True),
}
best = {}
for _ in range(a.rounds):
    for name, ask in WAYS.items():
        start = time.monotonic()
        rows = ask()
        assert rows == a.rows, (name, rows)
        best[name] = min(best.get(name, 1e9), time.monotonic() - start)
for name, seconds in best.items():
    print(f"{name:24} {seconds:6.2f} s {a.rows / seconds / 1e6:6.2f} million rows/s")
