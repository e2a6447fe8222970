"""The model card: what was trained on what, how it was judged, and what it is not for, in Markdown."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.files import digest_of
from features.vocabulary import TARGETS
from training.evaluate import METRICS
from training.evaluate.report import recent
from training.evaluate.slices import meaning

if TYPE_CHECKING:
    from training.pipeline import TargetReport, TrainingResult

__all__ = ["CardError", "card_template", "home", "model_card", "note", "own_version", "summary"]

DRIVERS = 8
"""Features named as what moves a model most."""

MOST_NOTED = 7_800
"""MLflow keeps up to 8,000 characters of a description, less what is said about the rest."""

_ROOT = Path(__file__).resolve().parent.parent.parent


class CardError(ValueError):
    """The template of the model card is not there, or names something that does not exist."""


def model_card(result: TrainingResult, target: str | None = None, *, template: str | None = None) -> str:
    """Return the model card in Markdown.

    Args:
        result: the training.
        target: only this target's part; default all.
        template: text with `$names` and one block between `[[target]]` and `[[/target]]` that is repeated per target;
            default `mlflow/model_card.md.tmpl`.

    Raises:
        CardError: the template is not there, or names something that does not exist.
    """
    text = card_template() if template is None else template
    head, _, rest = text.partition("[[target]]\n")
    block, _, tail = rest.partition("[[/target]]\n")
    chosen = [target] if target else list(result.targets)
    digest = digest_of(result.bundle_dir)
    general = {
        "dataset": result.dataset_name,
        "fingerprint": result.dataset_fingerprint,
        "as_of": f"{result.as_of:%Y-%m-%d %H:%M %Z}",
        "holdout_from": f"{result.holdout_from:%Y-%m-%d %H:%M %Z}",
        "bundle": digest[:12],
        "seed": result.seed,
        "version": own_version(),
        "simulated": "**Simulated data: no parcel of this dataset ever travelled.**\n\n" if result.simulated else "",
        "summary": summary(result),
        "reasons": "\n".join(_reasons(result.metrics.get("return_reason", {}))),
        "levers": "" if target else "\n".join(_levers(result.metrics.get("levers", []))),
        "carriers": "" if target else "\n".join(_carriers(result.metrics.get("carriers", []))),
        "windows": "" if target else "\n".join(_windows(result.metrics.get("time_to_door", {}))),
    }
    try:
        parts = [string.Template(head).substitute(general)]
        parts += [string.Template(block).substitute(general | _card_of(result, name)) for name in chosen]
        parts.append(string.Template(tail).substitute(general))
    except (KeyError, ValueError) as error:
        raise CardError(f"model_card.md.tmpl: {error}; known names are {', '.join(sorted(general))}") from None
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip() + "\n"


def _card_of(result: TrainingResult, name: str) -> dict[str, Any]:
    report, document = result.targets[name], result.metrics["targets"][name]
    unit = f"{report.unit}s"
    train, holdout = document["train"], document["holdout"]
    lines: list[str] = []
    if report.status == "trained":
        rivals = document["baselines"]
        lines += [
            "| | model | " + " | ".join(b.replace("_", " ") for b in rivals) + " |",
            "|---|---|" + "---|" * len(rivals),
        ]
        for key, metric in METRICS.items():
            cells = [_cell(document["metrics"].get(key)), *(_cell(b.get(key)) for b in rivals.values())]
            arrow = "higher is better" if metric.higher_is_better else "lower is better"
            lines.append(f"| {metric.words} ({arrow}) | " + " | ".join(cells) + " |")
        lines += ["", *_verdicts(document), *(f"- {said}" for said in (recent(document),) if said), ""]
        lines += [f"- {b.replace('_', ' ')}: {note}" for b, note in report.baseline_notes.items()]
        lines += _drivers(report)
        lines += _slices(document.get("slices", {}))
    else:
        lines.append(f"**Not trained:** {report.why}")
    return {
        "target": name,
        "words": TARGETS[name].words,
        "positive": TARGETS[name].positive,
        "unit": report.unit,
        "status": report.status.replace("_", " "),
        "maturity": report.maturity,
        "excluded": f"{report.excluded_immature:,} {unit}",
        "train": _period(train, unit) + _young(document.get("young", {}), unit),
        "holdout": _period(holdout, unit),
        "figures": "\n".join(lines),
        "features": f"{len(report.features)}" if report.features else "none",
    }


def _period(side: Mapping[str, Any], unit: str) -> str:
    """How many units, and the days of their decisions."""
    days = f", decided {side['from'][:10]} to {side['to'][:10]}" if side["rows"] else ""
    return f"{side['rows']:,} {unit}, {side['positives']:,} positive{days}"


def _young(found: Mapping[str, Any], unit: str) -> str:
    """The rows that were trained on before they could be judged, and how far the last four weeks moved the model."""
    if not found.get("rows"):
        return ""
    return (
        f"; and {found['rows']:,} {unit} too young to judge, one worth {found['worth']:.2f} of a mature one; the last "
        f"four weeks moved the log-odds of all by {found['level']:+.2f}"
    )


def _slices(found: dict[str, dict[str, Any]]) -> list[str]:
    """Each slice's figures as a table; those with too few rows are named under it."""
    told = {name: f for name, f in found.items() if "why" not in f}
    lines: list[str] = []
    if told:
        lines += [
            "",
            "| slice | rows | positive | AUC | log loss | base rate's log loss | predicted less observed |",
            "|---|---|---|---|---|---|---|",
        ]
    for name, f in told.items():
        figures = (f["auc"], f["log_loss"], f["baselines"].get("base_rate", {}).get("log_loss"), f["calibration_gap"])
        counts = f"{f['rows']:,} | {f['positives']:,}"
        words = name if name.startswith("region") else f"{name}: {meaning(name)}"
        lines.append(f"| {words} | {counts} | " + " | ".join(_cell(x) for x in figures) + " |")
    few = [f"{name} ({f['positives']:,} of {f['rows']:,})" for name, f in found.items() if "why" in f]
    if few:
        lines += ["", f"Too few positives or negatives for figures: {', '.join(few)}."]
    return lines


