"""Results in a terminal: metrics beside their baselines, registered versions, features and single values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.feature import Feature
    from training.inspection import Inspected


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows of text as aligned columns; those numbered in `right` are aligned to the right."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    to_right = set(right)
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in to_right else c.ljust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _value(metric: Mapping[str, Any] | None, digits: int = 3, interval: bool = True) -> str:
    if not metric or metric.get("value") is None:
        return "-"
    said = f"{metric['value']:.{digits}f}"
    if interval and metric.get("low") is not None:
        said += f" [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
    return said


def verdict(target: Mapping[str, Any]) -> str:
    """Whether the model beats all three baselines in log loss, in words that claim no more than the intervals do."""
    against = {name: found.get("log_loss", {}).get("verdict") for name, found in target["against_baselines"].items()}
    beaten = [n for n, v in against.items() if v == "better"]
    if len(beaten) == len(against):
        return "better than all three baselines"
    worse = [n for n, v in against.items() if v == "worse"]
    undecided = [n for n, v in against.items() if v not in ("better", "worse")]
    parts = []
    if beaten:
        parts.append(f"better than {', '.join(beaten)}")
    if undecided:
        parts.append(f"cannot be told from {', '.join(undecided)}")
    if worse:
        parts.append(f"WORSE than {', '.join(worse)}")
    return "; ".join(parts)


def table(metrics: Mapping[str, Any]) -> str:
    """Metrics of a training beside the baselines, one block per target."""
    said = "SIMULATED data" if metrics.get("simulated") else "data"
    out = [
        f"{metrics['dataset']}: {said} as of {metrics['as_of'][:16]}Z, judged on decisions from "
        f"{metrics['holdout_from'][:16]}Z (95 % intervals; verdict by log loss)"
    ]
    rows = [["target", "", "AUC", "log loss", "calibration error", "top 10 % hold"]]
    notes = []
    for name, target in metrics["targets"].items():
        if target["status"] != "trained":
            notes.append(f"{name}: not trained: {target['why']}")
            continue
        for who, found in {"model": target["metrics"], **target["baselines"]}.items():
            model = who == "model"
            rows.append(
                [
                    name if model else "",
                    who,
                    _value(found.get("auc"), interval=model),
                    _value(found.get("log_loss"), 4, model),
                    _value(found.get("calibration_error"), 4, model),
                    _value(found.get("top_decile_capture"), 2, model),
                ]
            )
        holdout = target["holdout"]
        notes.append(
            f"{name}: {verdict(target)} ({holdout['positives']:,} of {holdout['rows']:,} {target['unit']}s; "
            f"{target['excluded_immature']:,} too young to judge were left out)"
        )
    return "\n".join([*out, columns(rows), "", *notes, *_reasons(metrics.get("return_reason", {}))])


def _reasons(found: Mapping[str, Any]) -> list[str]:
    """The model of return reasons in two lines."""
    if found.get("status") != "trained":
        return [f"return_reason: not trained: {found['why']}"] if found else []
    loss = {name: b["log_loss"]["value"] for name, b in found["baselines"].items()}
    beaten = ", ".join(f"{name} {value:.3f}" for name, value in loss.items() if value is not None)
    mix = sorted(found["mix"].items(), key=lambda pair: -pair[1]["corrected"])[:3]
    shares = ", ".join(f"{name} {share['corrected']:.0%} (stated {share['stated']:.0%})" for name, share in mix)
    loss_said = _value(found["metrics"]["log_loss"])
    return [
        f"return_reason: log loss {loss_said} over {len(found['reasons'])} reasons, by what was {found['judged_on']} "
        f"(baselines: {beaten})",
        f"return_reason: of the holdout's {found['holdout']['rows']:,} returns, as estimated: {shares}",
    ]


def backtest(document: Mapping[str, Any]) -> str:
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
                    _value(origin["metrics"]["auc"]),
                    _value(origin["metrics"]["log_loss"], 4),
                    _value(origin["baselines"]["base_rate"]["log_loss"], 4, interval=False),
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


def versions(found: Sequence[Mapping[str, Any]]) -> str:
    """Registered versions as a table."""
    if not found:
        return "no version is registered yet"
    rows = [["version", "aliases", "created", "dataset", "as of", "AUC"]]
    for v in found:
        auc = ", ".join(f"{t} {value:.3f}" for t, value in v.get("auc", {}).items())
        aliases = ", ".join(v.get("aliases", ())) or "-"
        rows.append([str(v["version"]), aliases, str(v["created"])[:16], str(v["dataset"]), str(v["as_of"])[:10], auc])
    return columns(rows)


def feature_list(found: Iterable[Feature]) -> str:
    """Features as a table."""
    rows = [["feature", "team", "lever", "of", "what it is"]]
    rows += [[f.name, f.team, "yes" if f.lever else "", f.level, f.help] for f in found]
    return columns(rows)


def inspected(seen: Inspected) -> str:
    """One value and the facts that made it."""
    f = seen.feature
    owner = f"{f.team}, {'a lever' if f.lever else 'no lever'}"
    out = [
        f"{f.name} of {seen.unit_id}: {seen.value:g}   ({f.say(seen.value)})",
        f"{f.help} Owner: {owner}.",
        f"Decided at {seen.decided_at}Z; only what was known before counts.",
    ]
    for name, given in seen.inputs.items():
        out.append(f"  read   {name} = {', '.join('not given' if v is None else str(v) for v in given[:5])}")
    for count in seen.counts:
        span = "all time" if count.window is None else f"{count.window} {'hours' if count.hourly else 'days'} back"
        out.append(f"  count  {count.field} = {count.value:g} by {count.entity}, {span}")
        for fact in count.facts.itertuples():
            out.append(f"           {fact.known}  {fact.unit}  units {fact.units:+d}  positives {fact.positives:+d}")
    return "\n".join(out)
