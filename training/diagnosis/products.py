"""Products whose goods come back for what their listing says or leaves out, more than those of comparable products.

Only returns whose reason the listing team owns count against a listing (`features.vocabulary.RETURN_REASONS`): what
came late, broken, or was not wanted any more is set aside and said to be. What such returns are to be expected is
learned from other products: of the same category and price, sold to like customers in like weeks, nothing being read
of the product's own page or past; how often a category's goods come back for each reason is read off its other brands.
The ratio of what came back to that is shrunk towards what products of the same brand
and category are.

Products are named so that, of all that are named, no more than `FALSE` are in truth no worse: they are taken in order
of how sure it is, as long as the mean doubt of those taken stays below (Newton et al. 2004, "Detecting differential
gene expression with a semiparametric hierarchical mixture method").
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import gammaln

from features.arrays import Array, match, take
from features.reasons import NOT_STATED
from features.snapshot import Facts
from training.diagnosis.expected import held_out
from training.diagnosis.parcels import text, week_number
from training.diagnosis.shrink import Doubt, draws_for, estimate, log_chance, means, worst_first
from training.labels import Labels
from training.models import cores
from training.models.reasons import told
from training.pipeline import Matrices, cut

FALSE = 0.07
"""Share of the products named that may be no worse: less than a tenth, which is promised, as expectations err too."""

LEAST = 30
"""Lines that came back for the listings' own reasons, and lines that did not, from which products are compared."""

OWNER = "listing"

WORSE = 1.1
"""A product comes back more than comparable ones from a tenth more on."""

LIKELY = 0.75
"""How likely it has to be of each product named that it is worse, however sure others are."""

MODEL = 0.2
"""Standard deviation of what is expected of a brand's products in a category, besides what chance made of the others':
a few of those sell most, and their customers and prices are somewhat different ones."""

LEAF, LEAVES = 100, 40
"""Rows that a leaf holds at least, and into how many parts they may be cut at most: weight and price tell a product
that sells much apart from all others, and what it comes back for is then expected of its likes."""

TREES = (5, 10, 20, 40, 80)
"""How many trees are tried. Products that sell much hold most lines of a category: what they are is no rule for others'
products, and trees that have learned it say less of a brand they have not seen. So the number is chosen by how likely
it makes the returns of whole products, not of lines."""

DIFFER = 0.6
"""How much products differ for that: coefficient of variation."""

STRENGTHS = (4.0, 400.0)
"""Expected returns at which what a category's other brands had counts as much as what all categories have: at least,
where categories differ most, and at most."""

LINE = 0.35
"""Likewise of a single line: its customer differs from others by more than trees can tell, and what a product of few
lines has against others is off by that over the root of their number."""

FAR, SUSPECT = 1.5, 0.95
"""A brand whose products come back so many times as often as others of its category for one reason, with this
probability, is no measure for them."""

FOLDS = 3

