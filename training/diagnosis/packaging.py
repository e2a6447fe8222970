"""Products that are packed too weak, or stronger than need be: from parcels that hold one product only."""

from __future__ import annotations

import numpy as np
import pandas as pd

from features.arrays import Array, absent
from features.snapshot import Facts
from training.diagnosis.parcels import Parcels
from training.diagnosis.products import named
from training.diagnosis.shrink import estimate

LEAST = 10
"""Parcels of a product in a package from which it is looked at."""

EMPTY = 0.35
"""A package that a product fills to less than this is large for it."""

LEVELS = 1.0
"""Protection levels above its category's middle from which a package is strong for a product."""

COLUMNS = ("sku", "category", "package_type", "verdict", "parcels", "damaged", "expected", "low", "high", "volume_use")


def packaging(
    facts: Facts,
    parcels: Parcels,
    goods: Array,
    damaged: Array,
    volume: Array,
    money: pd.Series[float],
    confidence: float,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, str]:
    """Products by package: under (damaged more than others of the category, see `products.named`), over (a package
    stronger than the category's, mostly empty, and no more damage), fits, or cannot tell.

    Args:
        facts: the dataset, joined.
        parcels: the parcels.
        goods: (n,) from `training.diagnosis.parcels.alone`.
        damaged: (n,) from `training.diagnosis.parcels.judged`.
        volume: (n,) share of the package that the products fill, NaN where it is not known.
        money: what a damaged parcel of each product costs a year: its goods' value by the years of the data.
        confidence: of the intervals.
        rng: random numbers.

    Returns:
        The table, with low and high bounds of how many damaged parcels such parcels have in truth, and why it is empty.
    """
    rows, level = facts.rows.parcels, facts.rows.lines
    package = rows["parcels", "package_type"][parcels.row]
    if absent(package).all():
        return pd.DataFrame(), "no parcel says what it was packed in"
    keep = (goods != "") & ~np.isnan(damaged) & ~absent(package)
    line = np.flatnonzero(facts.rows.line_parcel >= 0)
    of = pd.Series(level["listings", "category"][line], level["order_lines", "sku"][line], dtype=object)
    category = of[~of.index.duplicated(keep="last")].reindex(goods[keep]).to_numpy(object)
    frame = pd.DataFrame(
        {
            "sku": goods[keep],
            "category": np.where(absent(category), "", category),
            "package_type": package[keep],
            "damaged": damaged[keep],
            "volume": volume[keep],
            "level": rows["parcels", "protection_level"][parcels.row[keep]],
        }
    )
    if not len(frame) or not frame["damaged"].sum():
        return pd.DataFrame(), "no parcel that holds one product only has come damaged"
    every = frame.groupby("category")["damaged"].agg(["sum", "size"])
    own = frame.groupby(["category", "sku"])["damaged"].agg(["sum", "size"]).reset_index()
    others = every.loc[own["category"]].to_numpy(float) - own[["sum", "size"]].to_numpy(float)
    mean = frame["damaged"].mean()
    own["rate"] = (others[:, 0] + 100 * mean) / (others[:, 1] + 100)
    out = frame.groupby(["sku", "category", "package_type"], as_index=False).agg(
        parcels=("damaged", "size"), damaged=("damaged", "sum"), volume_use=("volume", "mean"), level=("level", "mean")
    )
    out = out[out["parcels"] >= LEAST].reset_index(drop=True)
    if not len(out):
        return pd.DataFrame(), f"no product went out {LEAST} times alone in one kind of package"
    out = out.merge(own[["sku", "rate"]], on="sku")
    out["expected"] = out["rate"] * out["parcels"]
    family = pd.factorize(out["category"])[0]
    said = estimate(
        out["damaged"].to_numpy(float), out["expected"].to_numpy(float), rng, family=family, confidence=confidence
    ).table
    out["low"], out["high"] = said["low"] * out["expected"], said["high"] * out["expected"]
    out["worth"] = np.maximum(said["excess"].to_numpy(), 0.0) * out["sku"].map(money).to_numpy(float)
    worse = said["chance_worse"].to_numpy()
    strong = out["level"] - out["category"].map(frame.groupby("category")["level"].median()) >= LEVELS
    harmless = worse <= 1 - confidence
    out["verdict"] = np.select(
        [
            named(np.where(out["damaged"] > 0, worse, 0.0)),
            harmless & strong.to_numpy(bool) & (out["volume_use"].to_numpy(float) < EMPTY),
            harmless,
        ],
        ["under", "over", "fits"],
        "cannot tell",
    )
    out["why"] = out["verdict"].map(
        {
            "under": "arrives damaged more than others of its category",
            "over": "stronger than its category's packages, mostly empty, and no more damage",
            "fits": "not a quarter more damage than others of its category",
            "cannot tell": "too few damaged parcels yet to tell",
        }
    )
    rank = out["verdict"].map({"under": 0, "over": 1, "cannot tell": 2, "fits": 3}).to_numpy()
    order = np.lexsort((out["sku"].to_numpy(str), -(out["damaged"] - out["expected"]).to_numpy(float), rank))
    return out.iloc[order][[*COLUMNS, "worth", "why"]].reset_index(drop=True), ""
