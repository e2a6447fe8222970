"""The diagnosis as files: `diagnosis.sqlite` with every table, and `diagnosis.json`, what there is and what is missing.

A database, because what reads it filters and sorts a million rows without loading them; plain SQLite, because anything
reads that. A table that cannot be made is there all the same, empty, and `diagnosis.json` says why.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.files import ArtefactError

FORMAT = 1
"""Raise when a reader written before would misread the tables. Columns may be added without."""

DATABASE, SUMMARY = "diagnosis.sqlite", "diagnosis.json"

ROWS = 50_000
"""Rows turned into Python's own values at a time."""

KINDS = {
    "text": "TEXT",
    "key": "TEXT",
    "count": "INTEGER",
    "flag": "INTEGER",
    "number": "REAL",
    "time": "TEXT",
    "date": "TEXT",
}
"""Kinds of columns and what SQLite stores: a flag is 0 or 1, a time ISO text in UTC, a date the shop's own day. Empty
text is NULL, but in a key: there it is a value as others are (services that one carrier alone offers have no name)."""


@dataclass(frozen=True)
class Table:
    """One table of the diagnosis.

    Attributes:
        words: what a row is.
        columns: names and kinds, one of `KINDS`.
        index: columns that readers filter or sort by, each tuple one index.
    """

    words: str
    columns: Mapping[str, str]
    index: tuple[tuple[str, ...], ...] = ()


def _columns(**of_kind: str) -> dict[str, str]:
    """Columns in the order written: kind_number="a b" gives a and b of that kind; what follows _ only keeps apart."""
    return {name: kind.partition("_")[0] for kind, names in of_kind.items() for name in names.split()}


_HELD = _columns(
    count_1="parcels observed",
    number_2="expected ratio low high chance_worse chance_worst excess",
    text_3="verdict why",
    count_4="others trial",
    date_5="since",
    number_6="standard",
    text_7="meets",
)
_SPAN = _columns(number="ratio low high")

TABLES: dict[str, Table] = {
    "parcels": Table(
        "a parcel that can be judged for one target at least",
        _columns(
            text_1="parcel_id order_id",
            time_2="decided_at",
            date_3="week",
            text_4="node shift carrier",
            key_4="service",
            text_5="service_given",
            key_5="region",
            text_6="package_type",
            flag_6="late failed_attempt damaged undelivered",
            number_7="expected_late expected_failed_attempt expected_damaged expected_undelivered",
            text_8="leg whose",
            number_8="hours_late",
            flag_9="missed_cutoff",
            text_10="label_grade",
            flag_11="documents_complete",
            number_12="address_quality",
        ),
        (("parcel_id",), ("carrier", "service", "region"), ("node", "shift"), ("week",), ("whose",)),
    ),
    "lines": Table(
        "an order line that can be judged",
        _columns(
            text_1="line_id parcel_id sku category brand",
            time_2="decided_at",
            flag_3="returned",
            text_4="reason owner",
            flag_5="counted",
            text_6="aside",
            number_7="expected value",
        ),
        (("sku",), ("parcel_id",), ("returned", "reason"), ("aside",)),
    ),
    "corridors": Table(
        "a carrier's service into a region, for one target",
        _columns(text="target carrier", key="service region") | _HELD,
        (("target", "verdict"), ("carrier", "service", "region")),
    ),
    "carriers": Table(
        "a carrier's service, for one target",
        _columns(text="target carrier", key="service") | _HELD | _columns(count="ours theirs untold"),
        (("target", "verdict"),),
    ),
    "products": Table(
        "a product",
        _columns(
            text_1="sku category brand",
            count_2="lines returns aside observed",
            number_3="expected ratio low high chance_worse excess",
            flag_4="named",
            text_5="verdict reason",
            count_5="reason_observed",
            number_6="reason_expected reason_ratio reason_low reason_high",
            text_6="why_not",
            date_6="from",
            number_7="worth",
            text_8="driver advice arguments",
        ),
        (("sku",), ("named", "worth"), ("category",), ("verdict",)),
    ),
    "peers": Table(
        "a product and a comparable one",
        _columns(text="sku peer", count="lines returned") | _SPAN,
        (("sku",),),
    ),
    "drivers": Table(
        "a product and a term of its listing",
        _columns(text="sku term", number="value peers_value share", text_2="advice arguments"),
        (("sku",),),
    ),
    "changes": Table(
        "a change of a product's listing, and what came back before and after",
        _columns(
            text_1="sku",
            time_2="changed_at",
            text_3="what",
            count_4="before_lines before_returned",
            number_5="before_ratio before_low before_high",
            count_6="after_lines after_returned",
            number_7="after_ratio after_low after_high",
            text_8="verdict",
            date_9="judged_from",
        ),
        (("sku",),),
    ),
    "readiness": Table(
        "a measure of a warehouse's shift",
        _columns(
            text_1="node shift measure",
            count_2="parcels observed",
            number_3="rate low high elsewhere",
            text_4="verdict why",
            number_5="trend",
        ),
        (("node", "shift"), ("measure", "verdict")),
    ),
    "packaging": Table(
        "a product or category in a package",
        _columns(
            text_1="sku category package_type verdict",
            count_2="parcels damaged",
            number_3="expected low high volume_use worth",
            text_4="why",
        ),
        (("sku",), ("verdict", "worth")),
    ),
    "spikes": Table(
        "a series that departed from its forecast",
        _columns(
            text_1="kind key target",
            date_2="began until",
            count_3="observed",
            number_4="forecast chance false_alarms",
        ),
        (("kind", "key"), ("began",)),
    ),
    "reality": Table(
        "a team and target in a month: predicted and observed",
        _columns(
            text_1="team target period",
            count_2="units",
            number_3="predicted",
            count_4="observed",
            number_5="low high",
            text_6="verdict",
        ),
        (("team", "period"),),
    ),
    "excess": Table(
        "where a target's failures came from",
        _columns(text="target source", number="share low high failures"),
        (("target",),),
    ),
    "readiness_weeks": Table(
        "a node's week, for one target or measure",
        _columns(text="node target", date="week", count="parcels", number="observed expected"),
        (("node", "target", "week"),),
    ),
    "corridor_weeks": Table(
        "a corridor's week, for one target",
        _columns(
            text_1="carrier",
            key="service region",
            text_2="target",
            date="week",
            count="parcels",
            number="observed expected",
        ),
        (("target", "carrier", "service", "region", "week"),),
    ),
}
"""Every table, its columns and what it is indexed by."""


