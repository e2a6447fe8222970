"""What the policy's advice is worth, against the truth of simulated shops: money, regret, packages.

    python benchmarks/policy.py [--scenario NAME ...] [--seeds 5] [--parcels 20000] [--write] [--json FILE]

For each scenario and seed it makes a shop, trains on its tables as anybody would, drafts a policy with
`training.policy.draft` and weighs every action for the parcels of the holdout with `serving.actions.weigh`. The
oracle's potential outcomes of the same actions (`training.world.acting`) say what each would really be worth: the same
costs, with true probabilities. Figures are means over the seeds; intervals are 95 % t intervals of that mean.

    money       per 1,000 parcels against doing nothing: the advice, always acting, a threshold on risk, the oracle
    regret      what the advice leaves of the oracle's gain, by the oracle's action and by the advised one
    packages    damage in every other package against the true one: the adjusted lever, the trees, crude rates
    carriers    every other carrier's change of each risk against the true one: the carriers' lever, the trees
    products    products whose parcels should be packed weaker or stronger, found among those the oracle would change

`--write` puts the tables into docs/actions-truth.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.truth import some  # noqa: E402
from features.arrays import Array  # noqa: E402
from features.dataset import Dataset  # noqa: E402
from features.matrix import values  # noqa: E402
from features.rows import Rows  # noqa: E402
from features.snapshot import Facts  # noqa: E402
from features.vocabulary import TARGETS  # noqa: E402
from serving.actions import Options, weigh  # noqa: E402
from serving.bundle import Bundle  # noqa: E402
from serving.policy import Policy  # noqa: E402
from training.labels import labels  # noqa: E402
from training.pipeline import train  # noqa: E402
from training.policy import draft  # noqa: E402
from training.world import Scenario, generate, shipped  # noqa: E402
from training.world.acting import Acting  # noqa: E402
from training.world.oracle import Oracle  # noqa: E402
from training.world.scenario import PACKAGE_TYPES  # noqa: E402

PAGE = ROOT / "docs" / "actions-truth.md"
SCENARIOS = ("plain", "confounded_packaging")
LEAST_PARCELS = 5
"""Parcels of the holdout that a product must be in to be judged."""

OFF = 0.5
"""Levels by which a product's best packages differ from its own, on average, when it is packed wrongly."""

