"""What explaining one parcel costs: compiled trees, LightGBM's pred_contrib and shap.TreeExplainer on the same models.

    python benchmarks/explain.py [--models 5] [--trees 300] [--leaves 31] [--depth 8] [--features 60] [--rows 300]

Trains the models on synthetic rows (a tenth of the values missing) and explains one row after the other with all of
them, each row another one, so that nothing is answered from a warm cache. Every answer is compared with pred_contrib
before anything is timed; the status is 1 if one differs by more than 1e-10.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from features.arrays import Array  # noqa: E402
from serving.trees import CompiledTrees  # noqa: E402
from training.models.compile import compile_booster  # noqa: E402


def data(features: int, seed: int, n: int = 20_000) -> tuple[Array, Array]:
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, features)).astype(np.float32)
    x[:, ::4] = np.round(x[:, ::4] * 2)
    x[r.random(x.shape) < 0.1] = np.nan
    filled = np.nan_to_num(x)
    z = filled @ (r.normal(size=features) * (r.random(features) < 0.4)) * 0.4
    z += np.sin(2 * filled[:, 1]) * filled[:, 2] - 2
    return x, (r.random(n) < 1 / (1 + np.exp(-z))).astype(np.float32)


def milliseconds(explain: Callable[[int], object], rows: int) -> tuple[float, float]:
    """Median and 95th percentile over the rows."""
    explain(0)
    spent = []
    for i in range(rows):
        start = time.perf_counter()
        explain(i)
        spent.append(time.perf_counter() - start)
    return float(np.median(spent)) * 1e3, float(np.percentile(spent, 95)) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=5, help="models that explain each row (default 5)")
    parser.add_argument("--trees", type=int, default=300, help="trees per model (default 300)")
    parser.add_argument("--leaves", type=int, default=31, help="leaves per tree (default 31)")
    parser.add_argument("--depth", type=int, default=8, help="depth of the trees, at most 8 (default 8)")
    parser.add_argument("--features", type=int, default=60, help="features, at least 3 (default 60)")
    parser.add_argument("--rows", type=int, default=300, help="rows explained one at a time (default 300)")
    parser.add_argument("--batch", type=int, default=8192, help="rows explained and scored at once (default 8192)")
    o = parser.parse_args()

    import lightgbm as lgb
    import shap

    warnings.filterwarnings("ignore", message="LightGBM binary classifier")

    print(
        f"{o.models} models of {o.trees} trees, {o.leaves} leaves, depth {o.depth}, {o.features} features", flush=True
    )
    boosters, compiled, seconds = [], [], []
    x = data(o.features, 0)[0]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(o.models):
            params = {"objective": "binary", "num_leaves": o.leaves, "max_depth": o.depth, "learning_rate": 0.05}
            train = lgb.Dataset(*data(o.features, seed))
            boosters.append(lgb.train({**params, "verbosity": -1, "num_threads": 2, "seed": seed}, train, o.trees))
            start = time.process_time()
            compile_booster(boosters[-1]).save(Path(folder) / str(seed))
            seconds.append(time.process_time() - start)
            compiled.append(CompiledTrees.load(Path(folder) / str(seed)))  # mapped, as it is served
        return report(o, x, boosters, compiled, seconds, [shap.TreeExplainer(b) for b in boosters])


def report(
    o: argparse.Namespace,
    x: Array,
    boosters: list[Any],
    compiled: list[CompiledTrees],
    seconds: list[float],
    explainers: list[Any],
) -> int:
    rows = min(o.rows, len(x))
    single = [x[i : i + 1] for i in range(rows)]
    frames = [pd.DataFrame(row, columns=[f"f{j}" for j in range(o.features)]) for row in single]

    worst = 0.0
    for booster, trees in zip(boosters, compiled, strict=True):
        expected = booster.predict(x[:rows], pred_contrib=True)
        got = np.concatenate([trees.contributions(row) for row in single])
        worst = max(worst, np.abs(got - expected[:, :-1]).max(), abs(trees.base - expected[0, -1]))
        if not np.array_equal(trees.raw(x[:rows]), booster.predict(x[:rows], raw_score=True)):
            print("raw scores differ from LightGBM's")
            return 1
    print(f"largest difference from pred_contrib {worst:.1e}; raw scores equal bit for bit")
    if worst > 1e-10:
        return 1

    size = [trees.nbytes / 1e6 for trees in compiled]
    print(f"files {min(size):.1f} to {max(size):.1f} MB a model, compiled in {max(seconds):.1f} CPU-s at most\n")
    ways: dict[str, tuple[Callable[[int], object], int]] = {
        "compiled trees": (lambda i: [t.contributions(single[i]) for t in compiled], rows),
        "compiled trees, raw score only": (lambda i: [t.raw(single[i]) for t in compiled], rows),
        "LightGBM pred_contrib, one thread": (
            lambda i: [b.predict(single[i], pred_contrib=True, num_threads=1) for b in boosters],
            max(1, rows // 5),
        ),
        "shap.TreeExplainer on a DataFrame": (
            lambda i: [e.shap_values(frames[i]) for e in explainers],
            max(1, rows // 5),
        ),
    }
    print(f"{'one row, all models':36} {'median ms':>10} {'p95 ms':>10} {'ratio':>7}")
    reference = 0.0
    for name, (explain, n) in ways.items():
        median, high = milliseconds(explain, n)
        reference = reference or median
        print(f"{name:36} {median:10.2f} {high:10.2f} {median / reference:7.1f}", flush=True)

    many = np.resize(x, (o.batch, o.features))
    print(f"\n{f'{len(many)} rows at once, one model':36} {'us/row':>10}")
    few = many[: max(1, len(many) // 20)]
    for name, run, n in (
        ("compiled trees", lambda: compiled[0].contributions(many), len(many)),
        ("compiled trees, raw score only", lambda: compiled[0].raw(many), len(many)),
        (
            "LightGBM pred_contrib, one thread",
            lambda: boosters[0].predict(few, pred_contrib=True, num_threads=1),
            len(few),
        ),
        ("LightGBM raw score, one thread", lambda: boosters[0].predict(many, raw_score=True, num_threads=1), len(many)),
    ):
        start = time.perf_counter()
        run()
        print(f"{name:36} {(time.perf_counter() - start) / n * 1e6:10.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
