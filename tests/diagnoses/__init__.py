"""Diagnoses written by hand from the contract alone, so that who reads them can be tested without the batch.

`shop` is a small one in which every figure follows from its rows; its names are as nasty as a shop's can be.
"""

import json
import random
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serving.diagnosis import DATABASE, FORMAT, SUMMARY, TABLES, create, index

MARKUP = "<b>Fast</b> & \"Sons\" <script>alert('x')</script>"
LONG = "Extraordinarily long product name " * 9  # 306 characters
RIGHT_TO_LEFT = "حذاء رياضي أزرق"
CARRIERS = ("swift", MARKUP, "نقل سريع")
NODES = ("north", "south")
SKUS = (LONG, RIGHT_TO_LEFT, "=1+1", *(f"SKU-{n:02}" for n in range(1, 13)))
START = datetime(2026, 8, 3, tzinfo=UTC)

Rows = list[dict[str, Any]]


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _parcels(rng: random.Random) -> Rows:
    out = []
    for n in range(600):
        at = START + timedelta(hours=2.5 * n)
        carrier = rng.choices(CARRIERS, (5, 4, 1))[0]
        service = rng.choice(("standard", "express")) if carrier != CARRIERS[2] else "sole"
        region = rng.choice(("east", "west"))
        node, shift = rng.choice(NODES), ("early", "late", "night")[at.hour // 8]
        bad = carrier == MARKUP and region == "east"
        late = int(rng.random() < (0.4 if bad else 0.15)) if n % 50 else None
        legs = ("not packed in time", "waited for a pickup", "on the way", "at the door", "both")
        leg = rng.choices(legs, (1, 1, 6 if bad else 1, 1, 1))[0] if late else None
        missed = int(rng.random() < (0.3 if node == "south" else 0.1)) if n % 30 else None
        grade = rng.choice(("A", "B", "C", None))
        whose = {"not packed in time": "ours", "waited for a pickup": "ours", "on the way": "carrier"}
        out.append(
            {
                "parcel_id": f"P{n:05}",
                "order_id": f"O{n // 2:05}",
                "decided_at": _iso(at),
                "week": (at - timedelta(days=at.weekday())).strftime("%Y-%m-%d"),
                "node": node,
                "shift": shift,
                "carrier": carrier,
                "service": service,
                "region": region,
                "package_type": rng.choice(("box_s", "box_l", "bag")),
                "late": late,
                "failed_attempt": int(rng.random() < 0.1),
                "damaged": int(rng.random() < 0.05),
                "undelivered": int(rng.random() < 0.03),
                "expected_late": None if late is None or service == "sole" else 0.15,
                "expected_failed_attempt": None if service == "sole" else 0.1,
                "expected_damaged": None if service == "sole" else 0.05,
                "expected_undelivered": None if service == "sole" else 0.03,
                "leg": leg,
                "whose": None if leg is None else whose.get(leg, "cannot tell"),
                "hours_late": None if leg is None else 0.5 + n % 40,
                "missed_cutoff": missed,
                "backlog_hours": 1.5 + n * 7 % 10 + (2 if node == "south" else 0) if n % 40 else None,
                "label_grade": grade,
                "label_poor": None if grade is None else int(grade == "C"),
                "documents_complete": rng.choice((0, 1, 1, 1)),
                "address_quality": round(rng.random(), 3),
            }
        )
    return out


def _lines(rng: random.Random, parcels: Rows) -> Rows:
    owners = {"wrong_size": "listing", "not_as_described": "listing", "damaged": "packing", "late": "carrier",
              "changed_mind": "customer", None: None}  # fmt: skip
    out = []
    for n in range(900):
        parcel = parcels[n * 2 // 3]
        sku = SKUS[n % len(SKUS)]
        bad = sku in (LONG, "=1+1", "SKU-01", "SKU-02", "SKU-03", "SKU-04")
        returned = int(rng.random() < (0.5 if bad else 0.2))
        weights = (8, 4, 1, 1, 1, 1) if bad else (1, 1, 1, 1, 2, 1)
        reason = rng.choices(list(owners), weights)[0] if returned else None
        owner = owners[reason]
        counted = int(bool(returned) and owner == "listing")
        out.append(
            {
                "line_id": f"L{n:05}",
                "parcel_id": parcel["parcel_id"],
                "sku": sku,
                "category": "shoes" if n % 2 else "lamps",
                "decided_at": parcel["decided_at"],
                "returned": returned,
                "reason": reason,
                "owner": owner,
                "counted": counted,
                "aside": None if counted or not returned else owner or "no reason stated",
                "expected": 0.1,
                "value": round(rng.uniform(5, 80), 2),
            }
        )
    return out


def _said(observed: int, expected: float | None, alone: bool = False) -> dict[str, Any]:
    if not expected or alone:
        return {n: None for n in ("ratio", "low", "high", "chance_worse", "excess")} | {
            "verdict": "cannot tell",
            "why": "one carrier only: carrier or region cannot be told apart",
            "trial": 420,
        }
    ratio = (observed + 1) / (expected + 1)
    spread = 1.6 / (observed + 1) ** 0.5
    low, high = ratio * max(0.05, 1 - spread), ratio * (1 + spread)
    verdict = "worse" if low > 1.05 else "as expected" if high < 1.6 else "cannot tell"
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "chance_worse": 0.97 if verdict == "worse" else 0.03 if verdict == "as expected" else 0.5,
        "excess": observed - expected,
        "verdict": verdict,
        "why": {"cannot tell": "too few failures yet to tell chance from the carrier"}.get(verdict, ""),
        "trial": 310 if verdict == "cannot tell" else 0,
    }


def _corridors(parcels: Rows, by: tuple[str, ...], targets: tuple[str, ...]) -> Rows:
    out = []
    for target in targets:
        keys = sorted({tuple(p[k] for k in by) for p in parcels})
        for key in keys:
            mine = [p for p in parcels if tuple(p[k] for k in by) == key and p[target] is not None]
            if not mine:
                continue
            observed = sum(p[target] for p in mine)
            expected = sum(p[f"expected_{target}"] or 0 for p in mine)
            row = {
                "target": target,
                **dict(zip(by, key, strict=True)),
                "parcels": len(mine),
                "observed": observed,
                "expected": expected or None,
                **_said(observed, expected, mine[0]["service"] == "sole"),
                "others": 0 if mine[0]["service"] == "sole" else 100,
            }
            row["since"] = "2026-08-24" if row["verdict"] == "worse" else None
            if "region" in by:
                row["chance_worst"] = None if row["ratio"] is None else 0.25
            elif target == "late":
                for name, whose in (("ours", "ours"), ("theirs", "carrier"), ("untold", "cannot tell")):
                    row[name] = sum(p["whose"] == whose for p in mine)
            out.append(row)
    return sorted(out, key=lambda r: ("worse", "cannot tell", "as expected").index(r["verdict"]))


def _products(lines: Rows) -> Rows:
    out = []
    for sku in SKUS:
        mine = [x for x in lines if x["sku"] == sku]
        returns = [x for x in mine if x["returned"]]
        counted = [x for x in returns if x["counted"]]
        expected = sum(x["expected"] for x in mine)
        said = _said(len(counted), expected)
        early = sku in ("SKU-11", "SKU-12")
        named = int(said["verdict"] == "worse" and not early)
        reasons = Counter(x["reason"] for x in counted)
        out.append(
            {
                "sku": sku,
                "category": mine[0]["category"],
                "brand": "acme",
                "lines": len(mine),
                "returns": len(returns),
                "aside": len(returns) - len(counted),
                "observed": len(counted),
                "expected": expected,
                **{n: None if early else said[n] for n in ("ratio", "low", "high", "chance_worse", "excess")},
                "named": named,
                "reason": reasons.most_common(1)[0][0] if reasons else None,
                "verdict": "cannot tell" if early else said["verdict"],
                "why_not": "too early to say, from 2026-12-24" if early else None,
                "from": "2026-12-24" if early else None,
                "worth": None if early else round(max(0.0, (said["excess"] or 0) * 38.5), 2),
                "driver": "has_size_guide" if named else None,
                "advice": "add_size_guide" if named else None,
                "arguments": json.dumps({"category": mine[0]["category"]}) if named else None,
            }
        )
    return sorted(out, key=lambda r: -(r["worth"] or 0))


def shop() -> dict[str, Rows]:
    """Every table, with rows."""
    rng = random.Random(7)
    parcels = _parcels(rng)
    lines = _lines(rng, parcels)
    for parcel in parcels:
        inside = {x["sku"] for x in lines if x["parcel_id"] == parcel["parcel_id"]}
        parcel["sku"] = inside.pop() if len(inside) == 1 else None
    alone = [p for p in parcels if p["sku"] == "=1+1" and p["package_type"] == "box_l"]
    products = _products(lines)
    targets = ("late", "failed_attempt", "damaged", "undelivered")
    weeks: Rows = []
    for week in sorted({p["week"] for p in parcels}):
        for carrier in CARRIERS:
            for region in ("east", "west"):
                for service in ("standard", "express", "sole"):
                    mine = [p for p in parcels if (p["week"], p["carrier"], p["region"], p["service"]) ==
                            (week, carrier, region, service) and p["late"] is not None]  # fmt: skip
                    if mine:
                        weeks.append(
                            {
                                "carrier": carrier,
                                "service": service,
                                "region": region,
                                "target": "late",
                                "week": week,
                                "parcels": len(mine),
                                "observed": sum(p["late"] for p in mine),
                                "expected": sum(p["expected_late"] or 0 for p in mine) or None,
                            }
                        )
    readiness, readiness_weeks = [], []
    for node in NODES:
        for shift in ("early", "late", "night"):
            for measure in ("missed_cutoff", "backlog_hours", "label_poor", "documents_missing"):
                known = {
                    "missed_cutoff": lambda p: p["missed_cutoff"],
                    "backlog_hours": lambda p: p["backlog_hours"],
                    "label_poor": lambda p: p["label_poor"],
                    "documents_missing": lambda p: 1 - p["documents_complete"],
                }[measure]
                mine = [known(p) for p in parcels if p["node"] == node and p["shift"] == shift]
                mine = [x for x in mine if x is not None]
                rest = [known(p) for p in parcels if p["node"] != node and p["shift"] == shift]
                rest = [x for x in rest if x is not None]
                rate, elsewhere = sum(mine) / len(mine), sum(rest) / len(rest)
                readiness.append(
                    {
                        "node": node,
                        "shift": shift,
                        "measure": measure,
                        "parcels": len(mine),
                        "observed": round(sum(mine)),
                        "rate": rate,
                        "low": max(0.0, rate - 0.06),
                        "high": rate + 0.06,
                        "elsewhere": elsewhere,
                        "verdict": "worse" if rate - 0.06 > elsewhere else "as expected",
                        "trend": 0.01,
                    }
                )
        for week in sorted({p["week"] for p in parcels}):
            mine = [p for p in parcels if p["week"] == week and p["node"] == node and p["missed_cutoff"] is not None]
            readiness_weeks.append(
                {
                    "node": node,
                    "target": "missed_cutoff",
                    "week": week,
                    "parcels": len(mine),
                    "observed": sum(p["missed_cutoff"] for p in mine),
                    "expected": 0.15 * len(mine),
                }
            )
    named = [p["sku"] for p in products if p["named"]]

    def sold(sku: str, first: str, last: str) -> tuple[int, int]:
        mine = [x for x in lines if x["sku"] == sku and first <= x["decided_at"] < last]
        return len(mine), sum(x["counted"] for x in mine)

    changed = ("2026-09-01T08:00:00Z", "2026-09-20T08:00:00Z")
    before = [sold(sku, "", at) for sku, at in zip(named, changed, strict=False)]
    after = sold(named[0], changed[0], "9")
    late = [p for p in parcels if p["late"]]
    return {
        "parcels": parcels,
        "lines": lines,
        "corridors": _corridors(parcels, ("carrier", "service", "region"), targets),
        "carriers": _corridors(parcels, ("carrier", "service"), targets),
        "products": products,
        "peers": [
            {
                "sku": sku,
                "peer": peer["sku"],
                "lines": peer["lines"],
                "returned": peer["observed"],
                **{n: peer[n] for n in ("ratio", "low", "high")},
            }
            for sku in named
            for peer in [p for p in products if p["verdict"] == "as expected"][:6]
        ],
        "drivers": [
            {
                "sku": sku,
                "term": term,
                "value": value,
                "peers_value": peers,
                "share": share,
                "advice": advice,
                "arguments": arguments,
            }
            for sku in named
            for term, value, peers, share, advice, arguments in (
                ("has_size_guide", 0.0, 1.0, 0.6, "add_size_guide", json.dumps({"category": "shoes"})),
                ("photo_count", 1.0, 5.0, 0.25, "add_photos", json.dumps({"n": 5})),
            )
        ],
        "changes": [
            {
                "sku": named[0],
                "changed_at": changed[0],
                "what": "size guide added",
                "before_lines": before[0][0],
                "before_returned": before[0][1],
                "before_ratio": 3.1,
                "before_low": 2.2,
                "before_high": 4.1,
                "after_lines": after[0],
                "after_returned": after[1],
                "after_ratio": 1.2,
                "after_low": 0.7,
                "after_high": 1.9,
                "verdict": "better",
                "judged_from": "2026-10-20",
            },
            {
                "sku": named[1],
                "changed_at": changed[1],
                "what": MARKUP,
                "before_lines": before[1][0],
                "before_returned": before[1][1],
                "before_ratio": 2.1,
                "before_low": 1.2,
                "before_high": 3.1,
                "verdict": "too early",
                "judged_from": "2026-11-20",
            },
        ],
        "readiness": readiness,
        "readiness_weeks": readiness_weeks,
        "packaging": [
            {
                "sku": None,
                "category": "lamps",
                "package_type": "bag",
                "verdict": "under",
                "parcels": 210,
                "damaged": 24,
                "expected": 9.5,
                "low": 15.2,
                "high": 32.3,
                "volume_use": 0.93,
                "worth": 812.0,
            },
            {
                "sku": "=1+1",
                "category": "lamps",
                "package_type": "box_l",
                "verdict": "over",
                "parcels": len(alone),
                "damaged": sum(p["damaged"] for p in alone),
                "expected": 1.9,
                "low": 0.6 * sum(p["damaged"] for p in alone),
                "high": 3.2,
                "volume_use": 0.12,
                "worth": 96.0,
            },
            {
                "sku": None,
                "category": "shoes",
                "package_type": "box_s",
                "verdict": "fits",
                "parcels": 190,
                "damaged": 8,
                "expected": 8.1,
                "low": 4.9,
                "high": 12.2,
                "volume_use": 0.6,
                "worth": 0.0,
            },
        ],
        "spikes": [
            {
                "kind": "corridor",
                "key": f"{MARKUP} / standard / east",
                "target": "late",
                "began": "2026-09-07",
                "until": "2026-09-21",
                "observed": 14,
                "forecast": 5.2,
                "chance": 0.0004,
                "false_alarms": 1.0,
            },
            {
                "kind": "sku",
                "key": SKUS[0],
                "target": "returned",
                "began": "2026-09-14",
                "until": None,
                "observed": 9,
                "forecast": 2.0,
                "chance": 0.0009,
                "false_alarms": 1.0,
            },
        ],
        "reality": [
            {
                "team": "carrier",
                "target": "late",
                "period": "2026-09",
                "predicted": 41.0,
                "observed": 58,
                "low": 30.0,
                "high": 52.0,
                "verdict": "more",
            },
            {
                "team": "listing",
                "target": "returned",
                "period": "2026-09",
                "predicted": 60.0,
                "observed": 63,
                "low": 49.0,
                "high": 71.0,
                "verdict": "as predicted",
            },
        ],
        "excess": [
            {
                "target": "late",
                "source": source,
                "share": share,
                "low": max(0.0, share - 0.08) if share else None,
                "high": share + 0.08 if share else None,
                "failures": share * len(late),
            }
            for source, share in (
                ("upstream", 0.3),
                ("carrier", 0.34),
                ("listing", 0.0),
                ("customer", 0.06),
                ("cannot tell", 0.3),
            )
        ],
        "corridor_weeks": weeks,
    }


def write(
    directory: Path, tables: dict[str, Rows] | None = None, why: dict[str, str] | None = None, **document: Any
) -> Path:
    """Write a diagnosis of these tables; those that are not given are empty, `why` says why."""
    tables = shop() if tables is None else tables
    why = why or {}
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / DATABASE
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file)
    for name, table in TABLES.items():
        columns = table.columns
        create(connection, name)
        rows = tables.get(name, [])
        marks = ", ".join("?" * len(columns))
        assert all(set(row) <= set(columns) for row in rows), name
        connection.executemany(
            f'INSERT INTO "{name}" VALUES ({marks})', [tuple(row.get(c) for c in columns) for row in rows]
        )
    index(connection)
    connection.commit()
    connection.close()
    content = {
        "format": FORMAT,
        "dataset": "corner-shop",
        "fingerprint": "f" * 16,
        "simulated": True,
        "as_of": "2026-11-09T00:00:00Z",
        "since": None,
        "currency": "EUR",
        "timezone": "Europe/Berlin",
        "confidence": 0.9,
        "tables": {
            name: {"rows": len(tables.get(name, [])), "why": why.get(name, "" if tables.get(name) else NO_DATA)}
            for name in TABLES
        },
        **document,
    }
    (directory / SUMMARY).write_text(json.dumps(content))
    return directory


NO_DATA = "No parcel is old enough to be judged yet."


def empty(directory: Path) -> Path:
    """A diagnosis of nothing, which says why."""
    return write(directory, {})


def one_sided(directory: Path) -> Path:
    """A diagnosis of a shop with one carrier, no returns and no packing times."""
    tables = shop()
    rows = [{**p, "carrier": "only", "service": "sole", "missed_cutoff": None} for p in tables["parcels"]]
    sole = {
        "parcels": rows,
        "corridors": _corridors(rows, ("carrier", "service", "region"), ("late",)),
        "carriers": _corridors(rows, ("carrier", "service"), ("late",)),
    }
    return write(directory, sole, {"products": "The dataset has no table returns: nothing says what came back."})