REMEDY = {
    "damaged": "package:foam_box",
    "failed_attempt": "pickup_point",
    "undelivered": "confirm_address",
    "late": "fix_label",
}
"""What somebody does who only looks at risks: one remedy for each."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Weighed:
    """One shop's holdout, weighed twice.

    Attributes:
        options: what the service would say.
        trees_only: the same without carriers' levers: the parcel scored again for another carrier.
        rows: the parcels.
        true: (n, K) true net benefit of each action; NaN where it is not offered.
        true_after: per target, (n, K + 1) or (l, K + 1) true probabilities; the first column is doing nothing.
        crude: (5,) damage rate of each package before the holdout.
        trees: (n, 5) P(damaged) by the trees had the package been another.
    """

    options: Options
    trees_only: Options
    rows: Rows
    true: Array
    true_after: dict[str, Array]
    crude: Array
    trees: Array


def prepare(folder: Path, scenario: Scenario, parcels: int, seed: int, say: Say) -> Weighed:
    """Make a shop, train, and weigh its holdout."""
    shop = generate(folder / "shop", parcels=parcels, seed=seed, scenario=scenario)
    dataset = Dataset.open(shop)
    result = train(dataset, out=folder / "run", seed=0, progress=say)
    bundle = Bundle.load(result.bundle_dir)
    policy = Policy.parse(draft(dataset))
    facts = Facts.of(dataset)
    start = np.datetime64(bundle.meta["holdout_from"].removesuffix("Z"))
    later = facts.rows.parcel_id[facts.rows.parcels.decided_at >= start]
    return weighed(bundle, policy, facts, later, Acting(Oracle.open(shop)), start)


def weighed(bundle: Bundle, policy: Policy, facts: Facts, ids: Array, acting: Acting, start: np.datetime64) -> Weighed:
    """Weigh some parcels, and ask the oracle about them."""
    rows = some(facts, ids, "parcel")
    known = probabilities(bundle, rows)
    options = weigh(bundle, policy, rows, known)
    plain = copy(bundle)
    plain.carriers = {}
    trees_only = weigh(plain, policy, rows, known)
    truth = acting.potential([None, *options.keys])
    parcel = pd.Index(truth.parcel_id).get_indexer(pd.Index(rows.parcel_id))
    line = pd.Index(truth.line_id).get_indexer(pd.Index(rows.line_id))
    true_after = {t: p[line if TARGETS[t].unit == "line" else parcel] for t, p in truth.probability.items()}
    true = true_benefit(policy, options, true_after)
    units = labels(facts, "damaged")
    label, mature = units.known(start)
    seen = mature & (units.decided_at < start)
    package = pd.Series(facts.rows.parcels["parcels", "package_type"][units.row[seen]])
    crude = pd.Series(label[seen]).groupby(package.to_numpy()).mean().reindex(PACKAGE_TYPES).to_numpy()
    model = bundle.targets["damaged"]
    trees = []
    for level, name in enumerate(PACKAGE_TYPES):
        changed = {
            "package_type": np.full(len(ids), name, dtype=object),
            "protection_level": np.full(len(ids), float(level)),
        }
        trees.append(model.probability(values(some(facts, ids, "parcel", **changed), model.features)))
    return Weighed(options, trees_only, rows, true, true_after, crude, np.stack(trees, axis=1))


def probabilities(bundle: Bundle, rows: Rows) -> dict[str, Array]:
    """Served probabilities of every target, (n,) or (l,)."""
    return {t: m.probability(values(rows, m.features)) for t, m in bundle.targets.items()}


def true_benefit(policy: Policy, options: Options, after: dict[str, Array]) -> Array:
    """Net benefit of each action with true probabilities, (n, K), by the policy's own money."""
    n, k = options.offered.shape
    parcels = options.parcels
    factor = np.array([*(t.factor for t in policy.tiers), 1.0])[parcels.tier]
    factor = factor * np.where(parcels.business, policy.business_factor, 1.0)
    benefit = np.zeros((n, k))
    for target, p in after.items():
        failure, line = policy.failures[target], TARGETS[target].unit == "line"
        value = parcels.line_value if line else parcels.value
        each = failure.cost + failure.share_of_value * np.where(np.isnan(value), 0.0, value)
        gain = (p[:, :1] - p[:, 1:]) * each[:, None]
        if line:
            sums = np.zeros((n, k))
            np.add.at(sums, options.line_parcel, gain)
            gain = sums
        benefit += policy.weights.of(target) * gain * factor[:, None]
    benefit -= policy.weights.cost * options.cost
    return np.where(options.offered, benefit, np.nan)


# ---- what is measured


def chosen(true: Array, which: Array) -> Array:
    """True benefit of the action of each parcel, (n,); 0 where it is -1."""
    found = np.take_along_axis(true, np.maximum(which, 0)[:, None], axis=1)[:, 0]
    return np.where(which >= 0, np.nan_to_num(found), 0.0)


def best_of(true: Array) -> Array:
    """The oracle's action of each parcel, -1 for nothing."""
    filled = np.where(np.isnan(true), -np.inf, true)
    return np.where(filled.max(axis=1) > 0, filled.argmax(axis=1), -1)


def money(w: Weighed) -> dict[str, float]:
    """True net money per 1,000 parcels of each way to decide, and the share of the oracle's gain."""
    o, true = w.options, w.true
    per = 1000 / len(true)
    oracle = chosen(true, best_of(true)).sum() * per
    offered = np.where(o.offered, o.benefit, -np.inf)
    fixed = np.nansum(np.where(o.offered, true, 0.0), axis=0) * per
    ways = {
        "the advice": chosen(true, o.best()).sum() * per,
        "the advice, carriers by the trees": chosen(true, w.trees_only.best()).sum() * per,
        "always the likeliest action": chosen(true, offered.argmax(axis=1)).sum() * per,
        "always the same action, the best one": float(fixed.max()),
        "a threshold on risk, the best one": threshold(w) * per,
        "never": 0.0,
        "the oracle": oracle,
    }
    return ways | {
        f"share: {name}": 100 * v / oracle for name, v in ways.items() if name not in ("never", "the oracle")
    }


def threshold(w: Weighed) -> float:
    """Money of acting from a risk on, each target's own remedy; thresholds are the best in hindsight."""
    o, total, taken = w.options, 0.0, np.zeros(len(w.true), dtype=bool)
    for target, action in REMEDY.items():
        if target not in o.before or action not in o.keys:
            continue
        k = o.keys.index(action)
        gain = np.where(o.offered[:, k] & ~taken, np.nan_to_num(w.true[:, k]), 0.0)
        order = np.argsort(-o.before[target])
        sums = np.cumsum(gain[order])
        if sums.max() > 0:
            most = int(sums.argmax()) + 1
            total += float(sums[most - 1])
            taken[order[:most]] = True
    return total


