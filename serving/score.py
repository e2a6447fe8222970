"""From requests, or a whole dataset, to answers: risks, why, and whose lever it is. The one path that is served.

`answer` is what `POST /v1/risk` says; `score` is the same for a dataset, as a frame. Both join, compute and explain
with the same functions, so a parcel gets the same probability either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, DTYPE, MISSING, Array, absent
from features.contracts import TABLES
from features.matrix import values
from features.rows import Rows
from features.settings import Extra
from features.snapshot import Snapshot
from features.vocabulary import GENERIC_BASE_RATES, TARGETS, TEAMS
from serving.bundle import Bundle, TargetModel
from serving.explain import by_team

TOP = 3
"""Drivers named per team; a team's smaller ones are one entry, so that drivers add up as teams do."""

LEAST = 0.0005
"""Drivers that would read as 0.0 points are not named."""

STALE_DAYS = 7
"""A snapshot older than this at the time of decision is worth a warning."""

PARTS = {"order": "orders", "parcel": "parcels", "lines": "order_lines", "listings": "listings"}
"""The parts of a request, and the tables whose columns they have."""

Request = Mapping[str, Any]


def _points(share: float) -> str:
    """A share of the probability in points with a sign; what rounds to nothing has none."""
    said = f"{100 * share:+.1f}"
    return f"{'0.0' if said in ('+0.0', '-0.0') else said} points"


@dataclass(frozen=True)
class Explained:
    """One target over the rows of a unit.

    Attributes:
        model: the model.
        matrix: (n, f) float32 feature values.
        probability: (n,).
        points: (n, f).
        teams: (n,) points per team.
    """

    model: TargetModel
    matrix: Array
    probability: Array
    points: Array
    teams: Mapping[str, Array]

    @property
    def base(self) -> float:
        """Probability before anything is known of the row."""
        return self.model.base_probability

    def drivers(self, row: int) -> list[dict[str, Any]]:
        """What drives the row's risk, by team: the largest few named, the rest of each team as one entry."""
        risk, values = self.points[row].tolist(), self.matrix[row].tolist()
        features, usual = self.model.features.features, self.model.usual_words
        left = {team: float(self.teams[team][row]) for team in TEAMS}
        taken, rest = dict.fromkeys(TEAMS, 0), dict.fromkeys(TEAMS, 0)
        out: list[dict[str, Any]] = []
        for i in np.argsort(-np.abs(self.points[row]), kind="stable").tolist():
            gain, f = risk[i], features[i]
            if gain == 0.0:
                break
            if taken[f.team] == TOP or abs(gain) < LEAST:
                rest[f.team] += 1
                continue
            taken[f.team] += 1
            left[f.team] -= gain
            value = values[i]
            words = f.say(value)
            same = usual[i] is None or words == f"{f.text} {usual[i]}"
            aside = "" if same else f", usual here is {usual[i]}"
            out.append(
                {
                    "feature": f.name,
                    "team": f.team,
                    "value": None if value != value else value,
                    "points": gain,
                    "lever": f.lever,
                    "text": f"{words}{aside}: {_points(gain)}",
                }
            )
        for team, count in rest.items():
            if count:
                gain = left[team]
                text = f"{count} smaller {team} driver{'s' if count > 1 else ''}: {_points(gain)}"
                out.append(
                    {"feature": "other", "team": team, "value": None, "points": gain, "lever": False, "text": text}
                )
        return out

    def risk(self, row: int) -> dict[str, Any]:
        """The row's answer."""
        return {
            "probability": float(self.probability[row]),
            "base": self.base,
            "base_rate": self.model.base_rate,
            "teams": {team: float(self.teams[team][row]) for team in TEAMS},
            "drivers": self.drivers(row),
        }


