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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array
from features.files import ArtefactError
from serving.diagnosis import DATABASE, SUMMARY, TABLES, create, index

ROWS = 50_000
"""Rows turned into Python's own values at a time."""


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
            create(db, name)
            if name in tables:
                marks = ", ".join("?" * len(table.columns))
                db.executemany(f'INSERT INTO "{name}" VALUES ({marks})', rows(name, tables[name]))
        index(db)
        db.execute("COMMIT")
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
