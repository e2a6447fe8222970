"""From requests, or a whole dataset, to answers: risks, why, and whose lever it is. The one path that is served.

`decide` is what `POST /v1/risk` says; `score` is the same for a dataset, as a frame. Both join, compute and explain
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
from features.settings import Extra, Settings
from features.snapshot import Snapshot
from features.vocabulary import GENERIC_BASE_RATES, TARGETS, TEAMS
from serving.actions import weigh
from serving.advice import ASKING, NO_ADVICE, Advisor, Asking, Capacity
from serving.bundle import REASON, Bundle, TargetModel
from serving.explain import by_team
from serving.policy import Policy
from serving.reasons import ReasonModel
from serving.windows import NAME as WINDOW
from serving.windows import PARTS as TIMES
from serving.windows import Windows, windows

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
    """One probability of each row of a unit, a target's or a reason's share, and what drives it.

    Attributes:
        model: the model.
        matrix: (n, f) float32 feature values.
        probability: (n,).
        base: (n,) probability before anything is known of the row.
        points: (n, f).
        teams: (n,) points per team.
    """

    model: TargetModel | ReasonModel
    matrix: Array
    probability: Array
    base: Array
    points: Array
    teams: Mapping[str, Array]

    def drivers(self, row: int) -> list[dict[str, Any]]:
        """What drives the row's risk, by team: the largest few named, the rest of each team as one entry."""
        risk, values = self.points[row].tolist(), (self.matrix[row] + 0.0).tolist()  # no -0.0
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
                    "usual": None if usual[i] is None else self.model.usual[i],
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
                    {
                        "feature": "other",
                        "team": team,
                        "value": None,
                        "usual": None,
                        "points": gain,
                        "lever": False,
                        "text": text,
                    }
                )
        return out

    def made_of(self, row: int) -> dict[str, Any]:
        """What the row's probability is made of: base, teams and drivers."""
        return {
            "base": float(self.base[row]),
            "teams": {team: float(self.teams[team][row]) for team in TEAMS},
            "drivers": self.drivers(row),
        }


@dataclass(frozen=True)
class Reasons:
    """Why lines would come back.

    Attributes:
        model: the model.
        shares: (n, K), each row sums to 1.
        which: (n,) the likeliest reason.
        likeliest: its share, and what drives it.
    """

    model: ReasonModel
    shares: Array
    which: Array
    likeliest: Explained

    def of(self, row: int) -> dict[str, Any]:
        """The row's answer."""
        k = int(self.which[row])
        return {
            "reasons": dict(zip(self.model.reasons, self.shares[row].tolist(), strict=True)),
            "reason": {
                "reason": self.model.reasons[k],
                "owner": self.model.owners[k],
                "share": float(self.likeliest.probability[row]),
                **self.likeliest.made_of(row),
            },
        }


class Scoring:
    """What a bundle says of some rows; the features of a unit are computed once, when they are first needed."""

    def __init__(self, bundle: Bundle, rows: Rows) -> None:
        self.bundle, self.rows = bundle, rows
        self._whole: dict[str, Array] = {}

    def matrix(self, unit: str) -> Array:
        """The values of all `bundle.columns` of a unit."""
        if unit not in self._whole:
            self._whole[unit] = values(self.rows, self.bundle.columns(unit))
        return self._whole[unit]

    def _matrix(self, target: str, unit: str) -> Array:
        return self.bundle.cut(target, self.matrix(unit))

    def targets(self) -> Iterator[tuple[str, Explained]]:
        """Every target, scored and explained for all rows of its unit."""
        for target, model in self.bundle.targets.items():
            matrix = self._matrix(target, TARGETS[target].unit)
            probability, risk = model.explain(matrix)
            base = np.full(len(matrix), model.base_probability)
            yield target, Explained(model, matrix, probability, base, risk, by_team(risk, model.features.teams))

    def reasons(self) -> Reasons | None:
        """Why each line would come back; None where the bundle has no such model."""
        model = self.bundle.reasons
        if model is None:
            return None
        matrix = self._matrix(REASON, "line")
        shares, which, base, risk = model.explain(matrix)
        share = np.take_along_axis(shares, which[:, None], axis=1)[:, 0]
        return Reasons(
            model, shares, which, Explained(model, matrix, share, base, risk, by_team(risk, model.features.teams))
        )

    def windows(self, probability: Mapping[str, Array] | None = None) -> Windows | None:
        """When each parcel is at the door, in agreement with the risks; None where the bundle has no such model.

        Args:
            probability: (n,) per target of parcels, where they are known already.
        """
        model = self.bundle.window
        if model is None:
            return None
        if probability is None:
            read = {n: m for n, m in self.bundle.targets.items() if n in ("late", "undelivered")}
            probability = {n: m.probability(self._matrix(n, "parcel")) for n, m in read.items()}
        late, undelivered = probability.get("late"), probability.get("undelivered")
        return windows(model, self.rows.parcels, self._matrix(WINDOW, "parcel"), late, undelivered)


