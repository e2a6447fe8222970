"""What to make of a product that comes back: its worth, its peers, the terms of its listing, and what a change did."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from features.arrays import DAY, Array
from features.snapshot import Facts
from training.diagnosis.shrink import DRAWS

PEERS = 5
"""Comparable products named beside each."""

PEER_LINES = 20
"""Lines from which a product is told as a peer."""

SHOWN = 500
"""Products, besides those named, that have peers and drivers: those with the largest excess."""

TELLS = 37.6
"""Expected returns at which a ratio of a half more is told from none with 90 % confidence in 8 of 10 cases: the squares
of (1.645 + 0.842) / log(1.5)."""

YEARS = 2
"""Who would have to be waited for longer sells too little."""

TERMS: dict[str, tuple[int, str, str]] = {
    "has_size_guide": (-1, "add_size_guide", "wrong_size"),
    "photo_count": (-1, "add_photos", "not_as_described"),
    "description_length": (-1, "write_more", "not_as_described"),
}
"""Terms of a listing that can be changed: the direction in which more of it goes with returns, the advice, and the
reason of return it answers. Few photos go with a poor page, and so with returns of every reason; but nobody who is told
that shoes come back as too small will believe that photos mend it."""

BY_REASON = {"wrong_size": "check_sizes", "not_as_described": "check_photos_and_text", "defect": "check_quality"}
"""Advice where no term of the listing stands behind a product's excess."""

LEAST_AFTER = 5.0
"""Expected returns after a change from which it is judged."""

SURE = 0.95


@dataclass(frozen=True)
class Listings:
    """The tables `products`, `peers` and `drivers`."""

    products: pd.DataFrame
    peers: pd.DataFrame
    drivers: pd.DataFrame


def told(facts: Facts, products: pd.DataFrame, lines: pd.DataFrame, as_of: np.datetime64) -> Listings:
    """Products with worth, driver, advice and from when on they can be judged; their peers; the terms behind them.

    The driver is the term, of those that answer what the product mostly comes back for, with most of its excess.

    Args:
        facts: the dataset, joined.
        products: from `training.diagnosis.products.products`, with ratios.
        lines: from `training.diagnosis.products.set_aside`, with `expected`.
        as_of: the end of the data.
    """
    decided = lines["decided_at"].to_numpy()
    years = max((as_of - decided.min()) / (365 * DAY), 1 / 365)
    out = products.copy()
    back = lines[lines["counted"]].groupby("sku")["value"].mean()
    usual = lines.groupby("sku")["value"].mean()
    money = out["sku"].map(back).fillna(out["sku"].map(usual)).to_numpy(float)
    out["worth"] = np.where(out["excess"] > 0, out["excess"] * money / years, 0.0)
    lacks = np.maximum(TELLS - out["expected"].to_numpy(float), 0.0)
    wait = lacks / np.maximum(out["expected"].to_numpy(float) / (365 * years), 1e-12)
    open_ = (out["verdict"] == "cannot tell").to_numpy(bool)
    soon = open_ & (lacks > 0) & (wait <= 365 * YEARS)
    days = np.where(soon, np.ceil(wait), 0).astype("timedelta64[D]")
    dates = np.where(soon, as_of.astype("datetime64[D]") + days, np.datetime64("NaT"))
    out["from"] = dates
    text = np.array([f"too early to say, from {d}" for d in dates.astype(str).tolist()], dtype=object)
    never = open_ & (lacks > 0) & ~soon
    out["why_not"] = np.select(
        [soon, never, open_], [text, "sells too little to tell", "near the limit: more or less than a tenth worse"], ""
    )
    terms = _terms(facts, lines, out)
    drivers = _drivers(out, terms)
    shown = out["named"].to_numpy(bool) | (np.argsort(np.argsort(-out["excess"].to_numpy(float))) < SHOWN)
    fits = drivers["term"].map({t: reason for t, (_, _, reason) in TERMS.items()}) == drivers["sku"].map(
        out.set_index("sku")["reason"]
    )
    best = drivers[fits & (drivers["share"] > 0)].sort_values(["share", "term"], ascending=[False, True])
    best = best.drop_duplicates("sku").set_index("sku")
    has = out["sku"].isin(best.index)
    out["driver"] = out["sku"].map(best["term"]).where(has)
    out["advice"] = out["sku"].map(best["advice"]).where(has, out["reason"].map(BY_REASON)).where(out["named"])
    out["arguments"] = out["sku"].map(best["arguments"]).where(has & out["named"])
    chosen = set(out.loc[shown, "sku"])
    return Listings(out, _peers(out, terms["price"].to_numpy(float), shown), drivers[drivers["sku"].isin(chosen)])


