"""Measured effects for people: a table, one answer per action, a picture, and what can be pasted into the policy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from training.effect import Effects
from training.effect.sequences import Path
from training.evaluate.report import columns

__all__ = ["fragment", "pictures", "table"]


def table(document: Mapping[str, Any]) -> str:
    """The answers, and the figures behind them, a row per action and target."""
    said = "SIMULATED data" if document["simulated"] else "data"
    d = document["decisions"]
    out = [
        f"{document['dataset']}: {said} as of {document['as_of'][:16]}Z; {d['drawn_by_lot']:,} of {d['all']:,} "
        "decisions were drawn by lot"
    ]
    rows = [["action", "target", "judged, with and without", "with", "without", "points", "odds"]]
    for action, found in document["actions"].items():
        for k, (target, f) in enumerate(found.get("targets", {}).items()):
            money = f["odds_ratio"] is None
            rates = (_percent(f["rate"][arm], money) for arm in ("act", "control"))
            counts = " and ".join(f"{n:,}" for n in f["judged"].values())
            mark = f"{target} *" if f["role"] == "primary" else target
            points = _interval(f["difference"], 1 if money else 100, "+.2f")
            odds = "" if money else _interval(f["odds_ratio"], 1, ".2f")
            rows.append(["" if k else action, mark, counts, *rates, points, odds])
    if len(rows) > 1:
        sure = f"{100 * document['level']:g} %"
        out += [
            columns(rows),
            f"* the primary target. Intervals hold on all days, of all actions: any primary one is wrong with at most "
            f"{sure}, any other with at most {sure}.",
        ]
    for action, found in document["actions"].items():
        out.append(f"\n{action}: {found['answer'].upper()}: {found['why']}")
        out += [f"    {line}" for line in _notes(found)]
    if not document["actions"]:
        out.append("no decision in it is about an action: nothing is estimated")
    if d["of_unknown_parcels"]:
        out.append(f"\n{d['of_unknown_parcels']:,} decisions are about parcels that the dataset does not have")
    return "\n".join(out)


def _percent(share: float | None, money: bool) -> str:
    return "-" if share is None else f"{share:.2f}" if money else f"{100 * share:.2f} %"


def _interval(found: Mapping[str, float | None], factor: float, form: str) -> str:
    value, low, high = (found[k] for k in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "too few events"
    return f"{factor * value:{form}} [{factor * low:{form}}, {factor * high:{form}}]"


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    """How the advice was followed, and what was odd about the decisions."""
    a, reasons = found["adherence"], found["override_reasons"]
    if a["advised"] and a["not_reported"] == a["advised"]:
        never = "not yet" if a["reported_later"] else "never"
        yield f"advised {a['advised']:,} times; what was done was {never} reported"
    elif a["advised"]:
        heard = a["advised"] - a["not_reported"]
        line = (
            f"advised {a['advised']:,} times, done in {100 * a['done'] / heard:.0f} % of {heard:,} that were reported"
        )
        if a["something_else"] or a["nothing"]:
            line += f" (something else {a['something_else']:,}, nothing {a['nothing']:,})"
        shares = {
            n: f["done"] / m for n, f in found["adherence_by_node"].items() if (m := f["advised"] - f["not_reported"])
        }
        if len(shares) > 1:
            low, high = min(shares, key=lambda n: shares[n]), max(shares, key=lambda n: shares[n])
            line += f"; from {100 * shares[low]:.0f} % in {low} to {100 * shares[high]:.0f} % in {high}"
        yield line
    if a["reported_later"]:
        yield (
            f"{a['reported_later']:,} reports of what was done do not count: their known_at is not before this moment "
            "(--as-of, else extracted_at in dataset.toml)"
        )
    if reasons:
        named = ", ".join(f"{reason} ({n:,})" for reason, n in list(reasons.items())[:5])
        yield f"not done because: {named}" + (f" and {len(reasons) - 5} other reasons" if len(reasons) > 5 else "")
    if found["withheld_and_done"]:
        yield f"{found['withheld_and_done']:,} of {found['withheld']:,} it was withheld from got it all the same"
    d = found["decisions"]
    words = {
        "in_both_arms": "parcels were drawn for both arms (the first draw counts): was the policy's salt changed?",
        "asked_again": "further decisions about the same parcels (the first draw counts)",
        "after_handover": "decisions were made when the parcel had left (not counted)",
        "not_in_dataset": "parcels of the trial are not in the dataset (not counted)",
        "orders_in_both_arms": "orders have parcels in both arms: what one parcel does to the other is in neither",
    }
    if "parcels" in found:
        yield from (f"{d[key]:,} {said}" for key, said in words.items() if d[key])
        if d["not_drawn"]:
            asked = (
                f", {d['demanded']:,} of them asked for by a packing rule, the handoff or a protocol"
                if d["demanded"]
                else ""
            )
            yield f"{d['not_drawn']:,} decisions without a lot{asked} (not counted)"
        withdrawn = max((f["withdrawn"] for f in found["targets"].values()), default=0)
        if withdrawn:
            yield f"{withdrawn:,} parcels were never handed over (not counted)"


def fragment(document: Mapping[str, Any]) -> str:
    """What can be pasted into the policy: the effects whose interval excludes "nothing", and the rest as remarks."""
    days = document["as_of"][:10]
    out = [
        f"# Measured in {document['dataset']}{' (simulated)' if document['simulated'] else ''} as of {days}.",
        "# A section that the policy has already, as assumed, is replaced by the one here.",
    ]
    for action, found in document["actions"].items():
        for target, f in found.get("targets", {}).items():
            odds = f["odds_ratio"]
            if odds is None or odds["low"] is None or "cannot tell" in (f["verdict"], found["answer"][:11]):
                continue
            key = action if re.fullmatch(r"[A-Za-z0-9_-]+", action) else f'"{action}"'
            n = sum(f["judged"].values())
            sure = f"{n:,} parcels, on all days at {100 * (1 - f['level']):.3g} %"
            out += ["", f"[actions.{key}.effects.{target}]  # {sure}", 'source = "experiment"']
            out += [
                f"{name} = {odds[at]:.4g}" for name, at in (("odds_ratio", "value"), ("low", "low"), ("high", "high"))
            ]
    if len(out) == 2:
        out.append("# No action's effect could be told yet: there is nothing to paste.")
    return "\n".join(out) + "\n"


def pictures(effects: Effects) -> dict[str, bytes]:
    """An SVG per randomized action, by file name: its primary target by day, and where all its targets stand."""
    return {
        f"{re.sub(r'[^A-Za-z0-9_-]+', '-', action)}.svg": _picture(action, effects.document, paths)
        for action, paths in effects.paths.items()
    }


def _picture(action: str, document: Mapping[str, Any], paths: Mapping[str, Path]) -> bytes:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    from training.evaluate.plots import INK, MODEL, SOFT, svg, tidy, title

    found = document["actions"][action]
    targets = found["targets"]
    shown = found["primary"] or next(iter(targets))
    path = paths[shown]
    on = np.isfinite(path.high)
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    days = path.look.astype("datetime64[D]")
    left.axhline(0, color="#888888", linewidth=1, linestyle="--")
    if on.any():
        left.fill_between(
            days[on], 100 * path.low[on], 100 * path.high[on], color=SOFT, label="holds on all days together"
        )
        left.plot(days[on], 100 * path.value[on], color=MODEL, linewidth=1.5)
        widest = 2.5 * float(np.median(100 * (path.high[on] - path.low[on])))
        middle = 100 * float(path.value[on][-1])
        left.set_ylim(max(-100.0, middle - widest / 1.5), min(100.0, middle + widest / 1.5))
        left.set_xlim(days[0], days[-1])  # with the time in which nothing could be said
        left.legend(frameon=False, fontsize=8, loc="best")
        locator = AutoDateLocator(maxticks=8)
        left.xaxis.set_major_locator(locator)
        left.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        left.annotate("too few events to say anything yet", (0.5, 0.6), xycoords="axes fraction", ha="center")
        left.set_xticks([])
    left.set_ylabel(f"{shown}, points more with it")
    n = f"{sum(targets[shown]['judged'].values()):,} parcels judged"
    head = title(f"{action}: {found['answer']}", n, document["simulated"])
    left.set_title(head, fontsize=11, color=INK, loc="left")
    names = [t for t, f in targets.items() if f["odds_ratio"] is not None][::-1]  # money is on another scale
    for place, target in enumerate(names):
        d = targets[target]["difference"]
        if d["low"] is not None:
            right.plot([100 * d["low"], 100 * d["high"]], [place] * 2, color=SOFT, linewidth=4, solid_capstyle="butt")
            right.plot(100 * d["value"], place, "o", color=MODEL, markersize=5)
    right.axvline(0, color="#888888", linewidth=1, linestyle="--")
    right.set_yticks(range(len(names)), [f"{t} *" if t == found["primary"] else t for t in names])
    right.set_ylim(-0.6, len(names) - 0.4)
    right.set_xlabel("points more with it, as of now")
    tidy(left, right)
    return svg(figure)
