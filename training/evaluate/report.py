"""Results in a terminal: metrics beside their baselines, registered versions, features and single values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.feature import Feature
    from training.evaluate.inspection import Inspected


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


def recent(target: Mapping[str, Any]) -> str:
    """The rate of the last four weeks in words, or why there is none; empty where nobody asked."""
    found = target.get("recent", {})
    if "corrected" not in found:
        return f"last four weeks: {found['why']}" if found else ""
    rate, low, high, naive = (f"{100 * found[k]:.1f}" for k in ("corrected", "low", "high", "naive"))
    return (
        f"last four weeks: {rate} % [{low}, {high}] of {found['units']:,} {target['unit']}s once all is known; "
        f"{naive} % so far, which is no rate"
    )


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
        if recent(target):
            notes.append(f"{name}, {recent(target)}")
    reasons, windows = _reasons(metrics.get("return_reason", {})), _windows(metrics.get("time_to_door", {}))
    return "\n".join([*out, columns(rows), "", *notes, *reasons, *windows])


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


def _windows(found: Mapping[str, Any]) -> list[str]:
    """Time-to-door windows: what they cover and how wide they are, beside what is simpler, and the worst slices."""
    if found.get("status") != "trained":
        return [f"time to door: not trained: {found['why']}"] if found else []
    rows = [[f"{100 * found['nominal']:.0f} % window", "covers", "hours wide, mean", "median"]]
    served = found["metrics"]
    for who, f in {"model": served, **found["rivals"]}.items():
        widths = (f"{f['mean_width_hours']:.1f}", f"{f['median_width_hours']:.1f}")
        rows.append([who, _value(f["coverage"], interval=who == "model"), *widths])
    slices = sorted(found["slices"].items(), key=lambda s: s[1]["coverage"]["value"])
    ends = dict.fromkeys(name for name, _ in (slices[:1] + slices[-1:]))
    said = "; ".join(f"{name} {_value(found['slices'][name]['coverage'])}" for name in ends)
    against = found["contradictions"]
    note = (
        f"time to door: {served['rows']:,} deliveries; {found['excluded_immature']:,} parcels too young to judge were "
        f"left out; {against['after']:,} of {against['checked']:,} windows contradict P(late)"
    )
    return ["", columns(rows), "", note, *([f"slices from {said}"] if said else [])]


def versions(found: Sequence[Mapping[str, Any]]) -> str:
    """Registered versions as a table."""
    if not found:
        return "no version is registered yet"
    rows = [["version", "aliases", "gate", "created", "dataset", "as of", "AUC"]]
    for v in found:
        auc = ", ".join(f"{t} {value:.3f}" for t, value in v.get("auc", {}).items())
        aliases = ", ".join(v.get("aliases", ())) or "-"
        told = (str(v["created"])[:16], str(v["dataset"]), str(v["as_of"])[:10], auc)
        rows.append([str(v["version"]), aliases, v.get("gate") or "-", *told])
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
