"""Diagnosis of a dataset: every table of `training.diagnosis.artefact`, and a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array, local
from features.dataset import Dataset
from features.snapshot import Facts, on_clock
from serving.bundle import Bundle
from serving.diagnosis import FORMAT, TABLES, ratio_text, shop_day
from training.check import require
from training.diagnosis.corridors import Corridors, cases, corridors
from training.diagnosis.excess import BETTER, TOLD, by_legs, by_model, by_owner
from training.diagnosis.legs import LEGS, legs
from training.diagnosis.listings import changes, told
from training.diagnosis.packaging import packaging
from training.diagnosis.parcels import TARGETS, Parcels, alone, judged, parcels_of
from training.diagnosis.parcels import table as parcel_table
from training.diagnosis.products import products, set_aside, traits
from training.diagnosis.reality import reality
from training.diagnosis.spikes import spikes
from training.diagnosis.standards import Standard
from training.diagnosis.standards import judged as met
from training.diagnosis.warehouse import corridor_weeks, measures, readiness
from training.labels import labels, never_told
from training.pipeline import Matrices, matrices_of, moment_in

CONFIDENCE = 0.9
"""Of every interval."""

WORDS = {
    "late": "late",
    "failed_attempt": "first attempt failed",
    "damaged": "damaged",
    "undelivered": "not delivered",
}
"""Outcomes in reasons that a page shows."""

LEAST = 30
"""Failures, of parcels that can be judged and have a carrier, from which corridors are compared."""


COMPARED: Mapping[str, tuple[str, ...]] = {
    "goods": ("parcels.weight_g", "listings.weight_g", "listings.category", "listings.fragility"),
    "package": ("parcels.package_type", "parcels.protection_level", "parcels.void_fill_ratio"),
    "label": ("parcels.label_grade",),
    "papers": ("parcels.documents_complete",),
    "pickup": ("parcels.pickup_cutoff_at",),
    "promise": ("orders.promised_to",),
    "payment": ("orders.payment_method",),
    "address": ("parcels.address_quality",),
    "distance": ("parcels.distance_km",),
}
"""What is taken out of a comparison of carriers -> the columns that tell it; where a shop has none, it is not."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        tables: by name, those of `training.diagnosis.artefact.TABLES` that have rows or could have.
        document: the summary, plain data: `diagnosis.json`.
    """

    tables: Mapping[str, pd.DataFrame]
    document: Mapping[str, Any]


def diagnose(
    dataset: Dataset,
    *,
    as_of: pd.Timestamp | str | None = None,
    since: str | None = None,
    bundle: Bundle | None = None,
    standards: Mapping[str, Standard] | None = None,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda _: None,
) -> Diagnosis:
    """Look for where it broke, over everything old enough to judge.

    Args:
        dataset: the shop's tables.
        as_of: only facts known before are used; default when the extract was taken.
        since: only what was decided from then on.
        bundle: whose predictions are held against what came, of what it had not seen.
        standards: the shop's own, from `training.diagnosis.standards.read`.
        seed: of everything random.
        progress: told what is being done.

    Raises:
        features.settings.DatasetError: the dataset is broken, see `doorstep check`.
        ValueError: dates that leave nothing.
    """
    progress("checking the dataset")
    require(dataset)
    progress("joining tables and counting history")
    facts = Facts.of(dataset, moment_in(as_of, dataset.settings))
    end = facts.snapshot.as_of
    start = None if since is None else on_clock(since, dataset.settings.timezone)
    if start is not None and not start < end:
        raise ValueError(
            f"since {start}Z with the data as of {end}Z: nothing was decided in between; give an earlier date"
        )
    units = {name: labels(facts, name) for name in (*TARGETS, "returned")}
    matrices = matrices_of(facts, units, progress)
    settings = dataset.settings
    document: dict[str, Any] = {
        "format": FORMAT,
        "dataset": settings.name,
        "fingerprint": dataset.fingerprint,
        "simulated": settings.simulated,
        "as_of": f"{end}Z",
        "since": None if start is None else f"{start}Z",
        "currency": settings.currency,
        "timezone": settings.timezone,
        "confidence": CONFIDENCE,
    }
    document["unknown"] = [name for name, columns in COMPARED.items() if not _given(dataset, columns)]
    made: dict[str, pd.DataFrame] = {}
    why: dict[str, str] = {}
    parcels = parcels_of(facts, units["late"], end, start)
    untold = {target: never_told(facts, target) for target in units}
    failed = {
        target: np.full(len(parcels), np.nan) if untold[target] else judged(parcels, units[target], end)
        for target in TARGETS
    }
    rng = np.random.default_rng(seed)
    late = legs(facts, units["late"], end, start)
    late = late.iloc[:0] if untold["late"] else late
    document["corridors"], expected, shares = _corridors(
        parcels, failed, untold, late, matrices, standards or {}, seed, progress, made, why
    )
    measured, goods = measures(facts, parcels, end), alone(facts, parcels)
    made["parcels"] = parcel_table(facts, parcels, failed, expected, late, measured, goods)
    why["parcels"] = why["corridor_weeks"] = "no parcel is old enough to judge"
    made["corridor_weeks"] = corridor_weeks(made["parcels"], TARGETS)
    counts = late["leg"].value_counts()
    document["late"] = {
        "parcels": len(late),
        "why": "" if len(late) else _nothing_late(untold["late"], failed["late"]),
        "legs": {leg: int(counts.get(leg, 0)) for leg in LEGS},
        "whose": {w: int((late["whose"] == w).sum()) for w in ("ours", "carrier", "cannot tell")},
    }
    lines = set_aside(facts, units["returned"], end, start)
    lines = lines.iloc[:0] if untold["returned"] else lines
    document["products"] = {"why": untold["returned"] or "no order line is old enough to judge"}
    for name in ("lines", "products", "peers", "drivers"):
        why[name] = document["products"]["why"]
    if len(lines):
        progress(f"what {len(lines):,} lines of comparable products have come back for")
        made["products"], lines["expected"] = products(lines, traits(lines, matrices), seed=seed, confidence=CONFIDENCE)
        compared = "ratio" in made["products"]
        if compared:
            found = told(facts, made["products"], lines, end)
            made["products"], made["peers"], made["drivers"] = found.products, found.peers, found.drivers
            why["peers"] = "no product has comparable ones of another brand that sell enough"
            why["drivers"] = "no product lacks what other listings of its category have"
        else:
            why["peers"] = why["drivers"] = made["products"]["why_not"].iloc[0]
        document["products"] = {
            "products": len(made["products"]),
            "returns": int(made["products"]["returns"].sum()),
            "aside": int(made["products"]["aside"].sum()),
            "named": int(made["products"]["named"].sum()),
            "why": "" if compared else made["products"]["why_not"].iloc[0],
        }
    else:
        lines["expected"] = np.empty(0)
    made["lines"] = lines.drop(columns="row")
    progress("warehouses, packaging, departures from forecasts")
    made["changes"], why["changes"] = changes(facts, lines, end, CONFIDENCE, rng)
    made["readiness"], made["readiness_weeks"], why["readiness"] = readiness(parcels, measured, CONFIDENCE)
    why["readiness_weeks"] = why["readiness"]
    values = _values(matrices, parcels)
    filled = values.get("fill_share", np.full(len(parcels), np.nan))
    decided = parcels.decided_at
    years = max((end - decided.min()) / (365 * DAY), 1 / 365) if len(decided) else 1.0
    money = lines.groupby("sku")["value"].mean() / years
    made["packaging"], why["packaging"] = packaging(
        facts, parcels, goods, failed["damaged"], filled, money, CONFIDENCE, rng
    )
    why["packaging"] = why["packaging"] and (untold["damaged"] or why["packaging"])
    made["excess"] = _excess(late, lines, failed, values, shares, rng)
    why["excess"] = "nothing has failed that can be judged"
    made["spikes"] = _spikes(parcels, failed, expected, measured, made["readiness_weeks"], lines, settings.timezone)
    why["spikes"] = "nothing departed from its forecast, or nothing has a past of four weeks"
    known = {target: own for target, own in units.items() if not untold[target]}
    made["reality"], why["reality"] = reality(bundle, known, matrices, settings.timezone, end, start, CONFIDENCE)
    document["tables"] = {
        name: {
            "rows": len(made.get(name, ())),
            "why": "" if len(made.get(name, ())) else why[name],
        }
        for name in TABLES
    }
    return Diagnosis(made, document)


def _corridors(
    parcels: Parcels,
    failed: Mapping[str, Array],
    untold: Mapping[str, str],
    late: pd.DataFrame,
    matrices: Matrices,
    standards: Mapping[str, Standard],
    seed: int,
    say: Callable[[str], Any],
    made: dict[str, pd.DataFrame],
    why: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
    """The corridors and carriers of every target: a summary, what others would have had with each parcel, and draws of
    the share of failures that is beyond that."""
    found: list[Corridors] = []
    document: dict[str, Any] = {}
    expected = {target: np.full(len(parcels), np.nan) for target in TARGETS}
    shares = {target: np.full(1, np.nan) for target in TARGETS}
    for target in TARGETS:
        if not len(parcels):
            document[target] = {"parcels": 0, "failures": 0, "why": untold[target] or "there is no parcel"}
            continue
        own, words, at = cases(target, parcels, failed[target], matrices)
        failures = int(own.label.sum())
        said: dict[str, Any] = {"parcels": len(own), "failures": failures, "why": ""}
        if not (parcels.places["carrier"] != "").any():
            said["why"] = "no parcel says which carrier took it"
        elif untold[target]:
            said["why"] = untold[target]
        elif not len(own):
            said["why"] = "no parcel with a carrier can be judged"
        elif len(words["carrier"]) < 2:
            said["why"] = "one carrier only: there is nobody to compare it with"
        elif min(failures, len(own) - failures) < LEAST:
            said["why"] = f"{failures} of {len(own):,} parcels failed: at least {LEAST} of either are needed"
        else:
            found.append(corridors(own, words, seed=seed, confidence=CONFIDENCE, say=say))
            expected[target][at], shares[target] = found[-1].expected, found[-1].share
            counts = found[-1].table["verdict"].value_counts().sort_index()
            said["verdicts"] = {str(k): int(v) for k, v in counts.items()}
        document[target] = said
    if found:
        made["corridors"] = met(pd.concat([f.table for f in found], ignore_index=True), standards)
        whole = pd.concat([f.carriers for f in found], ignore_index=True)
        made["carriers"] = met(_split(whole, parcels, late), standards)
    said_of = {target: d["why"] for target, d in document.items() if d["why"]}
    named = [f"{WORDS[target]}: {words}" for target, words in said_of.items()]
    why["corridors"] = why["carriers"] = "; ".join(named if len(set(said_of.values())) > 1 else set(said_of.values()))
    return document, expected, shares


def _given(dataset: Dataset, columns: tuple[str, ...]) -> bool:
    """Whether any of some columns, as table.column, has a value."""
    for name in columns:
        table, _, column = name.partition(".")
        found = dataset.tables.get(table)
        if found is not None and column in found and found[column].notna().any():
            return True
    return False


def _nothing_late(untold: str, late: Array) -> str:
    """Why no late parcel is found."""
    if untold:
        return untold
    judged = int((~np.isnan(late)).sum())
    return f"none of {judged:,} parcels was late" if judged else "no promise is old enough to judge"


def _split(carriers: pd.DataFrame, parcels: Parcels, late: pd.DataFrame) -> pd.DataFrame:
    """Carriers with their late parcels split by whose they were: ours, theirs, untold."""
    at = pd.Index(parcels.parcel_id).get_indexer(pd.Index(late["parcel_id"]))
    of = pd.DataFrame({name: parcels.places[name][at] for name in ("carrier", "service")})
    of["whose"] = late["whose"].map({"ours": "ours", "carrier": "theirs", "cannot tell": "untold"})
    for name in ("ours", "theirs", "untold"):
        of[name] = of["whose"] == name
    counts = of.groupby(["carrier", "service"])[["ours", "theirs", "untold"]].sum().reset_index().assign(target="late")
    out = carriers.merge(counts, on=["target", "carrier", "service"], how="left")
    split = out["target"] == "late"
    out.loc[split, ["ours", "theirs", "untold"]] = out.loc[split, ["ours", "theirs", "untold"]].fillna(0)
    return out


def _values(matrices: Matrices, parcels: Parcels) -> dict[str, Array]:
    """The features of each parcel by name, (n,) each."""
    if not len(parcels):
        return {}
    features, matrix = matrices["parcel"]
    wanted = (*BETTER, "fill_share")
    return {f: matrix[parcels.row, i].astype(np.float64) for i, f in enumerate(features.names) if f in wanted}


def _excess(
    late: pd.DataFrame,
    lines: pd.DataFrame,
    failed: Mapping[str, Array],
    values: Mapping[str, Array],
    shares: Mapping[str, Array],
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Where the failures of every target came from."""
    parts = [by_legs(late, rng, CONFIDENCE)]
    for target in TOLD:
        known = ~np.isnan(failed[target])
        of = {name: v[known] for name, v in values.items()}
        parts.append(by_model(target, failed[target][known], of, shares[target], rng, CONFIDENCE))
    parts.append(by_owner(lines, rng, CONFIDENCE))
    some = [p for p in parts if len(p)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame()


def _spikes(
    parcels: Parcels,
    failed: Mapping[str, Array],
    expected: Mapping[str, Array],
    measured: Mapping[str, Array],
    weeks: pd.DataFrame,
    lines: pd.DataFrame,
    zone: str,
) -> pd.DataFrame:
    """Departures of corridors, warehouses, products and reasons from their forecasts."""
    day = local(parcels.decided_at, zone).astype("datetime64[D]")
    place, found = parcels.places, []
    corridor = place["carrier"] + "|" + place["region"]
    for target in TARGETS:
        known = ~np.isnan(failed[target]) & (place["carrier"] != "")
        if known.any():
            o, e = failed[target][known], expected[target][known]
            # Where nobody else goes, the shop's mean stands in: a series is held against its own past anyway.
            e = np.where(np.isnan(e), o.mean(), e)
            found.append(spikes("corridor", target, corridor[known], day[known], o, e))
    if len(weeks):
        rate = weeks.assign(rate=weeks["expected"] / weeks["parcels"]).set_index(["target", "node", "week"])["rate"]
        for name in ("missed_cutoff", "label_poor", "documents_missing"):
            known = ~np.isnan(measured[name]) & (place["node"] != "")
            if known.any():
                o = measured[name][known]
                keys = [np.full(len(o), name, dtype=object), place["node"][known], parcels.week[known]]
                e = rate.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy(float)
                e = np.where(np.isnan(e), o.mean(), e)
                found.append(spikes("node", name, place["node"][known], day[known], o, e))
    if len(lines):
        sold = local(lines["decided_at"].to_numpy(), zone).astype("datetime64[D]")
        due = lines["expected"].to_numpy(float)
        counted = lines["counted"].to_numpy(float)
        due = np.where(np.isnan(due), counted.mean(), due)
        found.append(spikes("sku", "returned", lines["sku"].to_numpy(object), sold, counted, due))
        back = lines["returned"].to_numpy(bool) & lines["reason"].notna().to_numpy()
        reasons = np.unique(lines.loc[back, "reason"].to_numpy(str)).astype(object)
        if len(reasons) and back.any():
            said = lines.loc[back, "reason"].to_numpy(object)
            one = said[:, None] == reasons[None, :]
            mean = np.broadcast_to(one.mean(axis=0), one.shape)
            key = np.broadcast_to(reasons, one.shape)
            days = np.repeat(sold[back], len(reasons))
            found.append(spikes("reason", "returned", key.ravel(), days, one.ravel().astype(float), mean.ravel()))
    some = [f for f in found if len(f)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame()


def _times(row: pd.Series) -> str:
    """How many times the expected, with the interval."""
    return f"{ratio_text(row['ratio'])} times [{ratio_text(row['low'])}, {ratio_text(row['high'])}]"


def text(found: Diagnosis, most: int = 5) -> str:
    """The diagnosis for the terminal: the worst corridors and products, and whose late parcels were."""
    d = found.document
    lines = [
        f"{d['dataset']}{', SIMULATED' if d['simulated'] else ''}, what was known on {shop_day(d, 'as_of', last=True)}"
    ]
    late = d["late"]
    if late["parcels"]:
        share = ", ".join(f"{100 * n / late['parcels']:.0f} % {w}" for w, n in late["whose"].items())
        lines += ["", f"Late parcels: {late['parcels']:,}, of these {share}"]
        lines += [f"  {leg}: {n:,}" for leg, n in late["legs"].items() if n]
    corridor = found.tables.get("corridors", pd.DataFrame())
    for target, said in d["corridors"].items():
        if said["why"]:
            lines += ["", f"{target}: carriers cannot be compared: {said['why']}"]
            continue
        verdicts = ", ".join(f"{n} {v}" for v, n in said["verdicts"].items())
        lines += ["", f"{target} by corridor: {verdicts}"]
        worse = corridor[(corridor["target"] == target) & (corridor["verdict"] == "worse")].head(most)
        for _, row in worse.iterrows():
            where = " ".join(x for x in (row["carrier"], row["service"], "to", row["region"]) if x)
            date = "" if pd.isna(row["since"]) else f", since {row['since']:%Y-%m-%d}"
            lines.append(
                f"  {where}: {row['observed']} of {row['parcels']:,}, expected {row['expected']:.1f}, "
                f"{_times(row)}{date}"
            )
    said = d["products"]
    if said["why"]:
        return "\n".join([*lines, "", f"products cannot be compared: {said['why']}"])
    lines += [
        "",
        f"Products: {said['named']} of {said['products']:,} come back for their listing's reasons more than comparable "
        f"ones; {said['aside']:,} of {said['returns']:,} returns are set aside, being of other reasons or of none",
    ]
    for _, row in found.tables["products"].query("named").head(most).iterrows():
        lines.append(
            f"  {row['sku']} ({row['category']}): {row['observed']} of {row['lines']:,}, "
            f"expected {row['expected']:.1f}, {_times(row)}, mostly {row['reason']}"
        )
    return "\n".join(lines)
