"""What every feature owes its readers, over the whole registry: a team, words, documentation, and sense in both."""

import dataclasses
import inspect
import re

import numpy as np
import pandas as pd
import pytest
from oracles.dataset import shop

from features.definitions import FEATURES
from features.feature import Feature, Theme, number, one_of, percent, unit, yes_no
from features.matrix import catalogue
from features.rows import Rows
from features.settings import Settings
from features.snapshot import Facts
from features.vocabulary import TARGETS, TEAMS

EVERY = catalogue(shop(0, 5).settings)
LONGEST = 84
"""Characters of a feature with its value: one line of a terminal or a packer's screen."""


def typical(feature: Feature) -> list[float]:
    """Values as the feature may have them."""
    if "_volume_" in feature.name:
        return [0.0, 1.5, 4.0]
    if feature.show in (percent, yes_no) or "_rate_" in feature.name:
        return [0.0, 0.123456, 1.0]
    return [-2.0, 0.0, 0.5, 3.0, 23.98, 123456.789]


@pytest.mark.parametrize("feature", EVERY.values(), ids=EVERY)
def test_a_feature_says_what_it_is_and_what_its_value_is(feature: Feature) -> None:
    assert feature.team in TEAMS
    assert feature.text == feature.text.strip() != ""
    assert feature.help.endswith(".") and len(feature.help) > 20
    for value in (np.nan, *typical(feature)):
        said = feature.say(value)
        assert said.startswith(feature.text)
        assert said == said.strip() and "\n" not in said and "nan" not in said.split()
        assert len(said) <= LONGEST, said
        assert said != feature.text
    assert feature.say(float("nan")).endswith("not known")
    assert feature.say(np.float32(0.5)) == feature.say(0.5)
    assert feature.say(-0.0) == feature.say(0.0), "nobody says minus zero"


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_a_feature_has_a_name_that_can_be_typed_and_signs_that_mean_something(feature: Feature) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", feature.name)
    assert feature.name == feature.name.lower()
    assert set(feature.signs) <= set(TARGETS)
    assert set(feature.signs.values()) <= {-1, 1}
    assert feature.about == "" or feature.about in feature.name


def test_a_function_is_documented_by_its_own_docstring() -> None:
    for feature in FEATURES.values():
        if not feature.about:
            assert feature.compute.__name__ == feature.name
            assert feature.help == " ".join((inspect.getdoc(feature.compute) or "").split())


def test_every_team_has_features_and_every_team_that_can_act_before_dispatch_a_lever() -> None:
    for team in TEAMS:
        assert any(f.team == team for f in FEATURES.values()), team
    for team in ("packing", "fulfilment", "listing", "customer"):
        assert any(f.lever for f in FEATURES.values() if f.team == team), team
    assert not any(f.lever for f in FEATURES.values() if f.about), "nobody can change the past"


def test_every_target_has_a_past_to_learn_from() -> None:
    for target in TARGETS:
        assert sum(f.about == target for f in FEATURES.values()) >= 3


def test_no_two_features_are_told_in_the_same_words() -> None:
    said = [f.text for f in EVERY.values()]

    assert sorted(t for t in set(said) if said.count(t) > 1) == []


def test_words_for_values() -> None:
    assert [number(v) for v in (0.0, 0.12345, 12.5, 99.95, 1234.5, -0.5)] == [
        "0",
        "0.123",
        "12.5",
        "100",
        "1,234",
        "-0.5",
    ]
    assert unit("kg", 1000)(820) == "0.82 kg"
    assert [percent(v) for v in (0.0, 0.0456, 1.0)] == ["0.0 %", "4.6 %", "100.0 %"]
    assert [yes_no(v) for v in (0.0, 0.49, 0.5, 1.0)] == ["no", "no", "yes", "yes"]
    grade = one_of("A", "B", "C")
    assert [grade(v) for v in (-5.0, 0.0, 1.2, 9.0)] == ["A", "A", "B", "C"]
    assert EVERY["label_grade"].say(2.0) == "Label grade C"
    assert EVERY["returned_volume_sku"].say(np.log10(1 + 42)) == "Sales of this product known to their end: about 42"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"team": "warehouse"}, "team is 'warehouse', it must be one of packing"),
        ({"level": "order"}, "level is 'order', it must be parcel or line"),
        ({"aggregate": "max"}, "a line's feature takes max, sum or mean"),
        ({"level": "line", "aggregate": "median"}, "a line's feature takes max, sum or mean"),
        ({"signs": {"lost": 1}}, r"signs for \['lost'\], targets are late"),
    ],
)
def test_a_feature_that_is_declared_wrongly_is_refused(wrong: dict, message: str) -> None:
    good = {"name": "f", "level": "parcel", "team": "order", "text": "F", "help": "F.", "compute": lambda rows: rows}
    with pytest.raises(ValueError, match=f"feature f: .*{message}"):
        Feature(**(good | wrong))


