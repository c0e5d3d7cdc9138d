"""Generated rollup questions against a slow oracle that knows nothing but the raw rows and the rules.

TEST_SCALE=10 asks two thousand of them; TEST_SEED gives other ones."""

import datetime as dt
import math
import os
import random
from zoneinfo import ZoneInfo

from conftest import SCALE

UTC = dt.timezone.utc
START = int(dt.datetime(2025, 10, 1, tzinfo=UTC).timestamp())
DAYS = 40  # clocks change in Berlin, on Lord Howe and in Newfoundland
QUESTIONS = 200 * SCALE
ZONES = ["Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "America/St_Johns", "Africa/Casablanca", "UTC"]


class Node:
    def __init__(self, id, site, category, children=(), sources=()):
        self.id, self.site, self.category, self.children, self.sources = id, site, category, list(children), list(sources)

    def below(self):
        yield self
        for child in self.children:
            yield from child.below()


class World:
    """Three sites in three zones with trees of several categories, and all readings that are stored."""

    def __init__(self, server, rng):
        self.zones, self.roots, self.rows = {}, [], {}
        for name, zone in [("a", "Europe/Berlin"), ("b", "America/St_Johns"), ("c", "Australia/Lord_Howe")]:
            site = self.make(server, "/api/sites", {"name": name, "metadata": {"timezone": zone}})
            self.zones[site] = zone
            leaf = lambda category, parent, sources=0: self.meter(server, site, category, parent, sources)
            main = leaf("CONS", None)
            floor = leaf("CONS", main)
            floor.children = [leaf("CONS", floor), leaf("CONS", floor)]
            roof = leaf("PROD", main, sources=2)
            main.children = [floor, roof, leaf("CONS", main)]
            self.roots += [main, leaf("PROD", None, sources=1), leaf("INJ", None)]
        self.nodes = [node for root in self.roots for node in root.below()]
        for node in self.nodes:
            for id in [node.id, *node.sources]:
                self.fill(rng, id)
        self.write(server, rng, list(self.rows.items()))
        # Corrections, some after a flush and some in memory.
        corrected = rng.sample(sorted(self.rows), len(self.rows) // 20)
        for key in corrected:
            value = self.rows[key][0] if key[1] == "energy_total" else rng.randint(0, 800) / 8
            self.rows[key] = (value, rng.choice(["good", "estimated", "bad"]))
        self.write(server, rng, [(key, self.rows[key]) for key in corrected])

    @staticmethod
    def make(server, path, body):
        r = server.post(path, json=body)
        assert r.status_code == 201, r.text
        return r.json()["id"]

    def meter(self, server, site, category, parent, sources):
        body = {"siteId": site, "name": f"{category} {random.random()}", "category": category, "readingFrequency": "hourly"}
        if parent:
            body["parentMeterId"] = parent.id
        id = self.make(server, "/api/meters", body)
        made = [self.make(server, "/api/energy-sources", {"meterId": id, "name": f"s{n}", "sourceType": "solar"}) for n in range(sources)]
        return Node(id, site, category, sources=made)

    def fill(self, rng, id):
        """Hourly energy, power and registers and half-hourly temperatures with gaps, of some entities and for some of the time."""
        for metric, step, share in [("energy", 3600, 0.6), ("temperature", 1800, 0.3), ("power", 3600, 0.4), ("energy_total", 3600, 0.4)]:
            if rng.random() > share:
                continue
            first, last = sorted(rng.sample(range(DAYS + 1), 2))
            register, silent = rng.randint(0, 8000) / 8, 0
            for t in range(START + first * 86_400, START + last * 86_400, step):
                # A register is reset now and then, and goes on while nobody reads it.
                register = rng.randint(0, 80) / 8 if rng.random() < 0.003 else register + rng.randint(0, 40) / 8
                silent = rng.randint(2, 120) if rng.random() < 0.004 else silent - 1
                if silent > 0 or rng.random() > 0.85:
                    continue
                value = rng.randint(0, 800) / 8
                if metric == "energy_total":
                    value = register * rng.choice([1] * 60 + [0.75])
                self.rows[id, metric, t] = (value, rng.choice(["good"] * 8 + ["estimated", "bad"]))

    @staticmethod
    def write(server, rng, rows):
        lines = [f'{metric},entity_id={id} value={value},quality="{quality}" {t}' for (id, metric, t), (value, quality) in rows]
        rng.shuffle(lines)
        for i in range(0, len(lines), 4000):
            server.write("\n".join(lines[i : i + 4000]))
            if rng.random() < 0.4:
                server.flush()


def bucket_of(t, bucket, zone):
    if bucket in ("15m", "1h"):
        return t - t % {"15m": 900, "1h": 3600}[bucket]
    day = dt.datetime.fromtimestamp(t, ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    first = {"1d": day, "1w": day - dt.timedelta(days=day.weekday()), "1mo": day.replace(day=1), "1y": day.replace(month=1, day=1)}[bucket]
    return int(first.astimezone(UTC).timestamp())


def aggregate(samples, how):
    values = [value for _, value in samples]
    return {"sum": sum(values), "count": len(values), "min": min(values), "max": max(values), "avg": sum(values) / len(values),
            "first": values[0], "last": values[-1]}[how]


HOLD = 2 * 3600  # a reading stands for two cadences at most; larger gaps of a register are spread


def weigh(samples, edges, a, b):
    """The mean of a gauge by bucket, each reading weighted with the time until the next."""
    out = {}
    for (t, value), (after, _) in zip(samples, samples[1:] + [(math.inf, None)]):
        for start, end in edges:
            span = min(after, t + HOLD, b, end) - max(t, a, start)
            if span > 0:
                weighted, covered = out.get(start, (0, 0))
                out[start] = (weighted + value * span, covered + span)
    return {start: weighted / covered for start, (weighted, covered) in out.items()}


GLITCH = 48 * 3600  # a smaller fall of a register that lasts longer is none


def count_up(samples, edges, a, b):
    """What a register counted by bucket: booked where the interval begins, spread over gaps."""
    out, before = {}, None
    for i, (t, value) in enumerate(samples):
        if before is not None and before[1] / 2 <= value < before[1]:
            soon = (after for later, after in samples[i + 1 :] if later - t <= GLITCH)
            if any(after >= before[1] for after in soon):
                continue  # a glitch
        elif before is not None:
            (since, known), step = before, value - before[1] if value >= before[1] else value
            for start, end in edges:
                if t - since <= HOLD:
                    share = float(max(start, a) <= since < min(end, b))
                    hit = share > 0
                else:
                    span = min(t, b, end) - max(since, a, start)
                    hit, share = span > 0, span / (t - since)
                if hit:
                    out[start] = out.get(start, 0) + step * share
        before = t, value
    return out


class Oracle:
    def __init__(self, world, metric, bucket, zone, a, b, how, qualities):
        self.how, self.cells = how, {}
        self.by_time = {"power": weigh, "energy_total": count_up}.get(metric) if how is None else None
        sites = {id: node.site for node in world.nodes for id in [node.id, *node.sources]}
        for (id, of, t), (value, quality) in sorted(world.rows.items(), key=lambda row: row[0][2]):
            if of == metric and a <= t < b and quality in qualities:
                key = id, bucket_of(t, bucket, zone or world.zones[sites[id]])
                self.cells.setdefault(key, []).append((t, value))
        if self.by_time:
            self.values = self.over_time(world, metric, lambda id, t: bucket_of(t, bucket, zone or world.zones[sites[id]]), a, b, qualities)
        self.buckets = sorted({bucket for _, bucket in self.cells})

    def over_time(self, world, metric, bucket, a, b, qualities):
        values, series = {}, {}
        for (id, of, t), (value, quality) in sorted(world.rows.items(), key=lambda row: row[0][2]):
            if of == metric and quality in qualities:
                series.setdefault(id, []).append((t, value))
        for id, samples in series.items():
            starts = sorted({bucket(id, t) for t in range(a, b, 900)})
            edges = list(zip(starts, starts[1:] + [b]))
            for start, value in self.by_time(samples, edges, a, b).items():
                if self.by_time is count_up:
                    self.cells.setdefault((id, start), [])
                if (id, start) in self.cells:
                    values[id, start] = value
        # Readings that count nothing make no bucket of a register.
        if self.by_time is count_up:
            self.cells = {key: samples for key, samples in self.cells.items() if key in values}
        return values

    def of(self, ids, bucket):
        """The cells of some entities in a bucket."""
        return [(id, self.cells[id, bucket]) for id in ids if (id, bucket) in self.cells]

    def resolve(self, node, category, bucket):
        """ROLL-1: own readings, else those of the sources, else what is below; another category does not shadow."""
        if node.category == category:
            own = self.of([node.id], bucket) or self.of(node.sources, bucket)
            if own:
                return own
        return [cell for child in node.children for cell in self.resolve(child, category, bucket)]

    def lowest(self, node, bucket):
        """The lowest entities with readings: sources, and meters without any of their category below."""
        found = [part for child in node.children for part in self.lowest(child, bucket)]
        own = self.of(node.sources, bucket)
        if not own and not any(category == node.category for category, _ in found):
            own = self.of([node.id], bucket)
        return found + [(node.category, cell) for cell in own]

    def residual(self, node, bucket):
        """What a meter shows, and what is below it with the sign turned, where all of that is known."""
        own = self.of([node.id], bucket)
        alike = [child for child in node.children if child.category == node.category]
        below = [self.resolve(child, node.category, bucket) for child in alike]
        if not own or not below or not all(below):
            return []
        others = [cell for child in node.children if child not in alike for cell in self.resolve(child, node.category, bucket)]
        return [(1, *own[0])] + [(-1, *cell) for cell in sum(below, others)]

    def answer(self, roots, single, group, mode):
        out = {}
        for bucket in self.buckets:
            cells = []
            for root in roots:
                if mode == "own":
                    cells += [(root.category, root.site, root.id, 1, *cell) for cell in self.of([root.id], bucket)]
                elif mode == "leaves":
                    cells += [(category, root.site, None, 1, *cell) for category, cell in self.lowest(root, bucket)]
                elif mode == "residual":
                    for node in root.below():
                        cells += [(node.category, node.site, node.id, *cell) for cell in self.residual(node, bucket)]
                else:
                    for category in ("CONS", "PROD", "INJ"):
                        cells += [(category, root.site, None, 1, *cell) for cell in self.resolve(root, category, bucket)]
            for node, id in single:
                cells += [(node.category, node.site, node.id, 1, *cell) for cell in self.of([id], bucket)]
            for category, site, meter, sign, id, samples in cells:
                key = bucket, {"total": None, "category": category, "site": site, "meter": meter, "entity": id}[group]
                value, count = out.get(key, (0.0, 0))
                one = self.values[id, bucket] if self.by_time else aggregate(samples, self.how)
                out[key] = (value + sign * one, count + len(samples))
        return {key: (round(value, 6), count) for key, (value, count) in out.items()}


def test_generated_rollups(start):
    seed = int(os.environ.get("TEST_SEED", "20251026"))
    rng = random.Random(seed)
    server = start()
    world = World(server, rng)
    names = {"category": "category", "site": "siteId", "meter": "meterId", "entity": "entityId"}
    asked = filled = 0
    while asked < QUESTIONS:
        if asked == QUESTIONS // 2:
            server.post("/api/compact", params={"all": "true"})
        metric = rng.choice(["energy", "energy", "temperature", "power", "energy_total"])
        bucket = rng.choice(["15m", "1h", "1d", "1d", "1w", "1mo", "1y"])
        zone = rng.choice([None, *ZONES])
        a = START + rng.randrange(-86_400, (DAYS - 1) * 86_400, 900)
        span = 3 * 86_400 if bucket == "15m" else 30 * 86_400
        b = a + rng.randrange(900, span, 900)
        qualities = rng.choice([["good", "estimated"], ["good", "estimated"], ["good"], ["good", "estimated", "bad"]])
        params = {"metric": metric, "bucket": bucket, "from": str(dt.datetime.fromtimestamp(a, UTC).isoformat()),
                  "to": dt.datetime.fromtimestamp(b, UTC).isoformat(), "quality": ",".join(qualities)}
        if zone:
            params["tz"] = zone
        scope = rng.choice(["fleet", "site", "meter", "entity"])
        roots, single = world.roots, []
        if scope == "site":
            site = rng.choice(list(world.zones))
            params["siteId"], roots = site, [root for root in world.roots if root.site == site]
        elif scope == "meter":
            node = rng.choice(world.nodes)
            params["meterId"], roots = node.id, [node]
        elif scope == "entity":
            node = rng.choice(world.nodes)
            id = rng.choice([node.id, *node.sources])
            params["entityId"], roots, single = id, [], [(node, id)]
        # What several entities make together is a sum only of sums; local days of several zones have no common start.
        group, how = "entity", rng.choice(["sum", "count", "min", "max", "avg", "first", "last"])
        if metric in ("power", "energy_total"):
            how = rng.choice([None, None, None, "count", "min", "max", "first", "last"])
        if metric == "energy" and rng.random() < 0.7:
            how = rng.choice(["sum", "count"])
            is_mixed = zone is None and scope == "fleet" and bucket not in ("15m", "1h")
            group = rng.choice(["site", "entity"] if is_mixed else ["total", "category", "site", "entity"])
        mode = rng.choice(["auto", "auto", "auto", "own", "leaves", "residual"])
        if mode == "own" and scope != "entity" and group == "entity":
            roots = [node for root in roots for node in root.below()]  # meter by meter
        if mode == "residual":
            metric = params["metric"] = rng.choice(["energy", "power", "energy_total"])
            how, group = "sum" if metric == "energy" else None, rng.choice(["meter", "total", "category", "site"])
            is_mixed = zone is None and scope == "fleet" and bucket not in ("15m", "1h")
            if is_mixed and group in ("total", "category"):
                group = "meter"
            if scope == "entity":
                mode, group = "auto", "entity"
        params |= {"by": group, "mode": mode} | ({"agg": how} if how else {})
        r = server.get("/api/rollup", params=params)
        assert r.status_code == 200, (params, r.text)
        at = lambda text: int(dt.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())
        got = {(at(row["bucketStart"]), row.get(names.get(group))): (round(row["value"], 6), row["count"]) for row in r.json()}
        want = Oracle(world, metric, bucket, zone, a, b, how, qualities).answer(roots, single, group, mode)
        assert got == want, f"seed {seed}: {params}"
        asked, filled = asked + 1, filled + bool(want)
    assert filled > QUESTIONS / 3