def kind_of(keys: tuple[str, ...], which: Array) -> Array:
    """The kind of each parcel's action; packages as weaker or stronger are told apart by `regret`."""
    names = np.array([*(k.partition(":")[0] for k in keys), "nothing"], dtype=object)
    return names[which]


def regret(w: Weighed) -> dict[str, float]:
    """Money per 1,000 parcels lost against the oracle, by the oracle's action and by the advised one."""
    o, ours, best = w.options, w.options.best(), best_of(w.true)
    lost = (chosen(w.true, best) - chosen(w.true, ours)) * 1000 / len(w.true)
    out = {}
    for words, which in (("oracle", best), ("advice", ours)):
        kinds = kind_of(o.keys, which)
        level = o.ladder.level[np.clip(which, 0, len(o.ladder.level) - 1)] - o.parcels.level
        kinds = np.where(kinds == "package", np.where(level > 0, "package, stronger", "package, weaker"), kinds)
        for kind in sorted(set(kinds.tolist())):
            out[f"{words}: {kind}"] = float(lost[kinds == kind].sum())
            out[f"{words}, parcels: {kind}"] = float((kinds == kind).sum() * 1000 / len(lost))
    return out


def packages(w: Weighed) -> dict[str, float]:
    """Change of damage in each other package, in points, against the true one: error, slope, sign."""
    o = w.options
    at = [o.keys.index(f"package:{p}") for p in PACKAGE_TYPES]
    potential = w.true_after["damaged"][:, 1:][:, at]
    used = o.parcels.level.astype(np.int64)
    other = np.arange(len(PACKAGE_TYPES)) != used[:, None]
    base = np.take_along_axis(potential, used[:, None], axis=1)
    true = (potential - base)[other]
    own = np.take_along_axis(w.trees, used[:, None], axis=1)
    guesses = {
        "adjusted lever, as served": (o.after["damaged"][:, at] - o.before["damaged"][:, None])[other],
        "trees, scored again": (w.trees - own)[other],
        "crude rates of packages": (w.crude[None, :] - w.crude[used][:, None])[other],
    }
    out = {}
    for name, guess in guesses.items():
        out[f"error: {name}"] = 100 * float(np.sqrt(np.mean((guess - true) ** 2) / np.mean(true**2)))
        out[f"slope: {name}"] = float((guess * true).sum() / (true**2).sum())
        out[f"sign right: {name}"] = 100 * float(np.mean(np.sign(guess) == np.sign(true)))
    return out


def carriers(w: Weighed) -> dict[str, float]:
    """Change of each risk with every other carrier that is offered, in log-odds, against the true one: error, slope."""
    at = [k for k, key in enumerate(w.options.keys) if key.startswith("carrier:")]
    out = {}

    def log_odds(p: Array) -> Array:
        p = np.clip(p, 1e-9, 1 - 1e-9)
        return np.asarray(np.log(p) - np.log1p(-p))

    for target, before in w.options.before.items():
        offered = w.options.offered[:, at]
        offered = offered[w.options.line_parcel] if TARGETS[target].unit == "line" else offered
        potential = log_odds(w.true_after[target])
        true = (potential[:, 1:] - potential[:, :1])[:, at]
        use = offered & ~np.isnan(true)
        for name, options in (("carriers' lever", w.options), ("trees, scored again", w.trees_only)):
            guess = log_odds(options.after[target][:, at]) - log_odds(before)[:, None]
            gap = np.sum((guess - true)[use] ** 2) / np.sum(true[use] ** 2)
            out[f"error: {name}, {target}"] = 100 * float(np.sqrt(gap))
            out[f"slope: {name}, {target}"] = float(np.sum((guess * true)[use]) / np.sum(true[use] ** 2))
    return out


