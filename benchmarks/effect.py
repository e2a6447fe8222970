"""Whether daily looks at an experiment deceive: a thousand trials of known effect, looked at every day.

    python benchmarks/effect.py [--trials 1000] [--seed 0] [--write] [--picture docs/experiments]
    python benchmarks/effect.py --shop DIR [--parcels 20000] [--seed 0]
    python benchmarks/effect.py --shops 40 [--parcels 20000]

Everything is simulated: 40 parcels a day are drawn into a trial for half a year, and each is judged a fortnight later.
For each kind of trial the table says

- wins, harms: how often the sequence ever said "fewer" or "more", at 95 %; where nothing happens, the two together
  should be at most 5 %;
- z peeked, z once: the same of the textbook's 95 % interval of two proportions, looked at daily (from the day on which
  the sequence speaks), and if it is looked at once, at the end;
- covers: how often the interval held the true difference on all days, and that of the odds ratio the true odds ratio;
  at least 95 % is meant;
- found by day 60, 120, 180 of judging, and how wide the interval is at the end beside the usual one's.

The last rows are a policy of four actions that do nothing, each with its own primary target, at 5 % for all four
(shared as `training.effect` does), and the test of arms. `--picture` draws one null trial, and how often which method
has been fooled by which day.

`--shop` makes a dataset for `doorstep effect`, a simulated year in which three actions were tried on the parcels at the
highest true risk, and prints what they truly do there. `--shops` does the whole of that, and the command's own answer,
for so many shops: how often the intervals of all targets held the truth on the last day and on all days.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.effect.sequences import Path as Sequence  # noqa: E402
from training.effect.sequences import difference, mismatch, odds_ratio  # noqa: E402
from training.evaluate.report import columns  # noqa: E402

PAGE = ROOT / "docs" / "experiments.md"
START, END = "<!-- measured: effect -->", "<!-- /measured -->"
DAYS, A_DAY, LEVEL, ACTIONS = 180, 40, 0.05, 4
GUARDRAILS = (0.08, 0.06, 0.02, 0.18)


@dataclass(frozen=True)
class Case:
    """A kind of trial.

    Attributes:
        words: what it is.
        rate: how often the event comes about without the action.
        withheld: share of the parcels.
        risk_ratio: rate with the action by rate without.
        followed: share of the advice that is done.
        drift: the rate at the end by that in the beginning.
        later: share withheld in the second half.
        customers: parcels that one customer's habit is shared by; 1: all on their own.
        amounts: not an event but a cost: what an event costs is drawn, from a heavy tail.
    """

    words: str
    rate: float
    withheld: float
    risk_ratio: float = 1.0
    followed: float = 1.0
    drift: float = 1.0
    later: float | None = None
    customers: int = 1
    amounts: bool = False

    @property
    def null(self) -> bool:
        return self.risk_ratio == 1


CASES = (
    Case("nothing, half withheld", 0.08, 0.5),
    Case("nothing, a tenth withheld", 0.08, 0.1),
    Case("nothing, rare", 0.02, 0.1),
    Case("nothing, frequent", 0.20, 0.2),
    Case("nothing, the rate trebles", 0.05, 0.2, drift=3.0),
    Case("nothing, it trebles; withheld 0.5, then 0.1", 0.05, 0.5, drift=3.0, later=0.1),
    Case("nothing, ten parcels a customer", 0.08, 0.2, customers=10),
    Case("nothing, costs", 0.10, 0.2, amounts=True),
    Case("half as many", 0.08, 0.2, risk_ratio=0.5),
    Case("half as many, 70 % follow", 0.08, 0.2, risk_ratio=0.5, followed=0.7),
    Case("half as many, rare", 0.02, 0.2, risk_ratio=0.5),
    Case("a quarter less", 0.08, 0.2, risk_ratio=0.75),
    Case("a quarter less, frequent", 0.20, 0.2, risk_ratio=0.75),
    Case("a half more", 0.08, 0.2, risk_ratio=1.5),
    Case("half as many, the rate trebles", 0.05, 0.2, risk_ratio=0.5, drift=3.0),
)


@dataclass(frozen=True)
class Trial:
    """One trial: what happened, and the truth behind it."""

    outcome: np.ndarray
    treated: np.ndarray
    propensity: np.ndarray
    look: np.ndarray
    without: np.ndarray  # each parcel's chance (or expected cost), without the action
    with_it: np.ndarray

    def usual(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the textbook says on each day: difference of means, its 95 % interval."""
        ends = np.searchsorted(self.look, np.unique(self.look), side="right") - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            value, variance = 0.0, 0.0
            for sign, arm in ((1, self.treated), (-1, ~self.treated)):
                n, s, s2 = (np.cumsum(x)[ends] for x in (arm, arm * self.outcome, arm * self.outcome**2))
                value, variance = value + sign * s / n, variance + (s2 / n - (s / n) ** 2) / n
            half = 1.959964 * np.sqrt(variance)
        return value, value - half, value + half


