"""A promotion passes the gate or changes nothing, whatever happens beside it or in the middle of it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.files import digest_of, seal
from features.matrix import FeatureSet
from features.settings import Settings
from serving.bundle import Bundle
from serving.store import resolve
from training.evaluate.evaluation_set import KIND
from training.evaluate.gate import Candidate, Decision, Rule
from training.models import MODELS, fit
from training.pipeline import TargetReport, TrainingResult
from training.registry import Refused, Registry, RegistryError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
PERIOD = {"rows": 400, "positives": 90, "from": "2025-01-01T00:00:00Z", "to": "2025-09-30T00:00:00Z"}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[TrainingResult]:
    """Three small trainings with real bundles; the first was registered before there were evaluation sets."""
    folder = tmp_path_factory.mktemp("trained")
    settings = Settings(name="corner shop", simulated=True)
    features = FeatureSet.for_target("late", settings)
    features = FeatureSet(features.unit, features.features[:5])
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 5)).astype(np.float32)
    label = (rng.random(400) < 0.3).astype(np.int8)
    fitted = fit(replace(MODELS["late"], max_trees=5), features, matrix, label, [], seed=0)
    document = {
        "status": "trained",
        "why": "",
        "unit": "parcel",
        "excluded_immature": 0,
        "train": PERIOD,
        "holdout": PERIOD,
        "metrics": {
            m: {"value": 0.6, "low": 0.5, "high": 0.7}
            for m in ("auc", "average_precision", "log_loss", "calibration_error")
        },
        "baselines": {},
        "against_baselines": {},
    }
    made = []
    for number in (1, 2, 3):
        run = folder / str(number)
        training = {"training": number}
        Bundle.save(run / "bundle", settings, {"late": fitted.model}, {"late": "tree"}, training)
        if number > 1:
            (run / "part").mkdir()
            (run / "part" / "parcel.parquet").write_text(f"rows {number}")
            seal(run / "part", run / "evaluation", KIND, 1, {})
        report = TargetReport("trained", "", "parcel", "rule", params={"num_trees": 5}, features=features.names)
        moments = (pd.Timestamp("2025-12-31", tz="UTC"), pd.Timestamp("2025-10-01", tz="UTC"))
        metrics = {"dataset": settings.name, "targets": {"late": document}}
        made.append(
            TrainingResult(
                run / "bundle", metrics, settings.name, "f" * 64, settings, *moments, number, True, {"late": report}
            )
        )
    return made


@pytest.fixture(scope="module")
def filled(results, tmp_path_factory) -> Path:
    """A registry with versions 1, 2 and 3; 1 is champion, 3 is challenger."""
    place = tmp_path_factory.mktemp("registry") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry = Registry(f"sqlite:///{place}")
        for result in results:
            registry.log(result)
        registry.promote(1, judge=None)
    return place


@pytest.fixture
def registry(filled, tmp_path) -> Registry:
    shutil.copy(filled, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def store(registry, tmp_path) -> Path:
    """A store directory in which the champion is published."""
    registry.promote(1, judge=None, publish=tmp_path / "deploy")
    return tmp_path / "deploy"


def says(passed: bool, why: str = "late, peak: log loss 0.5000, the champion's 0.4000"):
    return lambda ours, theirs: Decision(passed, why, ours.version, theirs.version, Rule())


def nobody(ours: Candidate, theirs: Candidate) -> Decision:
    raise AssertionError("there is nothing to compare with")


def aliases(registry: Registry) -> dict[str, int]:
    return {alias: row["version"] for row in registry.models() for alias in row["aliases"]}


def served(store: Path) -> int:
    return Bundle.load(resolve(store)).meta["training"]


def recorded(registry: Registry, version: int) -> list[dict]:
    """The decisions in a version's run, oldest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    run = next(row["run_id"] for row in registry.models() if row["version"] == version)
    folder = Path(client.download_artifacts(run, "")) / "gate"
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]


def test_the_first_champion_has_nothing_to_beat_and_says_so(filled, tmp_path):
    shutil.copy(filled, tmp_path / "mlflow.db")
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri).delete_registered_model_alias(
        "doorstep", "champion"
    )
    assert registry.compare(judge=nobody) is None
    done = registry.promote(judge=nobody)
    assert (done.decision, done.forced) == (None, False)
    assert "compared with nothing: there was no other champion" in str(done)


def test_a_refusal_changes_nothing_and_is_recorded(registry, store):
    with pytest.raises(Refused, match=r"not promoted: late, peak: log loss 0\.5000.*\n.*--force") as caught:
        registry.promote(judge=says(False), publish=store)
    assert caught.value.exit_code == 1
    assert "Mend the training" not in str(caught.value), "no comparison speaks against it"
    assert (caught.value.decision.challenger, caught.value.decision.champion) == (3, 1)
    assert aliases(registry) == {"champion": 1, "challenger": 3}
    assert served(store) == 1
    newest = registry.models()[0]
    assert (newest["gate"], newest["gate_why"]) == ("refused", "late, peak: log loss 0.5000, the champion's 0.4000")
    assert [d["verdict"] for d in recorded(registry, 3)] == ["refused"]


def test_what_is_forced_is_promoted_and_stays_visible(registry, store):
    from training.evaluate.report import versions

    done = registry.promote(judge=says(False), publish=store, force=True)
    assert done.forced
    assert "forced: the gate refused it" in str(done)
    assert done.to_dict()["gate"]["passed"] is False
    assert aliases(registry) == {"champion": 3, "previous": 1}
    assert served(store) == 3
    listed = registry.models()
    assert [row["gate"] for row in listed] == ["forced", "", ""]
    assert "forced" in versions(listed).splitlines()[1]
    assert recorded(registry, 3)[-1]["rule"]["level"] == Rule().level


