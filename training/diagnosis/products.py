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

import numpy as np
import pandas as pd

from features.arrays import Array, match, take
from features.reasons import NOT_STATED
from features.snapshot import Facts
from training.diagnosis.expected import held_out
from training.diagnosis.parcels import text, week_number
from training.diagnosis.shrink import Doubt, draws_for, estimate, worst_first
from training.labels import Labels
from training.models import cores
from training.models.reasons import told
from training.pipeline import Matrices, cut

FALSE = 0.05
"""Share of the products named that may be no worse. Half of what is promised (a tenth), as expectations err too."""

LEAST = 30
"""Lines that came back for the listings' own reasons, and lines that did not, from which products are compared."""

OWNER = "listing"

WORSE = 1.1
"""A product comes back more than comparable ones from a tenth more on."""

MODEL = 0.15
"""Standard deviation of what is expected of a brand's products in a category, besides what chance made of the others':
a few of those sell most, and their customers and prices are somewhat different ones."""

LEAF, LEAVES = 100, 40
"""Rows that a leaf holds at least, and into how many parts they may be cut at most: weight and price tell a product
that sells much apart from all others, and what it comes back for is then expected of its likes."""

STRENGTH = 4.0
"""Expected events at which what a category's other brands had counts as much as what trees say."""

FAR, SUSPECT = 1.5, 0.9
"""A brand that comes back so many times as often as others of its category for one reason, with this probability, is
no measure for them."""

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


def traits(lines: pd.DataFrame, matrices: Matrices) -> Array:
    """What comparable products are found by, (n, f) float32: goods, price, customer and week, nothing of the listing's
    page or past. The last column but one is the category's code.

    Args:
        lines: from `set_aside`.
        matrices: from `training.pipeline.matrices_of`.
    """
    every = matrices["line"][0]
    chosen = every.only([(f.team in ("customer", "order")) or f.name in PEERS for f in every.features])
    return np.column_stack(
        [
            cut(matrices, chosen, lines["row"].to_numpy()),
            pd.factorize(lines["category"], sort=True)[0].astype(np.float32),
            week_number(lines["decided_at"].to_numpy()).astype(np.float32),
        ]
    )


