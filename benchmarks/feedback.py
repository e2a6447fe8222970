"""Ten rounds of training, acting on the advice and training again, against the truth of simulated shops.

    python benchmarks/feedback.py [--seeds 3] [--parcels 20000] [--rounds 10] [--write] [--json FILE]

Every round a model is trained on what is known by then, advises on the parcels of the next four weeks, and its advice
is followed: those failures do not happen, and the next training sees a shop without them. Three shops live through the
same year with the same chance:

    nobody acts      the reference: models learn from untouched outcomes, and are only listened to
    naive            everybody acts on the advice, nobody tells the training what was done
    Doorstep         a share of the advice is withheld by lot, and the table `decisions` tells of it

Measured on the parcels of each round before anything is done to them, against the oracle: log loss above that of the
true probability, AUC, how much of the true risk is predicted, and the true money of the advice. `--write` puts the plot
and the table into docs/feedback.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import tomli_w

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.policy import best_of, chosen, probabilities, true_benefit, write  # noqa: E402
from benchmarks.truth import some  # noqa: E402
from features.arrays import Array  # noqa: E402
from features.dataset import Dataset  # noqa: E402
from features.matrix import FeatureSet  # noqa: E402
from features.snapshot import Facts  # noqa: E402
from features.vocabulary import TARGETS as UNITS  # noqa: E402
from serving.actions import weigh  # noqa: E402
from serving.advice import CHANGES, withheld  # noqa: E402
from serving.bundle import Bundle  # noqa: E402
from serving.policy import Policy  # noqa: E402
from training.labels import labels  # noqa: E402
from training.models.levers import estimate_levers  # noqa: E402
from training.pipeline import cut, fit_on, matrices_of  # noqa: E402
from training.policy import draft  # noqa: E402
from training.splits import split  # noqa: E402
from training.world import generate  # noqa: E402
from training.world.acting import Acting, Potential  # noqa: E402
from training.world.oracle import Oracle  # noqa: E402

PAGE = ROOT / "docs" / "feedback.md"
PLOT = ROOT / "docs" / "feedback.svg"
MODELLED = ("damaged", "failed_attempt")
"""Targets that are modelled: what packing can prevent, and what happens at the door."""

RANDOMIZED = 0.2
"""Share of the advice that is withheld by lot."""

DEAR = 5.0
"""Failures cost so many times what the draft guesses: a shop with much to lose acts much."""

FIRST = np.datetime64("2025-04-01", "us")
ROUND = np.timedelta64(27, "D")

SHOPS: dict[str, dict[str, bool]] = {
    "nobody acts": {"acts": False, "lot": False},
    "naive": {"acts": True, "lot": False},
    "Doorstep": {"acts": True, "lot": True},
}
"""Whether the advice is followed, and whether a share is withheld by lot and the training is told."""

Say = Callable[[str], None]


def policy_for(dataset: Dataset) -> Policy:
    """The drafted policy, with failures five times as dear and no other carriers: much is done, so much is hidden."""
    document = tomllib.loads(draft(dataset))
    for failure in document["failures"].values():
        failure["cost"] *= DEAR
        failure["share_of_value"] = min(3.0, failure["share_of_value"] * DEAR)
    del document["actions"]["carrier"]
    for name, action in document["actions"].items():
        action["randomize"] = RANDOMIZED * (name != "complete_documents")  # the handoff asks for those of every parcel
    return Policy.parse(tomli_w.dumps(document))


def live(folder: Path, world: Path, acting: Acting, rounds: int, how: Mapping[str, bool], say: Say) -> pd.DataFrame:
    """One shop's rounds: per round and target the log loss above the oracle's, AUC, and the money of the advice."""
    plain = Dataset.open(world)
    policy = policy_for(plain)
    done: dict[str, str] = {}
    told: list[dict[str, object]] = []
    truth: Potential | None = None
    out = []
    for k in range(rounds):
        at, until = FIRST + k * ROUND, FIRST + (k + 1) * ROUND
        table = pd.DataFrame(told)
        shop = acting.act(world, folder / "now", done, table if how["lot"] else table.iloc[:0])
        dataset = Dataset.open(shop)
        bundle, facts = trained(Facts.of(dataset, at), at)
        whole = Facts.of(dataset)
        decided = whole.rows.parcels.decided_at
        ids = whole.rows.parcel_id[(decided >= at) & (decided < until)]
        # The parcels of the round are seen with the history of its beginning, as a snapshot would have it.
        rows = some(replace(whole, snapshot=facts.snapshot), ids, "parcel")
        known = probabilities(bundle, rows)
        options = weigh(bundle, policy, rows, known)
        if truth is None:
            truth = acting.potential([None, *options.keys])
        parcel = pd.Index(truth.parcel_id).get_indexer(pd.Index(rows.parcel_id))
        line = pd.Index(truth.line_id).get_indexer(pd.Index(rows.line_id))
        after = {t: p[line if UNITS[t].unit == "line" else parcel] for t, p in truth.probability.items()}
        modelled = {t: after[t] for t in MODELLED}
        true = true_benefit(policy, options, modelled)
        which = options.best()
        # As the service has it: what a rule, the handoff or a protocol asks for is not left to chance.
        demanded = (options.demanded[np.arange(len(which)), which] & (which >= 0)).tolist()
        lot = [
            how["lot"] and w >= 0 and not asked and withheld(policy, options.keys[w], i)
            for i, w, asked in zip(rows.parcel_id.tolist(), which.tolist(), demanded, strict=True)
        ]
        act = np.where(lot, -1, which)
        oracle = chosen(true, best_of(true)).sum()
        for target in MODELLED:
            p, q = after[target][:, 0], np.clip(known[target], 1e-6, 1 - 1e-6)
            above = float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
            figures = {
                "log loss above the oracle's": above,
                "AUC": expected_auc(p, q),
                "predicted by true, mean": float(q.mean() / p.mean()),
                "predicted by true, riskiest tenth": float(
                    q[p >= np.quantile(p, 0.9)].mean() / p[p >= np.quantile(p, 0.9)].mean()
                ),
            }
            out += [{"round": k + 1, "target": target, "what": n, "value": v} for n, v in figures.items()]
        money = {
            "advice": chosen(true, which).sum() / oracle,
            "with what is withheld": chosen(true, act).sum() / oracle,
        }
        out += [
            {"round": k + 1, "target": "money", "what": f"share of the oracle's gain, {n}", "value": float(v)}
            for n, v in money.items()
        ]
        if how["acts"]:
            at_bench, before = rows.parcels.decided_at, {c: rows.parcels["parcels", c] for c in CHANGES.values()}
            each = zip(rows.parcel_id.tolist(), which.tolist(), lot, demanded, strict=True)
            for row, (i, w, withheld_, asked) in enumerate(each):
                action = options.keys[w] if w >= 0 else None
                if action is not None and not withheld_:
                    done[i] = action
                moment = pd.Timestamp(at_bench[row], tz="UTC")
                was = before[CHANGES[kind]][row] if (kind := (action or "").partition(":")[0]) in CHANGES else None
                told.append(
                    {
                        "decision_id": f"d{i}",
                        "parcel_id": i,
                        "decided_at": moment,
                        "action": action,
                        "arm": "none" if action is None else "control" if withheld_ else "act",
                        "propensity": 1.0 if action is None or asked else 1 - RANDOMIZED,
                        "demanded": asked,
                        "done": done.get(i),
                        "before": None if was is None or was != was else str(was),
                        "known_at": moment,
                    }
                )
        say(f"round {k + 1}: {len(ids):,} parcels, {np.mean(which >= 0):.0%} advised")
    return pd.DataFrame(out)


def trained(facts: Facts, at: np.datetime64) -> tuple[Bundle, Facts]:
    """The models and levers of what was known before a moment."""
    units = {t: labels(facts, t) for t in MODELLED}
    matrices = matrices_of(facts, units, lambda _: None)
    start, end = at - np.timedelta64(1, "us"), at + np.timedelta64(1, "D")

    def read(chosen: FeatureSet, row: Array) -> Array:
        return cut(matrices, chosen, row)

    levers, _ = estimate_levers(facts, units, read, start, end, 0, lambda _: None)
    models = {
        t: fit_on(facts, u, matrices, split(u, start, end), 0, lambda _: None, levers=levers).model
        for t, u in units.items()
    }
    return Bundle("0" * 64, facts.snapshot.settings, models, None, {}, None, levers), facts


def expected_auc(true: Array, predicted: Array) -> float:
    """AUC to expect of a prediction where each parcel fails with its true probability."""
    _, place = np.unique(predicted, return_inverse=True)
    positive = np.bincount(place, weights=true)
    negative = np.bincount(place, weights=1.0 - true)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2.0)).sum() / (positive.sum() * negative.sum()))


def compare(
    parcels: int, seeds: int, rounds: int, shops: list[str], say: Say, keep: Path | None = None
) -> pd.DataFrame:
    """All shops and seeds: columns shop, seed, round, target, what, value."""
    parts = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            world = generate(folder / "world", parcels=parcels, seed=seed)
            acting = Acting(Oracle.open(world))
            for shop in shops:
                found = live(
                    folder, world, acting, rounds, SHOPS[shop], lambda w, s=shop, k=seed: say(f"seed {k}, {s}, {w}")
                )
                parts.append(found.assign(shop=shop, seed=seed))
                if keep is not None:
                    keep.write_text(json.dumps(pd.concat(parts).to_dict("records")) + "\n")
    return pd.concat(parts, ignore_index=True)


def plot(found: pd.DataFrame, to: Path) -> None:
    """Draw the rounds: log loss above the oracle's per target, and the share of the oracle's gain."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(t, "log loss above the oracle's") for t in MODELLED]
    panels += [(t, "predicted by true, riskiest tenth") for t in MODELLED]
    panels += [("money", "share of the oracle's gain, advice")]
    with plt.rc_context({"svg.hashsalt": "doorstep", "font.size": 8}):
        figure, axes = plt.subplots(1, len(panels), figsize=(3.1 * len(panels), 2.8), constrained_layout=True)
        for axis, (target, what) in zip(axes, panels, strict=True):
            part = found[(found.target == target) & (found.what == what)]
            for shop in found["shop"].unique():
                line = part[part["shop"] == shop].groupby("round").value
                axis.plot(line.mean(), label=shop)
                axis.fill_between(line.mean().index, line.min(), line.max(), alpha=0.15)
            axis.set_title(f"{target}: {what}" if target != "money" else what)
            axis.set_xlabel("round")
            axis.grid(alpha=0.3)
        axes[0].legend()
        figure.savefig(to, format="svg", metadata={"Date": None})
        plt.close(figure)


