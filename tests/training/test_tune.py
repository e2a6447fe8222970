"""Tunings: what stops one loses nothing, what is chosen is never worse on the folds, and the file does what it says."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from sklearn.metrics import log_loss

from features import Dataset
from training import train
from training.cli import main
from training.models.params import KNOBS, Params, ParamsError
from training.registry import Registry, RegistryError
from training.registry.session import Run
from training.tune import TuningError, params_file, tune
from training.world import generate

TARGET = "failed_attempt"
TRIALS = 3


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated shop that hears of no returns."""
    folder = generate(tmp_path_factory.mktemp("tune") / "shop", parcels=2_500, seed=4)
    (folder / "returns.parquet").unlink()
    return folder


def words(shop: Path, out: Path, *more: str) -> list[str]:
    return ["tune", str(shop), "--targets", TARGET, "--trials", str(TRIALS), "--out", str(out), *more]


@dataclass(frozen=True)
class Done:
    document: dict[str, Any]
    out: Path
    uri: str


@pytest.fixture(scope="module")
def done(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A tuning that nothing disturbed, logged."""
    folder = tmp_path_factory.mktemp("done")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    ran = CliRunner().invoke(main, words(shop, folder / "out", "--mlflow-uri", uri, "--json"), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return Done(json.loads(ran.stdout), folder / "out", uri)


def runs(uri: str) -> tuple[Any, list[Any]]:
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("doorstep").experiment_id])
    (parent,) = [r for r in found if "mlflow.parentRunId" not in r.data.tags]
    return parent, [r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def test_the_first_trial_is_what_is_trained_today(done: Done, shop: Path, tmp_path: Path) -> None:
    last = done.document["targets"][TARGET]["folds"][-1]
    until = done.document["holdout_from"]
    today = train(Dataset.open(shop), as_of=until, holdout_from=last["at"], out=tmp_path / "run").holdout
    rows = today[today["target"] == TARGET]
    kept = np.load(done.out / "predictions" / f"{TARGET}-0.npy")
    np.testing.assert_array_equal(kept[-len(rows) :], rows["probability"])
    assert (last["test"]["rows"], last["test"]["positives"]) == (len(rows), rows["label"].sum())


def test_what_is_chosen_is_never_worse_on_the_folds(done: Done) -> None:
    found = done.document["targets"][TARGET]
    complete = [t for t in found["history"] if t["log_loss"] is not None]
    assert found["trials"] == {"finished": len(complete), "given_up": TRIALS - len(complete), "interrupted": 0}
    assert found["current"] == {"trial": 0, "log_loss": complete[0]["log_loss"]}
    assert found["best"]["log_loss"] == min(t["log_loss"] for t in complete) <= found["current"]["log_loss"]
    gain = found["best"]["log_loss"] - found["current"]["log_loss"]
    assert found["gain"]["difference"] == pytest.approx(gain, abs=1e-12)
    assert {"difference", "low", "high", "verdict"} <= set(found["unseen"])


def test_nothing_of_the_holdout_is_looked_at(done: Done) -> None:
    start = pd.Timestamp(done.document["holdout_from"])
    folds = done.document["targets"][TARGET]["folds"]
    assert len(folds) >= 2
    assert all(pd.Timestamp(f["test"]["to"]) < start for f in folds)
    assert all(pd.Timestamp(f["train"]["to"]) < pd.Timestamp(f["at"]) for f in folds)


def test_each_trial_is_a_run_below_that_of_the_tuning(done: Done) -> None:
    parent, children = runs(done.uri)
    found = done.document["targets"][TARGET]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics[f"{TARGET}_best_log_loss"] == found["best"]["log_loss"]
    assert sorted(c.data.tags["doorstep.trial"] for c in children) == [f"{TARGET}/{k}" for k in range(TRIALS)]
    for child in children:
        assert set(child.data.params) == set(KNOBS)
        assert child.info.status == "FINISHED" and child.data.tags["state"] in ("complete", "pruned")


def test_going_on_with_a_finished_tuning_adds_nothing(done: Done, shop: Path) -> None:
    again = tune(Dataset.open(shop), out=done.out, targets=[TARGET], trials=TRIALS, registry=Registry(done.uri))
    assert again.document == done.document and not again.unlogged
    assert len(runs(done.uri)[1]) == TRIALS


def started(shop: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.cli", *words(shop, out, "--no-log", "-v")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(running: subprocess.Popen[str], when: str, how: signal.Signals) -> str:
    """Send a signal as soon as a line of progress says so; gives what is said after that."""
    assert running.stderr is not None
    for line in running.stderr:
        if when in line:
            break
    else:
        pytest.fail(f"ended with status {running.wait()} before {when!r}")
    running.send_signal(how)
    return running.communicate()[1]


def test_what_stops_a_tuning_loses_no_trial_and_changes_no_result(done: Done, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = stopped(running := started(shop, out), "trial 2 of 3, fold 2", signal.SIGINT)
    assert running.returncode == 130
    assert "interrupted: the finished trials are kept" in said
    running = started(shop, out)
    stopped(running, "trial 3 of 3, fold 2", signal.SIGKILL)  # as when the machine goes off
    assert running.returncode == -signal.SIGKILL
    found = tune(Dataset.open(shop), out=out, targets=[TARGET], trials=TRIALS).document["targets"][TARGET]
    expected = done.document["targets"][TARGET]
    assert found["trials"] == {**expected["trials"], "interrupted": 2}
    assert [t["so_far"] for t in found["history"]] == [t["so_far"] for t in expected["history"]]
    assert found["best"]["params"] == expected["best"]["params"]
    assert found["gain"] == expected["gain"]


class Away(Registry):
    """A registry that stops answering after so many visits."""

    def __init__(self, uri: str, visits: int) -> None:
        super().__init__(uri)
        self.visits = visits

    @contextmanager
    def run(self, *given: Any, **more: Any) -> Iterator[Run]:
        self.visits -= 1
        if self.visits < 0:
            raise RegistryError("the model registry does not answer")
        with super().run(*given, **more) as run:
            yield run


def test_a_registry_that_goes_away_costs_no_trial_and_is_caught_up_with(shop: Path, tmp_path: Path) -> None:
    uri, data = f"sqlite:///{tmp_path / 'mlflow.db'}", Dataset.open(shop)
    first = tune(data, out=tmp_path / "out", targets=[TARGET], trials=2, registry=Away(uri, visits=2))
    assert first.unlogged == "the model registry does not answer"
    assert first.document["targets"][TARGET]["trials"]["finished"] == 2
    assert len(runs(uri)[1]) == 1
    second = tune(data, out=tmp_path / "out", targets=[TARGET], trials=2, registry=Registry(uri))
    assert not second.unlogged
    parent, children = runs(uri)
    assert len(children) == 2 and parent.info.status == "FINISHED"


def test_a_registry_that_never_answers_is_told_before_the_first_trial(shop: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, words(shop, tmp_path / "out", "--mlflow-uri", "http://127.0.0.1:9"))
    assert ran.exit_code == 2
    assert "does not answer" in ran.stderr
    assert not (tmp_path / "out" / "predictions").exists()


def test_no_time_is_time_for_the_first_trial_of_each_target(shop: Path, tmp_path: Path) -> None:
    found = tune(Dataset.open(shop), out=tmp_path / "out", targets=[TARGET], trials=5, seconds=0).document
    assert found["targets"][TARGET]["trials"]["finished"] == 1
    assert found["targets"][TARGET]["best"]["params"] == {}
    assert Params.read(tmp_path / "out" / "params.toml").targets == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"as_of": "2025-12-01"}, "as_of was .*, now 2025-11-30T23"),
        ({"holdout_from": "2025-09-01"}, "holdout_from was .*, now 2025-08-31T22"),
    ],
)
def test_trials_of_something_else_are_not_mixed(done: Done, shop: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(TuningError, match=said):
        tune(Dataset.open(shop), out=done.out, targets=[TARGET], trials=TRIALS, **change)


def test_a_changed_dataset_is_refused(done: Done, shop: Path) -> None:
    data = Dataset.open(shop)
    data.tables["orders"].loc[0, "order_value"] += 1
    with pytest.raises(TuningError, match="the dataset's content has changed"):
        tune(data, out=done.out, targets=[TARGET], trials=TRIALS)


def test_two_tunings_in_one_folder_do_not_mix(done: Done, shop: Path) -> None:
    with (done.out / "plan.json").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TuningError, match="another tuning is at work here"):
            tune(Dataset.open(shop), out=done.out, targets=[TARGET], trials=TRIALS)


def test_what_cannot_be_tuned_says_so(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no target can be tuned\n  damaged: .* mature positives"):
        tune(Dataset.open(shop), out=tmp_path / "out", targets=["damaged"], holdout_from="2025-03-01")


def test_a_folder_with_something_else_in_it_is_left_alone(shop: Path) -> None:
    before = sorted(os.listdir(shop))
    with pytest.raises(ValueError, match="holds no tuning: name another folder"):
        tune(Dataset.open(shop), out=shop, targets=[TARGET])
    assert sorted(os.listdir(shop)) == before


@pytest.mark.parametrize("given", ["10", "soon", "m", "-5m"])
def test_a_time_is_given_with_its_unit(shop: Path, tmp_path: Path, given: str) -> None:
    ran = CliRunner().invoke(main, words(shop, tmp_path / "out", "--time-budget", given))
    assert ran.exit_code == 2
    assert "give one like 90s, 10m or 1h30m" in ran.stderr


# The file.


def test_a_training_takes_the_file_and_says_so(shop: Path, tmp_path: Path, done: Done) -> None:
    file = tmp_path / "params.toml"
    file.write_text(f"[targets.{TARGET}]\nlearning_rate = 0.05\nmax_leaves = 6\nmax_depth = 3\nmax_bin = 31\n")
    params = Params.read(file)
    given = ["train", str(shop), "--params", str(file), "--out", str(tmp_path / "run"), "--no-log"]
    ran = CliRunner().invoke(main, given, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    said = json.loads((tmp_path / "run" / "metrics.json").read_text())["params"]
    assert said == {"source": str(file), "seen_until": None, "targets": {TARGET: dict(params.targets[TARGET])}}
    text = (tmp_path / "run" / "bundle" / "models" / f"{TARGET}.txt").read_text()
    assert "[learning_rate: 0.05]" in text and "[max_depth: 3]" in text and "[max_bin: 31]" in text
    assert max(int(line.removeprefix("num_leaves=")) for line in text.splitlines() if line[:11] == "num_leaves=") <= 6
    other = (tmp_path / "run" / "bundle" / "models" / "late.txt").read_text()
    assert "[max_bin: 127]" in other, "what the file does not name stays as it is"


def test_what_was_chosen_is_what_is_trained(done: Done, shop: Path, tmp_path: Path) -> None:
    found = done.document["targets"][TARGET]
    until, last = done.document["holdout_from"], found["folds"][-1]["at"]
    tried = Params({TARGET: found["best"]["params"]})  # without a date, to judge it where it was chosen
    result = train(Dataset.open(shop), as_of=until, holdout_from=last, out=tmp_path / "run", params=tried)
    rows = result.holdout[result.holdout["target"] == TARGET]
    kept = np.load(done.out / "predictions" / f"{TARGET}-{found['best']['trial']}.npy")
    np.testing.assert_array_equal(kept[-len(rows) :], rows["probability"])
    assert log_loss(rows["label"], rows["probability"]) > 0


def test_the_file_takes_what_is_better_and_leaves_luck_as_a_comment(done: Done, tmp_path: Path) -> None:
    file = tmp_path / "params.toml"
    found = done.document["targets"][TARGET]
    values = {k.name: k.low for k in KNOBS.values()}
    for taken in (True, False):
        given = {**found, "best": {**found["best"], "params": values}, "taken": taken}
        file.write_text(params_file({**done.document, "targets": {TARGET: given}}))
        assert Params.read(file).targets == ({TARGET: values} if taken else {})
        assert Params.read(file).seen_until == done.document["holdout_from"]
        assert ("cannot be told from luck" in file.read_text()) is not taken


def test_a_holdout_the_choice_has_seen_is_refused(done: Done, shop: Path, tmp_path: Path) -> None:
    params = Params.read(done.out / "params.toml")
    with pytest.raises(ValueError, match="would judge them on the same: give a later --holdout-from"):
        train(Dataset.open(shop), holdout_from="2025-06-01", out=tmp_path / "run", params=params)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[targets.late]\nmax_depth = 9", "targets.late.max_depth: 9 given; a whole number from 2 to 8 is allowed"),
        ("[targets.late]\nmax_depth = 2.5", "targets.late.max_depth: 2.5 given; a whole number from 2 to 8"),
        ("[targets.late]\nlearning_rate = 'fast'", "targets.late.learning_rate: 'fast' given; a number from 0.01 to"),
        ("[targets.late]\nlearning_rate = true", "True given; a number"),
        ("[targets.late]\nlearning_rate = nan", "nan given; a number from 0.01 to 0.1 is allowed"),
        ("[targets.late]\nnum_leaves = 9", "targets.late: 'num_leaves' is not known; use learning_rate, max_leaves"),
        ("[targets.lateness]\nmax_depth = 3", "targets: 'lateness' is not known; use late, failed_attempt"),
        ("[late]\nmax_depth = 3", "'late' is not known; use targets, tuned"),
        ("targets = 3", "targets and tuned must be tables"),
        ("[targets]\nlate = 3", r"targets.late: 3 given; it must be a table, \[targets.late\]"),
        ("[tuned]\nseen_until = 3", "tuned.seen_until: 3 given; it must be text"),
        ("max_depth 3", "is no TOML"),
        (None, "no such file; `doorstep tune DATASET` writes one"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_key(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "params.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ParamsError, match=said):
        Params.read(file)