def explain_rows(bundle: Bundle, rows: Rows) -> Iterator[Explained]:
    """Score and explain every target of a bundle for all rows of its unit."""
    whole: dict[str, Array] = {}
    for target, model in bundle.targets.items():
        unit = TARGETS[target].unit
        if unit not in whole:
            whole[unit] = values(rows, bundle.columns(unit))
        matrix = bundle.cut(target, whole[unit])
        probability, risk = model.explain(matrix)
        yield Explained(model, matrix, probability, risk, by_team(risk, model.teams))


def answer(bundle: Bundle | None, snapshot: Snapshot | None, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Answers for validated requests, in order.

    Args:
        bundle: the models; None: base rates are answered.
        snapshot: the shop's history; None: base rates are answered, as a model without history would be wrong.
        requests: each `{"order": {...}, "parcel": {...}, "lines": [...], "listings": [...]}` in the columns of the
            tables; times as ISO strings with a zone or as datetimes. Absent columns and unknown codes are allowed.

    Returns:
        Per request the body of `/v1/risk`: parcel_id, bundle, as_of, degraded, missing, warnings, risks, returns.
    """
    if bundle is None or snapshot is None:
        lacking = " and no ".join(n for n, x in (("model", bundle), ("snapshot", snapshot)) if x is None)
        return [_base_rates(bundle, snapshot, r, f"no {lacking} is loaded") for r in requests]
    if not bundle.fits(snapshot.settings):
        why = "the snapshot was made with other settings (zone, windows, codes or extra columns) than the model"
        return [_base_rates(bundle, snapshot, r, why) for r in requests]
    # A product described in one request must not be seen by the others: those are joined on their own.
    own = [i for i, r in enumerate(requests) if r.get("listings")]
    shared = [i for i, r in enumerate(requests) if not r.get("listings")]
    out: list[dict[str, Any]] = [{}] * len(requests)
    for group in ([shared] if shared else []) + [[i] for i in own]:
        for i, body in zip(group, _answer_together(bundle, snapshot, [requests[i] for i in group]), strict=True):
            out[i] = body
    return out


def _answer_together(bundle: Bundle, snapshot: Snapshot, requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    tables = _tables(requests, snapshot)
    rows = Rows(tables, snapshot)
    by_target = {e.model.target: e for e in explain_rows(bundle, rows)}
    parcel_targets = [n for n in by_target if TARGETS[n].unit == "parcel"]
    as_of = f"{snapshot.as_of}Z"
    line = 0
    for i, request in enumerate(requests):
        lines = request.get("lines") or ()
        explained = by_target.get("returned")
        returns = [
            {"line_id": given.get("line_id"), **explained.risk(line + k)}
            for k, given in enumerate(lines)
            if explained is not None
        ]
        yield {
            "parcel_id": request.get("parcel", {}).get("parcel_id"),
            "bundle": bundle.name,
            "as_of": as_of,
            "degraded": False,
            "missing": missing(bundle, request),
            "warnings": _warnings(snapshot, request, rows.parcels.decided_at[i]) + _unlisted(rows, request, line),
            "risks": {name: by_target[name].risk(i) for name in parcel_targets},
            "returns": returns,
        }
        line += len(lines)


def _unlisted(rows: Rows, request: Request, first: int) -> list[str]:
    """Products of a request whose listing neither the snapshot nor the request knows."""
    if not rows.snapshot.listings.n and not request.get("listings"):
        return []  # a shop without listings
    listed = rows.listed[first:]
    return [
        f"order_lines.sku: no listing of {given.get('sku')!r} is known; give it in `listings`, or what is known of all "
        "products is used"
        for given, known in zip(request.get("lines") or (), listed, strict=False)
        if not known
    ]


def missing(bundle: Bundle, request: Request) -> list[str]:
    """Columns the models read that a request did not give, as `table.column`.

    Listings count as given where the request has none: they are the snapshot's to know.
    """
    out = []
    order, parcel, lines = request.get("order", {}), request.get("parcel", {}), request.get("lines") or ()
    for name in bundle.inputs:
        table, column = name.split(".", 1)
        if table == "orders":
            absent = order.get(column) is None
        elif table == "parcels":
            absent = parcel.get(column) is None
        elif table == "order_lines":
            absent = all(x.get(column) is None for x in lines)
        else:
            continue
        if absent:
            out.append(name)
    return out


def _warnings(snapshot: Snapshot, request: Request, decided: np.datetime64) -> list[str]:
    out = [
        f"{table}.{column}: {value!r} has not been seen before {str(snapshot.as_of)[:10]}; "
        "what is known of the wider group is used"
        for table, column, value in unknown_codes(snapshot, request)
    ]
    age = (decided - snapshot.as_of) / DAY
    if age > STALE_DAYS:
        out.append(f"the snapshot is {age:.0f} days older than the parcel: make a new one with `doorstep snapshot`")
    return out


def unknown_codes(snapshot: Snapshot, request: Request) -> list[tuple[str, str, str]]:
    """Codes in a request that the shop's history has not seen: (table, column, value)."""
    out = []
    for part, table in PARTS.items():
        given = request.get(part) or {}
        for row in (given,) if isinstance(given, Mapping) else given:
            for column, value in row.items():
                known = snapshot.codes.get(f"{table}.{column}")
                if known is None or value is None:
                    continue
                code = _text(value, snapshot.settings.codes.get(column, {}))
                if code is not None and code not in known:
                    out.append((table, column, str(value)))
    return list(dict.fromkeys(out))


def _tables(requests: Sequence[Request], snapshot: Snapshot) -> dict[str, dict[str, Array]]:
    """Requests as the arrays of the four tables. Requests are told apart by their place, whatever ids they carry."""
    place = np.array([str(i) for i in range(len(requests))], dtype=object)
    lines = [(i, x) for i, r in enumerate(requests) for x in r.get("lines") or ()]
    owner = place[[i for i, _ in lines]] if lines else np.empty(0, dtype=object)
    out = {
        "orders": _arrays("orders", [r.get("order", {}) for r in requests], snapshot),
        "parcels": _arrays("parcels", [r.get("parcel", {}) for r in requests], snapshot),
        "order_lines": _arrays("order_lines", [x for _, x in lines], snapshot),
    }
    out["orders"]["order_id"] = out["parcels"]["order_id"] = out["parcels"]["parcel_id"] = place
    out["order_lines"] |= {
        "order_id": owner,
        "parcel_id": owner,
        "line_id": np.array([str(i) for i in range(len(lines))], dtype=object),
    }
    listings = [x for r in requests for x in r.get("listings") or ()]
    if listings:
        out["listings"] = _arrays("listings", listings, snapshot)
    return out


@lru_cache(maxsize=64)
def _kinds(table: str, extras: tuple[Extra, ...]) -> dict[str, str]:
    """Kind of each column a request may give for a table."""
    kinds = {c.name: c.kind for c in TABLES[table].columns}
    for extra in extras:
        if extra.table == table:
            kinds[extra.column] = extra.kind
            if extra.known_at is not None:
                kinds.setdefault(extra.known_at, "time")
    return kinds


def _arrays(table: str, given: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> dict[str, Array]:
    """Rows as one array per column that any of them has."""
    kinds = _kinds(table, snapshot.settings.extra)
    out: dict[str, Array] = {}
    for name in {c for row in given for c in row}:
        kind = kinds.get(name)
        if kind is None:
            continue
        cells = [row.get(name) for row in given]
        if kind in ("id", "code"):
            codes = snapshot.settings.codes.get(name, {}) if kind == "code" else {}
            column: list[Any] = [None if v is None else _text(v, codes) for v in cells]
        else:
            read = _time if kind == "time" else float
            column = [MISSING[kind] if v is None else read(v) for v in cells]
        out[name] = np.array(column, dtype=DTYPE[kind])
    return out


def _text(value: Any, codes: Mapping[str, str]) -> str | None:
    """An id or code as a dataset's reader takes it: trimmed, mapped, and none where nothing is left."""
    text = str(value).strip()
    return codes.get(text, text) or None


def _time(value: Any) -> np.datetime64:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def base_rates(bundle: Bundle | None, snapshot: Snapshot | None) -> tuple[dict[str, float], str]:
    """Base rates for a degraded answer, and their source: the model's data, the shop's history, or published ones."""
    if bundle is not None:
        return {n: m.base_rate for n, m in bundle.targets.items()}, "the loaded model's training data"
    if snapshot is not None:
        whole = snapshot.history.counts["all"]
        fields = snapshot.history.entities["all"].fields
        total = dict(zip(fields, whole.sums[-1].tolist(), strict=True))
        known = {n: total[f"y:{n}"] / total[f"n:{n}"] for n in TARGETS if total[f"n:{n}"] > 0}
        return known, "this shop's own mature history"
    return dict(GENERIC_BASE_RATES), "middles of published ranges, not this shop's"


def _base_rates(bundle: Bundle | None, snapshot: Snapshot | None, request: Request, why: str) -> dict[str, Any]:
    rates, source = base_rates(bundle, snapshot)

    def risk(target: str) -> dict[str, Any]:
        p = float(rates[target])
        return {"probability": p, "base": p, "base_rate": p, "teams": dict.fromkeys(TEAMS, 0.0), "drivers": []}

    lines = request.get("lines") or ()
    return {
        "parcel_id": request.get("parcel", {}).get("parcel_id"),
        "bundle": None if bundle is None else bundle.name,
        "as_of": None if snapshot is None else f"{snapshot.as_of}Z",
        "degraded": True,
        "missing": [],
        "warnings": [f"{why}: these are base rates from {source}, the same for every parcel"],
        "risks": {n: risk(n) for n in rates if TARGETS[n].unit == "parcel"},
        "returns": [{"line_id": x.get("line_id"), **risk("returned")} for x in lines] if "returned" in rates else [],
    }


def score(bundle: Bundle, rows: Rows, decided_from: np.datetime64 | None = None) -> Iterator[pd.DataFrame]:
    """Score and explain all rows, or those decided from a moment on, a frame per target.

    Columns: unit_id, unit, order_id, sku (of lines), target, decided_at, probability, base, `team_<name>` points, and
    drivers, the texts of the largest three, largest first.
    """
    for explained in explain_rows(bundle, rows):
        name, unit = explained.model.target, explained.model.features.unit
        ids = rows.parcel_id if unit == "parcel" else rows.line_id
        decided = (rows.parcels if unit == "parcel" else rows.lines).decided_at
        keep = ~absent(ids)
        if decided_from is not None:
            keep &= decided >= decided_from
        keep = np.flatnonzero(keep)
        yield pd.DataFrame(
            {
                "unit_id": ids[keep],
                "unit": unit,
                "order_id": (rows.order_id if unit == "parcel" else rows.lines["order_lines", "order_id"])[keep],
                "sku": rows.lines["order_lines", "sku"][keep] if unit == "line" else None,
                "target": name,
                "decided_at": pd.DatetimeIndex(decided[keep]).tz_localize("UTC"),
                "probability": explained.probability[keep],
                "base": explained.base,
                **{f"team_{team}": explained.teams[team][keep] for team in TEAMS},
                "drivers": _top_texts(explained, keep),
            }
        )


def _top_texts(explained: Explained, keep: Array, most: int = 3) -> list[str]:
    """The largest drivers of each row in words, joined by semicolons."""
    risk = explained.points[keep]
    order = np.argsort(-np.abs(risk), axis=1, kind="stable")[:, :most]
    features = explained.model.features.features
    matrix = explained.matrix[keep]
    return [
        "; ".join(f"{features[i].say(float(matrix[r, i]))}: {_points(risk[r, i])}" for i in top if risk[r, i])
        for r, top in enumerate(order.tolist())
    ]