def answer(bundle: Bundle | None, snapshot: Snapshot | None, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Answers for validated requests, in order, without a policy: see `decide`."""
    return decide(bundle, snapshot, None, requests)[0]


def decide(
    bundle: Bundle | None,
    snapshot: Snapshot | None,
    policy: Policy | None,
    requests: Sequence[Request],
    capacity: Capacity | None = None,
    asking: Asking = ASKING,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Answers for validated requests, in order, and what was decided about each parcel.

    Args:
        bundle: the models; None: base rates are answered.
        snapshot: the shop's history; None: base rates are answered, as a model without history would be wrong.
        policy: what failures and actions cost; None: nothing is decided.
        requests: each `{"order": {...}, "parcel": {...}, "lines": [...], "listings": [...]}` in the columns of the
            tables; times as ISO strings with a zone or as datetimes. Absent columns and unknown codes are allowed.
        capacity: counts what is recommended, where the policy has capacities; None: they are not kept.
        asking: how it is asked for.

    Returns:
        Per request the body of `/v1/risk`: parcel_id, bundle, as_of, degraded, missing, warnings, risks, returns,
        window, and what `serving.advice` adds; and per request the decision to record, none without a policy.
    """
    why = _no_model(bundle, snapshot)
    # A product described in one request must not be seen by the others: those are joined on their own.
    own = [i for i, r in enumerate(requests) if r.get("listings")]
    shared = [i for i, r in enumerate(requests) if not r.get("listings")]
    bodies: list[dict[str, Any]] = [{}] * len(requests)
    advisors: list[tuple[Advisor, int]] = []
    places: list[int] = []
    for group in ([shared] if shared else []) + [[i] for i in own]:
        asked = [requests[i] for i in group]
        if why or bundle is None or snapshot is None:
            said = [_base_rates(bundle, snapshot, r, why) for r in asked]
            advisor = None if policy is None else Advisor(policy, _unscored(bundle, snapshot, asked), None)
        else:
            said, advisor = _answer_together(bundle, snapshot, policy, asked)
        for at, (i, body) in enumerate(zip(group, said, strict=True)):
            bodies[i] = body | NO_ADVICE
            if advisor is not None:
                advisors.append((advisor, at))
                places.append(i)
    # In the order of the requests: capacity goes to who came first, together or one by one.
    decisions = {}
    for i, (advisor, at) in sorted(zip(places, advisors, strict=True), key=lambda x: x[0]):
        decisions[i] = advisor.advise(at, requests[i], bodies[i], capacity, asking)
    return bodies, [decisions[i] for i in sorted(decisions)]


def _no_model(bundle: Bundle | None, snapshot: Snapshot | None) -> str:
    """Why base rates are answered; empty if the models can answer."""
    if bundle is None or snapshot is None:
        lacking = " and no ".join(n for n, x in (("model", bundle), ("snapshot", snapshot)) if x is None)
        return f"no {lacking} is loaded"
    if not bundle.fits(snapshot.settings):
        return "the snapshot was made with other settings (zone, windows, codes or extra columns) than the model"
    return ""


def _unscored(bundle: Bundle | None, snapshot: Snapshot | None, requests: Sequence[Request]) -> Rows:
    """The rows of some requests, where nothing needs history."""
    if snapshot is None:
        settings = Settings() if bundle is None else bundle.settings
        snapshot = Snapshot.empty(settings, np.datetime64("2200-01-01", "us"))
    return Rows(_tables(requests, snapshot), snapshot)


def _risk(explained: Explained, base_rate: float, row: int) -> dict[str, Any]:
    """A row's answer about a target."""
    return {"probability": float(explained.probability[row]), "base_rate": base_rate, **explained.made_of(row)}


def _answer_together(
    bundle: Bundle, snapshot: Snapshot, policy: Policy | None, requests: Sequence[Request]
) -> tuple[list[dict[str, Any]], Advisor | None]:
    """What the models say of some requests, and who can say what to do about them."""
    tables = _tables(requests, snapshot)
    rows = Rows(tables, snapshot)
    scoring = Scoring(bundle, rows)
    by_target, reasons = dict(scoring.targets()), scoring.reasons()
    parcel_targets = [n for n in by_target if TARGETS[n].unit == "parcel"]
    window = scoring.windows({n: by_target[n].probability for n in parcel_targets})
    rate = {name: model.base_rate for name, model in bundle.targets.items()}
    as_of = f"{snapshot.as_of}Z"
    bodies = []
    line = 0
    for i, request in enumerate(requests):
        lines = request.get("lines") or ()
        returned, undelivered = by_target.get("returned"), by_target.get("undelivered")
        returns: list[dict[str, Any]] = []
        for at, given in enumerate(lines, start=line):
            if returned is None:
                break
            entry = {"line_id": given.get("line_id"), **_risk(returned, rate["returned"], at)}
            if undelivered is not None:
                lost = float(undelivered.probability[i])
                entry["not_kept"] = lost + (1 - lost) * entry["probability"]
            returns.append(entry | (reasons.of(at) if reasons is not None else {}))
        body = {
            "parcel_id": request.get("parcel", {}).get("parcel_id"),
            "bundle": bundle.name,
            "as_of": as_of,
            "degraded": False,
            "missing": missing(bundle, request),
            "warnings": _warnings(snapshot, request, rows.parcels.decided_at[i]) + _unlisted(rows, request, line),
            "risks": {name: _risk(by_target[name], rate[name], i) for name in parcel_targets},
            "returns": returns,
            "window": None if window is None else window.answer(i),
        }
        bodies.append(body)
        line += len(lines)
    if policy is None:
        return bodies, None
    probability = {name: explained.probability for name, explained in by_target.items()}
    return bodies, Advisor(policy, rows, weigh(bundle, policy, rows, probability, scoring.matrix))


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
    reasons = (
        {}
        if bundle is None or bundle.reasons is None
        else {"reasons": dict(zip(bundle.reasons.reasons, bundle.reasons.mix, strict=True))}
    )
    return {
        "parcel_id": request.get("parcel", {}).get("parcel_id"),
        "bundle": None if bundle is None else bundle.name,
        "as_of": None if snapshot is None else f"{snapshot.as_of}Z",
        "degraded": True,
        "missing": [],
        "warnings": [f"{why}: these are base rates from {source}, the same for every parcel"],
        "risks": {n: risk(n) for n in rates if TARGETS[n].unit == "parcel"},
        "returns": [{"line_id": x.get("line_id"), **risk("returned"), **reasons} for x in lines]
        if "returned" in rates
        else [],
        "window": None,
    }


def score(bundle: Bundle, rows: Rows, decided_from: np.datetime64 | None = None) -> Iterator[pd.DataFrame]:
    """Score and explain all rows, or those decided from a moment on, a frame per target.

    Columns: unit_id, unit, order_id, sku (of lines), target, decided_at, probability, base, `team_<name>` points, and
    drivers, the texts of the largest three, largest first. Rows of `returned` have further `reason_<name>`, the shares
    of the reasons if the line comes back, and `reason_drivers`, what drives the likeliest of them. Rows
    of parcels have `window_from`, `window_likely` and `window_to`, the same for each target, if the bundle knows them.
    """
    scoring = Scoring(bundle, rows)
    window = scoring.windows()
    for name, explained in scoring.targets():
        unit = TARGETS[name].unit
        ids = rows.parcel_id if unit == "parcel" else rows.line_id
        decided = (rows.parcels if unit == "parcel" else rows.lines).decided_at
        keep = ~absent(ids)
        if decided_from is not None:
            keep &= decided >= decided_from
        keep = np.flatnonzero(keep)
        why: dict[str, Any] = {}
        reasons = scoring.reasons() if name == "returned" else None
        if reasons is not None:
            shares = reasons.shares[keep].T
            why = {f"reason_{r}": share for r, share in zip(reasons.model.reasons, shares, strict=True)}
            why["reason_drivers"] = _top_texts(reasons.likeliest, keep)
        yield pd.DataFrame(
            {
                "unit_id": ids[keep],
                "unit": unit,
                "order_id": (rows.order_id if unit == "parcel" else rows.lines["order_lines", "order_id"])[keep],
                "sku": rows.lines["order_lines", "sku"][keep] if unit == "line" else None,
                "target": name,
                "decided_at": pd.DatetimeIndex(decided[keep]).tz_localize("UTC"),
                "probability": explained.probability[keep],
                "base": explained.base[keep],
                **{f"team_{team}": explained.teams[team][keep] for team in TEAMS},
                "drivers": _top_texts(explained, keep),
                **why,
                **(_window(window, keep) if window is not None and unit == "parcel" else {}),
            }
        )


def _window(window: Windows, keep: Array) -> dict[str, pd.DatetimeIndex]:
    """The windows of some rows, a column per time."""
    return {
        f"window_{part}": pd.DatetimeIndex(window.times[keep, i]).tz_localize("UTC") for i, part in enumerate(TIMES)
    }


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
