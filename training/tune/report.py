"""A tuning in a terminal: what the best trial of each target brings, and how much of that to believe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluate.report import columns


def table(document: Mapping[str, Any]) -> str:
    """Results of a tuning: today's parameters beside the best, on the folds and where the choice had no say."""
    said = "SIMULATED data" if document["simulated"] else "data"
    out = [
        f"{document['dataset']}: {said} as of {document['as_of'][:16]}Z, tried on folds before "
        f"{document['holdout_from'][:16]}Z (log loss, lower is better; 95 % intervals)"
    ]
    rows = [["target", "trials", "as today", "best", "difference", "", "chosen unseen"]]
    notes = []
    for name, target in document["targets"].items():
        if target["status"] != "tuned":
            notes.append(f"{name}: not tuned: {target['why']}")
            continue
        trials, unseen = target["trials"], target.get("unseen")
        rows.append(
            [
                name,
                f"{trials['finished'] + trials['given_up']}",
                f"{target['current']['log_loss']:.5f}",
                f"{target['best']['log_loss']:.5f}",
                _difference(target["gain"]) if target["best"]["params"] else "none",
                "" if not target["best"]["params"] else "better: taken" if target["taken"] else "undecided: left out",
                "-" if unseen is None else _difference(unseen),
            ]
        )
    if len(rows) > 1:
        notes.append(
            "The best of many trials on the same folds is partly luck, so its difference is somewhat too good. What "
            "was chosen without the last fold, and judged on it, is in the last column. Believe the holdout of a "
            "training with the file."
        )
    return "\n".join([*out, columns(rows), "", *notes])


def _difference(found: Mapping[str, Any]) -> str:
    said = f"{found['difference']:+.5f}"
    return said if found["low"] is None else f"{said} [{found['low']:+.5f}, {found['high']:+.5f}]"
