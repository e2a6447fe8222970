"""One small trained world per test session: everything that needs a model shares it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from services import Service, running

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Trained:
    """Paths of a trained world.

    Attributes:
        dataset: the dataset folder.
        run: what `train --out` wrote: bundle/, holdout.parquet, metrics.json.
        bundle: the bundle folder.
        snapshot: a snapshot of the dataset as of its extract.
    """

    dataset: Path
    run: Path
    bundle: Path
    snapshot: Path


@pytest.fixture(scope="session")
def world_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated shop of 12,000 parcels."""
    from training.world import generate

    return generate(tmp_path_factory.mktemp("world") / "shop", parcels=12_000, seed=7)


@pytest.fixture(scope="session")
def result(world_dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """The training result of the world."""
    from features import Dataset
    from training import train

    return train(Dataset.open(world_dataset), out=tmp_path_factory.mktemp("run") / "run", seed=0)


@pytest.fixture(scope="session")
def trained(world_dataset: Path, result, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The trained world and a snapshot of it."""
    from features import Dataset
    from features.snapshot import Snapshot

    snapshot = tmp_path_factory.mktemp("snapshot") / "snapshot"
    Snapshot.from_dataset(Dataset.open(world_dataset)).save(snapshot)
    return Trained(world_dataset, result.bundle_dir.parent, result.bundle_dir, snapshot)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not beside the project ({SHARED.relative_to(ROOT.parent)} is absent)")
    return SHARED


@pytest.fixture(scope="session")
def run_service(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`with run_service(DOORSTEP_BUNDLE=...) as service`."""
    return lambda first="", **env: running(tmp_path_factory.mktemp("service"), first, **env)


@pytest.fixture(scope="session")
def bare(run_service: Callable[..., Any]) -> Iterator[Service]:
    """A service with neither bundle nor snapshot."""
    with run_service() as service:
        yield service
