"""What the pages of docs/ tell a reader to type does what they say."""

import gzip
import pathlib
import re
import time

DOCS = pathlib.Path(__file__).parents[2] / "docs"
STORED = "SELECT m.name, r.metric, r.value FROM measurements r JOIN meters m ON m.id = r.entity_id"


def blocks(page, heading):
    """The indented blocks of code under a heading, without their indent."""
    text = (DOCS / page).read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M).strip("\n") + "\n" for block in found if block.strip()]


def test_python(server, fleet, capsys):
    plain = blocks("writing.md", "Python")
    assert len(plain) == 2
    for block in plain:
        exec(block.replace("http://127.0.0.1:8787", server.url), {"TOKEN": server.token, "METER": fleet.main})
    assert capsys.readouterr().out == "{'accepted': 1, 'rejected': 0, 'errors': []}\n"
    found = {(r["name"], r["metric"], r["value"]) for r in server.sql(STORED)}
    assert found == {("inverter,id=7", "power", 2.5), ("main", "power", 1.5)}


def test_connecting(server, fleet, capsys):
    """Python over Postgres wire and Flight SQL."""
    for heading, port, real in [("Postgres", 5488, server.postgres_port), ("Flight SQL", 8788, server.flight_port)]:
        (block,) = [block for block in blocks("connecting.md", heading) if "import" in block]
        exec(block.replace(str(port), str(real)), {"TOKEN": server.token})
    assert capsys.readouterr().out == "(2,)\n(2,)\n"


def test_sql(server, fleet):
    now = time.time_ns()
    server.write(f"power,entity_id={fleet.main} value=3 {now}", precision="ns")
    server.write("\n".join(f"energy_total,entity_id={fleet.main} value={v} {now - ago * 3_600_000_000_000}" for ago, v in [(3, 10), (2, 12), (1, 1)]), precision="ns")
    server.write(f"power,entity_id={fleet.main} value=7 1772323200")  # 2026-03-01
    by_hour, by_day, register, gaps = (query for page in ("Asking", "Functions of time", "Functions of one series", "Gaps") for query in blocks("sql.md", page))
    assert [row["kw"] for row in server.sql(by_hour)] == [3.0]
    assert [row["peak_kw"] for row in server.sql(by_day)] == [7.0, 3.0]
    assert server.sql(register) == [{"entity_id": fleet.main, "kwh": 3.0}]
    assert [row["value"] for row in server.sql(gaps.replace("'...'", f"'{fleet.main}'"))] == [7.0] * 24


def test_duckdb(server, fleet, duck):
    server.write(f"power,entity_id={fleet.main} value=3 1767225600")
    server.flush()
    db = duck(f"sqlite:{server.dir}/catalog.db")
    db.sql("DETACH lake")
    sqlite, _ = blocks("reading.md", "DuckDB")
    # The first line fetches extensions from DuckDB's site; here they are loaded from packages.
    lines = sqlite.replace("wattlake-data/catalog.db", f"{server.dir}/catalog.db").replace("INTERVAL 1 DAY", "INTERVAL 0 DAY").splitlines()[1:]
    answers = [db.execute(line).fetchall() for line in lines]
    assert answers[1:] == [[("power", 1, 3.0)], [(1,)]]


def test_home_assistant_and_telegraf_as_documented(tmp_path, start):
    """Lines as those two send them, under the rules of the documentation."""
    rules = [b for heading in ("Telegraf", "Home Assistant") for b in blocks("writing.md", heading) if b.startswith("[[ingest")]
    assert len(rules) == 2, "a block for each of them"
    (tmp_path / "wattlake.toml").write_text("\n".join(rules))
    server = start(command=("serve", "--config", str(tmp_path / "wattlake.toml")))
    meter = {"name": "Inverter", "category": "PROD", "metadata": {"externalId": "inverter-1"}}
    server.post("/api/onboarding/complete", json={"site": {"name": "S"}, "meters": [meter]})
    home_assistant = (
        'W,domain=sensor,entity_id=solar_power value=1250.0,friendly_name_str="Solar Power",device_class_str="power" 1767225600\n'
        'kWh,domain=sensor,entity_id=house_energy value=10233.25,state_class_str="total_increasing" 1767225600\n'
        '°C,domain=sensor,entity_id=attic value=21.5 1767225600\n')
    server.write(home_assistant, bucket="home")
    # Telegraf sends nanoseconds, a batch of a plugin's metrics, gzip.
    lines = 'modbus,host=pi,name=inverter-1,slave_id=1 ac_power=4200i,frequency=50.01,status="ok" 1767225600000000000\n'
    r = server.post("/api/v2/write", params={"bucket": "telegraf", "org": "any"}, data=gzip.compress(lines.encode()),
                    headers={"Content-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-8"})
    assert r.status_code == 204, r.text
    found = {(r["name"], r["metric"]): r["value"] for r in server.sql(STORED)}
    assert found.pop(("modbus,host=pi,name=inverter-1,slave_id=1", "frequency")) == 50.01
    assert found == {("solar_power", "power"): 1.25, ("house_energy", "energy_total"): 10233.25, ("attic", "°C"): 21.5,
                     ("Inverter", "power"): 4.2}