def test_who_passes_is_promoted_with_the_decision(registry, store):
    done = registry.promote(2, judge=says(True, "better"), publish=store)
    assert (done.version, done.previous, done.forced) == (2, 1, False)
    assert done.decision.why == "better"
    assert served(store) == 2
    assert recorded(registry, 2)[-1]["verdict"] == "passed"
    again = registry.promote(2, judge=nobody, publish=store)
    assert again.decision is None, "the champion need not beat itself"


def test_comparing_alone_changes_and_records_nothing(registry, store):
    before = registry.models()
    found = registry.compare(judge=says(False))
    assert (found.passed, found.challenger, found.champion) == (False, 3, 1)
    assert registry.models() == before
    assert served(store) == 1


def test_the_judge_gets_verified_files_or_is_told_why_not(registry, results, tmp_path):
    seen: list[tuple[Candidate, Candidate]] = []

    def judge(ours: Candidate, theirs: Candidate) -> Decision:
        assert digest_of(ours.bundle) == digest_of(results[ours.version - 1].bundle_dir)
        if ours.evaluation is not None:
            assert digest_of(ours.evaluation) == digest_of(results[ours.version - 1].evaluation_dir)
        seen.append((ours, theirs))
        return Decision(False, "", ours.version, theirs.version, Rule())

    registry.compare(3, judge=judge)
    ours, theirs = seen[-1]
    assert ours.evaluation is not None
    assert theirs.bundle is not None
    registry.promote(3, judge=None)
    registry.compare(1, judge=judge)
    ours, theirs = seen[-1]
    assert (ours.evaluation, ours.why) == (None, "it was registered without an evaluation set; train again")

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    client.set_model_version_tag("doorstep", "2", "evaluation_digest", "0" * 64)
    client.set_model_version_tag("doorstep", "3", "bundle_digest", "0" * 64)
    registry.compare(2, judge=judge)
    ours, theirs = seen[-1]
    assert ours.evaluation is None
    assert "logged was 000000000000" in ours.why
    assert theirs.bundle is None
    assert "was replaced after training" in theirs.why


def test_a_registry_that_is_away_leaves_what_is_served(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = Registry(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(RegistryError, match="does not answer"):
            away.promote(judge=nobody, publish=store)
    assert served(store) == 1


WRITER = """
import pickle, sys, warnings
warnings.simplefilter("ignore")
from training.registry import Registry
uri, file, times = sys.argv[1:]
result = pickle.load(open(file, "rb"))
for _ in range(int(times)):
    Registry(uri).log(result)
    print("logged", flush=True)
"""


def test_promoting_while_a_training_is_written_takes_the_old_challenger_or_the_new_one_whole(
    registry, results, store, tmp_path
):
    (tmp_path / "result.pkl").write_bytes(pickle.dumps(results[1]))
    command = [sys.executable, "-c", WRITER, registry.uri, str(tmp_path / "result.pkl"), "3"]
    writer = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    taken = []
    while writer.poll() is None:
        try:
            done = registry.promote(judge=says(True), publish=store)
        except RegistryError as error:
            assert "no challenger" in str(error)
            time.sleep(0.02)
            continue
        taken.append(done.version)
        assert aliases(registry)["champion"] == done.version
        number = 3 if done.version == 3 else 2
        assert served(store) == number
        assert done.bundle == digest_of(results[number - 1].bundle_dir)
    assert writer.wait() == 0
    assert writer.stdout.read().split() == ["logged"] * 3
    writer.stdout.close()
    assert taken == sorted(set(taken)), "none is promoted twice, and none comes back"
    # The last one written was promoted, or is still there to be.
    now = aliases(registry)
    assert now.get("challenger", now["champion"]) == 6
    assert {row["version"] for row in registry.models()} == {1, 2, 3, 4, 5, 6}


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import training.registry as module
from mlflow.tracking import MlflowClient
from training.evaluate.gate import Decision, Rule
uri, store, where, nth = sys.argv[1:]
owner = module if where == "publish_directory" else MlflowClient
real, calls = getattr(owner, where), 0
def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(owner, where, dying)
judge = lambda ours, theirs: Decision(True, "better", ours.version, theirs.version, Rule())
module.Registry(uri).promote(judge=judge, publish=store)
"""


@pytest.mark.parametrize(
    ("where", "nth", "served_then"),
    [
        ("log_dict", 1, 1),  # judged, nothing recorded
        ("publish_directory", 1, 1),  # about to publish
        ("set_registered_model_alias", 1, 3),  # published, not recorded
        ("set_registered_model_tag", 1, 3),  # champion, its history not written
        ("delete_registered_model_alias", 1, 3),  # still challenger
    ],
)
def test_a_promotion_killed_at_any_step_is_finished_by_repeating_it(registry, store, tmp_path, where, nth, served_then):
    command = [sys.executable, "-c", KILLED, registry.uri, str(store), where, str(nth)]
    assert subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path).returncode == -signal.SIGKILL
    assert served(store) == served_then, "whole at every moment"
    assert aliases(registry)["champion"] in (1, 3)

    registry.promote(judge=says(True), publish=store)
    assert aliases(registry) == {"champion": 3, "previous": 1}
    assert served(store) == 3
    assert registry.rollback(publish=store).version == 1
    assert digest_of(resolve(store)) == registry.promote(1, judge=nobody).bundle