def products(
    lines: pd.DataFrame, matrix: Array, *, seed: int = 0, confidence: float = 0.9
) -> tuple[pd.DataFrame, Array]:
    """Every product, against comparable ones.

    Args:
        lines: from `set_aside`, one at least.
        matrix: from `traits`.
        seed: of the models and the draws.
        confidence: of the intervals.

    Returns:
        A row per product, the worst first: sku, category, brand, lines, returns (of any reason), aside (of reasons that
        are not the listing's, or not stated), observed and expected (returns of the listing's reasons), ratio with low
        and high, excess (returns beyond the expected, shrunk), reason (the one it is most surely worse for) with
        reason_observed, reason_expected, reason_ratio, reason_low and reason_high, chance_worse (that the ratio, or
        that of a reason, is above `WORSE`), named (bool), verdict: worse, as expected, cannot tell, and why_not
        (why it is not said to be worse). And (n,) the chance of a counted return of each line among comparable
        products, NaN where nobody can say.
    """
    code, skus = pd.factorize(lines["sku"], sort=True)
    own = lines["counted"].to_numpy(bool)
    n = len(skus)
    first = np.full(n, -1)
    first[code[::-1]] = np.arange(len(code))[::-1]
    category, brand = (lines[c].to_numpy()[first] for c in ("category", "brand"))
    of_category = pd.factorize(category, sort=True)[0]
    family = pd.factorize(pd.Series(brand + "\0" + category))[0]
    reason, reasons = pd.factorize(lines["reason"].where(own), sort=True)
    rng = np.random.default_rng(seed)
    count = {
        "lines": np.bincount(code, minlength=n),
        "returns": np.bincount(code, weights=lines["returned"], minlength=n).astype(np.int64),
        "observed": np.bincount(code, weights=own, minlength=n).astype(np.int64),
    }
    out = pd.DataFrame({"sku": skus.to_numpy(object), "category": category, "brand": brand, **count})
    out["aside"] = out["returns"] - out["observed"]
    peers = None
    if min(own.sum(), (~own).sum()) >= LEAST:
        folds = _folds(category, brand, code, skus.to_numpy(object))
        peers = _peers(matrix, reason, len(reasons), of_category[code], family[code], folds, seed, rng)
    if peers is None:
        why = f"{own.sum():,} returns of the listings' own reasons in all: {LEAST} are needed to compare products"
        return out.assign(verdict="cannot tell", named=False, why_not=why), np.full(len(lines), np.nan)
    chance, mix = peers
    out["expected"] = np.bincount(code, weights=chance, minlength=n)
    # The observed and expected of each reason, (n, reasons).
    by_reason = np.zeros((n, len(reasons))), np.zeros((n, len(reasons)))
    np.add.at(by_reason[0], (code[own], reason[own]), 1.0)
    for k in range(len(reasons)):
        by_reason[1][:, k] = np.bincount(code, weights=chance * mix[family[code], k], minlength=n)

    def said(observed: Array, expected: Array) -> pd.DataFrame:
        # What is expected of a brand's products comes from what other brands of the category had.
        home = np.zeros(family.max() + 1, dtype=np.int64)
        home[family] = of_category
        others = np.bincount(of_category, observed)[home] - np.bincount(family, observed)
        off = np.sqrt(MODEL**2 + 1 / (others + STRENGTH))
        doubt = Doubt(np.exp(off * rng.normal(size=(draws_for(n), len(off)))), family)
        return estimate(observed, expected, rng, family=family, doubt=doubt, confidence=confidence, worse=WORSE).table

    whole = said(out["observed"].to_numpy(float), out["expected"].to_numpy(float))
    each = [said(by_reason[0][:, k], by_reason[1][:, k]) for k in range(len(reasons))]
    out = out.join(whole.drop(columns="chance_worst"))
    chances = np.column_stack([t["chance_worse"] for t in each])
    most = chances.argmax(axis=1)
    out["chance_worse"] = np.maximum(out["chance_worse"], chances.max(axis=1))
    out["reason"] = np.asarray(reasons, dtype=object)[most]
    at = np.arange(n)
    out["reason_observed"], out["reason_expected"] = by_reason[0][at, most], by_reason[1][at, most]
    for name in ("ratio", "low", "high"):
        out[f"reason_{name}"] = np.column_stack([t[name] for t in each])[at, most]
    # A brand's trouble speaks for all its products, but none is named against its own record.
    against = out["reason_observed"] <= out["reason_expected"]
    out["named"] = named(np.where(against, 0.0, out["chance_worse"]))
    out["verdict"] = np.select(
        [out["named"], out["chance_worse"] <= 1 - confidence], ["worse", "as expected"], "cannot tell"
    )
    out["why_not"] = np.where(out["verdict"] == "cannot tell", "too early to say", "")
    return worst_first(out), chance


def _folds(category: Array, brand: Array, code: Array, sku: Array) -> Array:
    """The fold of each line, (n,) int64: whole brands of a category are held out, so that none is compared with itself.

    What a brand does to all its products would otherwise be expected of each. Where a category has one brand only,
    its products are held out one by one.
    """
    sizes = pd.DataFrame({"category": category, "brand": brand, "lines": np.bincount(code, minlength=len(sku))})
    of = sizes.groupby(["category", "brand"])[["lines"]].sum().reset_index()
    of = of.sort_values(["category", "lines", "brand"], ascending=[True, False, True], kind="stable")
    of["fold"] = of.groupby("category").cumcount() % FOLDS
    of["alone"] = of.groupby("category")["brand"].transform("size") == 1
    found = sizes.merge(of.drop(columns="lines"), on=["category", "brand"], how="left")
    single = (pd.util.hash_array(sku, categorize=False) % FOLDS).astype(np.int64)
    return np.where(found["alone"], single, found["fold"]).astype(np.int64)[code]


