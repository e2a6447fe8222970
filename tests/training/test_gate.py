"""The gate refuses what is worse anywhere and says where, passes what is better, and keeps the champion in a tie."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from features.files import ArtefactError, seal
from features.matrix import FeatureSet
from features.settings import Extra
from features.snapshot import Facts
from serving import Bundle
from training.evaluate import compare, evaluation_set
from training.evaluate.gate import Candidate, Pair, Rule, RuleError, decide, judge
from training.labels import labels
from training.models import MODELS, fit
from training.pipeline import cut, matrices_of, train_reasons
from training.splits import split

NAMES = ("failed_attempt", "returned")
START = np.datetime64("2025-08-15", "us")
WORN = "DE-BY"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Shop:
    """A shop whose own column tells its models which parcels go to one region, and trainings of it."""

    folder: Path
    facts: Facts
    units: dict
    matrices: dict

    def trained(self, name: str, *, share: float = 1.0, seed: int = 0, ruined: bool = False, only=NAMES) -> Path:
        """A bundle of models trained on some of the rows; ruined: most lines to one region seem returned."""
        to = self.folder / name
        settings = self.facts.snapshot.settings
        rng = np.random.default_rng(5)
        models, texts = {}, {}
        for target in only:
            u = self.units[target]
            fold = split(u, START, self.facts.snapshot.as_of)
            features = FeatureSet.for_target(target, settings)
            matrix = cut(self.matrices, features, u.row)
            label = np.full(len(u), -1, dtype=np.int8)
            at = np.sort(rng.permutation(fold.train)[: int(share * len(fold.train))])
            label[at] = u.known(START)[0][at]
            if ruined and target == "returned":
                worn = (matrix[:, features.names.index("parcels.worn")] > 0) & (label >= 0)
                label[worn] = rng.random(worn.sum()) < 0.65
            fitted = fit(replace(MODELS[target], max_trees=200 if share == 1 else 6), features, matrix, label, [], seed)
            models[target], texts[target] = fitted.model, fitted.booster.model_to_string()
        Bundle.save(to, settings, models, texts, {"holdout_from": f"{START}Z", "not_trained": {}})
        return to


@pytest.fixture(scope="module")
def shop(world_dataset, tmp_path_factory) -> Shop:
    data = Dataset.open(world_dataset)
    tables = dict(data.tables)
    region = tables["parcels"]["order_id"].map(tables["orders"].set_index("order_id")["destination_region"])
    tables["parcels"] = tables["parcels"].assign(worn=(region == WORN).astype(float))
    settings = replace(data.settings, extra=(Extra("parcels", "worn", "flag", "packing"),))
    facts = Facts.of(Dataset(settings, tables))
    units = {name: labels(facts, name) for name in NAMES}
    made = Shop(tmp_path_factory.mktemp("gate"), facts, units, matrices_of(facts, units, lambda _: None))
    evaluation_set.write(made.folder / "evaluation", facts, units, made.matrices, START, facts.snapshot.as_of)
    return made


@pytest.fixture(scope="module")
def good(shop) -> Path:
    return shop.trained("good")


@pytest.fixture(scope="module")
def weak(shop) -> Path:
    """A tenth of the rows, a tenth of the trees."""
    return shop.trained("weak", share=0.1)


def judged(shop, challenger: Path, champion: Path, rule: Rule | None = None, evaluation: Path | None = None):
    held = evaluation or shop.folder / "evaluation"
    return judge(Candidate(7, challenger, held), Candidate(5, champion), rule or Rule())


def test_the_evaluation_set_gives_the_labels_and_the_matrix_of_the_holdout(shop, good):
    held = evaluation_set.EvaluationSet.load(shop.folder / "evaluation")
    assert held.settings == shop.facts.snapshot.settings
    bundle = Bundle.load(good)
    for name in NAMES:
        u = shop.units[name]
        fold = split(u, START, shop.facts.snapshot.as_of)
        rows = held.units[u.unit]
        mine = rows.labels[name] >= 0
        assert (rows.labels[name][mine].sum(), mine.sum()) == (fold.test_label.sum(), len(fold.test))
        assert (rows.decided_at >= START).all()
        model = bundle.targets[name]
        matrix = np.ascontiguousarray(rows.features[model.features.names].to_numpy()[mine])
        expected = model.probability(cut(shop.matrices, model.features, u.row[fold.test]))
        np.testing.assert_array_equal(np.sort(model.probability(matrix)), np.sort(expected))
        assert len(np.unique(rows.order[mine])) == len(set(u.group[fold.test]))
    for file in (shop.folder / "evaluation").glob("*.parquet"):
        text = pd.read_parquet(file).select_dtypes(include=["object", "str"])
        assert text.empty, "no id of the shop is in it"


def test_a_large_holdout_is_cut_to_whole_orders_the_same_ones_each_time(shop, tmp_path):
    whole = evaluation_set.EvaluationSet.load(shop.folder / "evaluation").units
    for name in ("a", "b"):
        evaluation_set.write(
            tmp_path / name, shop.facts, shop.units, shop.matrices, START, shop.facts.snapshot.as_of, most=1000
        )
    assert (tmp_path / "a" / "line.parquet").read_bytes() == (tmp_path / "b" / "line.parquet").read_bytes()
    cut_down = evaluation_set.EvaluationSet.load(tmp_path / "a").units
    assert max(len(rows) for rows in cut_down.values()) in range(990, 1001)
    for unit, rows in cut_down.items():
        raw, all_of_it = (pd.read_parquet(f / f"{unit}.parquet") for f in (tmp_path / "a", shop.folder / "evaluation"))
        per_order = all_of_it["order"].value_counts()
        kept = all_of_it[all_of_it["unit"].isin(raw["unit"])]["order"]
        pd.testing.assert_series_equal(kept.value_counts().sort_index(), per_order[kept.unique()].sort_index())
        assert 0.5 < rows.labels[NAMES[unit == "line"]].mean() / whole[unit].labels[NAMES[unit == "line"]].mean() < 2


def test_a_better_challenger_passes_and_the_figures_are_told(shop, good, weak):
    decision = judged(shop, good, weak)
    assert decision.passed, decision.why
    assert "nothing is worse, and better is" in decision.why
    told = next(c for c in decision.comparisons if c.target == "returned" and not c.slice and c.figure == "log loss")
    assert told.verdict == "better"
    assert told.challenger < told.champion
    assert "returned" in decision.table()
    assert json.loads(json.dumps(decision.to_dict(), allow_nan=False))["passed"] is True


def test_the_other_way_round_it_is_refused(shop, good, weak):
    decision = judged(shop, weak, good)
    assert not decision.passed
    assert {"returned"} <= {c.target for c in decision.against}
    assert "version 7 is clearly worse than the champion (version 5)" in decision.why


def test_worse_in_one_region_only_is_refused_and_the_region_is_named(shop, weak):
    decision = judged(shop, shop.trained("ruined", ruined=True), weak)
    assert not decision.passed
    assert {c.place for c in decision.against if c.figure == "log loss"} == {f"returned, region: {WORN}"}
    whole = next(c for c in decision.comparisons if c.place == "returned" and c.figure == "log loss")
    assert whole.verdict == "better", "on the whole nobody would have noticed"
    found = next(c for c in decision.against if c.slice)
    (line,) = (row for row in decision.why.splitlines() if f"returned, region: {WORN}: log loss" in row)
    assert f"{found.challenger:.4f}, the champion's {found.champion:.4f}" in line
    assert f"[{found.low:+.4f}, {found.high:+.4f}] on {found.rows:,} lines" in line


def test_a_tie_keeps_the_champion_unless_the_rule_says_otherwise(shop, good):
    other = shop.trained("other", seed=1)
    decision = judged(shop, other, good)
    assert not decision.passed
    assert decision.against == ()
    assert "nowhere clearly better" in decision.why
    assert judged(shop, other, good, Rule(must_gain=False)).passed
    assert not judged(shop, good, good).passed, "the same bundle under another number is a tie too"


def test_a_lost_target_is_refused_and_a_new_one_is_a_gain(shop, good):
    one = shop.trained("one", only=("returned",))
    lost = judged(shop, one, good)
    assert not lost.passed
    assert "no model of failed_attempt" in lost.why
    gained = judged(shop, good, one)
    assert gained.passed
    assert "failed_attempt is new and better than the base rate" in gained.why


def test_reasons_are_compared_by_what_inspections_found(shop, good, tmp_path):
    """The same models but for the reasons, which one of the two has levelled nearly to their mix."""
    fold = split(shop.units["returned"], START, shop.facts.snapshot.as_of)
    fitted, returns = train_reasons(shop.facts, shop.units["returned"], shop.matrices, fold, 0, lambda _: None)
    held = evaluation_set.EvaluationSet.load(shop.folder / "evaluation").units["line"]
    inspected = held.labels["reason_inspected"]
    assert (inspected >= 0).sum() == (returns.inspected[1] >= 0).sum() > 100
    assert (held.labels["returned"][inspected >= 0] == 1).all()
    plain = Bundle.load(good)
    texts = {name: (good / "models" / f"{name}.txt").read_text() for name in plain.targets}
    texts["return_reason"] = fitted.booster.model_to_string()

    def with_reasons(name, model):
        Bundle.save(tmp_path / name, plain.settings, plain.targets, texts, plain.meta, model)
        return tmp_path / name

    sharp = with_reasons("sharp", fitted.model)
    flat = with_reasons("flat", replace(fitted.model, slope=fitted.model.slope / 20))
    rule = Rule(least_rows=100)
    passed = judged(shop, sharp, flat, rule)
    assert passed.passed
    assert "return_reason: log loss" in passed.why
    refused = judged(shop, flat, sharp, rule)
    assert not refused.passed
    assert "return_reason: log loss" in refused.why
    lost = judged(shop, good, sharp, rule)
    assert not lost.passed
    assert "has no model of return_reason" in lost.why


def test_only_what_neither_model_has_seen_counts(shop, good, weak, tmp_path):
    def since(date: str) -> Path:
        manifest = json.loads((weak / "manifest.json").read_text())
        part = tmp_path / f"part{date}"
        for name in manifest["files"]:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes((weak / name).read_bytes())
        meta = manifest["meta"] | {"training": manifest["meta"]["training"] | {"holdout_from": f"{date}T00:00:00Z"}}
        seal(part, tmp_path / date, manifest["kind"], manifest["protocol"], meta)
        return tmp_path / date

    decision = judged(shop, good, since("2025-10-01"))
    assert decision.since == pd.Timestamp("2025-10-01", tz="UTC")
    whole = judged(shop, good, weak)
    for some, all_of_it in zip(decision.comparisons, whole.comparisons, strict=True):
        assert some.place == all_of_it.place
        assert some.rows <= all_of_it.rows
    assert decision.comparisons[0].rows < 0.8 * whole.comparisons[0].rows
    late = judged(shop, good, since("2025-12-20"))
    assert not late.passed
    assert "too few rows that neither model has seen, decided from 2025-12-20" in late.why
    assert "Train the challenger on a later extract" in late.why


def test_what_cannot_be_compared_is_refused_in_a_sentence(shop, good, weak, tmp_path):
    none = judge(Candidate(7, good, None, "it was registered without an evaluation set"), Candidate(5, weak), Rule())
    assert not none.passed
    assert none.why == "version 7 cannot be compared: it was registered without an evaluation set"
    gone = judge(Candidate(7, good, shop.folder / "evaluation"), Candidate(5, None, why="its files are gone"), Rule())
    assert gone.why == "the champion (version 5) cannot be compared: its files are gone"
    broken = judged(shop, good, tmp_path)
    assert "the champion (version 5) cannot be compared: no doorstep-bundle here" in broken.why

    settings = shop.facts.snapshot.settings
    bundle = Bundle.load(good)
    texts = {name: (good / "models" / f"{name}.txt").read_text() for name in NAMES}
    for changed, said in (
        (replace(settings, name="other shop"), "on another dataset: 'other shop'"),
        (replace(settings, return_window_days=14), "with another return_window_days: 14"),
        (
            replace(settings, extra=(*settings.extra, Extra("parcels", "tape", "number", "packing"))),
            "does not declare alike: parcels.tape",
        ),
    ):
        Bundle.save(tmp_path / "changed", changed, bundle.targets, texts, bundle.meta)
        decision = judged(shop, good, tmp_path / "changed")
        assert not decision.passed
        assert said in decision.why


def test_a_damaged_evaluation_set_is_not_read(shop, good, weak, tmp_path):
    for file in (shop.folder / "evaluation").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "line.parquet").open("ab") as f:
        f.write(b"x")
    assert "checksum differs" in judged(shop, good, weak, evaluation=tmp_path).why
    with pytest.raises(ArtefactError, match="checksum differs"):
        evaluation_set.EvaluationSet.load(tmp_path)


def pair(rng, n: int = 8000, miss: float = 0.0, shift: float = 0.0, name: str = "late") -> Pair:
    """Two models that err alike in log-odds; `miss` more noise and `shift` more log-odds in the challenger's."""
    truth = rng.normal(-2, 1, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    p = [1 / (1 + np.exp(-(truth + shift * k + rng.normal(0, 0.3 + miss * k, n)))) for k in (1, 0)]
    from training.evaluate.intervals import log_losses

    slices = pd.DataFrame({"all of it": np.ones(n, dtype=bool), "few": np.arange(n) < 60})
    order = rng.integers(0, n // 2, n)
    return Pair(name, "parcel", order, log_losses(label, p[0]), log_losses(label, p[1]), slices, label, (p[0], p[1]))


def test_calibration_alone_refuses():
    rng = np.random.default_rng(1)
    found = pair(rng, n=40_000, shift=0.2)
    loose = Rule(tolerated_log_loss=0.5, tolerated_in_slice=0.5)
    decision = decide([found], loose, 2, 1, pd.Timestamp("2025-01-01", tz="UTC"))
    assert [c.figure for c in decision.against] == ["calibration error"]
    told = decision.against[0]
    drawn = compare(found.label, *found.probabilities, "calibration_error", groups=found.order, replicates=300)
    assert told.difference == pytest.approx(drawn["difference"], abs=1e-12)
    assert told.low < drawn["low"] + 0.1 * (drawn["high"] - drawn["low"]), "its level is the stricter one"
    assert drawn["low"] > 0


def test_losses_of_anything_can_be_compared_and_few_rows_are_named():
    rng = np.random.default_rng(2)
    found = pair(rng, miss=0.8)
    reasons = replace(found, name="return_reason", label=None, probabilities=None)
    decision = decide([reasons], Rule(), 2, 1, pd.Timestamp("2025-01-01", tz="UTC"))
    assert {c.place for c in decision.against} == {"return_reason", "return_reason, all of it"}
    few = next(c for c in decide([found], Rule(), 2, 1, decision.since).comparisons if c.slice == "few")
    assert few.verdict == "not compared"
    assert "positives among 60 parcels, at least 20 are needed" in few.why


def test_the_rule_is_a_file_whose_mistakes_are_named(tmp_path):
    assert Rule.read(ROOT / "mlflow" / "gate.toml") == Rule() == Rule.usual()
    file = tmp_path / "gate.toml"
    file.write_text("level = 0.1\nmust_gain = false\n")
    assert Rule.read(file) == Rule(level=0.1, must_gain=False)
    for text, said in (
        ("levle = 0.1", "levle is no key of the rule; known are level, least_rows"),
        ("level = 0.7", "level = 0.7: must be between 0 and 0.5"),
        ("least_rows = 10.5", "least_rows = 10.5: must be a whole number, 2 or more"),
        ("must_gain = 1", "must_gain = 1: must be true or false"),
        ("tolerated_in_slice = '1 %'", "must be a number"),
        ("tolerated_in_slice = -0.1", "must be 0 or more and below 1"),
        ("level =", "cannot be read as TOML"),
    ):
        file.write_text(text)
        with pytest.raises(RuleError, match=said):
            Rule.read(file)
    with pytest.raises(RuleError, match=r"no such file: give one with --gate FILE"):
        Rule.read(tmp_path / "none.toml")
