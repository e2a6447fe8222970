"""Is a dataset fit to learn from? Every failure at once, with counts and example rows.

Types, bounds and codes of columns are checked by pandera with schemas generated from `features.contracts`; keys,
references between tables, the order of times and hints on top, on whole columns. What cannot be read at all is part of
the same report, so a shop sees everything in one go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.contracts import ORDERED_TIMES, TABLES, Table
from features.dataset import Dataset, DatasetError, Problem, Reading, TextColumn, read
from features.reasons import owners
from features.reasons import read as read_reasons
from features.settings import EXTRA_TABLES, suggestion
from features.vocabulary import EVENT_KINDS

ERROR = "error"
WARNING = "warning"
EXAMPLES = 3

COST_OF_ABSENCE: dict[str, str] = {
    "order_lines": "returned cannot be trained, and nothing is known of what is in a parcel",
    "listings": "the listing team gets no drivers, and a new product has nothing to back off to",
    "parcels": "late, failed_attempt, damaged and undelivered cannot be trained: there is no parcel to follow",
    "events": "nothing is known of any outcome at the door: no target can be trained",
    "returns": "returned cannot be trained",
    "decisions": "treated parcels cannot be told from others: nothing to measure effects on, and models learn the risk "
    "as it is with whatever was done",
    "changes": "nothing tells whether a changed listing came back less",
    "orders.customer_id": "no history of a customer's orders, refusals and returns",
    "orders.channel": "channels cannot be told apart",
    "orders.payment_method": "cash on delivery cannot be told from prepaid, often the strongest sign of a refusal",
    "orders.is_business": "businesses, where someone is there to take a parcel, cannot be told from homes",
    "orders.destination_country": "regions, cities and zones of the same name in two countries are counted as one",
    "orders.destination_region": "no history by region, city or lane (carrier, service and region together)",
    "orders.destination_city": "no history by city",
    "orders.destination_postal": "no history by delivery zone",
    "orders.promised_from": "the width of the promised window is not known",
    "orders.promised_to": "late cannot be trained",
    "orders.order_value": "the value at stake is not known",
    "order_lines.parcel_id": "a line is taken to travel in the first parcel of its order",
    "order_lines.quantity": "each line counts as one piece",
    "order_lines.unit_price": "price and the share of discount are no signals",
    "order_lines.discount": "discount is no signal",
    "order_lines.variant": "sizes and colours of a product cannot be told apart",
    "listings.known_at": "a listing is taken to have always read as it reads now",
    "listings.category": "a new product cannot back off to its category",
    "listings.brand": "no history by brand",
    "listings.description_length": "thin descriptions cannot be found",
    "listings.photo_count": "listings with few photos cannot be found",
    "listings.has_size_guide": "missing size guides cannot be found",
    "listings.review_count": "reviews are no signal",
    "listings.rating": "ratings are no signal",
    "listings.weight_g": "a package cannot be compared with what is in it",
    "listings.length_mm": "a package cannot be compared with what is in it",
    "listings.width_mm": "a package cannot be compared with what is in it",
    "listings.height_mm": "a package cannot be compared with what is in it",
    "listings.fragility": "fragile goods cannot be told from others: better boxes may look as if they broke things",
    "parcels.node": "warehouses cannot be told apart, nor how busy each is",
    "parcels.packed_at": "the time of decision is that of the order; how long packing takes is not known",
    "parcels.pickup_cutoff_at": "slack before the pickup, and whether it was missed, is not known",
    "parcels.carrier": "no history by carrier: the carrier team gets few drivers",
    "parcels.service": "a carrier's services are counted as one",
    "parcels.package_type": "package types cannot be compared",
    "parcels.protection_level": "protection cannot be weighed against damage",
    "parcels.package_length_mm": "the size of the package is not known",
    "parcels.package_width_mm": "the size of the package is not known",
    "parcels.package_height_mm": "the size of the package is not known",
    "parcels.weight_g": "the weight of the parcel is not known",
    "parcels.void_fill_ratio": "void fill cannot be weighed against damage",
    "parcels.label_grade": "labels that do not scan cannot be found",
    "parcels.documents_complete": "missing documents cannot be found",
    "parcels.address_quality": "poor addresses cannot be told from good ones",
    "parcels.distance_km": "distance is no signal",
    "events.known_at": "an event is taken to be known the moment it happened",
    "events.reason": "nothing yet: no model uses it so far",
    "returns.known_at": "a return is taken to be known the moment it was requested",
    "returns.reason": "why goods came back is not known but for what was inspected",
    "returns.inspected_reason": "why goods came back rests on the customer's word, which is often not true",
    "returns.inspected_at": "what an inspection found is taken to be known with the return",
    "returns.quantity": "a return counts as the whole line, as it does in the models so far",
    "returns.refund_value": "returns cannot be costed; no model uses it so far",
    "decisions.action": "no decision recommends anything",
    "decisions.propensity": "effects cannot be measured: nobody knows how the lot was drawn",
    "decisions.demanded": "why an action was not left to chance is not known",
    "decisions.done": "whether advice is followed is not known",
    "decisions.before": "parcels an action has changed cannot be trained on as they were before it",
    "decisions.known_at": "what was done is taken to be known with the decision",
    "decisions.override_reason": "why advice is not followed is not known",
    "decisions.policy": "decisions of different policies cannot be told apart",
    "decisions.bundle": "decisions of different models cannot be told apart",
    "decisions.net_benefit": "what was expected cannot be compared with what came",
    "changes.what": "which change helped is not known where there were several",
    "changes.known_at": "a change is taken to be known the moment it was made",
}
"""What is lost where a table (`table`) or an optional column (`table.column`) is absent."""

_TIME_WARNINGS = {
    ("promised_from", "promised_to"),
    ("requested_at", "inspected_at"),
    ("decided_at", "known_at"),
    ("changed_at", "known_at"),
}
"""Pairs of `ORDERED_TIMES` no label or feature depends on; the other pairs would teach a model nonsense."""

_NOT_FUTURE = {
    "orders": ("ordered_at",),
    "listings": ("known_at",),
    "parcels": ("packed_at",),
    "events": ("happened_at", "known_at"),
    "returns": ("requested_at", "known_at", "inspected_at"),
    "decisions": ("decided_at", "known_at"),
    "changes": ("changed_at", "known_at"),
}
_BELIEVABLE_TIMES = (pd.Timestamp("2000-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC"))

_NAT = np.iinfo(np.int64).min
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Finding(Problem):
    """A problem and how bad it is.

    Attributes:
        severity: `error`, the dataset is refused; or `warning`, it is used and this is worth a look.
    """

    severity: str = ERROR


@dataclass(frozen=True)
class Absent:
    """A table or an optional column that is not there, or that holds nothing.

    Attributes:
        table: table name.
        column: column name; empty where the whole table is absent.
        empty: it is there but holds no value.
        cost: what is lost for it.
    """

    table: str
    column: str
    empty: bool
    cost: str


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        dataset: the dataset's name.
        rows: rows of each table that could be read.
        findings: errors first, then warnings; within each in the order of the tables.
        present: by table, the columns that hold values.
        absent: tables and optional columns that do not, and what that costs.
    """

    dataset: str
    rows: Mapping[str, int]
    findings: tuple[Finding, ...]
    present: Mapping[str, tuple[str, ...]]
    absent: tuple[Absent, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings for which the dataset is refused."""
        return tuple(f for f in self.findings if f.severity == ERROR)

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "dataset": self.dataset,
            "ok": self.ok,
            "rows": dict(self.rows),
            "findings": [{**asdict(f), "examples": [dict(e) for e in f.examples]} for f in self.findings],
            "present": {table: list(columns) for table, columns in self.present.items()},
            "absent": [asdict(a) for a in self.absent],
        }

    def render(self) -> str:
        """The report as text for people, without colours."""
        rows = ", ".join(f"{n:,} {table}" for table, n in self.rows.items())
        lines = [f"{self.dataset}: {rows or 'no table could be read'}"]
        lines += [f"{f.severity:7}  {f}" for f in self.findings]
        groups: dict[tuple[str, str], list[str]] = {}
        for a in self.absent:
            name = (a.column or "the whole table") + (" (empty)" if a.empty else "")
            groups.setdefault((a.table, a.cost), []).append(name)
        if groups:
            lines.append("absent, and what that costs:")
            lines += [f"  {table}: {', '.join(names)}: {cost}" for (table, cost), names in groups.items()]
        found = {"error": len(self.errors), "warning": len(self.findings) - len(self.errors)}
        counted = ", ".join(f"{n} {what}{'s' if n != 1 else ''}" for what, n in found.items())
        lines.append(f"{'fit to train on' if self.ok else 'NOT fit to train on'}: {counted}")
        return "\n".join(lines)


def check(dataset_path: str | Path, *, progress: Progress | None = None) -> Report:
    """Check the dataset in a folder.

    Args:
        dataset_path: the folder.
        progress: called with a few words at the start of each step.

    Returns:
        The report. Nothing about the dataset is raised, whatever state it is in.
    """
    say = progress or (lambda _: None)
    say("reading the tables")
    reading = read(dataset_path)
    return _Check(reading, say).report()


def require(dataset: Dataset) -> None:
    """Refuse a dataset that is not fit to train on.

    Raises:
        DatasetError: with every error `check` would report.
    """
    report = _Check(Reading(settings=dataset.settings, tables=dataset.tables)).report()
    if not report.ok:
        raise DatasetError(report.errors, dataset.settings.name)


class _Check:
    """One pass over a reading: runs every check and collects what each finds."""

    def __init__(self, reading: Reading, say: Progress = lambda _: None) -> None:
        self.reading = reading
        self.tables = reading.tables
        self.say = say
        self.findings: list[Finding] = [Finding(**{**vars(p), "severity": ERROR}) for p in reading.problems]
        self._text: dict[tuple[str, str], TextColumn] = dict(reading.text)
        self._parents: dict[tuple[str, str], np.ndarray] = {}

    def report(self) -> Report:
        for name, frame in self.tables.items():
            self.say(f"checking {name}")
            self._columns(TABLES[name], frame)
            self._key(TABLES[name], frame)
            self._times(TABLES[name], frame)
        self.say("checking what refers to what")
        self._references()
        self.say("checking the order of times")
        self._order_of_times()
        self._consistency()
        self._names()
        self.say("looking for outcomes")
        self._outcomes()
        self._reasons()
        order = {table: i for i, table in enumerate(TABLES)}
        self.findings.sort(key=lambda f: (f.severity != ERROR, order.get(f.table, -1)))
        present, absent = self._presence() if self.tables else ({}, ())  # of nothing nothing is missing
        rows = {name: len(frame) for name, frame in self.tables.items()}
        return Report(self.reading.settings.name, rows, tuple(self.findings), present, absent)

    # --- one table -------------------------------------------------------------------------------------------------

    def _columns(self, table: Table, frame: pd.DataFrame) -> None:
        """Types, bounds, codes and empty required cells, by pandera."""
        import pandera.pandas as pandera

        wanted = {c.name: c for c in table.columns if c.name in frame}
        dtypes = {"id": object, "code": object, "time": "datetime64[us, UTC]", "number": float, "flag": float}
        schema: dict[str, Any] = {}
        for name, c in wanted.items():
            checks = []
            if c.low is not None:
                checks.append(pandera.Check.ge(c.low, name="low", n_failure_cases=EXAMPLES))
            if c.high is not None:
                checks.append(pandera.Check.le(c.high, name="high", n_failure_cases=EXAMPLES))
            if c.codes:
                checks.append(pandera.Check.isin(c.codes, name="codes", n_failure_cases=EXAMPLES))
            if c.required:
                test = self._filled(table.name, name, frame[name])
                checks.append(pandera.Check(test, name="filled", n_failure_cases=EXAMPLES, ignore_na=False))
            # pandera's own test for missing values lists every one of them; `filled` counts them and shows three.
            schema[name] = pandera.Column(dtypes[c.kind], checks, nullable=True)
        try:
            pandera.DataFrameSchema(schema).validate(frame, lazy=True)
            return
        except pandera.errors.SchemaErrors as failure:
            errors = failure.schema_errors
        for error in errors:
            c = wanted[str(error.column_name)]
            if error.check_output is None:
                what = f"has the type {frame[c.name].dtype}"
                self._add(ERROR, table.name, c.name, what, len(frame), allowed=str(dtypes[c.kind]))
                continue
            bad = np.flatnonzero(~np.asarray(error.check_output, dtype=bool))
            kind = error.check.name
            unit = f" {c.unit}" if c.unit else ""
            if kind == "filled":
                what, allowed, todo = "is empty, but every row needs it", c.help, "fill it, or leave the row out"
            elif kind == "codes":
                values = pd.unique(frame[c.name].to_numpy()[bad])
                near = suggestion(str(values[0]), c.codes)
                what = f"unknown {'kind of event' if c.name == 'kind' else 'code'} {_listed(values)}"
                allowed = ", ".join(c.codes)
                todo = f"{near + ' ' if near else ''}map it in dataset.toml under [codes.{c.name}]"
            elif kind == "low":
                what = "is negative" if c.low == 0 else f"is below {c.low:g}{unit}"
                allowed, todo = _bounds(c.low, c.high, unit), "correct it, or leave the cell empty if it is not known"
            else:
                what = f"is above {c.high:,.15g}{unit}"
                allowed, todo = _bounds(c.low, c.high, unit), f"correct it{f'; is it in {c.unit}?' if c.unit else ''}"
            self._add_rows(ERROR, table.name, c.name, what, bad, self._shown(table, frame, c.name), allowed, todo)

    def _filled(self, table: str, column: str, series: pd.Series) -> Callable[[pd.Series], pd.Series]:
        """A test for "holds a value", or held one that could not be read: that is a finding already."""
        good = np.array(self._present(table, column, series))
        good[self.reading.unusable.get((table, column), [])] = True
        # A plain function: pandera copies its checks in depth, and would copy every table of `self` along.
        return lambda checked: pd.Series(good, index=checked.index)

    def _present(self, table: str, column: str, series: pd.Series) -> np.ndarray:
        # Looking for None among millions of objects is slow; their codes are at hand.
        return self.text(table, column).codes >= 0 if series.dtype == object else series.notna().to_numpy()

    def _key(self, table: Table, frame: pd.DataFrame) -> None:
        if not table.key or table.key[0] not in frame:
            return
        codes = self.text(table.name, table.key[0]).codes
        if len(table.key) == 1:
            repeated = pd.Series(codes).duplicated().to_numpy()
            groups = codes
        else:
            # A further part of a key may be absent or empty: empty is then a value like any other.
            parts = {c: _integers(frame[c]) for c in table.key[1:] if c in frame}
            keys = pd.DataFrame({table.key[0]: codes, **parts})
            repeated = keys.duplicated().to_numpy()
            groups = keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy() if repeated.any() else codes
        bad = np.flatnonzero(repeated & (codes >= 0))
        if not len(bad):
            return
        columns = {c: frame[c] for c in table.key if c in frame}
        first = {int(r): int(np.flatnonzero(groups == groups[r])[0]) + 1 for r in bad[:EXAMPLES]}
        name = " and ".join(table.key)
        examples = tuple({**e, "first_in_row": first[e["row"] - 1]} for e in _examples(bad, columns))
        todo = "remove the repeated rows, or give each its own key"
        self._add(
            ERROR,
            table.name,
            table.key[0],
            "the key is there more than once",
            len(bad),
            examples,
            f"each {name} once",
            todo,
        )

    def _times(self, table: Table, frame: pd.DataFrame) -> None:
        """Times nobody means, and facts from after the extract."""
        low, high = map(_micros, _BELIEVABLE_TIMES)
        extracted = self.reading.settings.extracted_at
        for c in table.columns:
            if c.kind != "time" or c.name not in frame:
                continue
            micros = _integers(frame[c.name])
            known = micros != _NAT
            shown = self._shown(table, frame, c.name)
            strange = np.flatnonzero(known & ((micros < low) | (micros > high)))
            if len(strange):
                self._add_rows(
                    WARNING,
                    table.name,
                    c.name,
                    "looks like a placeholder, not like a time",
                    strange,
                    shown,
                    "times from 2000 to 2100",
                    "leave the cell empty where the time is not known",
                )
            if extracted is not None and c.name in _NOT_FUTURE.get(table.name, ()):
                end = _micros(extracted)
                later = np.flatnonzero(known & (micros > end) & (micros <= high))
                if len(later):
                    self._add_rows(
                        WARNING,
                        table.name,
                        c.name,
                        "is after the extract was taken",
                        later,
                        shown,
                        f"up to extracted_at, {extracted.isoformat()}",
                        "look at the zone of these times, and at extracted_at in dataset.toml",
                    )

    # --- between tables --------------------------------------------------------------------------------------------

    def text(self, table: str, column: str) -> TextColumn:
        """An id or code column as positions in its distinct values."""
        if (table, column) not in self._text:
            codes, values = pd.factorize(self.tables[table][column].to_numpy())
            self._text[table, column] = TextColumn(codes.astype(np.int32), pa.array(values, pa.string()))
        return self._text[table, column]

    def parents(self, table: str, column: str) -> np.ndarray | None:
        """For each row of the table, the row its reference points to (the first, if its key repeats).

        Returns:
            Positions, int64 of shape (rows,); -1 where there is none. None if a side of the reference is absent.
        """
        reference = next(r for r in TABLES[table].references if r.column == column)
        if column not in self.tables.get(table, ()) or reference.to not in self.tables.get(reference.table, ()):
            return None
        if (table, column) not in self._parents:
            child, parent = self.text(table, column), self.text(reference.table, reference.to)
            first = np.full(len(parent.words) + 1, -1, dtype=np.int64)
            rows = np.flatnonzero(parent.codes >= 0)[::-1]
            first[parent.codes[rows]] = rows  # the last to be written is the first row
            found = np.asarray(pc.fill_null(pc.index_in(child.words, value_set=parent.words), -1))
            self._parents[table, column] = np.append(first[found], -1)[child.codes]
        return self._parents[table, column]

    def orders_of(self, table: str) -> np.ndarray | None:
        """For each row of the table, the row of its order; -1 where there is none, None if that cannot be told."""
        if table in ("parcels", "order_lines"):
            return self.parents(table, "order_id")
        via, column = ("order_lines", "line_id") if table == "returns" else ("parcels", "parcel_id")
        step = self.parents(table, column)
        orders = self.orders_of(via)
        return None if step is None or orders is None else np.append(orders, -1)[step]

    def _references(self) -> None:
        for name, frame in self.tables.items():
            for r in TABLES[name].references:
                parents = self.parents(name, r.column)
                if parents is None:
                    continue
                orphans = np.flatnonzero((parents < 0) & (self.text(name, r.column).codes >= 0))
                if len(orphans):
                    shown = self._shown(TABLES[name], frame, r.column)
                    what = f"names no row of {r.table}"
                    todo = f"add the missing {r.table}, or leave these rows out; look for keys written in two ways"
                    allowed = f"a {r.to} that is in {r.table}"
                    # The bench asks about parcels that an extract does not have, or not yet: their decisions go unread.
                    severity = WARNING if name == "decisions" else ERROR
                    self._add_rows(severity, name, r.column, what, orphans, shown, allowed, todo)

    def _order_of_times(self) -> None:
        for before, early, after, late in ORDERED_TIMES:
            if early not in self.tables.get(before, ()) or late not in self.tables.get(after, ()):
                continue
            frame = self.tables[after]
            first = _integers(self.tables[before][early])
            if before != after:
                rows = self.orders_of(after)
                if rows is None:
                    continue
                first = np.append(first, _NAT)[rows]
            second = _integers(frame[late])
            bad = np.flatnonzero((second < first) & (second != _NAT))
            if not len(bad):
                continue
            shown = self._shown(TABLES[after], frame, late)
            shown[f"{before}.{early}"] = pd.Series(pd.DatetimeIndex(first.view("datetime64[us]")).tz_localize("UTC"))
            severity = WARNING if (early, late) in _TIME_WARNINGS else ERROR
            of = "" if before == after else " of its order"
            self._add_rows(
                severity,
                after,
                late,
                f"is before {before}.{early}{of}",
                bad,
                shown,
                f"{early} or later",
                "look at the zone of both columns; correct the rows or leave them out",
            )

    def _consistency(self) -> None:
        """What single references cannot show: a line in another order's parcel, more sent back than sold."""
        in_parcel, of_line, of_parcel = (
            self.parents(*x)
            for x in (("order_lines", "parcel_id"), ("order_lines", "order_id"), ("parcels", "order_id"))
        )
        if in_parcel is not None and of_line is not None and of_parcel is not None:
            other = np.append(of_parcel, -1)[in_parcel]
            bad = np.flatnonzero((other >= 0) & (of_line >= 0) & (other != of_line))
            if len(bad):
                lines, orders = self.tables["order_lines"], self.tables["orders"]["order_id"].to_numpy()
                shown = {c: lines[c] for c in ("line_id", "order_id", "parcel_id") if c in lines}
                shown["order_of_parcel"] = pd.Series(orders[np.maximum(other, 0)]).astype(object)
                self._add_rows(
                    ERROR,
                    "order_lines",
                    "parcel_id",
                    "the parcel belongs to another order",
                    bad,
                    shown,
                    "a parcel of the line's own order",
                    "correct parcel_id or order_id of the line",
                )
        sold = self.parents("returns", "line_id")
        if sold is not None and "quantity" in self.tables["returns"] and "quantity" in self.tables["order_lines"]:
            back = self.tables["returns"]["quantity"].to_numpy()
            pieces = np.append(self.tables["order_lines"]["quantity"].to_numpy(), np.nan)[sold]
            bad = np.flatnonzero(back > pieces)
            if len(bad):
                shown = self._shown(TABLES["returns"], self.tables["returns"], "quantity")
                shown["order_lines.quantity"] = pd.Series(pieces)
                self._add_rows(
                    WARNING,
                    "returns",
                    "quantity",
                    "more pieces came back than were ordered",
                    bad,
                    shown,
                    "up to the quantity of the line",
                    "look whether one return is there several times",
                )
        events = self.tables.get("events")
        if events is not None and {"parcel_id", "kind", "happened_at"} <= set(events):
            parcel, kind = self.text("events", "parcel_id"), self.text("events", "kind")
            times = _integers(events["happened_at"])
            # Rows that share a hash are few: only they are compared column by column, which is much slower.
            parts = (parcel.codes, kind.codes, times)
            hashed = sum(p.astype(np.uint64) * np.uint64(m) for p, m in zip(parts, _MULTIPLIERS, strict=True))
            rows = np.flatnonzero(pd.Series(hashed).duplicated(keep=False).to_numpy() & (parcel.codes >= 0))
            again = pd.DataFrame(
                {"parcel": parcel.codes[rows], "kind": kind.codes[rows], "time": times[rows]}
            ).duplicated()
            bad = rows[again.to_numpy()]
            if len(bad):
                shown = self._shown(TABLES["events"], events, "happened_at")
                self._add_rows(
                    WARNING,
                    "events",
                    "",
                    "the same event of a parcel at the same time is there again",
                    bad,
                    shown,
                    "",
                    "remove the repeated rows if they are one event",
                )

    # --- names and outcomes ----------------------------------------------------------------------------------------

    def _names(self) -> None:
        for table, columns in self.reading.ignored.items():
            absent = [c for c in TABLES[table].names if c not in self.tables.get(table, ())]
            for column in columns:
                near = suggestion(column, absent)
                extra = " or declare it under [[extra]] in dataset.toml" if table in EXTRA_TABLES else ""
                todo = f"{near} rename it{extra}" if near else ("" if not extra else extra.removeprefix(" or "))
                self._add(WARNING, table, column, "the column is ignored: it has no meaning here", 1, todo=todo)
        for file in self.reading.strangers:
            names = [f"{t}{file[file.rindex('.') :].lower()}" for t in TABLES]
            self._add(
                WARNING,
                file,
                "",
                "the file is ignored: it is no table of Doorstep",
                1,
                (),
                ", ".join(names),
                suggestion(file, names),
            )

    def _outcomes(self) -> None:
        """Targets that can have one class only."""
        events = self.tables.get("events")
        if events is None or "kind" not in events or not len(events):
            return
        kinds = self.text("events", "kind")
        counts = dict(
            zip(kinds.values, np.bincount(kinds.codes[kinds.codes >= 0], minlength=len(kinds.values)), strict=True)
        )
        seen = {k for k in EVENT_KINDS if counts.get(k)}

        def hint(what: str, todo: str) -> None:
            self._add(WARNING, "events", "kind", what, 1, (), "", todo)

        if "delivered" not in seen:
            hint(
                "no parcel is ever delivered: undelivered has the positive class only, returned cannot mature",
                "export the delivery scans as kind delivered, or map the shop's code under [codes.kind]",
            )
        for target, needed in (
            ("failed_attempt", ("attempt_failed",)),
            ("damaged", ("damaged",)),
            ("undelivered", ("lost", "refused", "returned_to_sender")),
        ):
            if not seen & set(needed):
                words = " or ".join(needed)
                if target == "undelivered" and "delivered" in seen:
                    hint(
                        f"no event is {words}: undelivered is positive only where no delivery was recorded in time",
                        "export these events, or map the shop's codes under [codes.kind]",
                    )
                elif target != "undelivered":
                    hint(
                        f"no event is {words}: the only class of {target} is negative, it will not be trained",
                        "export these events, or map the shop's codes under [codes.kind]",
                    )
        returns = self.tables.get("returns")
        if returns is not None and not len(returns):
            self._add(
                WARNING,
                "returns",
                "",
                "the table has no rows: the only class of returned is negative, it will not be trained",
                1,
                (),
                "",
                "export the returns",
            )
        self._late()

    def _late(self) -> None:
        events, orders, parcels = (self.tables.get(t) for t in ("events", "orders", "parcels"))
        rows = self.orders_of("events") if events is not None else None
        if events is None or orders is None or parcels is None or rows is None or "promised_to" not in orders:
            return
        if not {"kind", "happened_at"} <= set(events):
            return
        kinds = self.text("events", "kind")
        delivered = np.append(kinds.values == "delivered", False)[kinds.codes]
        promised = np.append(_integers(orders["promised_to"]), _NAT)[rows]
        late = delivered & (promised != _NAT) & (_integers(events["happened_at"]) > promised)
        if not late.any() and delivered.any() and (promised != _NAT).any():
            parcel = self.parents("events", "parcel_id")
            arrived = np.zeros(len(parcels), dtype=bool)
            if parcel is not None:
                arrived[parcel[delivered & (parcel >= 0)]] = True
            if arrived.all():
                self._add(
                    WARNING,
                    "orders",
                    "promised_to",
                    "no parcel came after it: the only class of late is negative, it will not be trained",
                    1,
                    (),
                    "the promise as the customer was told",
                    "look whether promised_to is the time of delivery itself",
                )

    def _reasons(self) -> None:
        """Returns nothing can be learned from: of lines that are not there, or for reasons that nobody owns."""
        settings = self.reading.settings
        if len(self.tables.get("returns", ())) and "order_lines" not in self.tables:
            self._add(
                WARNING,
                "returns",
                "line_id",
                "refers to order lines, and there is no table order_lines: nothing is learned from the returns",
                len(self.tables["returns"]),
                allowed="line_id of a row of order_lines",
                todo="bring order_lines, with line_id, order_id and sku at least",
            )
        for column in ("reason", "inspected_reason"):
            if column not in self.tables.get("returns", ()):
                continue
            text = self.text("returns", column)
            words = np.array(text.words.to_pylist(), dtype=object)
            _, unknown = read_reasons(words, settings)
            if not unknown:
                continue
            strange = np.array([word in unknown for word in words] + [False])
            rows = np.flatnonzero(strange[text.codes])
            count = np.bincount(text.codes[rows], minlength=len(words))
            most = np.argsort(-count, kind="stable")[: min(EXAMPLES, len(unknown))]
            often = [(str(words[i]), int(count[i])) for i in most]
            first = often[0][0]
            listed = ", ".join(f"{code!r} ({n:,})" for code, n in often)
            more = f" and {len(unknown) - len(often):,} more codes" if len(unknown) > len(often) else ""
            self._add(
                WARNING,
                "returns",
                column,
                f"is no reason Doorstep knows, and is read as not stated: {listed}{more}",
                len(rows),
                allowed=", ".join(owners(settings)),
                todo=f'say in dataset.toml what it means, [codes.{column}] "{first}" = "wrong_size", or whose it is, '
                f'[reasons] "{first}" = "listing"',
            )

    def _presence(self) -> tuple[dict[str, tuple[str, ...]], tuple[Absent, ...]]:
        present: dict[str, tuple[str, ...]] = {}
        absent: list[Absent] = []
        for name, table in TABLES.items():
            frame = self.tables.get(name)
            if frame is None or frame.empty:
                if name in COST_OF_ABSENCE:
                    absent.append(Absent(name, "", frame is not None, COST_OF_ABSENCE[name]))
                continue
            present[name] = tuple(c for c in map(str, frame.columns) if self._present(name, c, frame[c]).any())
            for c in table.columns:
                if not c.required and c.name not in present[name]:
                    absent.append(Absent(name, c.name, c.name in frame, COST_OF_ABSENCE[f"{name}.{c.name}"]))
        return present, tuple(absent)

    # --- findings --------------------------------------------------------------------------------------------------

    @staticmethod
    def _shown(table: Table, frame: pd.DataFrame, column: str) -> dict[str, pd.Series]:
        """The columns worth showing of an example row: what names it, what it is, and the one in question."""
        names = ("kind", "happened_at") if table.name == "events" else ()
        wanted = dict.fromkeys((*table.required[:1], *table.key[:1], *names, column))
        return {c: frame[c] for c in wanted if c in frame}

    def _add_rows(
        self,
        severity: str,
        table: str,
        column: str,
        what: str,
        rows: np.ndarray,
        shown: Mapping[str, pd.Series],
        allowed: str,
        todo: str,
    ) -> None:
        self._add(severity, table, column, what, len(rows), _examples(rows, shown), allowed, todo)

    def _add(
        self,
        severity: str,
        table: str,
        column: str,
        what: str,
        count: int,
        examples: tuple[dict[str, Any], ...] = (),
        allowed: str = "",
        todo: str = "",
    ) -> None:
        self.findings.append(Finding(table, column, what, count, examples, allowed, todo, severity))


def _integers(times: pd.Series) -> np.ndarray:
    """Microseconds since 1970, int64; the smallest integer where there is no time."""
    return pd.DatetimeIndex(times).as_unit("us").asi8


def _micros(moment: pd.Timestamp) -> int:
    """Microseconds since 1970. (`Timestamp.value` is in nanoseconds whatever the unit.)"""
    return int(moment.as_unit("us").asm8.astype(np.int64))


def _bounds(low: float | None, high: float | None, unit: str) -> str:
    ends = (f"from {low:,.15g}" if low is not None else "", f"to {high:,.15g}" if high is not None else "")
    return " ".join(e for e in ends if e) + unit


def _listed(values: Any) -> str:
    shown = ", ".join(repr(str(v)) for v in values[:EXAMPLES])
    return f"{shown} and {len(values) - EXAMPLES:,} more" if len(values) > EXAMPLES else shown


def _examples(rows: np.ndarray, shown: Mapping[str, pd.Series]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"row": int(r) + 1, **{name: _plain(values.iloc[int(r)]) for name, values in shown.items()}}
        for r in rows[:EXAMPLES]
    )


def _plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if value is None or value is pd.NaT:
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return str(value)