def test_a_theme_registers_a_function_and_leaves_it_as_it_was() -> None:
    theme = Theme("carrier")

    @theme("Half a lane", lever=True, signs={"late": 1})
    def half_a_lane(rows):
        """Half of it,
        in kilometres."""
        return 0.5

    assert half_a_lane(None) == 0.5
    [feature] = theme.features
    assert (feature.name, feature.team, feature.lever, feature.help) == (
        "half_a_lane",
        "carrier",
        True,
        "Half of it, in kilometres.",
    )


def test_a_missed_pickup_costs_a_delivery_day_and_not_the_slack_to_the_next() -> None:
    """Against days counted one by one on the shop's calendar."""
    clock = lambda text: pd.Timestamp(text, tz="Europe/Berlin")  # noqa: E731
    rows = [
        ("2025-03-04 15:00", "2025-03-04 17:00", "2025-03-07 21:00"),  # Tuesday to Friday, in time
        ("2025-03-04 17:30", "2025-03-04 17:00", "2025-03-07 21:00"),  # half an hour too late
        ("2025-03-06 09:00", "2025-03-04 17:00", "2025-03-07 21:00"),  # a day and more too late
        ("2025-03-08 18:00", "2025-03-08 17:00", "2025-03-11 21:00"),  # a Saturday evening: collected on Monday
        ("2025-03-29 12:00", "2025-03-29 17:00", "2025-04-01 21:00"),  # over a Sunday on which the clocks change
        ("2025-03-07 15:00", "2025-03-07 17:00", "2025-03-05 21:00"),  # promised for a day that has gone by
    ]
    n = len(rows)
    text = lambda prefix: np.array([f"{prefix}{i}" for i in range(n)], dtype=object)  # noqa: E731
    packed, cutoff, promised = (
        np.array([clock(r[k]).tz_convert("UTC").tz_localize(None) for r in rows], dtype="datetime64[us]")
        for k in range(3)
    )
    dataset = shop(0, 5)
    snapshot = Facts.of(dataclasses.replace(dataset, settings=Settings(timezone="Europe/Berlin"))).snapshot
    tables = {
        "orders": {"order_id": text("o"), "ordered_at": packed - np.timedelta64(1, "D"), "promised_to": promised},
        "parcels": {
            "parcel_id": text("p"),
            "order_id": text("o"),
            "packed_at": packed,
            "pickup_cutoff_at": cutoff,
        },
    }
    level = Rows(tables, snapshot).parcels
    left, slack = (FEATURES[name].compute(level) for name in ("delivery_days_left", "pickup_slack_hours"))

    for i, (at, pickup, end) in enumerate(rows):
        reached = clock(pickup)
        while reached < clock(at):
            reached += pd.DateOffset(days=1)
        hours = (reached - clock(at)) / pd.Timedelta(hours=1)
        assert slack[i] == pytest.approx(hours, abs=1e-9)
        day = reached + pd.DateOffset(days=1) if reached.day_name() == "Sunday" else reached
        step = 1 if clock(end) > day else -1
        between = pd.date_range(day.normalize(), clock(end).normalize(), freq=f"{step}D")[1:]
        counted = step * sum(
            d.day_name() != "Sunday" for d in (between if step > 0 else between + pd.DateOffset(days=1))
        )
        assert left[i] == counted, rows[i]

    without = {name: dict(table) for name, table in tables.items()}
    without["parcels"].pop("pickup_cutoff_at")
    bare = Rows(without, snapshot).parcels
    assert np.isnan(FEATURES["pickup_slack_hours"].compute(bare)).all()
    assert FEATURES["delivery_days_left"].compute(bare)[0] == 3  # from the day it was packed
