"""The snapshot: history and listings of a shop as known at a time. What a model needs to see beside the request.

A snapshot changes daily or with each outcome, a model when one is promoted: they are two artefacts with two lives.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from features.arrays import Array, Tables, columns, match, take
from features.contracts import TABLES
from features.dataset import Extra, Settings
from features.files import seal, verify
from features.history import ENTITIES, PARCEL_OUTCOMES, Entity, History
from features.listings import Listings
from features.outcomes import Outcome, outcomes
from features.rows import Rows
from features.treated import restored

if TYPE_CHECKING:
    from features.dataset import Dataset

PROTOCOL = 1
"""Raise when a snapshot written before can no longer be read as it was meant."""

KIND = "doorstep-snapshot"

MOST_CODES = 2_000
"""A column with more values than this is no list of codes a request could be warned about."""


def entities(settings: Settings) -> dict[str, Entity]:
    """The standard entities and one per coded extra column of the dataset."""
    out = dict(ENTITIES)
    for extra in settings.extra:
        if extra.kind == "code":
            line = extra.table in ("order_lines", "listings")
            kept = ("damaged", "returned") if line else (*PARCEL_OUTCOMES, "returned")
            out[extra_entity(extra)] = Entity(
                extra_entity(extra), "line" if line else "parcel", ((extra.table, extra.column),), "all", kept
            )
    return out


def extra_entity(extra: Extra) -> str:
    """Name of the entity that a coded extra column is counted by."""
    return f"extra.{extra.table}.{extra.column}"


@dataclass(frozen=True)
class Snapshot:
    """What was known before `as_of`.

    Attributes:
        as_of: datetime64[us], UTC; every fact in here was known strictly before.
        settings: the shop's settings, as in `dataset.toml`.
        history: counts per entity.
        listings: listing versions.
        codes: values seen per coded column, `table.column` -> sorted values, to tell a request what is new.
    """

    as_of: np.datetime64
    settings: Settings
    history: History
    listings: Listings
    codes: Mapping[str, tuple[str, ...]]

    @staticmethod
    def empty(settings: Settings, as_of: np.datetime64, tables: Tables | None = None) -> Snapshot:
        """A snapshot without history: listings only, if tables are given."""
        given = (tables or {}).get("listings") or {"sku": np.empty(0, dtype=object)}
        nothing = History(as_of, {}, entities(settings))
        return Snapshot(as_of, settings, nothing, Listings.from_columns(given, before=as_of), {})

    @staticmethod
    def from_dataset(dataset: Dataset, as_of: np.datetime64 | pd.Timestamp | None = None) -> Snapshot:
        """Count a dataset's history.

        Args:
            dataset: the shop's tables.
            as_of: only facts known before; default the day the extract was taken, else after the last fact.
        """
        return Facts.of(dataset, as_of).snapshot

    def save(self, to: Path) -> None:
        """Write the snapshot as a folder of plain files with a manifest of checksums, whole or not at all."""
        to = Path(to)
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        self.history.save(part / "history")
        pd.DataFrame(dict(self.listings.columns)).to_parquet(part / "listings.parquet", index=False)
        np.save(part / "order.npy", self.listings.order, allow_pickle=False)
        np.save(part / "products.npy", self.listings.products, allow_pickle=False)
        (part / "codes.json").write_text(json.dumps(self.codes, indent=1, sort_keys=True))
        meta = {"as_of": f"{self.as_of}Z", "settings": self.settings.to_json()}
        seal(part, to, KIND, PROTOCOL, meta)

    @staticmethod
    def load(folder: Path) -> Snapshot:
        """Read a snapshot after verifying its checksums.

        Raises:
            features.files.ArtefactError: it is no snapshot, of another protocol, or not what was written.
        """
        folder = Path(folder)
        meta = verify(folder, KIND, PROTOCOL, "doorstep snapshot DATASET --out DIR")
        settings = Settings.from_json(meta["settings"])
        table = columns({"listings": pd.read_parquet(folder / "listings.parquet")})["listings"]
        for name, text in table.items():
            if text.dtype.kind == "O":  # missing text comes back as NaN where some is there
                table[name] = text.copy()
                table[name][pd.isna(text)] = None
        order, products = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("order", "products"))
        listings = Listings(order, products, table)
        codes = {k: tuple(v) for k, v in json.loads((folder / "codes.json").read_text()).items()}
        history = History.load(folder / "history", entities(settings))
        return Snapshot(np.datetime64(meta["as_of"].removesuffix("Z"), "us"), settings, history, listings, codes)


@dataclass(frozen=True)
class Facts:
    """A dataset as known before a time, joined: the units, what happened to them, and the snapshot made of it.

    Attributes:
        tables: arrays per table, without anything known at `as_of` or later.
        rows: the units; their features see the snapshot's history as of each unit's own decision.
        outcomes: what happened to the units.
        snapshot: the history of it.
        steps: per column of `parcels` (parcels,) what actions added to it and was taken back (`features.treated`); the
            tables and rows have it as it was before.
    """

    tables: Tables
    rows: Rows
    outcomes: Mapping[str, Outcome]
    snapshot: Snapshot
    steps: Mapping[str, Array] = field(default_factory=dict)

    @staticmethod
    def of(dataset: Dataset, as_of: np.datetime64 | pd.Timestamp | None = None) -> Facts:
        """Join a dataset as it was known before `as_of` (default: when the extract was taken)."""
        tables = columns(dataset.tables)
        end = moment_of(dataset.settings, tables) if as_of is None else moment(as_of)
        tables = known_before(tables, end)
        steps: dict[str, Array] = {}
        if "decisions" in tables:
            tables, steps = restored(tables)
        # The listings of the dataset are the snapshot's: they need not be given as well.
        rows = Rows({n: t for n, t in tables.items() if n != "listings"}, Snapshot.empty(dataset.settings, end, tables))
        happened = outcomes(tables, rows, dataset.settings)
        history = History.build(rows, happened, end, rows.snapshot.history.entities)
        codes = _codes(tables, dataset.settings)
        rows.snapshot = Snapshot(end, dataset.settings, history, rows.snapshot.listings, codes)
        rows.forget()
        return Facts(tables, rows, happened, rows.snapshot, steps)


def on_clock(time: str | pd.Timestamp, timezone: str) -> np.datetime64:
    """A time as a person gives it, as UTC datetime64[us]; one without a zone is on the shop's clock.

    Raises:
        ValueError: it is no date.
    """
    try:
        stamp = pd.Timestamp(time)
    except ValueError:
        raise ValueError(f"{time!r} is no date: give one like 2025-05-01 or 2025-05-01T06:00+07:00") from None
    return moment(stamp if stamp.tz is not None else stamp.tz_localize(timezone))


def moment(time: np.datetime64 | pd.Timestamp) -> np.datetime64:
    """A time as UTC datetime64[us]; one without a zone is taken as UTC."""
    stamp = pd.Timestamp(time)
    return np.datetime64(stamp.tz_convert("UTC").tz_localize(None) if stamp.tz is not None else stamp, "us")


def known_at(tables: Tables) -> dict[str, Array]:
    """When each row of orders, parcels, listings, events and returns came to be known, (rows,) datetime64[us]."""
    out: dict[str, Array] = {}
    for name, table in tables.items():
        times = [table[c] for c in TABLES[name].known_at if c in table]
        if times:
            known = times[0]
            for other in times[1:]:
                known = np.where(np.isnat(known), other, known)
            out[name] = known
    if "parcels" in tables and "orders" in tables:
        orders = tables["orders"]
        at = match(tables["parcels"]["order_id"], orders["order_id"])
        ordered = take(orders["ordered_at"], at, np.datetime64("NaT", "us"))
        packed = out.get("parcels", np.full(len(at), np.datetime64("NaT", "us")))
        out["parcels"] = np.where(np.isnat(packed), ordered, packed)
    return out


def known_before(tables: Tables, end: np.datetime64) -> dict[str, dict[str, Array]]:
    """The tables without the rows known at `end` or later. An order line goes with its order."""
    known = known_at(tables)
    out: dict[str, dict[str, Array]] = {}
    for name, table in tables.items():
        if name in known:
            keep = np.isnat(known[name]) | (known[name] < end)
            out[name] = {c: v[keep] for c, v in table.items()} if not keep.all() else dict(table)
        else:
            out[name] = dict(table)
    lines = out.get("order_lines")
    if lines is not None and "orders" in out:
        keep = match(lines["order_id"], out["orders"]["order_id"]) >= 0
        out["order_lines"] = {c: v[keep] for c, v in lines.items()}
    return out


def moment_of(settings: Settings, tables: Tables) -> np.datetime64:
    """When the extract was taken: as `dataset.toml` says, else just after the last fact in it."""
    if settings.extracted_at is not None:
        return moment(settings.extracted_at)
    latest = [known[~np.isnat(known)].max() for known in known_at(tables).values() if (~np.isnat(known)).any()]
    return max(latest) + np.timedelta64(1, "us")


def _codes(tables: Tables, settings: Settings) -> dict[str, tuple[str, ...]]:
    """Values of the coded columns that are short enough a list; ids are never listed."""
    coded = [
        (t.name, c.name)
        for t in TABLES.values()
        if t.name not in ("events", "returns", "decisions", "changes")
        for c in t.columns
        if c.kind == "code"
    ]
    out: dict[str, tuple[str, ...]] = {}
    for table, column in coded:
        values = tables.get(table, {}).get(column)
        if values is not None:
            seen = sorted(str(v) for v in pd.unique(values) if v is not None)
            if len(seen) <= MOST_CODES:
                out[f"{table}.{column}"] = tuple(seen)
    return out