def _terms(facts: Facts, lines: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """The latest listing of each product, and its mean price, in the order of the products."""
    level, row = facts.rows.lines, lines["row"].to_numpy()
    frame = pd.DataFrame({"sku": lines["sku"].to_numpy(), "price": level["order_lines", "unit_price"][row]})
    for term in TERMS:
        frame[term] = level["listings", term][row].astype(np.float64)
    last = frame.groupby("sku").last()
    last["price"] = frame.groupby("sku")["price"].mean()
    return last.loc[products["sku"]].reset_index()


def _drivers(products: pd.DataFrame, terms: pd.DataFrame) -> pd.DataFrame:
    """Terms in which a product's listing is worse than its category's, and the share of its excess that goes with it.

    How much goes with a term is a Poisson regression of all products' returns on their terms against the category's
    middle; one that is not surely bad has no share. It is an association, not an effect.
    """
    category, observed, expected = products["category"], products["observed"], products["expected"]
    found = []
    middle = {t: terms[t].groupby(category.to_numpy()).transform("median").to_numpy(float) for t in TERMS}
    gap = {t: np.nan_to_num(terms[t].to_numpy(float) - middle[t]) for t in TERMS}
    names = [t for t in TERMS if np.std(gap[t]) > 0]
    effect = dict.fromkeys(TERMS, 0.0)
    if names and observed.sum() >= 100:
        x = np.column_stack([gap[t] for t in names])
        scale = x.std(axis=0)
        beta, error = _poisson(x / scale, observed.to_numpy(float), np.maximum(expected.to_numpy(float), 1e-9))
        for k, t in enumerate(names):
            if beta[k] * TERMS[t][0] > 1.645 * error[k]:
                effect[t] = beta[k] / scale[k]
    log = np.log(np.maximum(products["ratio"].to_numpy(float), 1e-9))
    for t, (_, advice, _) in TERMS.items():
        behind = effect[t] * gap[t]
        share = np.where((log > 0) & (behind > 0), np.minimum(behind / np.maximum(log, 1e-9), 1.0), 0.0)
        value = terms[t].to_numpy(float)
        lacks = ~np.isnan(value) & (gap[t] * TERMS[t][0] > 0)
        arguments = [
            json.dumps({"now": round(a, 2), "peers": round(b, 2)})
            for a, b in zip(value[lacks].tolist(), middle[t][lacks].tolist(), strict=True)
        ]
        found.append(
            pd.DataFrame(
                {
                    "sku": products["sku"].to_numpy()[lacks],
                    "term": t,
                    "value": value[lacks],
                    "peers_value": middle[t][lacks],
                    "share": share[lacks],
                    "advice": advice,
                    "arguments": arguments,
                }
            )
        )
    return pd.concat(found, ignore_index=True).sort_values(["sku", "term"], kind="stable").reset_index(drop=True)


def _poisson(x: Array, y: Array, offset: Array, ridge: float = 1.0) -> tuple[Array, Array]:
    """Coefficients of a Poisson regression with an intercept and their standard errors, widened by how much more counts
    vary than a Poisson's."""
    z = np.column_stack([np.ones(len(y)), x])
    penalty = ridge * np.eye(z.shape[1])
    penalty[0, 0] = 0.0
    beta = np.zeros(z.shape[1])
    beta[0] = np.log(max(y.sum(), 1.0) / offset.sum())
    for _ in range(30):
        mean = offset * np.exp(np.clip(z @ beta, -10, 10))
        information = (z * mean[:, None]).T @ z + penalty
        step = np.linalg.solve(information, z.T @ (y - mean) - penalty @ beta)
        beta = beta + np.clip(step, -1, 1)
    mean = offset * np.exp(np.clip(z @ beta, -10, 10))
    more = max(1.0, float(((y - mean) ** 2 / np.maximum(mean, 1e-9)).sum() / max(len(y) - z.shape[1], 1)))
    return beta[1:], np.sqrt(np.diag(np.linalg.inv(information)) * more)[1:]


def _peers(products: pd.DataFrame, price: Array, shown: Array) -> pd.DataFrame:
    """Comparable products by name: of the same category and another brand, nearest in price, that sell enough."""
    log = np.log(np.maximum(np.nan_to_num(price, nan=1.0), 1e-9))
    brand, rows = products["brand"].to_numpy(), []
    enough = (products["lines"] >= PEER_LINES).to_numpy(bool)
    for indices in products.groupby("category", sort=True).indices.values():
        at = np.asarray(indices, dtype=np.int64)
        pool = at[enough[at]]
        pool = pool[np.argsort(log[pool], kind="stable")]
        for i in at[shown[at]].tolist():
            near = int(np.searchsorted(log[pool], log[i]))
            window = pool[max(0, near - 4 * PEERS) : near + 4 * PEERS]
            window = window[(brand[window] != brand[i]) & (window != i)]
            best = window[np.argsort(np.abs(log[window] - log[i]), kind="stable")[:PEERS]]
            rows.append(pd.DataFrame({"at": i, "peer": best}))
    if not rows:
        return pd.DataFrame()
    pairs = pd.concat(rows, ignore_index=True)
    of = products.iloc[pairs["peer"].to_numpy(np.int64)].reset_index(drop=True)
    return pd.DataFrame(
        {
            "sku": products["sku"].to_numpy()[pairs["at"].to_numpy(np.int64)],
            "peer": of["sku"],
            "lines": of["lines"],
            "returned": of["observed"],
            **{c: of[c] for c in ("ratio", "low", "high")},
        }
    )


def changes(
    facts: Facts, lines: pd.DataFrame, as_of: np.datetime64, confidence: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, str]:
    """What came back of products before and after their listing was changed, by the table `changes`.

    Before is up to the change before, after up to the next one. Nothing is said before `judged_from`: when returns of
    what was sold in the first four weeks have had their window.

    Args:
        facts: the dataset, joined.
        lines: from `training.diagnosis.products.set_aside`, with `expected`.
        as_of: the end of the data.
        confidence: of the intervals.
        rng: random numbers.
    """
    given = facts.tables.get("changes", {})
    if not len(given.get("sku", ())):
        return pd.DataFrame(), "no change of a listing is on record: the dataset has no table `changes`"
    settings = facts.snapshot.settings
    table = pd.DataFrame({"sku": given["sku"], "changed_at": given["changed_at"]})
    table["what"] = given.get("what")
    table = table.sort_values(["sku", "changed_at"], kind="stable").reset_index(drop=True)
    before = table.groupby("sku")["changed_at"].shift(1).to_numpy()
    after = table.groupby("sku")["changed_at"].shift(-1).to_numpy()
    by = dict(tuple(lines[lines["sku"].isin(set(table["sku"]))].groupby("sku")))
    tail = (1 - confidence) / 2
    rows = []
    for i, (_, row) in enumerate(table.iterrows()):
        own = by.get(row["sku"], lines.iloc[:0])
        at, decided = row["changed_at"].to_datetime64(), own["decided_at"].to_numpy()
        old = (decided < at) & (np.isnat(before[i]) | (decided >= before[i]))
        new = (decided >= at) & (np.isnat(after[i]) | (decided < after[i]))
        said: dict[str, float] = {}
        draws = []
        for name, part in (("before", own[old]), ("after", own[new])):
            o, e = float(part["counted"].sum()), float(part["expected"].sum())
            drawn = rng.gamma(o + 2.0, 1 / (e + 2.0), DRAWS)  # two events' worth of belief that it is as others are
            low, high = np.quantile(drawn, [tail, 1 - tail])
            said |= {
                f"{name}_lines": len(part),
                f"{name}_returned": int(o),
                f"{name}_ratio": (o + 2.0) / (e + 2.0),
                f"{name}_low": low,
                f"{name}_high": high,
            }
            draws.append((drawn, e))
        ready = at + (28 + 7 + settings.return_window_days) * DAY
        better = float((draws[1][0] < draws[0][0]).mean())
        verdict = "no difference yet"
        if as_of < ready or draws[1][1] < LEAST_AFTER or draws[0][1] <= 0:
            verdict = "too early"
        elif better >= SURE:
            verdict = "better"
        elif better <= 1 - SURE:
            verdict = "worse"
        rows.append({**dict(row), **said, "verdict": verdict, "judged_from": ready.astype("datetime64[D]")})
    return pd.DataFrame(rows), ""
