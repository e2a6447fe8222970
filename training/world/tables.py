"""Writes the six tables of a simulated shop as any shop would bring them, and the truth in a folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.contracts import TABLES
from features.settings import TOML, Settings
from features.vocabulary import LABEL_GRADES
from training.world.decisions import BLOCK, Decisions, draw
from training.world.equations import causes, risks
from training.world.outcomes import EVENT_REASONS, KINDS, Outcomes, happen
from training.world.scenario import PACKAGE_TYPES, RETURN_REASONS, SERVICES, Scenario
from training.world.shop import REGIONS, ZONES_PER_CITY, Flags, Floats, Ints, Shop, open_shop, stream
from training.world.truth import (
    FILES,
    TRUTH,
    line_ids,
    line_truth,
    parcel_ids,
    parcel_truth,
    return_truth,
    write_words,
)

Progress = Callable[[str], None]
"""Told what is being done, in a few words."""

_BLOCKS_PER_GROUP = 20
"""Blocks in one row group: large enough to be read fast, small enough not to be felt in memory."""

_PART = ".world-"

DRAWN = tuple(name for name in TABLES if name not in ("decisions", "changes"))
"""The tables of a world: what a shop has before anybody advises it."""

_TYPES: dict[str, pa.DataType] = {
    "id": pa.string(),
    "code": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "number": pa.float64(),
    "flag": pa.bool_(),
}


def generate(
    out: str | Path, *, parcels: int, seed: int = 0, progress: Progress | None = None, scenario: Scenario | None = None
) -> Path:
    """Write a simulated shop: six Parquet tables, `dataset.toml`, and the folder `truth`.

    The same seed gives the same bytes, and the first parcels are the same however many follow: every block of
    `BLOCK` parcels spans the whole year and is drawn from its own counter-based random numbers. Files appear only
    when all of them are complete.

    Args:
        out: folder to write; made if absent. One that holds anything but an earlier world is left alone.
        parcels: how many parcels to draw, at least 1.
        seed: which world, 0 or more.
        progress: told after each block how far it is.
        scenario: other parameters than the default.

    Returns:
        The folder.

    Raises:
        ValueError: `parcels` or `seed` is out of range.
        FileExistsError: `out` is a file, or a folder that holds something else.
    """
    if parcels < 1:
        raise ValueError(f"parcels is {parcels}, must be at least 1: give the number of parcels to draw")
    if seed < 0:
        raise ValueError(f"seed is {seed}, must be 0 or more: give another number")
    folder = Path(out)
    own = {TOML, TRUTH, *(f"{name}.parquet" for name in DRAWN)}
    if folder.exists():
        if not folder.is_dir():
            raise FileExistsError(f"{folder} is a file, must be a folder: name another one")
        for left in folder.glob(f"{_PART}*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        foreign = sorted(p.name for p in folder.iterdir() if p.name not in own)
        if (folder / TRUTH).is_dir():
            foreign += sorted(f"{TRUTH}/{p.name}" for p in (folder / TRUTH).iterdir() if p.name not in FILES)
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise FileExistsError(f"{folder} holds {foreign[0]}{more}, no part of a world: name an empty folder")
    shop = open_shop(seed, scenario)
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=folder))
    try:
        _write(shop, part, parcels, progress)
        # The settings come last: a folder without them is no dataset.
        (folder / TOML).unlink(missing_ok=True)
        shutil.rmtree(folder / TRUTH, ignore_errors=True)
        for name in (TRUTH, *(f"{name}.parquet" for name in DRAWN), TOML):
            os.replace(part / name, folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def settings(scenario: Scenario, extracted_utc: int) -> Settings:
    """What `dataset.toml` of a world says."""
    truly = scenario.outcomes.inspected_truly
    return Settings(
        name="world" if scenario.name == "plain" else f"world-{scenario.name}",
        timezone=scenario.calendar.timezone,
        currency=scenario.currency,
        return_window_days=scenario.return_window_days,
        lost_after_days=scenario.lost_after_days,
        simulated=True,
        extracted_at=pd.Timestamp(extracted_utc, unit="s", tz="UTC"),
        # What this shop would find if it inspected some returns twice: a wrong finding may hit the truth by chance.
        inspections_right=truly + (1 - truly) / len(RETURN_REASONS),
    )


def _write(shop: Shop, folder: Path, parcels: int, progress: Progress | None) -> None:
    pq.write_table(_listings(shop), folder / "listings.parquet", compression="zstd")
    (folder / TRUTH).mkdir()
    write_words(folder / TRUTH, shop, parcels)
    names = [name for name in DRAWN if name != "listings"]
    files = {name: folder / f"{name}.parquet" for name in names}
    files |= {f"{TRUTH}/{name}": folder / TRUTH / f"{name}.parquet" for name in ("parcels", "lines", "returns")}
    writers: dict[str, pq.ParquetWriter] = {}
    waiting: dict[str, list[pa.Table]] = {name: [] for name in files}
    blocks = -(-parcels // BLOCK)
    try:
        for block in range(blocks):
            d = draw(shop, block)
            chances = risks(shop.scenario, *causes(shop, d))
            what = happen(shop, d, chances, block)
            n = min(len(d.packed), parcels - d.first)
            made = block_tables(shop, d, what, block, n)
            known = {
                "parcels": parcel_truth(d, chances, n).assign(driver_skipped=what.skipped[:n]),
                "lines": line_truth(d, chances, n),
                "returns": return_truth(d, what, n),
            }
            made |= {f"{TRUTH}/{k}": pa.Table.from_pandas(v, preserve_index=False) for k, v in known.items()}
            for name, table in made.items():
                waiting[name].append(table)
            if (block + 1) % _BLOCKS_PER_GROUP == 0 or block + 1 == blocks:
                for name, file in files.items():
                    group = pa.concat_tables(waiting[name])
                    if name not in writers:
                        writers[name] = pq.ParquetWriter(file, group.schema, compression="zstd")
                    writers[name].write_table(group, row_group_size=max(len(group), 1))
                    waiting[name].clear()
            if progress is not None:
                progress(f"{min((block + 1) * BLOCK, parcels):,} of {parcels:,} parcels")
    finally:
        for writer in writers.values():
            writer.close()
    toml = settings(shop.scenario, shop.clock.extracted_utc).to_toml()
    (folder / TOML).write_text(toml, encoding="utf-8", newline="\n")


def _schema(name: str) -> pa.Schema:
    return pa.schema([(c.name, _TYPES[c.kind]) for c in TABLES[name].columns])


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    """The table in the columns of its contract; a column that is not filled is a mistake of ours, hence KeyError."""
    schema = _schema(name)
    return pa.table([_cast(columns[f.name], f.type) for f in schema], schema=schema)


def _cast(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_timestamp(kind):
        return pa.array(np.asarray(values, dtype=np.int64) * 1_000_000, pa.int64()).cast(kind)
    if pa.types.is_floating(kind):
        values = np.asarray(values, dtype=np.float64)
        return pa.array(values, kind, mask=np.isnan(values))
    return pa.array(values, kind)


def _text(names: Sequence[str] | pa.Array, position: Ints, missing: Flags | None = None) -> pa.Array:
    """Names by position; none where `missing` or where the position is negative."""
    gone = position < 0
    if missing is not None:
        gone = gone | missing
    pool = names if isinstance(names, pa.Array) else pa.array(list(names), pa.string())
    return pc.take(pool, pa.array(np.where(gone, 0, position), pa.int64(), mask=gone))


def _times(seconds: Ints, missing: Flags) -> pa.Array:
    """UTC seconds as times; none where `missing`."""
    return pa.array(np.where(missing, 0, seconds) * 1_000_000, pa.int64(), mask=missing).cast(_TYPES["time"])


def _ids(prefix: str, numbers: Ints, width: int = 9) -> pa.Array:
    return pa.array([f"{prefix}{k:0{width}d}" for k in numbers.tolist()], pa.string())


def _gaps(values: Floats, missing: Flags) -> Floats:
    return np.where(missing, np.nan, values)


def _sku_ids(shop: Shop) -> pa.Array:
    # Numbered in the order of launch, as shops do.
    return _ids("SKU", np.arange(1, len(shop.products.category) + 1), 5)


def _listings(shop: Shop) -> pa.Table:
    """All versions of all listings that were known when the extract was taken, by product and time."""
    p, categories = shop.products, shop.scenario.products.categories
    n, versions = p.version_at.shape
    sku = np.repeat(np.arange(n), versions)
    keep = np.flatnonzero(p.version_at.ravel() < shop.clock.extracted_utc)
    sku = sku[keep]
    hidden = ~p.shows_measures[sku]
    return _table(
        "listings",
        {
            "sku": _text(_sku_ids(shop), sku),
            "known_at": p.version_at.ravel()[keep],
            "category": _text([c.name for c in categories], p.category[sku]),
            "brand": _text(shop.scenario.products.brands, p.brand[sku]),
            "description_length": p.description.ravel()[keep],
            "photo_count": p.photos.ravel()[keep],
            "has_size_guide": p.guide.ravel()[keep],
            "review_count": p.reviews.ravel()[keep],
            "rating": p.rating.ravel()[keep],
            "weight_g": _gaps(p.weight_g[sku], hidden),
            "length_mm": _gaps(p.sides_mm[sku, 0], hidden),
            "width_mm": _gaps(p.sides_mm[sku, 1], hidden),
            "height_mm": _gaps(p.sides_mm[sku, 2], hidden),
            "fragility": _gaps(p.shown_fragility[sku], hidden),
        },
    )


def block_tables(shop: Shop, d: Decisions, o: Outcomes, block: int, n: int) -> dict[str, pa.Table]:
    """The five moving tables of a block, cut to its first n parcels and to what was known in time."""
    parcels, lines = pa.array(parcel_ids(d, n), pa.string()), pa.array(line_ids(d, n), pa.string())
    orders = _ids("O", d.first + np.arange(int(d.order_row[n - 1]) + 1))
    return {
        "orders": _orders(shop, d, orders),
        "order_lines": _order_lines(shop, d, orders, parcels, lines),
        "parcels": _parcels(shop, d, orders, parcels, block),
        "events": _events(shop, o, parcels),
        "returns": _return_rows(shop, o, lines),
    }


def _orders(shop: Shop, d: Decisions, ids: pa.Array) -> pa.Table:
    s, clock, m = shop.scenario, shop.clock, len(ids)
    zone = d.zone[:m]
    region = shop.lanes.zone_region[zone]
    codes = [r[0] for r in REGIONS]
    cities = [f"{codes[r]}-{c}" for r, c in zip(shop.lanes.zone_region, shop.lanes.zone_city, strict=True)]
    postals = [f"{city}-{1 + z % ZONES_PER_CITY}" for z, city in enumerate(cities)]
    promised = clock.day_of_working[d.promised_day[:m]]
    return _table(
        "orders",
        {
            "order_id": ids,
            "ordered_at": clock.utc(d.ordered[:m]),
            "customer_id": _ids("C", d.customer[:m], 6),
            "channel": _text([name for name, _ in s.customers.channels], d.channel[:m]),
            "payment_method": _text([name for name, _ in s.customers.payments], d.payment[:m]),
            "is_business": shop.customers.business[d.customer[:m]],
            "destination_country": _text([r[1] for r in REGIONS], region),
            "destination_region": _text(codes, region),
            "destination_city": _text(cities, zone),
            "destination_postal": _text(postals, zone),
            "promised_from": clock.utc(clock.at(promised, 8 * 3600)),
            "promised_to": clock.utc(clock.at(promised, 21 * 3600)),
            "order_value": np.round(d.order_value[:m], 2),
        },
    )


def _order_lines(shop: Shop, d: Decisions, orders: pa.Array, parcels: pa.Array, ids: pa.Array) -> pa.Table:
    k = len(ids)
    choices = [c.variants for c in shop.scenario.products.categories]
    start = np.cumsum([0, *(len(c) for c in choices)])[:-1]
    category, variant = shop.products.category[d.sku[:k]], d.variant[:k]
    return _table(
        "order_lines",
        {
            "line_id": ids,
            "order_id": _text(orders, d.order_row[d.parcel_row[:k]]),
            "parcel_id": _text(parcels, d.parcel_row[:k]),
            "sku": _text(_sku_ids(shop), d.sku[:k]),
            "quantity": d.quantity[:k],
            "unit_price": d.price[:k],
            "discount": d.discount[:k],
            "variant": _text([v for c in choices for v in c], np.where(variant < 0, -1, start[category] + variant)),
        },
    )


def _parcels(shop: Shop, d: Decisions, orders: pa.Array, ids: pa.Array, block: int) -> pa.Table:
    s, clock, n = shop.scenario, shop.clock, len(ids)
    # Records have holes, whatever happened to the parcel. All of the block is drawn, for the sake of the prefix.
    holes = stream(shop.seed, "gaps", block).random((3, len(d.packed)))[:, :n]
    return _table(
        "parcels",
        {
            "parcel_id": ids,
            "order_id": _text(orders, d.order_row[:n]),
            "node": _text([k.name for k in s.nodes.nodes], d.node[:n]),
            "packed_at": clock.utc(d.packed[:n]),
            "pickup_cutoff_at": clock.utc(d.cutoff[:n]),
            "carrier": _text([c.name for c in s.carriers.carriers], d.carrier[:n]),
            "service": _text(SERVICES, d.service[d.order_row[:n]]),
            "package_type": _text(PACKAGE_TYPES, d.level[:n]),
            "protection_level": d.level[:n],
            "package_length_mm": d.sides_mm[:n, 0],
            "package_width_mm": d.sides_mm[:n, 1],
            "package_height_mm": d.sides_mm[:n, 2],
            "weight_g": d.weight_g[:n],
            "void_fill_ratio": _gaps(np.round(d.void_fill[:n], 2), holes[0] < 0.04),
            "label_grade": _text(LABEL_GRADES, d.grade[:n], holes[1] < 0.02),
            "documents_complete": d.documents[:n],
            "address_quality": _gaps(np.round(d.address[:n], 2), holes[2] < 0.02),
            "distance_km": np.round(d.distance_km[:n], 1),
        },
    )


def _events(shop: Shop, o: Outcomes, parcels: pa.Array) -> pa.Table:
    keep = (o.event_row < len(parcels)) & (o.event_known < shop.clock.extracted_utc)
    return _table(
        "events",
        {
            "parcel_id": _text(parcels, o.event_row[keep]),
            "kind": _text(KINDS, o.event_kind[keep]),
            "happened_at": o.event_at[keep],
            "known_at": o.event_known[keep],
            "reason": _text(EVENT_REASONS, o.event_reason[keep]),
        },
    )


def _return_rows(shop: Shop, o: Outcomes, lines: pa.Array) -> pa.Table:
    end = shop.clock.extracted_utc
    keep = (o.return_row < len(lines)) & (o.return_known < end)
    # An inspection that is still to come is not in the extract, though the request is.
    open_ = (o.inspected_reason[keep] < 0) | (o.inspected_at[keep] >= end)
    return _table(
        "returns",
        {
            "line_id": _text(lines, o.return_row[keep]),
            "requested_at": o.return_at[keep],
            "known_at": o.return_known[keep],
            "reason": _text(RETURN_REASONS, o.return_reason[keep]),
            "inspected_reason": _text(RETURN_REASONS, o.inspected_reason[keep], open_),
            "inspected_at": _times(o.inspected_at[keep], open_),
            "quantity": o.return_quantity[keep],
            "refund_value": o.refund[keep],
        },
    )