def trial(case: Case, rng: np.random.Generator, days: int = DAYS, a_day: int = A_DAY) -> Trial:
    """Simulate one trial."""
    n = days * a_day
    look = np.repeat(np.arange(days), a_day)
    rate = case.rate * case.drift ** (look / days)
    if case.customers > 1:  # habits from a hundredth to nearly always, of the same mean
        habit = rng.beta(0.5 * case.rate, 0.5 * (1 - case.rate), n // case.customers + 1)
        rate = habit[rng.integers(0, len(habit), n)]
    withheld = np.where(look < days / 2, case.withheld, case.later or case.withheld)
    treated = rng.random(n) >= withheld
    ratio = 1 - case.followed * (1 - case.risk_ratio)
    happened = rng.random(n) < np.where(treated, ratio, 1.0) * rate
    outcome, mean = happened.astype(np.float64), 1.0
    if case.amounts:
        outcome = happened * 15 * rng.lognormal(0, 1, n)
        mean = 15 * float(np.exp(0.5))
    return Trial(outcome, treated, 1 - withheld, look, rate * mean, ratio * rate * mean)


def truth(t: Trial, path: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """True mean difference and odds ratio of the parcels judged by each look."""
    control, act = (np.cumsum(p)[path.units - 1] / path.units for p in (t.without, t.with_it))
    return act - control, act / (1 - act) / (control / (1 - control))


def judged(case: Case, trials: int, seed: int) -> dict[str, float | list[float]]:
    """Shares over many trials of a kind."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    fewer, more, peeked, once, covers, odds = (np.zeros(trials, dtype=bool) for _ in range(6))
    found = np.zeros((trials, DAYS), dtype=bool)
    wide = np.zeros(trials)
    for k in range(trials):
        t = trial(case, rng)
        path = difference(t.outcome, t.treated, t.propensity, t.look, LEVEL)
        real, ratio = truth(t, path)
        sides = path.excludes()
        fewer[k], more[k] = (sides < 0).any(), (sides > 0).any()
        found[k] = np.logical_or.accumulate(sides == np.sign(case.risk_ratio - 1)) if not case.null else False
        covers[k] = ((path.low <= real) & (real <= path.high)).all()
        if not case.amounts:
            own = odds_ratio(t.outcome, t.treated, t.propensity, t.look, LEVEL)
            odds[k] = ((own.low <= ratio) & (ratio <= own.high)).all()
        _, low, high = t.usual()
        outside = (low > 0) | (high < 0)
        # A peeker too waits until there is something to see: the same least number of events.
        started = np.isfinite(path.high)
        peeked[k], once[k] = (outside & started).any(), outside[-1]
        wide[k] = (path.high - path.low)[-1] / (high - low)[-1]
    return {
        "fewer": fewer.mean(), "more": more.mean(), "peeked": peeked.mean(), "once": once.mean(),
        "covers": covers.mean(), "odds": odds.mean() if not case.amounts else np.nan,
        "found": [found[:, d - 1].mean() for d in (60, 120, 180)], "wide": float(np.median(wide)),
    }  # fmt: skip


def family(trials: int, seed: int) -> tuple[float, float, float]:
    """Of policies of four null actions, the share in which any primary target is told wrongly, or any answer is.

    Returns:
        With the level shared as `training.effect` does, with 5 % for each action, and of answers, guardrails and all.
    """
    rng = np.random.default_rng([seed, 99])
    shared, each, answers = (np.zeros(trials, dtype=bool) for _ in range(3))
    for k in range(trials):
        for place, rate in enumerate((0.10, 0.08, 0.06, 0.04), 1):
            own = LEVEL / (place * (place + 1))
            t = trial(Case("", rate, 0.2), rng)
            for out, level in ((shared, own), (each, LEVEL)):
                out[k] |= bool(difference(t.outcome, t.treated, t.propensity, t.look, level).excludes().any())
            answers[k] |= shared[k]
            for guarded in GUARDRAILS:
                t = trial(Case("", guarded, 0.2), rng)
                sides = difference(t.outcome, t.treated, t.propensity, t.look, own / len(GUARDRAILS)).excludes()
                answers[k] |= bool((sides > 0).any())
    return float(shared.mean()), float(each.mean()), float(answers.mean())


def arms(trials: int, seed: int, lost: float) -> float:
    """Share of trials whose arms are found to be not as logged, where so much of the treated goes missing."""
    rng, found = np.random.default_rng([seed, 98]), 0
    for _ in range(trials):
        treated = rng.random(DAYS * A_DAY) >= 0.2
        kept = ~treated | (rng.random(len(treated)) >= lost)
        found += bool(mismatch(treated[kept], np.full(kept.sum(), 0.8)).max() >= 1000)
    return found / trials


def picture(folder: Path, trials: int, seed: int) -> None:
    """Draw one null trial, and how often each method has been fooled by which day."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from training.evaluate.plots import INK, MODEL, SOFT, svg, tidy, title

    case, rng = Case("", 0.08, 0.2), np.random.default_rng([seed, 97])
    fooled = np.zeros((2, DAYS))
    shown = None
    for _ in range(trials):
        t = trial(case, rng)
        path = difference(t.outcome, t.treated, t.propensity, t.look, LEVEL)
        value, low, high = t.usual()
        started = np.isfinite(path.high)
        wrong = started & ((low > 0) | (high < 0))
        fooled += np.logical_or.accumulate([path.excludes() != 0, wrong], axis=1)
        if shown is None and 3 <= wrong.sum() <= 40 and not wrong[-1]:
            shown = (path, value, low, high, wrong)
    assert shown is not None, "of so few trials none is worth showing: more --trials"
    path, value, low, high, wrong = shown
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    day, on = path.look + 1, np.isfinite(path.high)
    left.fill_between(day[on], 100 * path.low[on], 100 * path.high[on], color=SOFT, label="valid on all days")
    left.fill_between(day[on], 100 * low[on], 100 * high[on], color="#e3b58a", alpha=0.8, label="valid on one day only")
    left.plot(day[on], 100 * value[on], color=INK, linewidth=1)
    left.plot(day[wrong], np.zeros(wrong.sum()), "|", color="#b03a2e", markersize=9, label='"significant"')
    left.axhline(0, color="#888888", linewidth=1, linestyle="--")
    left.set(xlabel="day", ylabel="difference, points", ylim=(-8, 8))
    left.set_title(
        title("One trial of an action that does nothing", f"{len(t.look):,} parcels", True), fontsize=10, loc="left"
    )
    left.legend(frameon=False, fontsize=8, loc="upper right")
    for share, colour, words in (
        (fooled[1], "#c07a2c", "usual 95 % interval"),
        (fooled[0], MODEL, "confidence sequence"),
    ):
        right.plot(np.arange(1, DAYS + 1), share / trials, color=colour, label=words)
    right.axhline(LEVEL, color="#888888", linewidth=1, linestyle="--")
    right.set(xlabel="day", ylim=(0, None))
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_title(
        title("Ever fooled by then, looking daily", f"{trials:,} such trials", True), fontsize=10, loc="left"
    )
    right.legend(frameon=False, fontsize=8)
    tidy(left, right)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peeking.svg").write_bytes(svg(figure))


TRIED = {"package:foam_box": ("damaged", 0.5), "pickup_point": ("failed_attempt", 0.3), "fix_label": ("late", 0.0)}
"""Action: what it is tried against, and the share withheld."""

FOLLOWED = {"leipzig": 0.6}
"""Share of the advice that is done, by warehouse; 0.9 elsewhere."""


def shop(folder: Path, parcels: int, seed: int) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Make the dataset of a shop that tried `TRIED`.

    Returns:
        The true effect of the advice by action and target, and by action what share of the variance of its own target
        the true risk explains: the most that any adjustment for risk could take off.
    """
    from tempfile import TemporaryDirectory

    import pandas as pd

    from training.world import generate
    from training.world.acting import Acting
    from training.world.oracle import Oracle

    rng = np.random.default_rng([seed, 96])
    with TemporaryDirectory() as place:
        world = generate(Path(place) / "world", parcels=parcels, seed=seed)
        acting = Acting(Oracle(parcels, seed))
        potential = acting.potential([None, *TRIED])
        packed = pd.read_parquet(world / "parcels.parquet").set_index("parcel_id").loc[potential.parcel_id]
        risk = np.stack(
            [potential.probability[t][:, 0] / potential.probability[t][:, 0].mean() for t, _ in TRIED.values()]
        )
        wanted = np.where(risk.max(axis=0) > 1, risk.argmax(axis=0), -1)  # what is above the usual most
        action = np.array([*TRIED, None], dtype=object)[wanted]
        withheld = np.array([share for _, share in TRIED.values()] + [0.0])[wanted]
        arm = np.where(wanted < 0, "none", np.where(rng.random(parcels) < withheld, "control", "act"))
        follows = packed["node"].map(FOLLOWED).fillna(0.9).to_numpy()
        done = (arm == "act") & (rng.random(parcels) < follows)
        decisions = pd.DataFrame(
            {
                "decision_id": [f"D{k:09d}" for k in range(parcels)],
                "parcel_id": potential.parcel_id,
                "decided_at": packed["packed_at"].to_numpy(),
                "action": action,
                "arm": arm,
                "propensity": 1 - withheld,
                "done": np.where(done, action, None),
                "known_at": packed["packed_at"].to_numpy(),
                "override_reason": np.where((arm == "act") & ~done, "no time", None),
            }
        )
        plan = dict(zip(decisions["parcel_id"][done], action[done], strict=True))
        acting.act(world, folder, plan, decisions)
    own = {name: potential.probability[t][wanted == k, 0] for k, (name, (t, _)) in enumerate(TRIED.items())}
    effects = {
        (name, target): float(((p[:, k] - p[:, 0]) * follows)[wanted == k - 1].mean())
        for k, name in enumerate(TRIED, 1)
        for target, p in potential.probability.items()
        if target != "returned"  # of lines
    }
    return effects, {name: float(p.var() / (p.mean() * (1 - p.mean()))) for name, p in own.items()}


def shops(n: int, parcels: int) -> str:
    """How often the answers of `doorstep effect` are right about so many shops, in words."""
    from tempfile import TemporaryDirectory

    from features.dataset import Dataset
    from training.effect import effect

    held, always, total, right, primary = 0, 0, 0, 0, 0
    for seed in range(n):
        with TemporaryDirectory() as place:
            true, _ = shop(Path(place) / "shop", parcels, seed)
            found = effect(Dataset.open(Path(place) / "shop"))
        for (action, target), truth in true.items():
            path = found.paths.get(action, {}).get(target)
            if path is None or not np.isfinite(path.high[-1]):
                continue
            inside = ((path.low <= truth) & (truth <= path.high)).astype(bool)
            total, held, always = total + 1, held + inside[-1], always + inside.all()
        for action in found.paths:
            primary, right = primary + 1, right + (found.document["actions"][action]["answer"] == "works")
        print(f"{seed + 1} of {n} shops", file=sys.stderr, flush=True)
    return (
        f"{n} shops of {parcels:,} parcels: of {total} intervals {held} hold the truth on the last day, {always} on "
        f"all days; {right} of {primary} actions that work are found to"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=1_000, help="of each kind (default 1,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into docs/experiments.md")
    parser.add_argument("--picture", type=Path, metavar="DIR", help="draw peeking.svg into this folder instead")
    parser.add_argument("--shop", type=Path, metavar="DIR", help="make a dataset of trials in this folder instead")
    parser.add_argument("--parcels", type=int, default=20_000, help="of that shop (default 20,000)")
    parser.add_argument("--shops", type=int, metavar="N", help="hold the answers about N such shops against the truth")
    args = parser.parse_args()
    if args.shops:
        print(shops(args.shops, args.parcels))
        return
    if args.shop:
        effects, explained = shop(args.shop, args.parcels, args.seed)
        for (action, target), true in effects.items():
            print(f"advising {action} truly changes {target} by {100 * true:+.2f} points")
        for action, share in explained.items():
            print(f"{action}: the true risk explains {100 * share:.1f} % of the variance of {TRIED[action][0]}")
        return
    if args.picture:
        picture(args.picture, args.trials, args.seed)
        return
    started = time.monotonic()
    head = ["trial (simulated)", "rate", "withheld", "wins", "harms", "z peeked", "z once", "covers", "odds cover"]
    rows = [[*head, "found by day 60, 120, 180", "width / usual"]]
    for case in CASES:
        got = judged(case, args.trials, args.seed)
        shares = [f"{100 * got[k]:.1f} %" for k in ("fewer", "more", "peeked", "once", "covers")]  # type: ignore[operator]
        odds = "-" if case.amounts else f"{100 * got['odds']:.1f} %"  # type: ignore[operator]
        found = "-" if case.null else ", ".join(f"{100 * x:.0f} %" for x in got["found"])  # type: ignore[union-attr]
        wide = "-" if np.isinf(got["wide"]) else f"{got['wide']:.2f}"
        rows.append([case.words, f"{case.rate:g}", f"{case.withheld:g}", *shares, odds, found, wide])
        print(f"[{time.monotonic() - started:5.0f} s] {'  '.join(rows[-1])}", file=sys.stderr, flush=True)
    shared, each, answers = (f"{100 * x:.1f} %" for x in family(args.trials, args.seed))
    lost = {share: arms(args.trials, args.seed, share) for share in (0.0, 0.02, 0.05, 0.10, 0.20)}
    notes = [
        f"{args.trials:,} trials of each kind, {DAYS * A_DAY:,} parcels each, seed {args.seed}.",
        f"Of {ACTIONS} actions that do nothing any primary target was told wrongly in {shared} (with {LEVEL:g} for "
        f"each action: {each}), any answer, with {len(GUARDRAILS)} guardrails each, in {answers}.",
        "Arms found not to be as logged, by what is missing of the treated: "
        + ", ".join(f"{100 * x:.1f} % at {100 * share:.0f} %" for share, x in lost.items())
        + ".",
    ]
    print(columns(rows, range(1, 9)), *notes, sep="\n")
    if args.write:
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        PAGE.write_text("\n\n".join([before + START, table, " ".join(notes), END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
