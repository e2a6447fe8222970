"""A backtest in a terminal: a row per target and origin, and what moved in between in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluate.report import columns, verdict


def table(document: Mapping[str, Any]) -> str:
    """A backtest as a table, a row per target and origin, and what moved in between in words."""
    said = "SIMULATED data" if document["simulated"] else "data"
    out = [
        f"{document['dataset']}: {said} as of {document['as_of'][:16]}Z, {len(document['origins'])} origins, each "
        "fitted on what was known then and judged on what came until the next (95 % intervals)"
    ]
    rows = [["target", "origin", "positives", "AUC", "log loss", "base rate's", "calibration gap, points"]]
    notes: list[str] = []
    for name, target in document["targets"].items():
        if target["status"] != "judged":
            notes.append(f"{name}: not trained at any origin: {target['why']}")
            continue
        shown = False
        for origin in [*target["origins"], {"at": "together", "status": "judged", **target["pooled"]}]:
            if origin["status"] != "judged":
                notes.append(f"{name}: not trained at {origin['at'][:10]}: {origin['why']}")
                continue
            counts = origin.get("test", origin)
            rows.append(
                [
                    "" if shown else name,
                    origin["at"][:10],
                    f"{counts['positives']:,} of {counts['rows']:,}",
                    _figure(origin["metrics"]["auc"]),
                    _figure(origin["metrics"]["log_loss"], 4),
                    _figure(origin["baselines"]["base_rate"]["log_loss"], 4, interval=False),
                    _points(origin["metrics"]["gap"]),
                ]
            )
            shown = True
        notes.append(f"{name}: {verdict(target['pooled'])}")
        notes += [f"{name}: {note}" for note in _moved(target)]
        if "stability" in target:
            notes.append(f"{name}: {_stable(target['stability'])}")
    return "\n".join([*out, columns(rows), "", *notes])


def _points(found: Mapping[str, Any]) -> str:
    """A difference of probabilities in points, with its interval."""
    said = f"{100 * found['value']:+.2f}"
    return said if found["low"] is None else f"{said} [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"


def _moved(target: Mapping[str, Any]) -> list[str]:
    """What differs between the origins of a target, in words."""
    notes = []
    for key, words in (("rate", "share of positives"), ("auc", "AUC"), ("gap", "calibration gap")):
        found = target["drift"][key]
        if found["verdict"] == "differs":
            low, high = found["lowest"], found["highest"]
            digits, factor, unit = (3, 1, "") if key == "auc" else (2, 100, " points" if key == "gap" else " %")
            notes.append(
                f"{words} differs between origins: {factor * low['value']:.{digits}f}{unit} from {low['at'][:10]}, "
                f"{factor * high['value']:.{digits}f}{unit} from {high['at'][:10]}"
            )
    latest = [o for o in target["origins"] if o["status"] == "judged"][-1]
    for kind, words in (("inputs", "features of the case itself"), ("histories", "features of its history")):
        found = latest["drift"][kind]
        if found["moved"]:
            named = [
                f"{f['feature']} ({f['before']}, then {f['after']}; index {f['index']:.2f})"
                for f in found["most"][:3]
                if f["moved"]
            ]
            notes.append(
                f"{found['moved']} of {found['of']} {words} have moved since what the last origin was fitted on, most: "
                + ", ".join(named)
            )
    return notes


def _stable(found: Mapping[str, Any]) -> str:
    """How far explanations depend on the seed, in words."""
    return (
        f"with {found['seeds']} seeds, the same team leads in {100 * found['top_team']:.0f} % of {found['units']:,} "
        f"explanations ({100 * found['top_team_risky']:.0f} % of the riskiest tenth); a team's points differ by "
        f"{100 * found['difference']:.2f} of {100 * found['size']:.2f} on average, {100 * found['moved_teams']:.0f} % "
        f"(single features' by {100 * found['moved_features']:.0f} %)"
    )


def _figure(found: Mapping[str, Any], digits: int = 3, interval: bool = True) -> str:
    if found["value"] is None:
        return "-"
    said = f"{found['value']:.{digits}f}"
    if interval and found["low"] is not None:
        said += f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return said
