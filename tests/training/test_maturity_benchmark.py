"""The benchmark of young rows: its ways to train and to tell a rate are what they say, where the truth is known."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from features.snapshot import Facts
from training.labels import labels
from training.maturity import news
from training.splits import split
from training.world.oracle import Oracle

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import maturity  # noqa: E402

DAY = np.datetime64("2025-09-03", "us")


@pytest.fixture(scope="module")
def facts(world_dataset):
    return Facts.of(Dataset.open(world_dataset))


@pytest.fixture(scope="module")
def truth(world_dataset):
    oracle = Oracle.open(world_dataset)
    return {"line": oracle.lines().set_index("line_id"), "parcel": oracle.parcels().set_index("parcel_id")}


@pytest.mark.parametrize("target", ["returned", "failed_attempt", "undelivered"])
def test_every_way_finds_the_rate_of_a_shop_that_does_not_change(facts, target):
    units = labels(facts, target)
    fold = split(units, DAY, facts.snapshot.as_of)
    happened = fold.train_label.mean()
    for way, rows in maturity.ways(facts, units, fold, facts.snapshot.as_of).items():
        rate = 1 / (1 + np.exp(-maturity.level(rows, np.zeros(len(rows.at)))))
        assert rate == pytest.approx(happened, rel=0.12), way
        assert (len(rows.at) > len(fold.train)) == (way != "left out")


def test_slopes_of_the_hazard_are_those_of_its_likelihood(facts):
    units = labels(facts, "returned")
    fold = split(units, DAY, facts.snapshot.as_of)
    rows = maturity.ways(facts, units, fold, facts.snapshot.as_of)["hazard"]
    raw = np.random.default_rng(0).normal(-1.5, 1, len(rows.at))
    every = news(facts, units, DAY)
    first, _ = rows.gradient(raw)
    mature = every.mature
    y = every.happened[mature]
    assert first[mature] == pytest.approx(1 / (1 + np.exp(-raw[mature])) - y, abs=1e-6)
    kept = ~every.mature & ~every.happened
    shorter = first[kept] / (1 / (1 + np.exp(-raw[kept])))  # G: the share of returns known by the line's age
    assert (shorter >= 0).all() and (shorter <= 1).all()
    # The same share as that of lines that would still be out: 1 - if_true, but for what a day makes of it.
    assert shorter == pytest.approx(1 - every.if_true[kept] / every.if_false[kept], abs=0.03)


def test_rates_are_told_against_the_cohort_they_are_of(facts, truth):
    found = pd.DataFrame(maturity.rates(facts, truth, "returned", "2025-09-03")).set_index("way")
    assert set(found.index) == set(maturity.RATE_WAYS)
    assert found.loc["counted so far", "error"] < -0.03
    for way in ("matured_rate", "life table"):
        assert abs(found.loc[way, "error"]) < 0.04
    assert found.loc["matured_rate", "wide"] > 0.02 and np.isnan(found.loc["life table", "wide"])


def test_the_tables_tell_what_was_found_and_a_bias_makes_it_fail():
    row = {"scenario": "plain", "target": "returned", "true": 0.2, "covers": 1.0}
    found = pd.DataFrame(
        [
            row | {"seed": seed, "day": day, "way": way, "error": error + 0.001 * seed}
            for seed in range(3)
            for day in ("2025-06-01", "2025-07-01")
            for way, error in (("counted so far", -0.06), ("life table", 0.01), ("matured_rate", 0.0))
        ]
    )
    said = maturity.rates_text(found, 1_000)
    assert "1,000 parcels per shop, 3 shops and 2 days each; SIMULATED" in said
    assert "-5.90 [-6.15, -5.65]" in said and "| 2 %" in said
    assert maturity.rates_failures(found) == []
    far = found.assign(error=found.error + 0.01 * (found.way == "matured_rate"))
    assert maturity.rates_failures(far) == ["plain: the rate is off by +1.10 points, counting so far by -5.90"]


def test_differences_are_paired_with_leaving_out():
    r = np.random.default_rng(0)
    figures = ("log loss", "log loss, true", "AUC", "level", "deciles", "rows", "seconds", "MB")
    rows = []
    for seed in range(2):
        for day in ("a", "b", "c"):
            base = r.normal(0.4, 0.05)  # shops and days differ far more than ways do
            for k, way in enumerate(maturity.TRAINING_WAYS):
                here = {"scenario": "plain", "target": "returned", "seed": seed, "day": day, "way": way}
                rows.append(here | dict.fromkeys(figures, base - 0.001 * k))
    said = maturity.training_text(pd.DataFrame(rows), 1_000)
    table = said.split("### ")[1].splitlines()
    assert table[0].startswith("Log loss against the true probability")
    cells = [c.strip() for c in table[4].split("|")]
    assert cells[1:3] == ["plain", "returned"]
    assert [c.split(" ")[0] for c in cells[4:-1]] == ["-1.00", "-2.00", "-3.00", "-4.00", "-5.00", "-6.00"]
