"""Pictures for the tracking server and the model card, as PNG bytes, and the style that all pictures share.

matplotlib and shap are imported when a picture is drawn, and the caller's matplotlib backend is left as it was.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluate import reliability

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "INK",
    "MODEL",
    "SOFT",
    "backtest_plot",
    "calibration_plot",
    "coverage_plot",
    "shap_plot",
    "svg",
    "tidy",
    "title",
    "tuning_plot",
]

INK, MODEL, SOFT = "#333333", "#1f5fa8", "#b9cbe0"
"""Text and outlines; what a picture is about; what stands behind it."""
_DPI = 120


def calibration_plot(
    target: str,
    label: ArrayLike,
    probability: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    unit: str = "row",
    simulated: bool = False,
) -> bytes:
    """Draw what was predicted against what happened, with intervals, above a histogram of the predictions.

    Args:
        target: name for the title.
        label: shape (n,), 0 or 1.
        probability: shape (n,), in [0, 1].
        groups: shape (n,), rows that belong together (the order of a line); widens the intervals.
        unit: what a row is, `parcel` or `line`.
        simulated: says in the title that no parcel ever travelled.

    Returns:
        A PNG. An empty holdout gives an empty picture that says so.

    Raises:
        ValueError: labels or probabilities that `training.evaluate.metrics` refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    table = reliability(label, probability, groups=groups)
    p = np.asarray(probability, dtype=np.float64)
    figure = Figure(figsize=(6.4, 6.8), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edge = float(max(table["high"].max(), table["predicted"].max(), 0.01) * 1.05) if len(table) else 1.0
    edge = min(edge, 1.02)

    top.plot([0, edge], [0, edge], color="#888888", linewidth=1, linestyle="--", label="perfectly calibrated")
    if len(table):
        reach = np.clip([table["observed"] - table["low"], table["high"] - table["observed"]], 0, None)
        top.errorbar(
            table["predicted"],
            table["observed"],
            yerr=reach,
            fmt="o-",
            color=MODEL,
            ecolor=SOFT,
            elinewidth=3,
            linewidth=1,
            markersize=5,
            label=f"{len(table)} equal-count bins, 95 % intervals",
        )
        bottom.hist(p, bins=np.linspace(0, edge, 41), color=SOFT, edgecolor="white", linewidth=0.4)
        beyond = int((p > edge).sum())
        if beyond:
            bottom.annotate(
                f"{beyond:,} beyond the axis", (0.99, 0.9), xycoords="axes fraction", ha="right", va="top", fontsize=8
            )
    else:
        top.annotate("no rows in the holdout", (0.5, 0.5), xycoords="axes fraction", ha="center")
    top.set(xlim=(0, edge), ylim=(0, edge), ylabel="observed share")
    top.legend(loc="upper left", frameon=False, fontsize=9)
    bottom.set(xlabel="predicted probability", ylabel=f"{unit}s", yscale="log" if len(table) else "linear")
    for axis in (top.xaxis, top.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(PercentFormatter(1.0, decimals=1 if edge < 0.08 else 0))
    positives = int(np.asarray(label, dtype=np.int64).sum()) if len(table) else 0
    top.set_title(
        title(f"{target}: predicted against observed", f"{len(p):,} {unit}s, {positives:,} positive", simulated),
        fontsize=11,
        color=INK,
        loc="left",
    )
    tidy(top, bottom)
    return _png(figure)


def coverage_plot(document: Mapping[str, Any], *, simulated: bool = False) -> bytes:
    """Draw what share of the deliveries lay inside their window, on the whole and per slice, with intervals.

    Args:
        document: `time_to_door` of `metrics.json`, trained.
        simulated: says in the title that no parcel ever travelled.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = {"all": document["metrics"], **document["slices"]}
    names = [f"{name} ({found['rows']:,})" for name, found in shown.items()]
    value, low, high = ([f["coverage"][k] for f in shown.values()] for k in ("value", "low", "high"))
    place = np.arange(len(names))[::-1]
    figure = Figure(figsize=(6.4, 1.6 + 0.28 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(document["nominal"], color="#888888", linewidth=1, linestyle="--")
    reach = np.clip(np.array([np.subtract(value, low), np.subtract(high, value)]), 0, None)
    axes.errorbar(value, place, xerr=reach, fmt="o", color=MODEL, ecolor=SOFT, elinewidth=3, markersize=4)
    axes.set_yticks(place, names)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("deliveries inside their window, 95 % interval (Wilson)")
    rows = f"{document['metrics']['rows']:,} deliveries"
    axes.set_title(title("time to door: what the windows hold", rows, simulated), fontsize=11, color=INK, loc="left")
    tidy(axes)
    return _png(figure)


def shap_plot(
    target: str,
    contributions: NDArray[np.floating],
    values: pd.DataFrame,
    *,
    unit: str = "row",
    simulated: bool = False,
    max_display: int = 20,
) -> bytes:
    """Draw shap's summary plot: one dot per row and feature, coloured by the feature's value.

    Args:
        target: name for the title.
        contributions: shape (n, features), additive, in log-odds.
        values: shape (n, features), what the features were, its columns their names.
        unit: what a row is, `parcel` or `line`.
        simulated: says in the title that no parcel ever travelled.
        max_display: how many features to show, those with the largest mean absolute contribution.

    Returns:
        A PNG, the same bytes for the same input.

    Raises:
        ValueError: the shapes differ, or there is nothing to draw.
    """
    contributions = np.asarray(contributions, dtype=np.float64)
    if contributions.shape != values.shape or not contributions.size:
        raise ValueError(
            f"contributions: shape {contributions.shape} given for values of shape {values.shape}; "
            "give one contribution for each value, and at least one row"
        )
    with _pyplot_on_agg() as plt, warnings.catch_warnings():
        # shap's own: a feature without any value, or with a single one, has no colour range.
        warnings.simplefilter("ignore")
        import shap

        figure = plt.figure()
        try:
            shap.summary_plot(
                contributions,
                values.to_numpy(dtype=np.float64, na_value=np.nan),
                feature_names=[str(c) for c in values.columns],
                max_display=max_display,
                show=False,
                rng=np.random.default_rng(0),
            )
            axes = figure.axes[0]
            axes.set_xlabel("contribution to the log-odds (to the right: more risk)", fontsize=11)
            count = f"{len(values):,} {unit}s of the holdout"
            axes.set_title(title(f"{target}: risk drivers of the model", count, simulated), fontsize=11, loc="left")
            return _png(figure, tight=True)
        finally:
            plt.close(figure)


RIVALS = {"base_rate": ("s", "#8c8c8c"), "lookup": ("^", "#c07a2c"), "logistic": ("D", "#5b8f5b")}
"""Mark and colour of each baseline."""


def backtest_plot(document: Mapping[str, Any]) -> bytes:
    """Draw the figures of a backtest per origin, a row of panels per target.

    Args:
        document: content of `backtest.json`.

    Returns:
        A PNG: AUC, log loss and calibration gap with 95 % intervals, the baselines beside them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = {n: t for n, t in document["targets"].items() if t["status"] == "judged"}
    days = [o["at"][:10] for o in document["origins"]]
    figure = Figure(figsize=(11, 0.9 + 2.3 * len(targets)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(targets), 3, sharex=True, squeeze=False)
    for row, (name, target) in zip(grid, targets.items(), strict=True):
        told = [(days.index(o["at"][:10]), o) for o in target["origins"] if o["status"] == "judged"]
        for axes, metric in zip(row, ("auc", "log_loss", "gap"), strict=True):
            factor = 100 if metric == "gap" else 1
            if metric == "gap":
                axes.axhline(0, color="#888888", linewidth=1, linestyle="--")
            else:
                for rival, (mark, colour) in RIVALS.items():
                    seen = [(at + 0.18, o["baselines"][rival][metric]["value"]) for at, o in told]
                    seen = [(at, value) for at, value in seen if value is not None]
                    words = rival.replace("_", " ")
                    axes.plot(*np.array(seen).reshape(-1, 2).T, mark, color=colour, markersize=4, label=words)
            there = [(at, o["metrics"][metric]) for at, o in told if o["metrics"][metric]["low"] is not None]
            middle, low, high = (factor * np.array([m[k] for _, m in there]) for k in ("value", "low", "high"))
            axes.errorbar(
                [at for at, _ in there],
                middle,
                yerr=np.clip([middle - low, high - middle], 0, None),
                fmt="o",
                color=MODEL,
                ecolor=SOFT,
                elinewidth=3,
                markersize=5,
                label="model, 95 % interval",
            )
            axes.set_xlim(-0.5, len(days) - 0.5)
            axes.set_xticks(range(len(days)), days, fontsize=8, rotation=20, ha="right")
            axes.tick_params(axis="y", labelsize=8)
            tidy(axes)
        rows = target["pooled"]
        row[0].set_ylabel(f"{name}\n{rows['positives']:,} of {rows['rows']:,}", fontsize=9)
    for axes, words in zip(grid[0], ("AUC", "log loss", "predicted too much, points"), strict=True):
        axes.set_title(words, fontsize=10, color=INK)
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    figure.suptitle(
        title(
            f"{document['dataset']}: judged after each origin by models fitted on what was known then",
            f"as of {document['as_of'][:10]}",
            document["simulated"],
        ),
        fontsize=11,
        color=INK,
    )
    return _png(figure)


def tuning_plot(document: Mapping[str, Any]) -> bytes:
    """Draw the trials of a tuning in their order, a panel per target.

    Args:
        document: content of `tuning.json`.

    Returns:
        A PNG: log loss of each finished trial, the best so far, and what the present parameters reach.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = {n: t for n, t in document["targets"].items() if t["status"] == "tuned"}
    figure = Figure(figsize=(7, 0.9 + 2.0 * len(targets)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(targets), 1, squeeze=False)[:, 0]
    for axes, (name, target) in zip(grid, targets.items(), strict=True):
        done = [(k, t["log_loss"]) for k, t in enumerate(target["history"], 1) if t["log_loss"] is not None]
        at, loss = (np.array(values) for values in zip(*done, strict=True))
        axes.axhline(target["current"]["log_loss"], color="#888888", linewidth=1, linestyle="--", label="as today")
        axes.plot(at, loss, "o", color=SOFT, markersize=5, label="trial")
        axes.step(at, np.minimum.accumulate(loss), where="post", color=MODEL, label="best so far")
        given_up = [k for k, t in enumerate(target["history"], 1) if t["log_loss"] is None]
        axes.plot(
            given_up,
            np.full(len(given_up), 0.04),
            "|",
            color="#999999",
            transform=axes.get_xaxis_transform(),
            label="given up half-way",
        )
        axes.set_ylabel(f"{name}\nlog loss", fontsize=9)
        axes.tick_params(labelsize=8)
        tidy(axes)
    grid[-1].set_xlabel("trial", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    what = f"{document['dataset']}: parameters tried on folds before {document['holdout_from'][:10]}"
    figure.suptitle(title(what, f"as of {document['as_of'][:10]}", document["simulated"]), fontsize=11, color=INK)
    return _png(figure)


def title(what: str, rows: str, simulated: bool) -> str:
    """What is seen, and on the second line of how much; never without a word where the data are simulated."""
    return f"{what}\n{rows}{' · simulated data' if simulated else ''}"


def tidy(*several: Axes) -> None:
    """A soft grid behind the data, and no box around it."""
    for axes in several:
        axes.grid(color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> bytes:
    """A figure as SVG, letters as outlines so that it looks alike everywhere; the same bytes for the same figure."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "doorstep", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _png(figure: Figure, *, tight: bool = False) -> bytes:
    out = io.BytesIO()
    # Without the library's version in it the same picture is the same bytes.
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None}, bbox_inches="tight" if tight else None)
    return out.getvalue()


@contextmanager
def _pyplot_on_agg() -> Iterator[Any]:
    """Give pyplot with the backend that needs no screen, and put back the caller's (a notebook has its own)."""
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    try:
        yield plt
    finally:
        if before is not None and before.lower() != "agg":
            plt.switch_backend(before)
