"""Every way to ask the server, so that tests can hold them against each other."""

import adbc_driver_manager
import psycopg
from adbc_driver_flightsql import DatabaseOptions
from adbc_driver_flightsql import dbapi as flightsql


def flight(server):
    options = {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {server.token}"}
    return flightsql.connect(f"grpc://127.0.0.1:{server.flight_port}", db_kwargs=options, autocommit=True)


class Refused(Exception):
    pass


class Protocols:
    """Each way to ask, as a function that answers rows or raises Refused."""

    def __init__(self, server, stack):
        self.server = server
        self.db = stack.enter_context(psycopg.connect(**server.postgres(), autocommit=True))
        self.cursor = stack.enter_context(stack.enter_context(flight(server)).cursor())

    def all(self):
        return {
            "HTTP": self.http,
            "HTTP GET": self.http_get,
            "Postgres": lambda text: self.postgres(lambda: psycopg.ClientCursor(self.db).execute(text)),
            "Postgres, prepared": lambda text: self.postgres(lambda: self.db.execute(text, prepare=True)),
            "Postgres, parameters": lambda text: self.postgres(lambda: self.db.cursor(binary=True).execute(text)),
            "Postgres, cursor": self.declared,
            "Flight SQL": self.flight,
        }

    def http(self, text):
        r = self.server.post("/api/sql", json={"query": text})
        if r.status_code != 200:
            assert 400 <= r.status_code < 500, r.text
            raise Refused(r.text)
        return [tuple(row.values()) for row in r.json()]

    def http_get(self, text):
        r = self.server.get("/api/sql", params={"q": text})
        if r.status_code != 200:
            assert 400 <= r.status_code < 500, r.text
            raise Refused(r.text)
        return [tuple(row.values()) for row in r.json()]

    @staticmethod
    def postgres(ask):
        try:
            answer = ask()
            return answer.fetchall() if answer.description else None
        except psycopg.Error as error:
            assert error.sqlstate and error.sqlstate != "XX000", error
            raise Refused(str(error)) from error

    def declared(self, text):
        def ask():
            self.db.execute(f"DECLARE c CURSOR WITH HOLD FOR {text}")
            try:
                return psycopg.ClientCursor(self.db).execute("FETCH ALL FROM c")
            finally:
                self.db.execute("CLOSE c")

        return self.postgres(ask)

    def flight(self, text):
        try:
            self.cursor.execute(text)
            return self.cursor.fetchall()
        except adbc_driver_manager.Error as error:
            assert error.status_code != adbc_driver_manager.AdbcStatusCode.INTERNAL, error
            raise Refused(str(error)) from error
