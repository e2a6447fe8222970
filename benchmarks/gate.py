"""How often the gate of a promotion is right: two models of known quality, compared many times.

    python benchmarks/gate.py [--orders 3000 10000 40000] [--times 200] [--seed 0]

Everything is simulated: orders with one or two parcels, true log-odds of three targets (10, 5 and 2 % positive), ten
regions, three value tiers, a peak. A model says the true log-odds with an error of its own, which is what a model
trained on less or other data does; its size (standard deviation 0.45 in the champion's case) is the model's quality.
Printed is how often the challenger was promoted, and how often it was refused for being worse, with the log loss it
gains or loses on average. The rule is `mlflow/gate.toml`.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.evaluate.gate import Pair, Rule, decide  # noqa: E402
from training.evaluate.intervals import log_losses  # noqa: E402
from training.evaluate.report import columns  # noqa: E402

RATES = {"late": 0.10, "failed_attempt": 0.05, "undelivered": 0.02}
CHAMPION = 0.45
REGIONS = 10
SINCE = pd.Timestamp("2025-01-01", tz="UTC")


@dataclass(frozen=True)
class Case:
    """A challenger.

    Attributes:
        words: what it is.
        error: standard deviation of its error in log-odds.
        shift: log-odds it says too much, everywhere.
        region: of its own error in one region, a tenth of the parcels.
        right: whether it ought to be promoted.
    """

    words: str
    error: float
    shift: float = 0.0
    region: float = 0.0
    right: bool = False


CASES = (
    Case("as good (another seed)", CHAMPION),
    Case("a little better", 0.40, right=True),
    Case("better", 0.30, right=True),
    Case("much better", 0.10, right=True),
    Case("a little worse", 0.50),
    Case("worse", 0.60),
    Case("better, but 30 % too high everywhere", 0.30, shift=0.26),
    Case("better, but bad in one region", 0.30, region=1.0),
    Case("better, but useless in one region", 0.30, region=2.0),
)


def compared(case: Case, orders: int, rng: np.random.Generator, rule: Rule) -> tuple[bool, bool, bool, float]:
    """Promoted, refused as worse, the region named, and the relative change of the log loss."""
    parcels = 1 + (rng.random(orders) < 0.15)
    order = np.repeat(np.arange(orders), parcels)
    n = len(order)
    region = rng.integers(0, REGIONS, orders)[order]
    tier = rng.integers(0, 3, orders)[order]
    slices = pd.DataFrame(
        {f"region: {k}": region == k for k in range(REGIONS)}
        | {f"value: {k}": tier == k for k in range(3)}
        | {"peak": rng.random(n) < 0.2, "new product": rng.random(n) < 0.03}
    )
    pairs, change = [], []
    for target, rate in RATES.items():
        truth = np.log(rate / (1 - rate)) - 0.35 + 0.9 * rng.normal(size=n) + 0.3 * rng.normal(size=orders)[order]
        label = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.int8)
        mine = truth + rng.normal(0, case.error, n) - case.error**2 / 2 + case.shift
        mine = mine + np.where(region == 0, rng.normal(0, 1, n) * case.region, 0)
        theirs = truth + rng.normal(0, CHAMPION, n) - CHAMPION**2 / 2
        p = [1 / (1 + np.exp(-z)) for z in (mine, theirs)]
        losses = [log_losses(label, q) for q in p]
        pairs.append(Pair(target, "parcel", order, losses[0], losses[1], slices, label, (p[0], p[1])))
        change.append(losses[0].mean() / losses[1].mean() - 1)
    decision = decide(pairs, rule, 2, 1, SINCE)
    named = any(c.slice == "region: 0" for c in decision.against)
    return decision.passed, bool(decision.against), named, float(np.mean(change))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--orders", type=int, nargs="+", default=[3_000, 10_000, 40_000], help="orders of a holdout")
    parser.add_argument("--times", type=int, default=200, help="comparisons of each kind (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rule, started = Rule.usual(), time.monotonic()
    rows = [["orders", "challenger (simulated)", "log loss", "promoted", "refused as worse", "region named"]]
    for orders in args.orders:
        for case in CASES:
            rng = np.random.default_rng([args.seed, orders])
            found = np.array([compared(case, orders, rng, rule) for _ in range(args.times)], dtype=np.float64).mean(
                axis=0
            )
            shares = [f"{100 * x:.1f} %" for x in found[:3]]
            rows.append([f"{orders:,}", case.words, f"{100 * found[3]:+.2f} %", *shares])
            print(f"[{time.monotonic() - started:5.0f} s] {'  '.join(rows[-1])}", file=sys.stderr, flush=True)
    print(columns(rows))


if __name__ == "__main__":
    main()
