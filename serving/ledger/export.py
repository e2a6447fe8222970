"""The ledger as tables of a dataset: decisions with what was really done, and reported outcomes with their known-at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.contracts import TABLES
from features.files import write_frame
from features.vocabulary import EVENT_KINDS
from serving.ledger import kept
from serving.ledger.reports import current, done
from serving.ledger.schemas import DONE, RETURNED
from serving.ledger.store import Database, Record


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        rows: rows by table.
        gone: records left out: their content was erased, or has passed its retention.
        waiting: decisions left out: they still lie in the journals of this machine.
    """

    rows: Mapping[str, int]
    gone: int
    waiting: int = 0


def export(database: Database, out: Path, journal: Path | None = None) -> Exported:
    """Write `decisions`, `events`, `returns` and `changes` as Parquet, in the columns of `features.contracts`.

    A fact's `known_at` is when it was reported. Reports that a later one corrects are left out. `done` is what was
    reported to be done; it is empty, with a `known_at`, where it was reported that nothing was.

    Args:
        database: of the ledger.
        out: folder for the files, made if it is not there. Each is written whole.
        journal: folder of the journals; without it, what waits in them is not counted.

    Raises:
        LedgerError: the database does not answer, or a record in it is damaged.
    """
    decisions: list[Mapping[str, Any]] = []
    reports: list[Record] = []
    changes: list[Record] = []
    gone, waiting = 0, set() if journal is None else kept(journal)  # looked at first: what is delivered meanwhile is in
    for record in database.records():
        if record.kind == "decision":
            waiting.discard(str(record.decision_id))
        if record.body is None:
            gone += 1
        elif record.kind == "decision":
            decisions.append(record.body)
        elif record.kind == "change":
            changes.append(record)
        else:
            reports.append(record)
    reports = current(reports)
    told = {r.decision_id: r for r in reports if done(r)}
    rows: dict[str, list[dict[str, Any]]] = {"decisions": [], "events": [], "returns": [], "changes": []}
    rows["decisions"] = [_decision(d, told.get(d["decision_id"])) for d in decisions]
    rows["changes"] = [_change(r, r.body) for r in current(changes) if r.body is not None]
    for report in reports:
        body = report.body
        assert body is not None
        if done(report) or body["kind"] == DONE:
            continue
        known = max(report.recorded_at, body["happened_at"])  # a reporter's clock may be ahead of ours
        fact = {"known_at": known, "reason": body.get("reason")}
        if body["kind"] == RETURNED:
            rows["returns"].append({"line_id": body["line_id"], "requested_at": body["happened_at"], **fact})
        elif body["kind"] in EVENT_KINDS:
            own = {"parcel_id": body["parcel_id"], "kind": body["kind"], "happened_at": body["happened_at"]}
            rows["events"].append({**own, **fact})
    for name, content in rows.items():
        write_frame(_frame(name, content), Path(out) / f"{name}.parquet")
    return Exported({name: len(content) for name, content in rows.items()}, gone, len(waiting))


def _change(record: Record, body: Mapping[str, Any]) -> dict[str, Any]:
    told = {**body, "known_at": max(record.recorded_at, body["changed_at"])}
    return {name: told.get(name) for name in TABLES["changes"].names}


def _decision(decision: Mapping[str, Any], report: Record | None) -> dict[str, Any]:
    row = {name: decision.get(name) for name in TABLES["decisions"].names}
    told: Mapping[str, Any] = {} if report is None or report.body is None else report.body
    action = told.get("action") or row["action"]
    before = decision.get("before") or {}
    return {
        **row,
        "done": told.get("action"),
        "before": before.get((action or "").partition(":")[0]),
        "known_at": None if report is None else max(report.recorded_at, row["decided_at"] or ""),
        "override_reason": told.get("reason"),
    }


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame in the types of their table; columns nobody can report are left out."""
    named = {n for row in rows for n in row} or set(TABLES[name].required)
    out: dict[str, pd.Series[Any]] = {}
    for column in TABLES[name].columns:
        if column.name not in named:
            continue
        values = [row.get(column.name) for row in rows]
        if column.kind == "time":
            out[column.name] = pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601").dt.as_unit(
                "us"
            )
        elif column.kind == "number":
            out[column.name] = pd.Series(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
        else:
            out[column.name] = pd.Series(values, dtype=object)
    return pd.DataFrame(out)