def products(w: Weighed) -> dict[str, float]:
    """Products packed too weak or too strong, found by the advice among those the oracle would change."""
    o = w.options
    at = [o.keys.index(f"package:{p}") for p in PACKAGE_TYPES]
    levels, used = o.ladder.level, o.parcels.level

    def wish(benefit: Array) -> Array:
        """Levels up or down of each parcel's best package."""
        own = np.where(o.offered[:, at], benefit[:, at], -np.inf)
        best = own.argmax(axis=1)
        return np.where(own.max(axis=1) > 0, levels[best] - used, 0.0)

    sku = w.rows.lines["order_lines", "sku"]
    wishes = pd.DataFrame({"sku": sku, "ours": wish(o.benefit)[o.line_parcel], "true": wish(w.true)[o.line_parcel]})
    by = wishes.groupby("sku").agg(ours=("ours", "mean"), true=("true", "mean"), parcels=("true", "size"))
    by = by[by.parcels >= LEAST_PARCELS]
    out = {"products": float(len(by))}
    for words, sign in (("packed too weak", 1), ("packed too strong", -1)):
        ours, true = by.ours * sign >= OFF, by.true * sign >= OFF
        both = float((ours & true).sum())
        out[f"{words}: there are"] = float(true.sum())
        out[f"{words}: precision"] = 100 * both / max(1.0, float(ours.sum()))
        out[f"{words}: recall"] = 100 * both / max(1.0, float(true.sum()))
    return out


MEASURES: dict[str, Callable[[Weighed], dict[str, float]]] = {
    "money": money,
    "regret": regret,
    "packages": packages,
    "carriers": carriers,
    "products": products,
}


def summarise(found: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Mean over seeds of every figure and its 95 % t interval; what a seed does not have counts as 0."""
    from scipy.stats import t

    names = sorted({name for run in found for name in run})
    out = {}
    for name in names:
        each = np.array([run.get(name, 0.0) for run in found])
        half = t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
        out[name] = float(each.mean()), float(each.mean() - half), float(each.mean() + half)
    return out


def tables(summary: dict[str, dict[str, dict[str, tuple[float, float, float]]]], head: str) -> str:
    """The tables as Markdown."""
    scenarios = list(summary)
    words = {
        "money": "Net money per 1,000 parcels against doing nothing (EUR), and share of the oracle's gain (%)",
        "regret": "Regret per 1,000 parcels (EUR), and parcels (of 1,000)",
        "packages": "Change of damage in another package: predicted against true",
        "carriers": "Change of a risk with another carrier and its pickup, in log-odds: predicted against true",
        "products": "Products packed too weak or too strong",
    }
    out = [head, ""]
    for table, title in words.items():
        out += [f"### {title}", "", "| | " + " | ".join(scenarios) + " |", "|---|" + "---|" * len(scenarios)]
        names: list[str] = []
        for s in scenarios:
            names += [n for n in summary[s][table] if n not in names]
        for name in names:
            cells = []
            for s in scenarios:
                value, low, high = summary[s][table].get(name, (np.nan,) * 3)
                digits = 2 if name.startswith("slope") else 0 if "error" in name or "sign" in name else 1
                cells.append("–" if np.isnan(value) else f"{value:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]")
            out.append(f"| {name} | " + " | ".join(cells) + " |")
        out.append("")
    return "\n".join(out)


def write(page: Path, text: str) -> None:
    """Put the tables between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- measured -->")
    _, _, after = rest.partition("<!-- /measured -->")
    page.write_text(f"{before}<!-- measured -->\n\n{text}\n<!-- /measured -->{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(shipped())
    parser.add_argument(
        "--scenario", nargs="+", default=list(SCENARIOS), choices=names, help="kinds of shop, each with every seed"
    )
    parser.add_argument("--seeds", type=int, default=5, help="shops per scenario, seeds from 0")
    parser.add_argument("--parcels", type=int, default=20_000, help="parcels of each shop, a year of them")
    parser.add_argument("--json", type=Path, help="file for every shop's figures, written after each shop")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {words}", file=sys.stderr, flush=True)

    found: dict[str, dict[str, list[dict[str, float]]]] = {s: {m: [] for m in MEASURES} for s in args.scenario}
    for seed in range(args.seeds):
        for name, measured in found.items():
            with tempfile.TemporaryDirectory() as folder:
                w = prepare(Path(folder), shipped()[name], args.parcels, seed, lambda _: None)
            for measure, of in MEASURES.items():
                measured[measure].append(of(w))
            m = measured["money"][-1]
            say(f"{name}, seed {seed}: {m['share: the advice']:.1f} % of the oracle's {m['the oracle']:,.0f}")
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    summary = {name: {m: summarise(f) for m, f in measured.items()} for name, measured in found.items()}
    head = f"{args.parcels:,} parcels per shop, {args.seeds} shops per scenario; SIMULATED."
    text = tables(summary, head)
    print(text)
    if args.write:
        write(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