def _drivers(report: TargetReport) -> list[str]:
    """What moves this model most: the mean size of each feature's contribution on the sample of the holdout."""
    if report.sample is None or report.contributions is None or not len(report.sample):
        return []
    size = np.abs(report.contributions).mean(axis=0)
    most = np.argsort(-size, kind="stable")[:DRIVERS]
    named = ", ".join(f"{report.sample.columns[i]} ({size[i]:.2f})" for i in most if size[i] > 0)
    return ["", f"Moves the log-odds most, on average: {named}."]


def _reasons(document: Mapping[str, Any]) -> list[str]:
    """The model of return reasons, its figures, and the mix of true reasons behind the holdout's returns."""
    if document.get("status") != "trained":
        return [f"**Not trained:** {document.get('why', 'no returns')}"]
    noise, train, holdout = document["noise"], document["train"], document["holdout"]
    told = (
        "Fitted through the inspections" if noise["corrected"] else "Too few inspections: words are taken as they are"
    )
    rivals = document["baselines"]
    lines = [
        f"Trained on {train['rows']:,} mature returns ({train['inspected']:,} inspected), judged on "
        f"{holdout['rows']:,} ({holdout['inspected']:,} inspected) by what was {document['judged_on']}. {told}.",
        "",
        "| | model | " + " | ".join(b.replace("_", " ") for b in rivals) + " |",
        "|---|---|" + "---|" * len(rivals),
    ]
    for key, words in (("log_loss", "log loss (lower is better)"), ("accuracy", "likeliest reason right")):
        cells = [_cell(document["metrics"][key]), *(_cell(b[key]) for b in rivals.values())]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| reason | owner | AUC | stated truly | stated | true share, estimated | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, owner in document["reasons"].items():
        mix = document["mix"][name]
        share = f"{mix['corrected']:.3f} [{mix['low']:.3f}, {mix['high']:.3f}]"
        lines.append(
            f"| {name} | {owner} | {_cell(document['by_reason'][name]['auc'])} | {noise['stated_truly'][name]:.2f} | "
            f"{mix['stated']:.3f} | {share} | {mix['predicted']:.3f} |"
        )
    if document["unknown_rows"]:
        lines += [
            "",
            f"{document['unknown_rows']:,} returns have codes that are no known reason; `doorstep check` lists them.",
        ]
    return lines


def _verdicts(document: dict[str, Any]) -> list[str]:
    """Say for each baseline whether the model beats it, and what by, with the interval of the paired difference."""
    said = []
    for rival, differences in document.get("against_baselines", {}).items():
        parts = []
        for key in ("auc", "log_loss"):
            found = differences.get(key, {})
            if found.get("low") is None:
                parts.append(f"{METRICS[key].words}: cannot be compared ({found.get('why', 'no figures')})")
                continue
            size = f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            word = {"better": "better", "worse": "**worse**", "undecided": "**not told apart**"}[found["verdict"]]
            parts.append(f"{METRICS[key].words} {word}, {size}")
        said.append(f"- against the {rival.replace('_', ' ')}: " + "; ".join(parts))
    return said


