"""Where failures came from: shares that add up, with what nobody can tell apart.

Times come first: a late parcel that left after its pickup was not lost on the road. What no time tells is split by what
is beyond the usual, and only that:

    carrier    failures of its corridors beyond what other carriers would have had with the same parcels
    upstream   failures that would not be expected, had labels, papers, boxes, filling and packing times been as those
               of the better quarter of parcels
    customer   the same of addresses and cash on delivery
    listing    the same of how fragile the goods are; for returns, the reasons the listing owns

The rest, what happens with the best of parcels and where causes come together, cannot be told apart. Except for times
and reasons these are associations in a logistic regression, not effects.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from features.arrays import Array

SOURCES = ("upstream", "carrier", "listing", "customer", "cannot tell")
DRAWS = 400
ROWS = 60_000
"""Parcels that the regression is fitted to at most."""

BETTER: dict[str, tuple[str, int]] = {
    "label_grade": ("upstream", -1),
    "documents_complete": ("upstream", 1),
    "void_fill_ratio": ("upstream", 1),
    "fragility_gap": ("upstream", -1),
    "protection_level": ("upstream", 1),
    "pickup_slack_hours": ("upstream", 1),
    "pack_hours": ("upstream", -1),
    "address_quality": ("customer", 1),
    "cash_on_delivery": ("customer", -1),
    "fragility": ("listing", -1),
}
"""Features whose owner could do something, whose they are, and in which direction they are better."""

TOLD: dict[str, tuple[str, ...]] = {
    "failed_attempt": ("address_quality", "cash_on_delivery"),
    "damaged": ("void_fill_ratio", "fragility_gap", "protection_level", "fragility"),
    "undelivered": ("label_grade", "documents_complete", "address_quality", "cash_on_delivery"),
}
"""Features that can be a cause of each target."""


def by_legs(late: pd.DataFrame, rng: np.random.Generator, confidence: float) -> pd.DataFrame:
    """Late parcels by the leg on which they lost their time."""
    source = {"ours": "upstream", "carrier": "carrier", "cannot tell": "cannot tell"}
    counts = late["whose"].map(source).value_counts().reindex(list(SOURCES), fill_value=0).to_numpy(float)
    return counted("late", counts, rng, confidence)


def by_owner(lines: pd.DataFrame, rng: np.random.Generator, confidence: float) -> pd.DataFrame:
    """Returned lines by who owns the reason."""
    whose = {"packing": "upstream", "fulfilment": "upstream", "order": "upstream"}
    owner = lines.loc[lines["returned"], "owner"].fillna("cannot tell").replace(whose)
    counts = owner.value_counts().reindex(list(SOURCES), fill_value=0).to_numpy(float)
    return counted("returned", counts, rng, confidence)


def counted(target: str, counts: Array, rng: np.random.Generator, confidence: float) -> pd.DataFrame:
    """Shares of counts, with intervals from what other counts could have come of the same shares (a Dirichlet with
    Jeffreys' prior)."""
    if not counts.sum():
        return pd.DataFrame()
    draws = rng.dirichlet(np.where(counts > 0, counts, 1e-9) + 0.5 * (counts > 0), DRAWS)
    return _rows(target, counts / counts.sum(), draws, counts.sum(), confidence)


def by_model(
    target: str,
    failed: Array,
    values: Mapping[str, Array],
    corridor_share: Array,
    rng: np.random.Generator,
    confidence: float,
) -> pd.DataFrame:
    """Failures of a target by what is beyond the usual.

    Args:
        target: one of `TOLD`.
        failed: (n,) 0 or 1.
        values: (n,) of each feature that is there.
        corridor_share: (draws,) share of failures that corridors have beyond the expected; NaN where none could be
            compared.
        rng: random numbers.
        confidence: of the intervals.
    """
    total = float(failed.sum())
    if not total:
        return pd.DataFrame()
    there = [f for f in TOLD[target] if f in values and not np.isnan(values[f]).all()]
    names = [f for f in there if np.nanstd(values[f]) > 0]
    at = np.arange(len(failed))
    if len(at) > ROWS:
        at = np.sort(rng.choice(at, ROWS, replace=False))
    shares = np.zeros((DRAWS, len(SOURCES)))
    compared = not np.isnan(corridor_share).any()
    if compared:
        shares[:, SOURCES.index("carrier")] = np.clip(rng.choice(corridor_share, DRAWS), 0.0, 1.0)
    learned = {"cannot tell"} | ({"carrier"} if compared else set())
    if names:
        x = np.column_stack([np.ones(len(at)), *(_filled(values[f][at]) for f in names)])
        scale = np.r_[1.0, x[:, 1:].std(axis=0) + 1e-12]
        middle = np.r_[0.0, x[:, 1:].mean(axis=0)]
        x = (x - middle) / scale
        fitted = _logistic(x, failed[at].astype(np.float64))
        if fitted is not None:
            beta, covariance = fitted
            signs = np.array([BETTER[f][1] for f in names])
            best = np.array([np.quantile(x[:, i + 1], 0.75 if s > 0 else 0.25) for i, s in enumerate(signs.tolist())])
            better = np.where(signs > 0, np.maximum(x[:, 1:], best), np.minimum(x[:, 1:], best))
            drawn = rng.multivariate_normal(beta, covariance, DRAWS)
            # A coefficient of the wrong sign is chance or confounding: nothing would be gained by what is worse.
            drawn[:, 1:] = np.where(drawn[:, 1:] * signs < 0, drawn[:, 1:], 0.0)
            some = rng.choice(len(x), min(len(x), 4_000), replace=False)
            base = _expit(x[some] @ drawn.T).sum(axis=0)
            sources = {BETTER[f][0] for f in names}
            learned |= sources
            for source in sources:
                mine = np.array([BETTER[f][0] == source for f in names])
                now = x[some].copy()
                now[:, 1:][:, mine] = better[some][:, mine]
                shares[:, SOURCES.index(source)] = 1 - _expit(now @ drawn.T).sum(axis=0) / base
    told = shares.sum(axis=1)
    # Where causes meet, each would have been enough: shares are of what is there to share.
    shares /= np.maximum(told, 1.0)[:, None]
    shares[:, -1] = 1 - shares[:, :-1].sum(axis=1)
    out = _rows(target, shares.mean(axis=0), shares, total, confidence)
    out.loc[~out["source"].isin(learned), ["low", "high"]] = np.nan  # no estimate of none
    return out


def _rows(target: str, share: Array, draws: Array, total: float, confidence: float) -> pd.DataFrame:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return pd.DataFrame(
        {
            "target": target,
            "source": SOURCES,
            "share": share,
            "low": np.minimum(low, share),
            "high": np.maximum(high, share),
            "failures": share * total,
        }
    )


def _filled(values: Array) -> Array:
    return np.asarray(np.where(np.isnan(values), np.nanmean(values), values), dtype=np.float64)


def _expit(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -30, 30))))


def _logistic(x: Array, y: Array, ridge: float = 1.0) -> tuple[Array, Array] | None:
    """Coefficients of a logistic regression and their covariance, by Newton's method; None if it does not settle."""
    if y.sum() < 20 or len(y) - y.sum() < 20:
        return None
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0.0
    beta = np.zeros(x.shape[1])
    beta[0] = np.log(y.mean() / (1 - y.mean()))
    for _ in range(50):
        p = _expit(x @ beta)
        information = (x * (p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.solve(information, x.T @ (y - p) - penalty @ beta)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            return beta, np.linalg.inv(information)
    return None
