"""Which units a target has, in which order, and what is known of them when."""

import random

import numpy as np
import pandas as pd
import pytest
from oracles.dataset import DAYS, START, shop
from oracles.labels import Oracle

from features.dataset import Dataset
from features.settings import Settings
from features.snapshot import Facts
from features.vocabulary import TARGETS
from training.labels import labels, maturity_rule


def us(time: pd.Timestamp) -> np.datetime64:
    return np.datetime64(time.tz_localize(None), "us")


@pytest.mark.parametrize("target", TARGETS)
def test_units_are_the_parcels_or_lines_in_order_of_decision(target: str) -> None:
    dataset = shop(0)
    facts = Facts.of(dataset)

    units = labels(facts, target)

    assert units.unit == TARGETS[target].unit
    ids = dataset.tables["parcels"]["parcel_id"] if units.unit == "parcel" else dataset.tables["order_lines"]["line_id"]
    assert set(units.unit_id) <= set(ids)
    # Every parcel has a moment of decision; a line has one unless it waits for a parcel nobody knows.
    assert len(units) == len(ids)
    assert (np.diff(units.decided_at) >= np.timedelta64(0)).all()
    assert units.decided_at.dtype == np.dtype("datetime64[us]") and not np.isnat(units.decided_at).any()
    level = facts.rows.parcel_id if units.unit == "parcel" else facts.rows.line_id
    assert list(level[units.row]) == list(units.unit_id)
    orders = dict(dataset.tables["parcels"][["parcel_id", "order_id"]].itertuples(index=False))
    orders |= dict(dataset.tables["order_lines"][["line_id", "order_id"]].itertuples(index=False))
    assert [orders[u] for u in units.unit_id] == list(units.group)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_and_maturity_are_those_of_a_plain_loop(target: str, seed: int) -> None:
    dataset = shop(seed)
    units, oracle, chance = labels(Facts.of(dataset), target), Oracle(dataset), random.Random(seed)
    by_id = {u.id: u for u in (oracle.lines if units.unit == "line" else oracle.parcels)}
    for _ in range(6):
        as_of = START + pd.Timedelta(hours=chance.randrange(24 * (DAYS + 25)))

        label, mature = units.known(us(as_of))

        assert label.dtype == np.int8
        expected = [oracle.label(target, by_id[u], as_of) for u in units.unit_id]
        assert [int(v) if m else None for v, m in zip(label, mature, strict=True)] == expected


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_known_later_is_needed_for_a_label(target: str) -> None:
    """Labels as of t read from the whole extract are those read from the extract of t."""
    dataset = shop(3)
    as_of = START + pd.Timedelta(days=40)
    whole, past = labels(Facts.of(dataset), target), labels(Facts.of(dataset, as_of), target)

    known = {}
    for name, units in (("whole", whole), ("past", past)):
        label, mature = units.known(us(as_of))
        known[name] = {u: int(v) for u, v, m in zip(units.unit_id, label, mature, strict=True) if m}

    assert known["past"] == known["whole"]
    assert len(known["past"]) > 15


@pytest.mark.parametrize("target", TARGETS)
def test_units_do_not_depend_on_the_order_of_the_file(target: str) -> None:
    dataset = shop(4)
    shuffled = Dataset(
        dataset.settings,
        {n: f.sample(frac=1, random_state=2).reset_index(drop=True) for n, f in dataset.tables.items()},
    )
    one, other = labels(Facts.of(dataset), target), labels(Facts.of(shuffled), target)

    for name in ("unit_id", "group", "decided_at", "matures_at"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name), err_msg=name)


def test_what_has_no_order_or_no_parcel_is_no_unit() -> None:
    noon = pd.Timestamp("2024-05-01 12:00", tz="UTC")
    frames = {
        "orders": pd.DataFrame({"order_id": ["o1", "o2"], "ordered_at": [noon] * 2, "promised_to": [noon] * 2}),
        "parcels": pd.DataFrame({"parcel_id": ["p1", "stray"], "order_id": ["o1", "o9"]}),
        "order_lines": pd.DataFrame({"line_id": ["l1", "l2", "l9"], "order_id": ["o1", "o2", "o9"], "sku": ["u"] * 3}),
    }
    facts = Facts.of(Dataset.from_frames(frames), noon + pd.Timedelta(days=90))

    assert list(labels(facts, "late").unit_id) == ["p1"]  # not the order without parcel, not the parcel without order
    lines = labels(facts, "returned")
    # The line of an order without parcel is decided, but nothing that was never delivered can be kept or sent back.
    assert list(lines.unit_id) == ["l1", "l2"]
    assert np.isnat(lines.matures_at).all()


def test_no_units_are_no_labels() -> None:
    dataset = shop(0, 10, extras=False, without=("parcels", "events", "returns", "order_lines"))
    for target in TARGETS:
        units = labels(Facts.of(dataset), target)
        label, mature = units.known(us(START))
        assert (len(units), len(label), len(mature)) == (0, 0, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_rule_is_a_sentence_with_the_windows_of_the_dataset(target: str) -> None:
    settings = Settings(return_window_days=15, lost_after_days=21)

    rule = maturity_rule(target, settings.return_window_days, settings.lost_after_days)

    assert "_days" not in rule
    assert rule.startswith("true: ") and "; judged " in rule
    assert ("15 days" in rule) == (target == "returned")
    assert ("21 days" in rule) == (target in ("failed_attempt", "damaged", "undelivered"))
