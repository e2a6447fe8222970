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

from features.arrays import Array, match, take
from features.reasons import NOT_STATED
from features.snapshot import Facts
from training.diagnosis.expected import held_out
from training.diagnosis.parcels import text, week_number
from training.diagnosis.shrink import ratios, summary, worst_first
from training.labels import Labels
from training.models import cores
from training.models.reasons import told
from training.pipeline import Matrices, cut

FALSE = 0.05
"""Share of the products named that may be no worse. Half of what is promised (a tenth), as expectations err too."""

LEAST = 30
"""Lines that came back for the listings' own reasons, and lines that did not, from which products are compared."""

OWNER = "listing"

FOLDS = 3

PEERS = ("product_weight", "product_length", "has_variants", "fragility")
"""What is read of a product besides category and price: what it is, not what its page says."""


def set_aside(facts: Facts, units: Labels, as_of: np.datetime64, since: np.datetime64 | None = None) -> pd.DataFrame:
    """Every line that can be judged, whether it came back, and whether that counts against its listing.

    Args:
        facts: the dataset, joined.
        units: the labels of `returned`.
        as_of: only what was known before is used, and only lines that could be judged by then.
        since: only lines decided from then on.

    Returns:
        A row per mature line: row (of `facts.rows.lines`), line_id, parcel_id, sku, category, brand, decided_at,
        returned, reason (an inspection's where there was one, else the customer's; None if none is stated), owner (None
        likewise), counted, aside (whose it is or "no reason stated", for what came back and is not counted), and value
        (refunded, or the line's own).
    """
    label, mature = units.known(as_of)
    keep = mature & (units.decided_at < as_of)
    if since is not None:
        keep &= units.decided_at >= since
    at = np.flatnonzero(keep)
    said, level = told(facts, as_of), facts.rows.lines
    row = units.row[at]
    reason = np.where(said.inspected[row] != NOT_STATED, said.inspected[row], said.stated[row])
    returned = label[at] == 1
    reason = np.where(returned, reason, NOT_STATED)
    names = np.array([*said.reasons, None], dtype=object)  # NOT_STATED is -1, the last place
    owners = np.array([*said.reasons.values(), None], dtype=object)
    counted = owners[reason] == OWNER
    whose = np.where(reason == NOT_STATED, "no reason stated", owners[reason])
    parcel = facts.rows.line_parcel[row]
    price, pieces, off = (level["order_lines", c][row] for c in ("unit_price", "quantity", "discount"))
    worth = price * np.where(np.isnan(pieces), 1.0, pieces) - np.nan_to_num(off)
    refunded = _refunded(facts, row)
    return pd.DataFrame(
        {
            "row": row,
            "line_id": units.unit_id[at],
            "parcel_id": take(facts.rows.parcel_id, parcel, None),
            "sku": text(level["order_lines", "sku"][row]),
            **{c: text(level["listings", c][row]) for c in ("category", "brand")},
            "decided_at": units.decided_at[at],
            "returned": returned,
            "reason": names[reason],
            "owner": owners[reason],
            "counted": counted,
            "aside": take(whose, np.where(returned & ~counted, np.arange(len(at)), -1), None),
            "value": np.where(returned & ~np.isnan(refunded), refunded, worth),
        }
    )


def _refunded(facts: Facts, row: Array) -> Array:
    """What was refunded for each line (row of `facts.rows.lines`), (n,); NaN where that is not known."""
    returns = facts.tables.get("returns", {})
    if "refund_value" not in returns:
        return np.full(len(row), np.nan)
    known = ~np.isnan(returns["refund_value"])
    line = match(returns["line_id"][known], facts.rows.line_id)
    paid = np.bincount(line[line >= 0], returns["refund_value"][known][line >= 0], facts.rows.lines.n)
    there = np.bincount(line[line >= 0], minlength=facts.rows.lines.n) > 0
    return np.asarray(np.where(there, paid, np.nan)[row])


def products(
    lines: pd.DataFrame,
    matrices: Matrices,
    *,
    seed: int = 0,
    confidence: float = 0.9,
    say: Callable[[str], Any] = lambda _: None,
) -> tuple[pd.DataFrame, Array]:
    """Every product, against comparable ones.

    Args:
        lines: from `set_aside`, one at least.
        matrices: from `training.pipeline.matrices_of`.
        seed: of the draws.
        confidence: of the intervals.
        say: told what is being done.

    Returns:
        A row per product, the worst first: sku, category, brand, lines, returns (of any reason), aside (of reasons that
        are not the listing's, or not stated), observed and expected (returns of the listing's reasons), ratio with low
        and high, chance_worse, excess (returns beyond the expected, shrunk), named (bool), reason (the one with the
        largest excess), verdict: worse, as expected, cannot tell, and why_not (why it is not said to be worse). And
        (n,) the chance of a counted return of each line among comparable products, NaN where nobody can say.
    """
    say(f"what {len(lines):,} lines of comparable products have come back for")
    code, skus = pd.factorize(lines["sku"], sort=True)
    of_category, categories = pd.factorize(lines["category"], sort=True)
    own = lines["counted"].to_numpy(bool)
    n = len(skus)
    first = np.full(n, -1)
    first[code[::-1]] = np.arange(len(code))[::-1]
    chance = np.full(len(lines), np.nan)
    if min(own.sum(), (~own).sum()) >= LEAST:
        every = matrices["line"][0]
        chosen = every.only([(f.team in ("customer", "order")) or f.name in PEERS for f in every.features])
        matrix = np.column_stack(
            [
                cut(matrices, chosen, lines["row"].to_numpy()),
                of_category.astype(np.float32),
                week_number(lines["decided_at"].to_numpy()).astype(np.float32),
            ]
        )
        # Whole products are held out: none is compared with itself.
        fold = (pd.util.hash_array(skus.to_numpy(object), categorize=False) % FOLDS).astype(np.int64)[code]
        chance, _ = held_out(matrix, own.astype(np.int8), fold, [matrix.shape[1] - 2], seed, cores())
    out = pd.DataFrame(
        {
            "sku": skus.to_numpy(object),
            "category": lines["category"].to_numpy()[first],
            "brand": lines["brand"].to_numpy()[first],
            "lines": np.bincount(code, minlength=n),
            "returns": np.bincount(code, weights=lines["returned"], minlength=n).astype(np.int64),
            "observed": np.bincount(code, weights=own, minlength=n).astype(np.int64),
            "expected": np.bincount(code, weights=chance, minlength=n),
        }
    )
    out["aside"] = out["returns"] - out["observed"]
    if np.isnan(chance).any():
        why = f"{own.sum():,} returns of the listings' own reasons in all: {LEAST} are needed to compare products"
        return out.assign(verdict="cannot tell", named=False, why_not=why), np.full(len(lines), np.nan)
    family = pd.factorize(pd.Series(out["brand"] + "\0" + out["category"]))[0]
    draws = ratios(out["observed"].to_numpy(), out["expected"].to_numpy(), np.random.default_rng(seed), family)
    out = out.join(summary(draws, out["expected"].to_numpy(), confidence))
    out["named"] = named(out["chance_worse"].to_numpy())
    out["verdict"] = np.select(
        [out["named"], out["chance_worse"] <= 1 - confidence], ["worse", "as expected"], "cannot tell"
    )
    out["reason"] = _reasons(lines, own, code, chance, of_category, len(categories), n)
    out["why_not"] = np.where(out["verdict"] == "cannot tell", "too early to say", "")
    return worst_first(out), chance


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
