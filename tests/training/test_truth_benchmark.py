"""The benchmark against the truth: what it says is right on small shops, and a wrong truth makes it fail."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from features.dataset import Dataset
from features.snapshot import Facts
from features.vocabulary import TARGETS as UNITS
from serving.bundle import Bundle
from training.pipeline import train
from training.world import generate, scenario
from training.world.oracle import TARGETS, Oracle
from training.world.scenario import PACKAGE_TYPES, Outcomes, Scenario

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import truth  # noqa: E402


@pytest.fixture(scope="module")
def run(trained):
    oracle = Oracle.open(trained.dataset)
    holdout = truth.with_truth(pd.read_parquet(trained.run / "holdout.parquet"), oracle)
    facts = Facts.of(Dataset.open(trained.dataset))
    reasons = pd.read_parquet(trained.run / "reasons.parquet")
    mix = json.loads((trained.run / "metrics.json").read_text())["return_reason"]["mix"]
    return truth.Run(Scenario(), facts, oracle, Bundle.load(trained.bundle), holdout, reasons, mix)


@pytest.fixture(scope="module")
def found(run):
    return truth.measure(run, run.bundle, 0)


@pytest.fixture(scope="module")
def summary(found):
    return truth.summarise({"plain": [found]})


def figure(summary, table, target, what):
    rows = summary[(summary.table == table) & (summary.target == target) & (summary.what == what)]
    return rows.iloc[0]


def test_the_truth_agrees_with_what_happened(summary):
    assert set(summary[summary.table == "agreement"].target) == set(TARGETS)
    assert truth.failures(summary) == []


@pytest.mark.parametrize(
    ("wrong", "target"),
    [
        ({"damage_fragility": -Outcomes.damage_fragility, "damage_zero": -2.5}, "damaged"),
        ({"damage_void_fragility": -Outcomes.damage_void_fragility}, "damaged"),
        ({"absent_address": -Outcomes.absent_address, "absent_zero": -2.6}, "failed_attempt"),
        ({"absent_cod": -Outcomes.absent_cod}, "failed_attempt"),
        ({"refuse_log_value": -Outcomes.refuse_log_value, "refuse_cod": 0.0}, "undelivered"),
        ({"return_guide": 1 / Outcomes.return_guide}, "returned"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_a_sign_turned_round_in_one_equation_makes_it_fail(run, trained, wrong, target):
    made = json.loads((trained.dataset / "truth" / "world.json").read_text())
    tampered = replace(Scenario(), outcomes=replace(Outcomes(), **wrong))
    found = list(truth.agreement(run.facts, Oracle(made["parcels"], made["seed"], tampered)))
    said = truth.failures(truth.summarise({"plain": [found]}))
    assert any(target in line and "does not agree" in line for line in said), found


def test_what_is_no_number_makes_it_fail(run, monkeypatch):
    honest = Oracle.parcels
    monkeypatch.setattr(Oracle, "parcels", lambda self: honest(self).assign(late=np.nan))
    with pytest.raises(ValueError, match="truth about late"):
        list(truth.agreement(run.facts, run.oracle))


def test_in_a_shop_without_causes_nothing_can_be_reached_and_nothing_is_claimed(run):
    r = np.random.default_rng(0)
    n = 4_000
    nothing = pd.DataFrame({"target": "late", "label": r.random(n) < 0.1, "true": 0.1, "group": np.arange(n)})
    nothing = nothing.assign(probability=r.uniform(0.05, 0.15, n), label=nothing.label.astype(np.int8))
    runs = [[list(truth.reach(nothing.assign(label=r.permutation(nothing.label)), seed))] for seed in range(3)]
    summary = truth.summarise({"null": [found for (found,) in runs]})
    assert truth.failures(summary) == []
    row = figure(summary, "reach", "late", "AUC")
    assert row.low < 0.5 < row.high and 0.01 < row.high - row.low < 0.05
    assert np.isnan(figure(summary, "reach", "late", "reached of AUC").value)
    assert "| - " in truth.text(summary, n)


def test_something_found_where_nothing_is_makes_it_fail(summary):
    null = summary.assign(scenario="null")
    assert any(line.startswith("null: late has AUC") for line in truth.failures(null))


def test_reach_is_what_scikit_learn_says(run, summary):
    for target in ("late", "returned"):
        rows = run.holdout[run.holdout.target == target]
        model, best = (roc_auc_score(rows.label, p) for p in (rows.probability, rows.true))
        assert figure(summary, "reach", target, "AUC").value == pytest.approx(model, abs=1e-12)
        reached = figure(summary, "reach", target, "reached of AUC")
        assert reached.value == pytest.approx((model - 0.5) / (best - 0.5), abs=1e-12)
        assert reached.low < reached.value < reached.high


def test_an_oracle_that_serves_its_own_probabilities_reaches_everything(run):
    perfect = run.holdout.assign(probability=run.holdout.true)
    for one in truth.reach(perfect, 0):
        if one.what.startswith("reached"):
            assert one.value == pytest.approx(1)
    summary = truth.summarise({"plain": [list(truth.calibration(replace(run, holdout=perfect), 0))]})
    assert summary[summary.what == "deciles, rms"].value.abs().max() < 1e-9


def test_calibration_is_counted_by_hand(run, summary):
    rows = run.holdout[run.holdout.target == "late"]
    error = 100 * (rows.probability - rows.true).to_numpy()[np.argsort(rows.probability.to_numpy(), kind="stable")]
    error = [part.mean() for part in np.array_split(error, 10)]
    assert figure(summary, "calibration", "late", "deciles, rms").value == pytest.approx(
        np.sqrt(np.mean(np.square(error))), abs=0.05
    )
    assert set(summary[summary.table == "calibration"].what) >= {"rate", "deciles, rms", "peak"}


def test_the_tenth_at_the_top_is_explained_better_than_by_always_saying_the_same(summary):
    for target in ("late", "failed_attempt", "returned"):
        right = figure(summary, "teams", target, "top team right, riskiest tenth")
        always = figure(summary, "teams", target, "always the same team, riskiest tenth")
        assert 0 <= always.value <= right.value <= 1


def test_what_ifs_start_from_the_parcel_as_it_was(run):
    ids = run.holdout.unit_id[run.holdout.target == "damaged"].to_numpy()[:50]
    tables = run.facts.tables["parcels"]
    at = pd.Index(tables["parcel_id"]).get_indexer(pd.Index(ids))
    same = {c: tables[c][at] for c in ("package_type", "protection_level")}
    model = run.bundle.targets["damaged"]
    rows = truth.some(run.facts, ids, "parcel", **same)
    served = run.holdout[run.holdout.target == "damaged"].set_index("unit_id").probability
    again = model.probability(truth.values(rows, model.features))
    np.testing.assert_allclose(again, served[rows.parcel_id.tolist()].to_numpy(), rtol=0, atol=1e-12)


def test_crude_rates_mistake_the_package(summary):
    crude = figure(summary, "packages", "damaged", "error, crude rates of packages")
    assert crude.value > figure(summary, "packages", "damaged", "error, monotone").value
    assert len(PACKAGE_TYPES) == 5


def test_the_young_make_rates_wrong_and_maturity_mends_it(summary):
    naive = figure(summary, "maturity", "returned", "error, counted so far").value
    mature = figure(summary, "maturity", "returned", "error, mature cohorts only").value
    assert naive < -2 < -abs(mature)


def test_counted_so_far_is_what_a_spreadsheet_would_count(trained, summary):
    """Requests over lines of parcels that have arrived, of what was decided in the last four weeks."""
    shop = Dataset.open(trained.dataset)
    tables, start = shop.tables, shop.settings.extracted_at - pd.Timedelta(days=28)
    parcels = tables["parcels"].parcel_id[tables["parcels"].packed_at >= start]
    arrived = tables["events"].parcel_id[tables["events"].kind == "delivered"]
    lines = tables["order_lines"]
    lines = lines.line_id[lines.parcel_id.isin(parcels) & lines.parcel_id.isin(arrived)]
    so_far = 100 * lines.isin(tables["returns"].line_id).mean()
    true = figure(summary, "maturity", "returned", "true rate").value
    error = figure(summary, "maturity", "returned", "error, counted so far").value
    assert error == pytest.approx(so_far - true, abs=0.05)
    for target in ("late", "undelivered", "damaged"):
        assert figure(summary, "maturity", target, "error, counted so far").value < 0, "the young count as good"


def test_ranks(summary):
    assert truth.spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0])) == pytest.approx(0.5)
    assert truth.spearman(np.zeros(3), np.arange(3.0)) == 0


def test_the_tables_name_every_target_and_figure(summary):
    said = truth.text(summary, 12_000)
    assert said.startswith("12,000 parcels per shop, one shop (seed 0) per scenario; SIMULATED.")
    for title, _ in truth.TABLES.values():
        assert f"### {title}" in said
    assert all(target in said for target in UNITS)


def test_the_page_has_a_place_for_them(summary, tmp_path, monkeypatch):
    page = tmp_path / "truth.md"
    page.write_text(f"before\n<!-- measured: all -->\nold\n{truth.END}\nafter\n")
    monkeypatch.setattr(truth, "PAGE", page)
    truth.write(summary, 12_000, "all")
    said = page.read_text()
    assert said.startswith("before\n") and said.endswith("after\n") and "old" not in said
    assert "### Team shares" in said
    with pytest.raises(SystemExit, match="no place"):
        truth.write(summary, 12_000, "large")


def test_in_the_shop_without_causes_training_finds_nothing(tmp_path):
    dataset = Dataset.open(generate(tmp_path / "shop", parcels=8_000, seed=0, scenario=scenario("null")))
    result = train(dataset, out=tmp_path / "run", seed=0)
    trained = {name: t["metrics"]["auc"] for name, t in result.metrics["targets"].items() if t["status"] == "trained"}
    assert set(trained) == set(TARGETS)
    for name, auc in trained.items():
        assert auc["low"] <= 0.5 <= auc["high"], (name, auc)