def _windows(found: dict[str, Any]) -> list[str]:
    """The part on windows: what was done, and a table."""
    lines: list[str] = []
    if found.get("status") != "trained":
        return [f"**Not trained:** {found['why']}"] if found else lines
    train, against = found["train"], found["contradictions"]
    lines += [
        f"Windows that should hold {100 * found['nominal']:.0f} % of the deliveries, {found['maturity']} "
        f"({found['excluded_immature']:,} parcels too young, left out). Learned from {train['learned']:,} deliveries, "
        f"calibrated on {train['calibrated']:,} later ones; {found['groups']['lane']:,} lanes have a calibration of "
        f"their own. {against['after']:,} of {against['checked']:,} contradict P(late); {against['before']:,} would "
        "have without being reconciled.",
        "",
        "| | deliveries | inside the window | mean width, h | median width, h |",
        "|---|---|---|---|---|",
    ]
    parts = {"**as served**": found["metrics"], **{n.replace("_", " "): f for n, f in found["rivals"].items()}}
    for name, f in {**parts, **found["slices"]}.items():
        widths = f"{f['mean_width_hours']:.1f} | {f['median_width_hours']:.1f}"
        lines.append(f"| {name} | {f['rows']:,} | {_cell(f['coverage'])} | {widths} |")
    return lines


def _levers(found: list[dict[str, Any]]) -> list[str]:
    """What changing a column does, as a table."""
    lines = ["| column | on | log-odds per unit | rows | positive | |", "|---|---|---|---|---|---|"]
    for x in found:
        if x["status"] == "not_estimated":
            lines.append(f"| {x['column']} | {x['target']} | – | – | – | not estimated: {x['why']} |")
            continue
        size = f"{x['effect']:+.2f} [{x['low']:+.2f}, {x['high']:+.2f}]"
        unsure = "cannot be told from none" if x["low"] <= 0 <= x["high"] else ""
        said = unsure if x["status"] == "estimated" else "not used: the estimate has the wrong sign"
        lines.append(f"| {x['column']} | {x['target']} | {size} | {x['rows']:,} | {x['positives']:,} | {said} |")
    return lines if found else ["None: no target was trained."]


def _carriers(found: list[dict[str, Any]]) -> list[str]:
    """What carriers' services do, as a table."""
    lines = ["| carrier | on | log-odds against the others | from region to region |", "|---|---|---|---|"]
    for x in found:
        if x["status"] == "not_estimated":
            lines.append(f"| – | {x['target']} | not estimated: {x['why']} | – |")
            continue
        for name, e in x["effects"].items():
            size = f"{e['effect']:+.2f} [{e['low']:+.2f}, {e['high']:+.2f}]"
            lines.append(f"| {name} | {x['target']} | {size} | ± {x['varies']['region']:.2f} |")
    return lines if found else ["None: no target was trained."]


def _cell(found: dict[str, Any] | None) -> str:
    if not found or found.get("value") is None:
        return "–"
    if found.get("low") is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def note(card: str) -> str:
    """As much of a model card as MLflow shows as a run's description, cut between paragraphs, and where the rest is."""
    if len(card) <= MOST_NOTED:
        return card
    end = card.rfind("\n\n", MOST_NOTED // 2, MOST_NOTED)
    if end < 0:  # a table that long
        end = card.rfind("\n", 0, MOST_NOTED)
    return f"{card[:end]}\n\n*The description ends here: all of it is the run's file model_card.md.*\n"


def summary(result: TrainingResult) -> str:
    """Return a few lines for the version's description: each target with its AUC, or why there is none."""
    lines = []
    for name, report in result.targets.items():
        auc = result.metrics["targets"][name]["metrics"].get("auc")
        lines.append(
            f"- {name}: " + (f"AUC {_cell(auc)}" if report.status == "trained" else f"not trained: {report.why}")
        )
    return "\n".join(lines)


def card_template() -> str:
    """The text of `mlflow/model_card.md.tmpl`.

    Raises:
        CardError: there is none.
    """
    path = home() / "model_card.md.tmpl"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CardError(f"{path} is missing: run from a checkout of Doorstep, or put a template there") from None


def home() -> Path:
    """The folder `mlflow/` of the checkout, else of the working directory."""
    return (_ROOT if (_ROOT / "pyproject.toml").is_file() else Path.cwd()) / "mlflow"


def own_version() -> str:
    """The installed version of Doorstep."""
    try:
        return version("doorstep")
    except PackageNotFoundError:
        return "unknown"
