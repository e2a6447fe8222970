"""Small random shops that are awkward on purpose. Everything is drawn from one seed; times fall on a coarse grid, so
that facts come to be known at the very moment of a decision, at midnight, and in the same second."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import pandas as pd

from features.dataset import Dataset
from features.settings import Extra, Settings

START = pd.Timestamp("2024-03-20", tz="UTC")
DAYS = 60
END = START + pd.Timedelta(days=DAYS + 30)

EXTRAS = (
    Extra("orders", "basket score", "number", "order"),
    Extra("orders", "campaign", "code", "listing", known_at="campaign_known_at"),
    Extra("parcels", "a/b", "code", "packing"),
    Extra("parcels", "a_b", "code", "packing", known_at="a_b_known_at"),
    Extra("parcels", "taped", "flag", "packing", known_at="taped_known_at"),
    Extra("parcels", "dock", "number", "fulfilment", known_at="packed_at"),
    Extra("order_lines", "gift", "flag", "customer"),
    Extra("order_lines", "colour", "code", "listing"),
    Extra("listings", "order", "number", "listing"),
    Extra("listings", "material", "code", "listing", known_at="known_at"),
)


def settings(extras: bool = True) -> Settings:
    """Short windows, so that sixty days hold many mature cohorts; a zone that changes its clocks within them."""
    return Settings(
        name="awkward",
        timezone="Europe/Berlin",
        return_window_days=6,
        lost_after_days=8,
        extracted_at=END,
        extra=EXTRAS if extras else (),
    )


@lru_cache(maxsize=64)
def shop(seed: int, orders: int = 80, *, extras: bool = True, without: tuple[str, ...] = ()) -> Dataset:
    """A random shop; the same object each time it is asked for, so not to be changed.

    Args:
        seed: of everything random.
        orders: how many.
        extras: with the extra columns of `EXTRAS`.
        without: tables, or `table.column`s, to leave out.
    """
    frames = _Maker(seed, orders).frames()
    for name in without:
        table, _, column = name.partition(".")
        frames[table] = frames[table].drop(columns=column) if column else frames[table]
    for name in without:
        if "." not in name:
            del frames[name]
    if not extras:
        for e in EXTRAS:
            if e.table in frames:
                own = [e.known_at] if e.known_at and e.known_at not in ("packed_at", "known_at") else []
                frames[e.table] = frames[e.table].drop(columns=[e.column, *own])
    return Dataset.from_frames(frames, settings(extras))


class _Maker:
    def __init__(self, seed: int, orders: int) -> None:
        self.random = random.Random(seed)
        self.n = orders
        self.moments: list[pd.Timestamp] = []  # decisions, for facts to coincide with

    def maybe(self, value: Any, missing: float = 0.1) -> Any:
        return None if self.random.random() < missing else value

    def of(self, prefix: str, n: int, missing: float = 0.1) -> Any:
        return self.maybe(f"{prefix}{self.random.randrange(n)}", missing)

    def later(self, time: pd.Timestamp, low: float, high: float) -> pd.Timestamp:
        """A time some hours later, on a grid of half hours, sometimes a midnight."""
        at = (time + pd.Timedelta(hours=self.random.uniform(low, high))).floor("30min")
        at = at.normalize() + pd.Timedelta(days=1) if self.random.random() < 0.05 else at
        return max(at, time)

    def known(self, happened: pd.Timestamp) -> Any:
        """When it came to be known: at once, late, very late, or at the very moment of somebody's decision."""
        kind = self.random.random()
        if kind < 0.5:
            return None
        if kind < 0.7:
            return self.later(happened, 0, 20)
        if kind < 0.85:
            return self.later(happened, 48, 300)
        moments = [m for m in self.moments if happened <= m < happened + pd.Timedelta(days=9)]
        return self.random.choice(moments) if moments else happened

    def frames(self) -> dict[str, pd.DataFrame]:
        r = self.random
        orders, parcels, lines = [], [], []
        for i in range(self.n):
            ordered = (START + pd.Timedelta(hours=r.uniform(0, DAYS * 24))).floor("30min")
            promised = self.maybe(self.later(ordered, 20, 200), 0.15)
            orders.append(
                {
                    "order_id": f"o{i}",
                    "ordered_at": ordered,
                    "customer_id": self.of("c", 9),
                    "channel": self.of("h", 2),
                    "payment_method": self.maybe(r.choice(["cod", "card", "bank"])),
                    "is_business": self.maybe(r.random() < 0.3),
                    "destination_country": self.maybe("x", 0.03),
                    "destination_region": self.of("r", 3),
                    "destination_city": self.of("t", 4),
                    "destination_postal": self.of("z", 5),
                    "promised_from": self.maybe(ordered, 0.3) if promised is not None else None,
                    "promised_to": promised,
                    "order_value": self.maybe(round(r.uniform(1, 900), 2)),
                    "basket score": self.maybe(r.gauss(0, 1)),
                    "campaign": self.of("k", 3),
                    "campaign_known_at": None,
                }
            )
            count = r.choices([0, 1, 2], [12, 70, 18])[0]
            mine = []
            for j in range(count):
                # A second parcel may follow weeks after the first.
                packed = self.maybe(self.later(ordered, 0, 72 if j == 0 else 500), 0.06)
                decided = packed if packed is not None else ordered
                self.moments.append(decided)
                mine.append(f"p{i}.{j}")
                parcels.append(
                    {
                        "parcel_id": mine[-1],
                        "order_id": f"o{i}",
                        "node": self.of("n", 2),
                        "packed_at": packed,
                        "pickup_cutoff_at": self.maybe(self.later(decided, -6, 20), 0.1),
                        "carrier": self.of("k", 3),
                        "service": self.of("s", 2),
                        "package_type": self.of("b", 3),
                        "protection_level": self.maybe(float(r.randrange(5))),
                        "package_length_mm": self.maybe(300.0 + r.randrange(50)),
                        "package_width_mm": self.maybe(200.0 + r.randrange(50)),
                        "package_height_mm": self.maybe(float(r.randrange(0, 90))),
                        "weight_g": self.maybe(r.uniform(100, 9000)),
                        "void_fill_ratio": self.maybe(r.random()),
                        "label_grade": self.maybe(r.choice("ABCDF")),
                        "documents_complete": self.maybe(r.random() < 0.9),
                        "address_quality": self.maybe(r.random()),
                        "distance_km": self.maybe(r.uniform(0, 800)),
                        "a/b": self.of("e", 3),
                        "a_b": self.of("e", 3),
                        "a_b_known_at": self.maybe(
                            r.choice([decided, self.later(decided, -50, -1), self.later(decided, 0, 50)])
                        ),
                        "taped": self.maybe(r.random() < 0.5),
                        "taped_known_at": self.maybe(
                            r.choice([decided, decided - pd.Timedelta(hours=1), decided + pd.Timedelta(hours=9)])
                        ),
                        "dock": self.maybe(float(r.randrange(7))),
                    }
                )
            orders[-1]["campaign_known_at"] = self.maybe(self.later(ordered, 0, 60))
            for j in range(r.choices([0, 1, 2, 3], [4, 50, 30, 16])[0]):
                lines.append(
                    {
                        "line_id": f"l{i}.{j}",
                        "order_id": f"o{i}",
                        "parcel_id": self.maybe(r.choice(mine), 0.35) if mine else None,
                        "sku": f"u{r.randrange(7)}",
                        "quantity": self.maybe(float(r.randrange(1, 4))),
                        "unit_price": self.maybe(round(r.uniform(0, 90), 2)),
                        "discount": self.maybe(round(r.uniform(0, 5), 2)),
                        "variant": self.of("v", 3, 0.4),
                        "gift": self.maybe(r.random() < 0.2),
                        "colour": self.of("q", 3),
                    }
                )
        frames = {
            "orders": orders,
            "order_lines": lines,
            "parcels": parcels,
            "listings": self.listings(),
            "events": self.events(parcels, orders),
        }
        frames["returns"] = self.returns(frames["events"], lines)
        for rows in frames.values():
            r.shuffle(rows)
        return {name: pd.DataFrame(rows) for name, rows in frames.items()}

    def listings(self) -> list[dict[str, Any]]:
        r, out = self.random, []
        for u in range(6):  # u6 is never listed
            times: list[Any] = [None] if r.random() < 0.5 else []
            times += [*r.sample(self.moments, 2), START + pd.Timedelta(days=r.uniform(-20, DAYS))]
            base = times[-1].floor("s")
            times += [base + pd.Timedelta(milliseconds=700), base + pd.Timedelta(milliseconds=200)]
            for time in dict.fromkeys(times):
                out.append(
                    {
                        "sku": f"u{u}",
                        "known_at": time,
                        "category": self.of("g", 3),
                        "brand": self.of("d", 2),
                        "description_length": self.maybe(float(r.randrange(2000))),
                        "photo_count": self.maybe(float(r.randrange(9))),
                        "has_size_guide": self.maybe(r.random() < 0.5),
                        "review_count": self.maybe(float(r.randrange(500))),
                        "rating": self.maybe(r.uniform(1, 5)),
                        "weight_g": self.maybe(r.uniform(50, 5000)),
                        "length_mm": self.maybe(r.uniform(10, 300)),
                        "width_mm": self.maybe(r.uniform(10, 200)),
                        "height_mm": self.maybe(r.uniform(0, 90)),
                        "fragility": self.maybe(float(r.randrange(5))),
                        "order": self.maybe(float(r.randrange(50))),
                        "material": self.of("m", 3),
                    }
                )
        return out

    def events(self, parcels: list[dict[str, Any]], orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        r, out = self.random, []
        ordered = {o["order_id"]: o["ordered_at"] for o in orders}
        paths = {
            ("handed_over", "delivered"): 40,
            ("handed_over", "in_transit", "attempt_failed", "delivered"): 12,
            ("delivered",): 6,
            ("handed_over", "delivered", "damaged"): 6,
            ("handed_over", "delivered", "delivered"): 5,
            ("handed_over", "lost"): 4,
            ("handed_over", "lost", "delivered"): 5,
            ("handed_over", "delivered", "lost"): 2,
            ("attempt_failed", "attempt_failed", "refused", "returned_to_sender"): 5,
            ("handover_failed",): 4,
            ("handed_over", "handover_failed"): 3,
            ("handover_failed", "handed_over", "delivered"): 3,
            ("handed_over", "delivered", "handover_failed"): 4,
            ("handed_over",): 3,
            (): 5,
        }
        for p in parcels:
            at = p["packed_at"] if p["packed_at"] is not None else ordered[p["order_id"]]
            slow = r.random() < 0.12
            for kind in r.choices(list(paths), list(paths.values()))[0]:
                at = self.later(at, 0, 260 if slow else 40)
                out.append(
                    {
                        "parcel_id": p["parcel_id"],
                        "kind": kind,
                        "happened_at": at,
                        "known_at": self.known(at),
                        "reason": self.of("w", 2),
                    }
                )
            if r.random() < 0.04:  # a scan that is dated before the parcel was packed
                early = max(ordered[p["order_id"]], at - pd.Timedelta(days=40))
                out.append({"parcel_id": p["parcel_id"], "kind": "handed_over", "happened_at": early})
        return out

    def returns(self, events: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        r, out = self.random, []
        door = {e["parcel_id"]: e["happened_at"] for e in events if e["kind"] == "delivered"}
        order = {p.split(".")[0][1:]: t for p, t in door.items()}
        for line in lines:
            at = door.get(line["parcel_id"] or "", order.get(line["order_id"][1:]))
            if at is None or r.random() > 0.35:
                continue
            for _ in range(r.choices([1, 2], [9, 1])[0]):
                requested = self.later(at, 0, 24 * 11)  # some after the window of six days
                out.append({"line_id": line["line_id"], "requested_at": requested, "known_at": self.known(requested)})
        return out