def _peers(
    matrix: Array,
    reason: Array,
    reasons: int,
    category: Array,
    family: Array,
    fold: Array,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Array, Array] | None:
    """What comparable products have: those of other brands in the category.

    Brands that come back far more than others of their category are no measure for those: they are left out, and what
    is expected is learned again from the rest.

    Args:
        matrix: (n, f) from `traits`.
        reason: (n,) int64 code of the listing's reason for which a line came back, -1 for none.
        reasons: how many there are.
        category, family: (n,) int64 codes of the category, and of the brand in it.
        fold: (n,) int64.
        seed, rng: of the models, and of draws.

    Returns:
        (n,) chance of a counted return of each line, and (families, reasons) the share of each reason in it; None where
        nothing can be learned.
    """
    own, coded = (reason >= 0).astype(np.int8), [matrix.shape[1] - 2]
    leaf = max(LEAF, len(own) // LEAVES)
    chance, _ = held_out(matrix, own, fold, coded, seed, cores(), leaf=leaf)
    if np.isnan(chance).any():
        return None
    left = np.ones(len(own), dtype=bool)
    chance = chance * _level(own, chance, category, family, left)
    mix = _mix(reason, reasons, category, family, left)
    observed, expected = np.zeros_like(mix), mix * np.bincount(family, chance)[:, None]
    np.add.at(observed, (family[reason >= 0], reason[reason >= 0]), 1.0)
    of_reason = np.tile(np.arange(reasons), len(mix))
    said = estimate(observed.ravel(), expected.ravel(), rng, family=of_reason, worse=FAR).table
    suspect = (said["chance_worse"].to_numpy().reshape(mix.shape) > SUSPECT).any(axis=1)
    left = np.asarray(~suspect)[family]
    if left.all() or min(own[left].sum(), (1 - own[left]).sum()) < LEAST:
        return chance, mix
    again, others = held_out(matrix[left], own[left], fold[left], coded, seed, cores(), matrix[~left], leaf)
    if np.isnan(again).any() or np.isnan(others).any():
        return chance, mix
    chance[left], chance[~left] = again, others
    chance = chance * _level(own, chance, category, family, left)
    return chance, _mix(reason, reasons, category, family, left)


def _level(own: Array, chance: Array, category: Array, family: Array, measure: Array) -> Array:
    """How much more the other brands of each line's category come back than trees say, which smooth over categories.

    Args:
        own, chance, category, family: (n,) as in `_peers`.
        measure: (n,) bool, lines that are a measure for others.

    Returns:
        (n,) factors around 1, shrunk by `STRENGTH` events.
    """
    o, e = np.where(measure, own, 0.0), np.where(measure, chance, 0.0)
    others = [
        np.bincount(category, x, category.max() + 1)[category] - np.bincount(family, x, family.max() + 1)[family]
        for x in (o, e)
    ]
    return np.asarray((others[0] + STRENGTH) / (others[1] + STRENGTH))


def _mix(reason: Array, reasons: int, category: Array, family: Array, measure: Array) -> Array:
    """Share of each reason in the counted returns of a category's other brands, (families, reasons), shrunk towards
    that of all by `STRENGTH` events."""
    said = measure & (reason >= 0)
    of_category, of_family = np.zeros((category.max() + 1, reasons)), np.zeros((family.max() + 1, reasons))
    np.add.at(of_category, (category[said], reason[said]), 1.0)
    np.add.at(of_family, (family[said], reason[said]), 1.0)
    home = np.zeros(len(of_family), dtype=np.int64)
    home[family] = category
    others = of_category[home] - of_family
    usual = of_category.sum(axis=0) / max(of_category.sum(), 1.0)
    return np.asarray((others + STRENGTH * usual) / (others.sum(axis=1, keepdims=True) + STRENGTH))


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
