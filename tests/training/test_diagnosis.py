"""Diagnosis against shops whose causes are known: a bad corridor, bad handoffs, a carrier that is alone, and none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from features.settings import Settings
from features.snapshot import Facts
from training.diagnosis.corridors import corridors, since, trial
from training.diagnosis.expected import Cases
from training.diagnosis.legs import LEGS, legs
from training.diagnosis.products import named
from training.diagnosis.shrink import DRAWS, Doubt, ratios
from training.labels import labels

WORDS = {
    "carrier": np.array(["a", "b", "c"]),
    "service": np.array([""]),
    "region": np.array([f"r{i}" for i in range(6)]),
}
START = np.datetime64("2025-01-06T00:00", "us")  # a Monday


def shop(bad: float = 1.0, slack: float = 0.0, alone: bool = False, seed: int = 0, n: int = 30_000) -> Cases:
    """Parcels of three carriers; b fails `bad` times as often in r0 from July on, c gets `slack` worse handoffs."""
    r = np.random.default_rng(seed)
    region = r.integers(6, size=n)
    carrier = r.integers(3, size=n)
    if alone:
        carrier[region == 5] = 1
    day = r.integers(364, size=n)
    handoff = r.normal(0.0, 1.0, n) + slack * (carrier == 2)
    z = -2.6 + 0.2 * region / 5 + 0.7 * handoff
    p = 1 / (1 + np.exp(-z))
    p = np.where((carrier == 1) & (region == 0) & (day >= 182), np.minimum(0.9, bad * p), p)
    return Cases(
        "late",
        (r.random(n) < p).astype(np.int8),
        np.column_stack([handoff, region]).astype(np.float32),
        ["handoff", "region"],
        ["region"],
        carrier,
        np.zeros(n, dtype=np.int64),
        region,
        START + (day * 24 + 9).astype("timedelta64[h]"),
        np.arange(n),
    )


def test_the_bad_corridor_is_found_and_dated_and_nothing_else_is():
    table = corridors(shop(bad=3.0), WORDS).table
    worse = table[table["verdict"] == "worse"]
    assert worse[["carrier", "region"]].to_numpy().tolist() == [["b", "r0"]]
    assert worse["ratio"].item() == pytest.approx(2.0, rel=0.2)  # 3 times in half of the year
    assert abs(worse["since"].item() - pd.Timestamp("2025-07-07")) <= pd.Timedelta(days=14)
    assert worse["chance_worst"].item() > 0.95
    assert (table["verdict"] != "worse").sum() == 17


def test_where_nothing_is_wrong_nothing_is_found():
    tables = [corridors(shop(seed=seed, n=15_000), WORDS).table for seed in range(3)]
    assert not any((t["verdict"] == "worse").any() for t in tables)


def test_bad_handoffs_are_not_held_against_the_carrier_that_gets_them():
    told = shop(slack=1.0)
    crude = pd.Series(told.label).groupby(told.carrier).mean()
    assert crude[2] > 1.5 * crude[0]
    table = corridors(told, WORDS).table
    assert not (table["verdict"] == "worse").any()
    of_c = table[table["carrier"] == "c"]
    assert of_c["observed"].sum() == pytest.approx(of_c["expected"].sum(), rel=0.1)


def test_a_carrier_alone_in_a_region_is_not_judged_there_and_told_what_would_tell():
    table = corridors(shop(alone=True), WORDS).table.set_index(["carrier", "region"])
    own = table.loc[("b", "r5")]
    assert own["verdict"] == "cannot tell" and np.isnan(own["ratio"])
    assert own["why"].startswith("one carrier only: b alone goes there")
    assert own["trial"] == trial(own["observed"], own["parcels"])
    assert ("a", "r5") not in table.index


def test_a_trial_of_that_size_tells_a_difference_of_a_half_four_times_in_five():
    r = np.random.default_rng(0)
    n = trial(observed=80, parcels=1_000)
    mine, theirs = r.poisson(0.0805 * n, 20_000), r.poisson(0.0805 / 1.5 * n, 20_000)
    z = np.log(mine / theirs) / np.sqrt(1 / mine + 1 / theirs)
    assert 0.75 < (z > 1.645).mean() < 0.85


@pytest.mark.parametrize(("spread", "most"), [(0.0, 1.0), (0.2, 0.97), (0.4, 0.95)])
def test_the_intervals_of_ratios_hold_the_truth_as_often_as_they_say(spread, most):
    hits = []
    for seed in range(30):
        r = np.random.default_rng(seed)
        family = np.repeat(np.arange(4), 40)
        usual = np.array([0.7, 1.0, 1.2, 1.6])[family]
        truth = usual * (r.gamma(spread**-2, spread**2, 160) if spread else 1.0)
        due = r.gamma(1.0, 15.0, 160)
        draws = ratios(r.poisson(truth * due), due, r, family)
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        hits.append(((low <= truth) & (truth <= high)).mean())
    assert 0.85 < np.mean(hits) <= most  # wider than they need be where none differ


def test_doubt_about_what_was_expected_makes_intervals_wider():
    observed, due = np.array([30.0, 12.0, 9.0]), np.array([10.0, 11.0, 9.0])
    width = []
    for spread in (0.01, 0.5):
        rng = np.random.default_rng(0)
        doubt = Doubt(rng.gamma(spread**-2, spread**2, (DRAWS, 3)), np.arange(3))
        low, high = np.quantile(ratios(observed, due, rng, doubt=doubt), [0.05, 0.95], axis=0)
        width.append(high - low)
    assert (width[1] > width[0]).all()


def test_of_what_is_named_no_more_than_a_share_is_in_doubt():
    chance = np.random.default_rng(0).random(500)
    picked = named(chance, 0.1)
    assert (1 - chance[picked]).mean() <= 0.1
    more = np.sort(chance[~picked])[-1]
    assert (1 - np.r_[chance[picked], more]).mean() > 0.1
    assert not named(np.array([0.2, 0.5]), 0.1).any()


def test_no_step_is_dated_where_there_is_none_or_where_it_falls():
    r = np.random.default_rng(0)
    decided = START + np.sort(r.integers(364, size=4_000)).astype("timedelta64[D]")
    chance = np.full(4_000, 0.1)
    assert since(decided, (r.random(4_000) < 0.1).astype(int), chance) is None
    falls = np.where(np.arange(4_000) < 2_000, 0.3, 0.1)
    assert since(decided, (r.random(4_000) < falls).astype(int), chance) is None


def parcel(packed: str, handed: str | None, tried: str | None, there: str | None) -> dict[str, str | None]:
    return {"packed": packed, "handed_over": handed, "attempt_failed": tried, "delivered": there}


LATE = {
    "not packed in time": parcel("2025-03-03T19:00", "2025-03-04T18:10", None, "2025-03-06T12:00"),
    "waited for a pickup": parcel("2025-03-03T12:00", "2025-03-04T18:10", None, "2025-03-06T12:00"),
    "on the way": parcel("2025-03-03T12:00", "2025-03-03T17:50", None, "2025-03-07T12:00"),
    "at the door": parcel("2025-03-03T12:00", "2025-03-03T17:50", "2025-03-05T12:00", "2025-03-06T12:00"),
    "both": parcel("2025-03-03T12:00", "2025-03-04T18:10", None, "2025-03-09T12:00"),
    "cannot tell": parcel("2025-03-03T12:00", None, None, "2025-03-07T12:00"),
}
"""Each meant for the pickup at 18:00 on 3 March, and promised by the end of the 5th."""


def test_each_late_parcel_lost_its_time_on_one_leg():
    ids = list(LATE)
    events = [
        {"parcel_id": i, "kind": kind, "happened_at": pd.Timestamp(at, tz="UTC")}
        for i, times in LATE.items()
        for kind, at in times.items()
        if kind != "packed" and at is not None
    ]
    frames = {
        "orders": pd.DataFrame(
            {
                "order_id": ids,
                "ordered_at": pd.Timestamp("2025-03-03T08:00", tz="UTC"),
                "promised_to": pd.Timestamp("2025-03-05T23:59", tz="UTC"),
            }
        ),
        "parcels": pd.DataFrame(
            {
                "parcel_id": ids,
                "order_id": ids,
                "carrier": "a",
                "packed_at": pd.DatetimeIndex([t["packed"] for t in LATE.values()]).tz_localize("UTC"),
                "pickup_cutoff_at": pd.Timestamp("2025-03-03T18:00", tz="UTC"),
            }
        ),
        "events": pd.DataFrame(events),
    }
    facts = Facts.of(Dataset.from_frames(frames, Settings()), pd.Timestamp("2025-06-01", tz="UTC"))
    found = legs(facts, labels(facts, "late"), facts.snapshot.as_of).set_index("parcel_id")
    assert found["leg"].to_dict() == {i: i for i in ids}
    assert found["whose"].to_dict() == LEGS
