"""Training as its user sees it: files that anyone can recompute, targets that say why they were not trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from features import Dataset
from features.matrix import FeatureSet, build
from features.snapshot import Facts
from features.vocabulary import TARGETS
from serving import Bundle
from training import train
from training.pipeline import TrainingError


@pytest.fixture(scope="module")
def metrics(trained):
    return json.loads((trained.run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def holdout(trained):
    return pd.read_parquet(trained.run / "holdout.parquet")


def test_every_figure_can_be_recomputed_from_the_holdout_file(metrics, holdout):
    assert list(holdout.columns) == ["unit_id", "decided_at", "target", "label", "probability"]
    for name, rows in holdout.groupby("target"):
        said = metrics["targets"][name]["metrics"]
        assert said["auc"]["value"] == pytest.approx(roc_auc_score(rows["label"], rows["probability"]), abs=1e-12)
        assert said["log_loss"]["value"] == pytest.approx(log_loss(rows["label"], rows["probability"]), abs=1e-9)
        assert said["brier"]["value"] == pytest.approx(brier_score_loss(rows["label"], rows["probability"]), abs=1e-12)
        assert said["auc"]["low"] < said["auc"]["value"] < said["auc"]["high"]
        counted = metrics["targets"][name]["holdout"]
        assert (counted["rows"], counted["positives"]) == (len(rows), rows["label"].sum())


def test_slices_are_judged_beside_the_baselines_or_say_what_they_lack(metrics):
    for target in metrics["targets"].values():
        slices = target["slices"]
        assert {"new product", "new lane", "peak", "value: low", "other regions"} <= set(slices)
        for part in ("value", "region"):
            of_part = [s for name, s in slices.items() if part in name]
            assert sum(s["rows"] for s in of_part) == target["holdout"]["rows"]
            assert sum(s["positives"] for s in of_part) == target["holdout"]["positives"]
        for found in slices.values():
            if "why" in found:
                assert f"among {found['rows']} rows; at least 20" in found["why"]
                continue
            for figure in ("auc", "log_loss", "calibration_gap"):
                assert found[figure]["low"] < found[figure]["value"] < found[figure]["high"]
            assert set(found["baselines"]) == set(target["baselines"])
        told = [s for name, s in slices.items() if "value" in name]
        if not any("why" in s for s in told):
            total = sum(s["rows"] * s["log_loss"]["value"] for s in told) / target["holdout"]["rows"]
            assert total == pytest.approx(target["metrics"]["log_loss"]["value"], abs=1e-12)
    assert any("auc" in s for s in metrics["targets"]["late"]["slices"].values())


def test_the_world_trains_every_target_better_than_chance_and_not_too_well(metrics):
    assert set(metrics["targets"]) == set(TARGETS)
    for name, target in metrics["targets"].items():
        assert target["status"] == "trained", (name, target["why"])
        assert target["metrics"]["auc"]["low"] > 0.5, name
        assert target["metrics"]["auc"]["value"] < 0.9, f"{name}: above 0.9 is a leak until proven otherwise"
        assert set(target["baselines"]) == {"base_rate", "lookup", "logistic"}
    assert metrics["simulated"] is True


def test_holdout_probabilities_are_those_of_the_saved_bundle(trained, holdout):
    bundle = Bundle.load(trained.bundle)
    facts = Facts.of(Dataset.open(trained.dataset))
    for name, model in bundle.targets.items():
        matrix = build(facts.rows, model.features)
        rows = holdout[holdout["target"] == name]
        again = bundle.predict_proba(matrix.loc[rows["unit_id"]], [name])[name]
        np.testing.assert_allclose(again.to_numpy(), rows["probability"].to_numpy(), rtol=0, atol=1e-12)


def test_nothing_is_held_out_that_was_decided_before_the_date(trained, metrics, holdout):
    start = pd.Timestamp(metrics["holdout_from"])
    assert (holdout["decided_at"] >= start).all()
    for target in metrics["targets"].values():
        assert pd.Timestamp(target["train"]["to"]) < start
        assert target["excluded_immature"] > 0, "a year that ends at the extract has young rows"


@contextmanager
def one_core() -> Iterator[None]:
    """Only one core of the machine may be used, where the system can see to that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


DATES = {"as_of": pd.Timestamp("2025-09-01", tz="UTC"), "holdout_from": "2025-07-01"}


@pytest.fixture(scope="module")
def earlier(world_dataset, tmp_path_factory):
    """A training as of a date, to be held against others: on half the data, which takes half the time."""
    return train(Dataset.open(world_dataset), out=tmp_path_factory.mktemp("earlier") / "run", **DATES)


def test_training_again_gives_the_same_bundle_whatever_the_truth_folder_holds(world_dataset, earlier, tmp_path):
    copy = shutil.copytree(world_dataset, tmp_path / "shop")
    for file in (copy / "truth").iterdir():
        file.write_bytes(b"nothing that can be read")
    said: list[str] = []
    with one_core():  # the first time targets were fitted side by side, where there are two
        again = train(Dataset.open(copy), out=tmp_path / "again", progress=said.append, **DATES)
    assert Bundle.load(again.bundle_dir).digest == Bundle.load(earlier.bundle_dir).digest
    assert "fitting 5 targets, 1 at a time" in said or not hasattr(os, "sched_setaffinity")
    assert {text for text in said if text.endswith(": fitted")} == {f"{name}: fitted" for name in TARGETS}