def write(tables: Mapping[str, pd.DataFrame], document: Mapping[str, Any], out: Path) -> None:
    """Write a diagnosis, whole or not at all; an earlier one in the folder is replaced.

    Args:
        tables: by name; one that is not given is written empty, and so is a column.
        document: goes to `diagnosis.json`.
        out: the folder.

    Raises:
        features.files.ArtefactError: the folder holds something else.
        KeyError: a table or a column that `TABLES` does not have.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SUMMARY).is_file())):
        raise ArtefactError(f"{out}: is there already and holds no diagnosis: name another folder")
    part, old = (out.with_name(f".{out.name}.{end}") for end in ("part", "old"))
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    _database(tables, part / DATABASE)
    _flushed(part / SUMMARY, json.dumps(document, indent=2, allow_nan=False) + "\n")
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _database(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    unknown = set(tables) - set(TABLES)
    if unknown:
        raise KeyError(f"no tables of a diagnosis: {', '.join(sorted(unknown))}")
    db = sqlite3.connect(path, isolation_level=None)
    try:
        # The file is not in its place yet: what is cut short is thrown away, so nothing has to be journalled.
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        for name, table in TABLES.items():
            kinds = ", ".join(f'"{c}" {KINDS[k]}' for c, k in table.columns.items())
            db.execute(f'CREATE TABLE "{name}" ({kinds})')
            if name in tables:
                marks = ", ".join("?" * len(table.columns))
                db.executemany(f'INSERT INTO "{name}" VALUES ({marks})', rows(name, tables[name]))
            for place, columns in enumerate(table.index):
                by = ", ".join(f'"{c}"' for c in columns)
                db.execute(f'CREATE INDEX "{name}_{place}" ON "{name}" ({by})')
        db.execute("COMMIT")
        db.execute("ANALYZE")
    finally:
        db.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def rows(name: str, frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """A table's rows as values that SQLite stores, in the order of its columns; what is missing is None.

    Raises:
        KeyError: the frame has a column that the table has not.
    """
    columns = TABLES[name].columns
    unknown = [c for c in frame.columns if c not in columns]
    if unknown:
        raise KeyError(f"table {name} has no column {', '.join(map(str, unknown))}")
    for first in range(0, len(frame), ROWS):
        part = frame.iloc[first : first + ROWS]
        empty = [None] * len(part)
        yield from zip(
            *(_plain(part[c].to_numpy(), kind) if c in part.columns else empty for c, kind in columns.items()),
            strict=True,
        )


def _plain(values: Array, kind: str) -> list[Any]:
    missing = pd.isna(values)
    if kind in ("time", "date"):
        unit = "s" if kind == "time" else "D"
        moments = np.where(missing, np.datetime64("NaT"), values).astype(f"datetime64[{unit}]")
        texts = np.datetime_as_string(moments).astype(object)
        out = (texts + "Z" if kind == "time" else texts).tolist()
    elif kind == "number":
        out = values.astype(np.float64).tolist()
        missing = missing | ~np.isfinite(values.astype(np.float64))
    elif kind in ("count", "flag"):
        out = np.where(missing, 0, values).astype(np.int64).tolist()
    else:
        out = values.astype(object).tolist()
        missing = missing if kind == "key" else missing | (values.astype(object) == "")
    if missing.any():
        for at in np.flatnonzero(missing).tolist():
            out[at] = None
    return out


def _flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
