"""A simulated shop on one page: plots and the figures behind them, from its tables and its truth.

`make world-picture`, or `python -m training.world.picture`, makes the files in docs/world, which `docs/world.md` shows.
Ring: counted in the tables. Dot: the true probability of the same units. Diamond: what would have been.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from training.evaluate.plots import INK, MODEL, SOFT, svg, tidy, title
from training.world.figures import Numbers, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "world"
FIGURES = "figures.json"
HAD, SEEN = "#d9730d", "#777777"
COLOURS = ("#1f5fa8", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#9a9a9a", "#56b4e9", "#333333")
"""Told apart by the colour-blind too (after Okabe and Ito)."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path), default=FOLDER)
@click.option("--parcels", type=click.IntRange(200), default=50_000, show_default=True, help="Size of the shop.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed gives the same shop.")
@click.option("--scenario", "which", metavar="NAME|FILE.toml", default="plain", show_default=True, help="Which shop.")
def main(folder: Path, parcels: int, seed: int, which: str) -> None:
    """Draw a simulated shop, its tables beside its truth, into FOLDER (default: docs/world)."""
    try:
        for made in draw(folder, parcels, seed, which, lambda words: click.echo(words, err=True)):
            click.echo(made)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def draw(
    folder: Path, parcels: int, seed: int, which: str, progress: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write the plots of a world and `figures.json`; what was written.

    Raises:
        ValueError: no such scenario.
        FileExistsError: `folder` is a file, or holds something else than an earlier picture.
    """
    from features import Dataset
    from training.world import generate, scenario
    from training.world.oracle import Oracle

    shop = scenario(which)
    own = {FIGURES, *(f"{name}.svg" for name in PLOTS)}
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, must be a folder: name another one")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in own) if folder.is_dir() else []
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise FileExistsError(f"{folder} holds {foreign[0]}{more}, no part of a world's picture: name an empty folder")
    with tempfile.TemporaryDirectory() as place:
        progress(f"drawing {parcels:,} parcels")
        world = generate(Path(place) / "shop", parcels=parcels, seed=seed, scenario=shop)
        numbers = measure(Dataset.open(world), Oracle(parcels, seed, shop), progress)
    progress("drawing the plots")
    files = {FIGURES: (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode()}
    files |= {f"{name}.svg": svg(plot(numbers)) for name, plot in PLOTS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = folder / f".{name}.part"
        part.write_bytes(content)
        os.replace(part, folder / name)
    return [folder / name for name in files]


# ---- plots


def rates(n: Numbers) -> Figure:
    """Base rates against where they should lie."""
    figure = _figure(n, "Base rates against where they should lie", 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    targets = [t for t in n["rates"] if t != "returned"]
    for axes, rows, wanted in (
        (left, {t: n["rates"][t] for t in targets}, [n["rates"][t]["range"] for t in targets]),
        (right, n["returns"], [n["rates"]["returned"]["range"]] * len(n["returns"])),
    ):
        for at, (low, high) in enumerate(wanted):
            axes.barh(at, high - low, left=low, height=0.5, color=SOFT, label="design range" if not at else None)
        _seen_and_true(axes, list(rows.values()), range(len(rows)))
        _named(axes, rows)
        _shares(axes)
    left.set_xlabel("share of parcels")
    right.set_xlabel("share of delivered lines sent back, by category")
    left.legend(loc="lower right", frameon=False, fontsize=8)
    return figure


def year(n: Numbers) -> Figure:
    """The year, week by week."""
    from matplotlib import dates
    from matplotlib.ticker import StrMethodFormatter

    own = n["year"]
    figure = _figure(n, "The year: what was packed each week, and what became of it", 7.6)
    lines = max(len(own["faults"]), 1)
    strip, top, queue, missed, late = figure.subplots(5, 1, sharex=True, height_ratios=(0.22 * lines, 1, 1, 0.8, 1))
    weeks = np.array(own["weeks"], dtype="datetime64[D]")
    middle = weeks + np.timedelta64(3, "D")
    end = weeks[-1] + np.timedelta64(7, "D")
    began = {name: np.datetime64(day) for name, day in own["faults"].items()}
    for at, (name, day) in enumerate(sorted(began.items(), key=lambda item: item[1])):
        strip.barh(at, end - day, left=day, height=0.7, color="#f2d5bd")
        strip.text(day + np.timedelta64(3, "D"), at, _words(name), va="center", fontsize=8, color=INK)
    strip.set(yticks=[], ylabel="faults", ylim=(lines - 0.4, -0.6))
    strip.spines[:].set_visible(False)
    strip.tick_params(axis="x", length=0)
    top.bar(middle, own["parcels"], width=5.6, color=SOFT)
    top.set_ylabel("parcels")
    top.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    free = np.array([d for d in own["holidays"] if weeks[0] <= np.datetime64(d) < end], dtype="datetime64[D]")
    top.plot(free, np.zeros(len(free)), "v", color=INK, markersize=4, label="holiday", clip_on=False, zorder=5)
    top.legend(frameon=False, fontsize=8, loc="upper left")
    for colour, (name, values) in zip(COLOURS, own["queue_days"].items(), strict=False):
        queue.plot(middle, _array(values), color=colour, linewidth=1.3, label=name)
    queue.set_ylabel("queue,\ndays of work")
    queue.legend(frameon=False, fontsize=8, ncols=4, loc="upper left")
    missed.plot(middle, _array(own["missed_pickup"]), color=MODEL, linewidth=1.3)
    missed.set_ylabel("missed\npickup")
    late.plot(middle, _array(own["late_true"]), color=MODEL, linewidth=1.3, label="true probability")
    seen = _array(own["late_seen"])
    late.plot(middle, seen, "o", color=SEEN, markerfacecolor="white", markersize=4, label="counted in the tables")
    late.set_ylabel("late")
    late.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (missed, late):
        _percent(axes.yaxis)
        axes.set_ylim(0, None)
    tidy(top, queue, missed, late)
    for axes in (top, queue, missed, late):
        for peak in own["peaks"]:
            first, last = np.datetime64(peak["from"]), np.datetime64(peak["to"]) + np.timedelta64(1, "D")
            axes.axvspan(first, last, color="#f5f0d8", zorder=0)
        for day in began.values():
            axes.axvline(day, color=HAD, linewidth=0.8, linestyle=":")
    for peak in own["peaks"]:
        first, last = (np.datetime64(peak[k]) for k in ("from", "to"))
        top.text(
            first + (last - first) / 2,
            1.0,
            f"peak x {peak['times']:g}",
            fontsize=8,
            color=INK,
            ha="center",
            va="bottom",
            transform=top.get_xaxis_transform(),
        )
    late.set_xlim(weeks[0].astype("datetime64[M]").astype("datetime64[D]"), end)
    late.xaxis.set_major_locator(dates.MonthLocator())
    late.xaxis.set_major_formatter(dates.DateFormatter("%b"))
    figure.align_ylabels()
    return figure


def packaging(n: Numbers) -> Figure:
    """Why boxes look guilty of breakage, and what they do."""
    own = n["packaging"]
    figure = _figure(n, "Packages: what breaks in them, and what the very same parcels would do in each", 4.0)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    rows = list(own["packages"].values())
    at = np.arange(len(rows))
    left.plot(
        [r["had"] for r in rows], at, "D-", color=HAD, linewidth=1, label="all parcels, had each been packed in it"
    )
    left.plot(_array([r["true"] for r in rows]), at, "-", color=MODEL, linewidth=1)
    _seen_and_true(left, rows, at, "parcels that were packed in it")
    _named(left, own["packages"])
    left.set_xlabel("arrive damaged")
    _shares(left)
    left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.03, 1.0), borderpad=0)
    shades = ("#d6e2ef", "#a9c2de", "#7099c9", "#1f5fa8", "#0f3560")
    start = np.zeros(len(own["by_fragility"]))
    for name, shade in zip(own["packages"], shades, strict=True):
        share = np.array([f["share"][name] for f in own["by_fragility"].values()])
        right.barh(range(len(share)), share, left=start, color=shade, height=0.75, label=_words(name))
        start = start + share
    _named(right, [f"{k}  ({f['parcels']:,})" for k, f in own["by_fragility"].items()])
    right.set(xlabel="packed in", ylabel="fragility inside (parcels)")
    _shares(right, 1.0)
    right.grid(False)
    right.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(-0.25, 1.0), borderpad=0)
    return figure


def carriers(n: Numbers) -> Figure:
    """Carriers as they look, and as they are."""
    own = n["carriers"]
    figure = _figure(n, "Carriers: the parcels each took, and the very same parcels in the hands of each", 2.9)
    several = figure.subplots(1, len(own), sharey=True)
    for axes, (target, found) in zip(several, own.items(), strict=True):
        rows = list(found["carriers"].values())
        at = np.arange(len(rows))
        label = "had it taken all parcels that anybody could take" if target == "late" else None
        axes.plot(_array([r["had"] for r in rows]), at + 0.2, "D", color=HAD, markersize=6, label=label)
        _seen_and_true(axes, rows, at, "parcels it took" if target == "late" else None)
        axes.set_xlabel(_words(target))
        _shares(axes)
    tidy(*several)
    _named(several[0], next(iter(own.values()))["carriers"])
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def reasons(n: Numbers) -> Figure:
    """Why goods come back, and what is said about it."""
    figure = _figure(n, "Returns: the true reasons by category, and what customers state", 4.3)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    categories, stated = n["returns"], n["reasons"]["stated"]
    start = np.zeros(len(categories))
    for colour, reason in zip(COLOURS, stated, strict=False):
        share = _array([c["reasons"][reason] for c in categories.values()])
        left.barh(range(len(share)), share, left=start, color=colour, height=0.75, label=_words(reason))
        start = start + share
    _named(left, categories)
    left.set_xlabel("share of delivered lines sent back, by true reason")
    _shares(left)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    cells = np.array([[row[s] for s in row] for row in stated.values()])
    right.pcolormesh(cells, cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=0.5)
    right.invert_yaxis()
    for (i, j), share in np.ndenumerate(cells):
        if round(100 * share):
            colour = "white" if share > 0.5 else INK
            right.text(j + 0.5, i + 0.5, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    columns = list(next(iter(stated.values())))
    right.set_xticks(np.arange(len(columns)) + 0.5, [_words(c) for c in columns], rotation=40, ha="right", fontsize=8)
    right.set_yticks(
        np.arange(len(stated)) + 0.5, [f"{_words(r)} ({n['reasons']['returns'][r]:,})" for r in stated], fontsize=8
    )
    right.grid(False)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    right.set(xlabel="what is stated, % of the true reason's returns", ylabel="true reason (returns)")
    return figure


def delays(n: Numbers) -> Figure:
    """How long returns take."""
    from matplotlib.ticker import StrMethodFormatter

    own = n["delays"]
    figure = _figure(n, "Returns: days from the delivery to the request", 3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    window = own["window"]
    days = np.arange(len(own["by_day"])) + 0.5
    left.bar(days, own["by_day"], width=0.9, color=[SOFT if d < window else HAD for d in days])
    left.axvline(window, color=INK, linewidth=1, linestyle="--")
    said = "none" if own["after"] is None else f"{100 * own['after']:.1f} %"
    left.text(
        window + 0.7,
        0.95,
        f"window of {window} days;\n{said} come after it",
        fontsize=8,
        va="top",
        transform=left.get_xaxis_transform(),
        color=INK,
    )
    left.set(xlabel="days from the delivery", ylabel="requests")
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    tidy(left)
    for at, row in enumerate(own["by_reason"].values()):
        least, low, half, high, most = row["quantiles"]
        right.plot([least, most], [at, at], color=SOFT, linewidth=2.5, solid_capstyle="butt")
        right.plot([low, high], [at, at], color=MODEL, linewidth=6, solid_capstyle="butt")
        right.plot(half, at, "|", color="white", markersize=6, markeredgewidth=1.8)
    right.axvline(window, color=INK, linewidth=1, linestyle="--")
    _named(right, [f"{_words(r)} ({row['returns']:,})" for r, row in own["by_reason"].items()])
    right.set(xlabel="days: the middle half and four fifths, by true reason", xlim=(0, window + 2))
    return figure


def faults(n: Numbers) -> Figure:
    """The planted faults, month by month."""
    own = n["faults"]
    rows_of_plots = math.ceil((len(own) + 1) / 3)  # and one place for the legend
    figure = _figure(n, "The planted faults: those that meet each, and everybody else", 0.9 + 2.6 * rows_of_plots)
    grid = figure.subplots(rows_of_plots, 3, squeeze=False).ravel()
    for axes, (name, fault) in zip(grid, own.items(), strict=False):
        months, at = fault["months"], np.arange(len(fault["months"]))
        began = fault["since"]
        start = sum(m < began[:7] for m in months) + (int(began[8:]) - 1) / 31 - 0.5
        edges = np.arange(len(months) + 1) - 0.5
        for which, style in LINES.items():
            axes.stairs(_array(fault["by_month"][which]), edges, baseline=None, **style)
        for side, first, last in (("before", -0.5, start), ("after", start, len(months) - 0.5)):
            low, high, rows = (fault["here"][side][k] for k in ("low", "high", "rows"))
            label = "those that meet it, counted in the\ntables before and after, 95 %" if side == "after" else None
            if rows:
                axes.fill_between([first, last], low, high, color=SOFT, linewidth=0, label=label, zorder=0.5)
        axes.axvline(start, color=HAD, linewidth=0.8, linestyle=":", label="the fault begins")
        where = ", ".join(f"{_words(column)} {value}" for column, value in fault["where"].items())
        axes.set_title(f"{_words(name)} ({fault['team']})\n{where}", fontsize=8.5, loc="left", color=INK)
        axes.set_xticks(at[::2], [MONTHS[int(m[5:]) - 1] for m in months[::2]], fontsize=8)
        axes.set(ylabel=_words(fault["target"]), xlim=(-0.5, len(months) - 0.5), ylim=(0, None))
        axes.tick_params(labelsize=8)
        _percent(axes.yaxis)
        tidy(axes)
    for axes in grid[len(own) :]:
        axes.axis("off")
    if not own:
        grid[0].text(0, 0.5, "no fault is planted in this shop")
        return figure
    grid[-1].legend(*grid[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="center left")
    return figure


PLOTS: Mapping[str, Callable[[Numbers], Figure]] = {
    plot.__name__: plot for plot in (rates, year, packaging, carriers, reasons, delays, faults)
}
LINES: Mapping[str, dict[str, Any]] = {
    "here": {"color": MODEL, "linewidth": 1.8, "label": "those that meet it, true probability"},
    "had": {"color": HAD, "linewidth": 1.3, "linestyle": "--", "label": "the same, had the fault not been"},
    "elsewhere": {"color": "#999999", "linewidth": 1.3, "label": "everybody else, true probability"},
}
"""How the lines of a fault are drawn."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _figure(n: Numbers, what: str, height: float) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), layout="constrained")
    FigureCanvasSVG(figure)
    made = n["made"]
    rows = f"{made['parcels']:,} parcels of the scenario {made['scenario']}, seed {made['seed']}"
    figure.suptitle(title(what, rows, True), fontsize=11, color=INK, x=0.008, ha="left")
    return figure


def _seen_and_true(axes: Axes, rows: Sequence[Numbers], at: Any, whose: str | None = "") -> None:
    """A ring with its interval for what the tables show, and a dot for what is true, one row above the other."""
    seen, low, high = (_array([r[k] for r in rows]) for k in ("seen", "low", "high"))
    after = {None: None, "": "in the tables, 95 % interval"}.get(whose, f"{whose}: in the tables, 95 %")
    true = {None: None, "": "true probability"}.get(whose, f"{whose}: true probability")
    axes.errorbar(
        seen,
        np.asarray(at),
        xerr=np.clip([seen - low, high - seen], 0, None),
        fmt="o",
        color=SEEN,
        ecolor=SEEN,
        markerfacecolor="white",
        markersize=7,
        elinewidth=1.2,
        label=after,
        zorder=3,
    )
    axes.plot(_array([r["true"] for r in rows]), np.asarray(at), "o", color=MODEL, markersize=3.5, label=true, zorder=4)


def _named(axes: Axes, names: Any) -> None:
    """A row per name, the first on top."""
    axes.set_yticks(range(len(names)), [_words(x) for x in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    tidy(axes)


def _shares(axes: Axes, most: float | None = None) -> None:
    axes.set_xlim(0, most)
    _percent(axes.xaxis)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))


def _array(values: Sequence[float | None]) -> Any:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    main()
