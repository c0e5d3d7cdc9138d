"""Starts the real server (and Postgres, and an S3 server) for each test that asks for one."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests

# By hand: how many times longer faults last, and how much more is written.
SCALE = int(os.environ.get("TEST_SCALE", "1"))
BINARY = os.environ.get("TEST_WATTLAKE", "")
POSTGRES = os.environ.get("TEST_POSTGRES_BIN", "")
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"


def candidate_ports():
    """Ports below those that the system gives to outgoing connections: no client of another test can take
    one between the choice and the server's start, or while a server restarts."""
    first, count = 10_000, 20_000
    start = os.getpid() * 97 % count
    while True:
        yield from (first + (start + n) % count for n in range(count))


PORTS = candidate_ports()


def free_port():
    for port in PORTS:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def wait_until(check, what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


class Server:
    """A wattlake process with its data directory."""

    def __init__(self, dir, settings=None, command=("serve",), env=None):
        assert BINARY and os.path.exists(BINARY), "run the tests with tests/run: it builds the server"
        self.dir, self.settings = pathlib.Path(dir), dict(settings or {})
        self.port, self.postgres_port, self.flight_port = free_port(), free_port(), free_port()
        self.command, self.process, self.env = command, None, dict(os.environ, **(env or {}))
        self.env.pop("WATTLAKE_URL", None)

    @property
    def url(self):
        return f"https://localhost:{self.port}" if "tls.cert" in self.settings else f"http://127.0.0.1:{self.port}"

    @property
    def verify(self):
        """The certificate that the server must have."""
        return str(self.settings.get("tls.cert", "")) or True

    def flags(self):
        flags = ["--data-dir", str(self.dir)]
        for protocol, port in [("http", self.port), ("postgres", self.postgres_port), ("flight", self.flight_port)]:
            flags += ["--set", f"{protocol}.listen=127.0.0.1:{port}"]
        for key, value in self.settings.items():
            flags += ["--set", f"{key}={value}"]
        return flags

    def start(self):
        self.log = open(self.dir.parent / f"{self.dir.name}.log", "ab")
        self.process = subprocess.Popen(
            [BINARY, *self.command, *self.flags()], stdout=self.log, stderr=self.log, env=self.env
        )
        wait_until(self.is_up, "start-up")
        return self

    def is_up(self):
        assert self.process.poll() is None, f"the server ended:\n{self.log_text()[-3000:]}"
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.url + "/ready", timeout=5, verify=self.verify).ok
        return False

    def log_text(self):
        return (self.dir.parent / f"{self.dir.name}.log").read_text(errors="replace")

    @property
    def token(self):
        file = self.dir / "admin-token"
        return file.read_text().strip() if file.exists() else None

    def request(self, method, path, token=None, **kwargs):
        headers = kwargs.pop("headers", {})
        token = token if token is not None else self.token
        if token:
            headers = {"Authorization": f"Bearer {token}"} | headers
        return requests.request(method, self.url + path, headers=headers, timeout=120, verify=self.verify, **kwargs)

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, **kwargs):
        return self.request("POST", path, **kwargs)

    def sql(self, query, **params):
        r = self.post("/api/sql", json={"query": query} | params)
        assert r.status_code == 200, r.text
        return r.json()

    def write(self, lines, **params):
        r = self.post("/api/v2/write", params={"bucket": "test", "precision": "s"} | params, data=lines.encode())
        assert r.status_code == 204, r.text

    def flush(self):
        r = self.post("/api/flush")
        assert r.status_code == 200, r.text
        return r.json()["snapshotId"]

    def postgres(self, **options):
        """How clients of Postgres connect."""
        return {"host": "127.0.0.1", "port": self.postgres_port, "user": "anyone", "password": self.token or "none",
                "dbname": "wattlake"} | options

    def cli(self, *args, check=True, **kwargs):
        done = subprocess.run(
            [BINARY, *args, *self.flags()], capture_output=True, text=True, env=self.env, timeout=300, **kwargs
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def new_token(self, *flags):
        """A token that the running server knows: it reads them again every two seconds."""
        token = self.cli("token", "create", "--name", "test", *flags).stdout.strip()
        wait_until(lambda: self.get("/api/sites", token=token).status_code != 401, "the token")
        return token

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log_text()[-3000:]

    def memory(self):
        """Bytes that the process holds."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Makes servers; all end with the test."""
    servers = []

    def make(name="data", **kwargs):
        server = Server(tmp_path / name, **kwargs).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture
def server(start):
    return start()


class Fleet:
    """Two sites in two zones with small trees."""

    def __init__(self, server):
        def onboard(name, zone, meters):
            body = {"site": {"name": name, "metadata": {"timezone": zone}}, "meters": meters}
            r = server.post("/api/onboarding/complete", json=body)
            assert r.status_code == 201, r.text
            return r.json()

        a = onboard("A", "Europe/Berlin", [
            {"name": "main", "category": "CONS", "readingFrequency": "15min"},
            {"name": "pv", "category": "PROD", "sources": [
                {"name": "inv1", "sourceType": "solar", "capacity": 10},
                {"name": "inv2", "sourceType": "solar", "capacity": 20}]},
        ])
        self.site_a, (self.main, self.pv), (self.inv1, self.inv2) = a["siteId"], a["meterIds"], a["sourceIds"]
        b = onboard("B", "America/New_York", [{"name": "b main", "category": "CONS", "readingFrequency": "hourly"}])
        self.site_b, (self.b_main,) = b["siteId"], b["meterIds"]

    @staticmethod
    def meters(server, count):
        """The ids of new meters at a site of their own."""
        meters = [{"name": f"meter {n}", "category": "CONS"} for n in range(count)]
        r = server.post("/api/onboarding/complete", json={"site": {"name": "many"}, "meters": meters})
        assert r.status_code == 201, r.text
        return r.json()["meterIds"]


@pytest.fixture
def fleet(server):
    return Fleet(server)


def unprivileged():
    """As root, the user that Postgres runs as."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A private Postgres server; answers a function that makes an empty database and gives its URL."""
    assert POSTGRES, "run the tests with tests/run: it finds or installs Postgres"
    base = pathlib.Path("/tmp") / f"wattlake-pg-{os.getpid()}"
    base.mkdir(mode=0o700)
    port, who = free_port(), unprivileged()
    if who:
        os.chown(base, who["user"], who["group"])
    run = lambda *args: subprocess.run(args, check=True, capture_output=True, cwd="/tmp", **who)
    run(f"{POSTGRES}/initdb", "-D", str(base / "db"), "-U", "wattlake", "-A", "trust", "--no-sync")
    process = subprocess.Popen(
        [f"{POSTGRES}/postgres", "-D", str(base / "db"), "-p", str(port), "-k", str(base), "-h", "127.0.0.1"],
        stdout=open(base.with_suffix(".log"), "wb"), stderr=subprocess.STDOUT, cwd="/tmp", **who,
    )
    psql = lambda sql: run(f"{POSTGRES}/psql", "-h", "127.0.0.1", "-p", str(port), "-U", "wattlake", "-d", "postgres", "-c", sql)

    def ready():
        with contextlib.suppress(subprocess.CalledProcessError):
            return psql("SELECT 1")

    wait_until(ready, "Postgres")
    count = iter(range(1000))

    def database():
        name = f"test{next(count)}"
        psql(f"CREATE DATABASE {name}")
        return f"postgres://wattlake@127.0.0.1:{port}/{name}"

    yield database
    process.send_signal(signal.SIGINT)
    process.wait(30)
    shutil.rmtree(base)
    base.with_suffix(".log").unlink()


@pytest.fixture(scope="session")
def s3():
    """A private S3 server with one bucket; answers the settings for it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )

    def bucket():
        with contextlib.suppress(requests.ConnectionError):
            return requests.put(f"http://127.0.0.1:{port}/lake", timeout=5).ok

    wait_until(bucket, "the S3 server")
    yield {
        "storage.url": "s3://lake/archive",
        "storage.s3.endpoint": f"http://127.0.0.1:{port}",
        "storage.s3.region": "us-east-1",
        "storage.s3.access_key": "test",
        "storage.s3.secret_key": "test",
        "storage.s3.allow_http": "true",
    }
    process.terminate()
    process.wait(30)


def extension(name, file):
    import importlib

    folder = pathlib.Path(importlib.import_module(name).__file__).parent
    (found,) = folder.glob(f"extensions/v*/{file}.duckdb_extension")
    return found


@pytest.fixture
def duck():
    """DuckDB attached read-only to a catalog, as an outside reader would."""
    import duckdb

    made = []

    def attach(catalog, schema=None, s3=None):
        db = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"})
        made.append(db)
        db.sql("SET TimeZone = 'UTC'")
        scanner = "postgres_scanner" if catalog.startswith("postgres") else "sqlite_scanner"
        db.sql(f"LOAD '{extension(f'duckdb_extension_{scanner}', scanner)}'")
        if s3:
            db.sql(f"LOAD '{extension('duckdb_extension_httpfs', 'httpfs')}'")
            host = s3["storage.s3.endpoint"].removeprefix("http://")
            db.sql(f"CREATE SECRET (TYPE s3, KEY_ID 'test', SECRET 'test', REGION 'us-east-1', ENDPOINT '{host}', "
                   "USE_SSL false, URL_STYLE 'path')")
        db.sql(f"LOAD '{extension('duckdb_extension_ducklake', 'ducklake')}'")
        options = "READ_ONLY" + (f", METADATA_SCHEMA '{schema}'" if schema else "")
        db.sql(f"ATTACH 'ducklake:{catalog}' AS lake ({options})")
        return db

    yield attach
    for db in made:
        db.close()
