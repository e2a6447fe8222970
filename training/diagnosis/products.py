"""Products whose goods come back for what their listing says or leaves out, more than those of comparable products.

Only returns whose reason the listing team owns count against a listing (`features.vocabulary.RETURN_REASONS`): what
came late, broken, or was not wanted any more is set aside and said to be. What such returns are to be expected is
learned from other products: of the same category and price, sold to like customers in like weeks, nothing being read
of the product's own page or past. The ratio of what came back to that is shrunk towards what products of the same brand
and category are.

Products are named so that, of all that are named, no more than `FALSE` are in truth no worse: they are taken in order
of how sure it is, as long as the mean doubt of those taken stays below (Newton et al. 2004, "Detecting differential
gene expression with a semiparametric hierarchical mixture method").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import Array, absent
from features.reasons import NOT_STATED
from features.snapshot import Facts
from training.diagnosis.expected import held_out, text, weeks
from training.diagnosis.shrink import ratios, summary, worst_first
from training.labels import Labels
from training.models import cores
from training.models.reasons import told
from training.pipeline import Matrices, cut

FALSE = 0.05
"""Share of the products named that may be no worse. Half of what is promised (a tenth), as expectations err too."""

FOLDS = 3

PEERS = ("product_weight", "product_length", "has_variants", "fragility")
"""What is read of a product besides category and price: what it is, not what its page says."""


def set_aside(facts: Facts, units: Labels, as_of: np.datetime64) -> pd.DataFrame:
    """Every line that can be judged, whether it came back, and for whose reason.

    Returns:
        A row per mature line: at (position in the labels), row (of `facts.rows.lines`), returned, reason (an
        inspection's where there was one, else the customer's; None if none is stated) and owner (None likewise).
    """
    label, mature = units.known(as_of)
    at = np.flatnonzero(mature & (units.decided_at < as_of))
    said = told(facts, as_of)
    row = units.row[at]
    reason = np.where(said.inspected[row] != NOT_STATED, said.inspected[row], said.stated[row])
    returned = label[at] == 1
    reason = np.where(returned, reason, NOT_STATED)
    names = np.array([*said.reasons, None], dtype=object)  # NOT_STATED is -1, the last place
    owners = np.array([*said.reasons.values(), None], dtype=object)
    return pd.DataFrame(
        {
            "at": at,
            "row": row,
            "returned": returned,
            "reason": names[reason],
            "owner": owners[reason],
        }
    )


def products(
    facts: Facts,
    units: Labels,
    matrices: Matrices,
    as_of: np.datetime64,
    *,
    since: np.datetime64 | None = None,
    seed: int = 0,
    confidence: float = 0.9,
    say: Callable[[str], Any] = lambda _: None,
) -> pd.DataFrame:
    """Every product, against comparable ones.

    Args:
        facts: the dataset, joined.
        units: the labels of `returned`.
        matrices: from `training.pipeline.matrices_of`.
        as_of: only what was known before is used, and only lines that could be judged by then.
        since: only lines decided from then on.
        seed: of the draws.
        confidence: of the intervals.
        say: told what is being done.

    Returns:
        A row per product, the worst first: sku, category, brand, lines, returns (of any reason), aside (of reasons that
        are not the listing's, or not stated), observed and expected (returns of the listing's reasons), ratio with low
        and high, chance_worse, excess (returns beyond the expected, shrunk), named (bool), reason (the one with the
        largest excess), and verdict: worse, as expected, cannot tell.
    """
    lines = set_aside(facts, units, as_of)
    if since is not None:
        lines = lines[units.decided_at[lines["at"]] >= since]
    level, row = facts.rows.lines, lines["row"].to_numpy()
    sku = level["order_lines", "sku"][row]
    keep = ~absent(sku)
    lines, row, sku = lines[keep], row[keep], sku[keep]
    say(f"what {len(lines):,} lines of comparable products have come back for")
    code, skus = pd.factorize(sku, sort=True)
    category, brand = (text(level["listings", c][row]) for c in ("category", "brand"))
    of_category, categories = pd.factorize(category, sort=True)
    every = matrices["line"][0]
    chosen = every.only([(f.team in ("customer", "order")) or f.name in PEERS for f in every.features])
    matrix = np.column_stack(
        [
            cut(matrices, chosen, row),
            of_category.astype(np.float32),
            weeks(units.decided_at[lines["at"]]).astype(np.float32),
        ]
    )
    own = (lines["owner"] == "listing").to_numpy()
    # Whole products are held out: none is compared with itself.
    fold = (pd.util.hash_array(skus.astype(object), categorize=False) % FOLDS).astype(np.int64)[code]
    chance, _ = held_out(matrix, own.astype(np.int8), fold, [matrix.shape[1] - 2], seed, cores())
    n = len(skus)
    first = np.full(n, -1)
    first[code[::-1]] = np.arange(len(code))[::-1]
    out = pd.DataFrame(
        {
            "sku": skus,
            "category": category[first],
            "brand": brand[first],
            "lines": np.bincount(code, minlength=n),
            "returns": np.bincount(code, weights=lines["returned"], minlength=n).astype(np.int64),
            "observed": np.bincount(code, weights=own, minlength=n).astype(np.int64),
            "expected": np.bincount(code, weights=chance, minlength=n),
        }
    )
    out["aside"] = out["returns"] - out["observed"]
    if np.isnan(chance).any():
        return out.assign(verdict="cannot tell", named=False)
    family = pd.factorize(pd.Series(out["brand"] + "\0" + out["category"]))[0]
    draws = ratios(out["observed"].to_numpy(), out["expected"].to_numpy(), np.random.default_rng(seed), family)
    out = out.join(summary(draws, out["expected"].to_numpy(), confidence))
    out["named"] = named(out["chance_worse"].to_numpy())
    out["verdict"] = np.select(
        [out["named"], out["chance_worse"] <= 1 - confidence], ["worse", "as expected"], "cannot tell"
    )
    out["reason"] = _reasons(lines, own, code, chance, of_category, len(categories), n)
    return worst_first(out)


def named(chance: Array, false: float = FALSE) -> Array:
    """Which to name, so that the expected share of wrong ones among them is at most `false`.

    Args:
        chance: (n,) probability of each to be what it would be named for.

    Returns:
        (n,) bool.
    """
    order = np.argsort(-chance, kind="stable")
    doubt = np.cumsum(1 - chance[order]) / np.arange(1, len(chance) + 1)
    out = np.zeros(len(chance), dtype=bool)
    out[order[: int(np.count_nonzero(doubt <= false))]] = True
    return out


def _reasons(
    lines: pd.DataFrame, own: Array, code: Array, chance: Array, category: Array, categories: int, products: int
) -> list[str | None]:
    """The reason each product has most beyond what its category's mix makes of its expected returns."""
    reason, names = pd.factorize(lines["reason"].where(own))
    if not len(names):
        return [None] * products
    said = reason >= 0
    mix = np.zeros((categories, len(names)))
    np.add.at(mix, (category[said], reason[said]), 1.0)
    mix = (mix + mix.sum(axis=0) / max(mix.sum(), 1.0)) / (mix.sum(axis=1, keepdims=True) + 1.0)
    observed, expected = np.zeros((products, len(names))), np.zeros((products, len(names)))
    np.add.at(observed, (code[said], reason[said]), 1.0)
    np.add.at(expected, code, chance[:, None] * mix[category])
    most = (observed - expected).argmax(axis=1)
    return [str(names[k]) if observed[i, k] else None for i, k in enumerate(most.tolist())]