PEERS = ("product_weight", "product_length", "has_variant", "fragility")
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
    family = pd.factorize(pd.Series(brand + "\0" + category))[0]
    home = np.zeros(family.max() + 1, dtype=np.int64)
    home[family] = pd.factorize(category, sort=True)[0]
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
        peers = _peers(matrix, reason, len(reasons), home, family, code, folds, seed, rng)
    if peers is None:
        back, kept = int(lines["returned"].sum()), int((~own).sum())
        if own.sum() < LEAST and (lines["reason"].notna().any() or not back):
            why = f"{own.sum():,} of {back:,} returns are for the listings' own reasons: {LEAST} are needed to compare"
        elif own.sum() < LEAST:
            why = f"none of {back:,} returns states a reason: nothing tells which are for what the page says"
        elif kept < LEAST:
            why = f"{kept:,} lines did not come back for the listings' own reasons: {LEAST} are needed to compare"
        else:
            why = "what comes back for the listings' own reasons is of too few brands to compare them"
        return out.assign(verdict="cannot tell", named=False, why_not=why), np.full(len(lines), np.nan)
    chance, by_reason, levels = peers
    out["expected"] = by_reason[1].sum(axis=1)
    alone = LINE / np.sqrt(np.maximum(count["lines"], 1))

    def said(observed: Array, expected: Array, level: Array) -> pd.DataFrame:
        off = np.exp(MODEL * rng.normal(size=level.shape)) * level / level.mean(axis=0)
        doubt = Doubt(off, family, alone)
        return estimate(
            observed, expected, rng, family=family, kind=home, doubt=doubt, confidence=confidence, worse=WORSE
        ).table

    whole = said(out["observed"].to_numpy(float), out["expected"].to_numpy(float), levels.sum(axis=0))
    each = [said(by_reason[0][:, k], by_reason[1][:, k], levels[k]) for k in range(len(reasons))]
    out = out.join(whole.drop(columns="chance_worst"))
    chances = np.column_stack([t["chance_worse"] for t in each])
    most = chances.argmax(axis=1)
    out["chance_worse"] = np.maximum(out["chance_worse"], chances.max(axis=1))
    out["reason"] = np.asarray(reasons, dtype=object)[most]
    at = np.arange(n)
    out["reason_observed"], out["reason_expected"] = by_reason[0][at, most], by_reason[1][at, most]
    for name in ("ratio", "low", "high"):
        out[f"reason_{name}"] = np.column_stack([t[name] for t in each])[at, most]
    out["named"] = named(np.where(out["chance_worse"] >= LIKELY, out["chance_worse"], 0.0))
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
    home: Array,
    family: Array,
    code: Array,
    fold: Array,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Array, tuple[Array, Array], Array] | None:
    """What comparable products have: those of other brands in the category.

    Trees say how lines differ, by their customers, prices and weeks; how often the category's goods come back for each
    reason is read off the other brands'. Brands of which most products come back far more than others of their category
    for a reason are no measure for it, and the trees are grown again without them.

    Args:
        matrix: (l, f) from `traits`.
        reason: (l,) int64 code of the listing's reason for which a line came back, -1 for none.
        reasons: how many there are.
        home: (f,) int64, the category of each family.
        family: (n,) int64, the family of each product: its brand in its category.
        code: (l,) int64, the product of each line.
        fold: (l,) int64.
        seed, rng: of the models, and of draws.

    Returns:
        (l,) chance of a counted return of each line; what was observed and expected of each product and reason, two
        (n, reasons); and per reason (draws, families) how often it is the category's other brands', against what trees
        say of all reasons. None where nothing can be learned.
    """
    own, coded, n = (reason >= 0).astype(np.int8), [matrix.shape[1] - 2], len(family)
    families, leaf = len(home), max(LEAF, len(own) // LEAVES)
    observed = np.zeros((n, reasons))
    np.add.at(observed, (code[own > 0], reason[own > 0]), 1.0)
    seen = np.zeros((families, reasons))
    np.add.at(seen, family, observed)

    def of_others(due: Array, apart: Array) -> tuple[Array, Array]:
        # Events of the category's other brands that are not apart, and how many trees say, (families, reasons).
        whole = np.bincount(family, due, families)
        usual = seen.sum(axis=0) / whole.sum()
        kept = [np.where(apart, 0.0, x) for x in (seen, np.broadcast_to(whole[:, None], seen.shape))]
        total = [np.zeros((int(home.max()) + 1, reasons)) for _ in kept]
        for t, x in zip(total, kept, strict=True):
            np.add.at(t, home, x)
        worth = _strength(total[0], total[1], usual)
        return total[0][home] - kept[0] + worth * usual, total[1][home] - kept[1] + worth

    def likely(due: Array) -> float:
        # Of what came back of each product, whatever for: products of a brand they have not seen.
        o, e = of_others(due, np.zeros(seen.shape, dtype=bool))
        expected = due * (o / e).sum(axis=1)[family]
        return float(log_chance(observed.sum(axis=1), expected, np.float64(DIFFER**-2.0)).sum())

    def suspect(due: Array) -> Array:
        o, e = of_others(due, np.zeros(seen.shape, dtype=bool))
        by = [means(observed[:, k], due * (o / e)[family, k], rng, family, home) > FAR for k in range(reasons)]
        return np.stack([b.mean(axis=0) > SUSPECT for b in by], axis=1)

    each, _ = held_out(matrix, own, fold, coded, seed, cores(), leaf=leaf, trees=TREES)
    if np.isnan(each).any():
        return None
    trees = int(np.argmax([likely(np.bincount(code, chance, n)) for chance in each]))
    chance = each[trees]
    apart = suspect(np.bincount(code, chance, n))
    left = np.asarray(~apart.any(axis=1))[family][code]
    if not left.all() and min(own[left].sum(), (1 - own[left]).sum()) >= LEAST:
        again, rest = held_out(
            matrix[left], own[left], fold[left], coded, seed, cores(), matrix[~left], leaf, TREES[trees : trees + 1]
        )
        if not (np.isnan(again).any() or np.isnan(rest).any()):
            chance[left], chance[~left] = again[0], rest[0]
            apart = suspect(np.bincount(code, chance, n))
    due = np.bincount(code, chance, n)
    o, e = of_others(due, apart)
    levels = np.stack([rng.gamma(o[:, k], 1 / e[:, k], size=(draws_for(n), families)) for k in range(reasons)])
    typical = (o / e)[family]
    return chance * typical.sum(axis=1)[code], (observed, due[:, None] * typical), levels


def _strength(observed: Array, due: Array, usual: Array) -> Array:
    """For how many expected returns the usual share of a reason counts in each category: many where they are alike.

    Counts of categories are negative binomial around the usual share (Gamma-Poisson); the strength is its posterior
    mean on a logarithmic grid, so that categories that happen to be alike are not taken for the same.

    Args:
        observed, due: (categories, reasons) returns for each reason, and expected for all.
        usual: (reasons,) how many of those expected came back for each reason.

    Returns:
        (reasons,) strengths in `STRENGTHS`.
    """
    grid = np.geomspace(*STRENGTHS, 25)[:, None, None]
    shape = np.maximum(grid * usual, 1e-12)
    fits = gammaln(shape + observed) - gammaln(shape) + shape * np.log(grid / (grid + due))
    fits = (fits - observed * np.log(grid + due)).sum(axis=1)
    weight = np.exp(fits - fits.max(axis=0))
    return np.asarray(np.exp((weight * np.log(grid[:, 0])).sum(axis=0) / weight.sum(axis=0)))


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