def summarise(found: pd.DataFrame) -> pd.DataFrame:
    """Means of the first and of the last three rounds, over seeds, per shop and figure, with the seeds' spread."""
    last = found["round"].max()
    part = {"first three": found[found["round"] <= 3], "last three": found[found["round"] > last - 3]}
    rows = []
    for when, frame in part.items():
        each = frame.groupby(["shop", "target", "what", "seed"], sort=False).value.mean()
        for (shop, target, what), own in each.groupby(level=[0, 1, 2], sort=False):
            rows.append((shop, target, what, when, own.mean(), own.min(), own.max()))
    return pd.DataFrame(rows, columns=["shop", "target", "what", "rounds", "value", "low", "high"])


def table(summary: pd.DataFrame, head: str) -> str:
    """The summary as Markdown."""
    shops = list(summary["shop"].unique())
    out = [head, "", "| | rounds | " + " | ".join(shops) + " |", "|---|---|" + "---|" * len(shops)]
    for (target, what, rounds), part in summary.groupby(["target", "what", "rounds"], sort=False):
        digits = 4 if "log loss" in str(what) else 3 if what == "AUC" else 2
        cells = []
        for shop in shops:
            own = part[part["shop"] == shop].iloc[0]
            cells.append(f"{own.value:.{digits}f} [{own.low:.{digits}f}, {own.high:.{digits}f}]")
        words = f"{target}: {what}" if target != "money" else what
        out.append(f"| {words} | {rounds} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="years to live through, seeds from 0")
    parser.add_argument("--parcels", type=int, default=20_000, help="parcels of each year")
    parser.add_argument(
        "--rounds", type=int, default=10, help="of 27 days each, from April on; 10 at most fit the year"
    )
    parser.add_argument("--shop", nargs="+", default=list(SHOPS), choices=list(SHOPS), help="who lives through them")
    parser.add_argument("--json", type=Path, help="file for every figure of every round, written after each shop")
    parser.add_argument("--write", action="store_true", help="put the table and the plot into docs/feedback.*")
    args = parser.parse_args()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {words}", file=sys.stderr, flush=True)

    found = compare(args.parcels, args.seeds, args.rounds, args.shop, say, args.json)
    text = table(summarise(found), f"{args.parcels:,} parcels a year, {args.seeds} shops; SIMULATED.")
    print(text)
    if args.write:
        write(PAGE, text)
        plot(found, PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