def test_what_is_known_later_cannot_change_a_model(world_dataset, earlier, tmp_path):
    """Train as of a date, from the whole extract and from one in which everything later is missing."""
    from features.arrays import columns
    from features.snapshot import known_before, moment

    whole = Dataset.open(world_dataset)
    tables = known_before(columns(whole.tables), moment(DATES["as_of"]))
    packed = set(tables["parcels"]["parcel_id"])
    lines = tables["order_lines"]  # a line of an order that is not packed yet has no parcel
    lines["parcel_id"] = np.array([p if p in packed else None for p in lines["parcel_id"]], dtype=object)

    def frame(table):
        return pd.DataFrame(
            {
                c: (pd.Series(v).dt.tz_localize("UTC") if v.dtype.kind == "M" else pd.Series(v, dtype=v.dtype))
                for c, v in table.items()
            }
        )

    cut = Dataset(dataclasses.replace(whole.settings), {name: frame(t) for name, t in tables.items()})
    again = train(cut, out=tmp_path / "again", **DATES)
    assert set(earlier.holdout["target"]) == set(TARGETS), "there is a model of each to be changed"
    pd.testing.assert_frame_equal(earlier.holdout, again.holdout)


def test_a_target_without_what_it_needs_says_so_and_the_rest_go_on(world_dataset, tmp_path):
    data = Dataset.open(world_dataset)
    tables = dict(data.tables)
    tables["orders"] = tables["orders"].drop(columns=["promised_to", "promised_from"])
    tables["events"] = tables["events"][tables["events"]["kind"] != "damaged"]
    del tables["returns"], tables["listings"]
    result = train(Dataset(data.settings, tables), out=tmp_path / "run")
    why = {n: t["why"] for n, t in result.metrics["targets"].items() if t["status"] == "not_trained"}
    assert set(why) == {"late", "damaged", "returned"}
    assert "promised_to" in why["late"]
    assert "damaged" in why["damaged"]
    assert "returns" in why["returned"]
    assert set(Bundle.load(result.bundle_dir).targets) == {"failed_attempt", "undelivered"}


def test_one_class_only_is_an_answer_not_a_crash(world_dataset, tmp_path):
    data = Dataset.open(world_dataset)
    tables = dict(data.tables)
    tables["events"] = tables["events"][tables["events"]["kind"].isin(["handed_over", "delivered"])]
    tables["returns"] = tables["returns"].iloc[:0]
    delivered = tables["events"]["kind"] == "delivered"
    keep = tables["parcels"]["parcel_id"].isin(tables["events"].loc[delivered, "parcel_id"])
    tables["parcels"] = tables["parcels"][keep].reset_index(drop=True)
    tables["orders"] = tables["orders"].drop(columns=["promised_to", "promised_from"])
    tables["order_lines"] = tables["order_lines"].drop(columns=["parcel_id"])
    tables["events"] = tables["events"][tables["events"]["parcel_id"].isin(tables["parcels"]["parcel_id"])]
    with pytest.raises(TrainingError, match="no target could be trained") as caught:
        train(Dataset(data.settings, tables), out=tmp_path / "run")
    assert "0 mature positives" in str(caught.value)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "bundle").exists()


def test_dates_that_leave_nothing_are_refused_in_words(world_dataset, tmp_path):
    with pytest.raises(ValueError, match="the holdout must begin before the data end"):
        train(Dataset.open(world_dataset), holdout_from="2027-01-01", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_in_it_is_not_replaced(world_dataset, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds no training"):
        train(Dataset.open(world_dataset), out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    (tmp_path / "bundle").mkdir()  # as beside the place where bundles are published
    with pytest.raises(ValueError, match="holds no training"):
        train(Dataset.open(world_dataset), out=tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds more than a training \(mine\.txt\), which would be lost"):
        train(Dataset.open(world_dataset), out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_a_training_that_comes_to_nothing_leaves_the_one_before(world_dataset, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(TrainingError, match=r"no target could be trained; .*run keeps the training that is there"):
        train(Dataset.open(world_dataset), as_of="2025-01-05", out=run)
    assert (run / "metrics.json").read_bytes() == before
    assert Bundle.load(run / "bundle").targets
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_compiled_trees_answer_as_lightgbm_does(trained):
    import lightgbm

    bundle = Bundle.load(trained.bundle)
    facts = Facts.of(Dataset.open(trained.dataset))
    for name, model in bundle.targets.items():
        booster = lightgbm.Booster(model_file=str(trained.bundle / "models" / f"{name}.txt"))
        matrix = build(facts.rows, FeatureSet(model.features.unit, model.features.features)).to_numpy()[::37]
        raw = model.intercept + model.slope * booster.predict(matrix, raw_score=True)
        np.testing.assert_allclose(model.probability(matrix), 1 / (1 + np.exp(-raw)), rtol=0, atol=1e-12)
