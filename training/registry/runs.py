"""What a training leaves in MLflow: figures, plots and card of each run, and how a bundle is described as a model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from training.evaluate.card import model_card

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from training.pipeline import TargetReport, TrainingResult

__all__ = [
    "HEADLINE",
    "batch",
    "bounds",
    "example",
    "headlines",
    "log_dataset",
    "log_target",
    "log_windows",
    "open_run",
    "requirements",
    "signature",
    "window_metrics",
]

HEADLINE = ("auc", "average_precision", "log_loss", "calibration_error")
PLOT_ROWS = 1000
EXAMPLE_ROWS = 5


def headlines(documents: dict[str, Any]) -> dict[str, Any]:
    """The figures that versions are listed by: of each trained target, and why there are none of the others."""
    found: dict[str, Any] = {}
    for target, document in documents.items():
        if document["status"] != "trained":
            found[target] = {"not_trained": document["why"]}
            continue
        found[target] = {
            name: {k: None if v is None else round(v, 6) for k, v in document["metrics"][name].items() if k != "why"}
            for name in HEADLINE
        }
    return found


def log_target(
    client: MlflowClient, run: str, result: TrainingResult, target: str, report: TargetReport, template: str
) -> None:
    """Fill a target's run: parameters, figures beside those of the baselines, its part of the card, plots."""
    from training.evaluate.plots import calibration_plot, shap_plot

    document = result.metrics["targets"][target]
    metrics: dict[str, float] = {"excluded_immature": report.excluded_immature}
    for part in ("train", "holdout"):
        metrics |= {f"{part}_{k}": document[part][k] for k in ("rows", "positives")}
    sources = [("", document["metrics"]), *((f"{b}_", found) for b, found in document["baselines"].items())]
    for prefix, figures in sources:
        for name, found in figures.items():
            metrics |= {f"{prefix}{name}{bound}": value for bound, value in bounds(found)}
    for rival, differences in document.get("against_baselines", {}).items():
        for name, found in differences.items():
            metrics |= {f"minus_{rival}_{name}{bound}": value for bound, value in bounds(found, "difference")}
    batch(
        client,
        run,
        params={**report.params, "seed": result.seed, "features": len(report.features)},
        metrics=metrics,
        tags={
            "status": report.status,
            "why": report.why,
            "unit": report.unit,
            "maturity_rule": report.maturity,
            **{f"baseline.{name}": note for name, note in report.baseline_notes.items()},
            **{
                f"against.{rival}": found["log_loss"]["verdict"]
                for rival, found in document.get("against_baselines", {}).items()
            },
        },
    )
    client.log_text(run, model_card(result, target, template=template), "model_card.md")
    client.log_dict(run, document, "metrics.json")
    if report.features:
        client.log_dict(run, {"features": report.features}, "features.json")
    with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
        unit, simulated = report.unit, result.simulated
        if report.holdout is not None and len(report.holdout):
            label, probability = report.holdout["label"], report.holdout["probability"]
            png = calibration_plot(target, label, probability, groups=report.groups, unit=unit, simulated=simulated)
            _send(client, run, Path(scratch) / "calibration.png", png)
        if report.sample is not None and report.contributions is not None and len(report.sample):
            # shap draws dot by dot in Python: beyond a thousand rows it gets slow and no clearer.
            keep = np.linspace(0, len(report.sample) - 1, min(PLOT_ROWS, len(report.sample))).astype(np.int64)
            png = shap_plot(
                target, report.contributions[keep], report.sample.iloc[keep], unit=unit, simulated=simulated
            )
            _send(client, run, Path(scratch) / "shap_summary.png", png)


def window_metrics(document: dict[str, Any]) -> dict[str, float]:
    """What the windows cover and how wide they are, as figures of a run."""
    if document.get("status") != "trained":
        return {}
    served = document["metrics"]
    metrics = {f"time_to_door_coverage{bound}": value for bound, value in bounds(served["coverage"])}
    return metrics | {f"time_to_door_{k}": served[k] for k in ("mean_width_hours", "median_width_hours")}


def log_windows(client: MlflowClient, run: str, result: TrainingResult) -> None:
    """The plot of what the windows cover, slice by slice."""
    from training.evaluate.plots import coverage_plot

    document = result.metrics.get("time_to_door", {})
    if document.get("status") == "trained":
        png = coverage_plot(document, simulated=result.simulated)
        with tempfile.TemporaryDirectory(prefix="doorstep-") as scratch:
            _send(client, run, Path(scratch) / "window_coverage.png", png)


def _send(client: MlflowClient, run: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    client.log_artifact(run, str(path), "plots")


def bounds(found: dict[str, Any] | None, key: str = "value") -> Iterator[tuple[str, float]]:
    """Give the figure and its bounds as suffix and number; what does not exist is left out."""
    for suffix, part in (("", key), ("_low", "low"), ("_high", "high")):
        value = (found or {}).get(part)
        if value is not None and np.isfinite(value):
            yield suffix, float(value)


def batch(
    client: MlflowClient, run: str, *, params: dict[str, Any], metrics: dict[str, float], tags: dict[str, Any]
) -> None:
    """Write parameters, metrics and tags to a run at once; empty tags are left out, long ones cut."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    client.log_batch(
        run,
        metrics=[Metric(k, float(v), now, 0) for k, v in metrics.items()],
        params=[Param(k, str(v)) for k, v in params.items()],
        tags=[RunTag(k, str(v)[:7900]) for k, v in tags.items() if v != ""],
    )


@contextmanager
def open_run(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> Iterator[str]:
    """Open a run and close it with what became of it."""
    run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    try:
        yield run
    except BaseException as error:
        client.set_terminated(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run, "FINISHED")


def signature(result: TrainingResult) -> Any:
    """Every feature of every target, each optional: a frame of parcels has no columns of order lines."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    trained = {name: r for name, r in result.targets.items() if r.status == "trained"}
    columns = dict.fromkeys(f for r in trained.values() for f in r.features)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.double, name, required=False) for name in columns]),
        outputs=Schema([ColSpec(DataType.double, name, required=False) for name in trained]),
    )


def example(result: TrainingResult) -> pd.DataFrame | None:
    """A few rows of the holdout: those of the target that reads most features."""
    samples = [r.sample for r in result.targets.values() if r.sample is not None and len(r.sample)]
    if not samples:
        return None
    widest = max(samples, key=lambda s: s.shape[1])
    return widest.head(EXAMPLE_ROWS).astype(np.float64).reset_index(drop=True)


def requirements() -> list[str]:
    """What reading a bundle needs besides Doorstep itself, which is on no index: it has to be installed beside it."""
    return [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pandas", "pyarrow")]


def log_dataset(client: MlflowClient, run: str, result: TrainingResult) -> None:
    """Say in a run which dataset it was trained on."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {t: d["train"]["rows"] for t, d in result.metrics["targets"].items()}
    dataset = Dataset(
        name=result.dataset_name,
        digest=result.dataset_fingerprint[:32],
        source_type="doorstep",
        source=json.dumps({"fingerprint": result.dataset_fingerprint}),
        profile=json.dumps({"training rows": profile}),
    )
    client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
