"""Labels and their maturity: told as stories, compared with a plain re-implementation, and additive as steps."""

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dataset import DAYS, START, shop
from oracles.labels import PARCEL, Oracle

from features.dataset import Dataset
from features.outcomes import Outcome
from features.settings import Settings
from features.snapshot import Facts

DAY = pd.Timestamp("2024-05-01 10:00", tz="UTC")
ALL = (*PARCEL, "returned")


def day(n: float) -> pd.Timestamp:
    return DAY + pd.Timedelta(days=n)


def us(time: pd.Timestamp) -> np.datetime64:
    return np.datetime64(time.tz_convert("UTC").tz_localize(None), "us")


def story(
    *events: tuple[str, float] | tuple[str, float, float], promised: float | None = 5.0, returned: float | None = None
) -> Facts:
    """One parcel packed on day 0 with its pickup on day 1; windows of 10 days to be lost and 7 to return.

    Events are (kind, day) or (kind, day, day it became known).
    """
    frames = {
        "orders": pd.DataFrame(
            {"order_id": ["o"], "ordered_at": [day(0)], "promised_to": [pd.NaT if promised is None else day(promised)]}
        ),
        "parcels": pd.DataFrame(
            {"parcel_id": ["p"], "order_id": ["o"], "packed_at": [day(0)], "pickup_cutoff_at": [day(1)]}
        ),
        "order_lines": pd.DataFrame({"line_id": ["l"], "order_id": ["o"], "sku": ["u"]}),
    }
    if promised is None:
        frames["orders"] = frames["orders"].drop(columns="promised_to")
    if events:
        frames["events"] = pd.DataFrame(
            {
                "parcel_id": ["p"] * len(events),
                "kind": [e[0] for e in events],
                "happened_at": [day(e[1]) for e in events],
                "known_at": [day(e[-1]) for e in events],
            }
        )
    if returned is not None:
        frames["returns"] = pd.DataFrame({"line_id": ["l"], "requested_at": [day(returned)]})
    return Facts.of(Dataset.from_frames(frames, Settings(return_window_days=7, lost_after_days=10)), day(99))


def known(facts: Facts, outcome: str, on: float) -> int | None:
    """The label as known at the beginning of that moment; None while it is not mature."""
    label, mature = facts.outcomes[outcome].label(us(day(on)))
    return int(label[0]) if mature[0] else None


def test_a_parcel_that_came_in_time_is_not_late_once_the_promise_has_passed() -> None:
    facts = story(("delivered", 3))

    assert [known(facts, "late", on) for on in (4, 5, 5.001)] == [None, None, 0]


def test_a_parcel_that_did_not_come_is_late_when_the_promise_passes_and_stays_late_when_it_comes() -> None:
    facts = story(("delivered", 6))

    assert [known(facts, "late", on) for on in (5, 5.1, 8)] == [None, 1, 1]


def test_a_delivery_in_time_that_is_scanned_late_corrects_the_label_when_it_is_known() -> None:
    facts = story(("delivered", 4, 9))

    assert [known(facts, "late", on) for on in (6, 9, 9.1)] == [1, 1, 0]


def test_without_a_promise_nothing_is_late() -> None:
    assert known(story(("delivered", 3), promised=None), "late", 90) is None
    assert known(story(("delivered", 3)), "late", 90) == 0


def test_a_parcel_without_an_end_is_undelivered_when_it_counts_as_lost() -> None:
    facts = story(("handed_over", 0.5))

    assert [known(facts, "undelivered", on) for on in (10, 10.1)] == [None, 1]


def test_the_latest_happening_decides_even_when_it_is_known_first() -> None:
    facts = story(("delivered", 6, 7), ("lost", 3, 12))

    assert [known(facts, "undelivered", on) for on in (11, 13)] == [0, 0]


def test_lost_and_then_found_is_undelivered_until_it_is_known_to_be_found() -> None:
    facts = story(("lost", 4), ("delivered", 20, 21))

    assert [known(facts, "undelivered", on) for on in (11, 21, 22)] == [1, 1, 0]


def test_refused_at_the_door_and_sent_back_never_arrives() -> None:
    facts = story(("attempt_failed", 3), ("refused", 4), ("returned_to_sender", 9))

    assert known(facts, "undelivered", 11) == 1
    assert known(facts, "failed_attempt", 11) == 1
    assert known(facts, "returned", 90) is None


def test_what_the_shop_never_handed_over_is_no_failure_of_the_carrier_but_a_missed_pickup() -> None:
    facts = story(("handover_failed", 2))

    for outcome in ("late", "failed_attempt", "damaged", "undelivered", "returned"):
        assert known(facts, outcome, 90) is None
    assert [known(facts, "handover", on) for on in (2, 2.1)] == [None, 1]


def test_a_handover_that_is_given_up_after_maturity_takes_the_unit_out_only_then() -> None:
    facts = story(("handed_over", 0.5), ("delivered", 3), ("handover_failed", 20), returned=5)

    assert [known(facts, "late", on) for on in (6, 20, 20.1)] == [0, 0, None]
    assert [known(facts, "undelivered", on) for on in (11, 20, 20.1)] == [0, 0, None]
    assert [known(facts, "returned", on) for on in (10, 11, 20, 20.1)] == [None, 1, 1, None]
    assert [known(facts, "handover", on) for on in (2, 2.1, 20, 20.1)] == [None, 0, 0, 1]


@pytest.mark.parametrize(("scan", "missed"), [(0.9, 0), (1.0, 0), (1.1, 1)])
def test_a_pickup_is_missed_when_the_first_scan_is_after_the_cutoff(scan: float, missed: int) -> None:
    facts = story(("handed_over", scan), ("handed_over", 4))

    assert known(facts, "handover", 2) is None, "a day after the cutoff, when the late ones are known too"
    assert known(facts, "handover", 2.2) == missed


def test_a_line_is_kept_when_its_window_has_closed_and_returned_no_sooner() -> None:
    kept, back = story(("delivered", 3)), story(("delivered", 3), returned=5)

    assert [known(kept, "returned", on) for on in (6, 10, 10.1)] == [None, None, 0]
    # Counting the return on day 5 and the kept line on day 10 would make every recent rate wrong.
    assert [known(back, "returned", on) for on in (6, 10, 10.1)] == [None, None, 1]


def test_a_return_after_the_window_turns_the_label_when_it_is_known() -> None:
    facts = story(("delivered", 3), returned=30)

    assert [known(facts, "returned", on) for on in (11, 30, 30.1)] == [0, 0, 1]


def test_a_delivery_that_is_known_after_the_window_matures_when_it_is_known() -> None:
    facts = story(("delivered", 3, 40), returned=5)

    assert [known(facts, "returned", on) for on in (11, 40, 40.1)] == [None, None, 1]


def test_of_two_deliveries_the_one_known_first_opens_the_window() -> None:
    facts = story(("delivered", 3), ("delivered", 20))

    assert [known(facts, "returned", on) for on in (10, 10.1)] == [None, 0]


def test_a_scan_dated_before_the_parcel_was_packed_counts_nothing_before_it() -> None:
    facts = story(("handed_over", -3), ("delivered", -2))

    for outcome in ("handover", "returned", "late"):
        assert known(facts, outcome, 0) is None


def test_without_events_and_returns_nothing_fails_but_what_the_clock_decides() -> None:
    facts = story()

    assert {o: known(facts, o, 90) for o in ALL} == {
        "late": 1,
        "failed_attempt": 0,
        "damaged": 0,
        "undelivered": 1,
        "handover": None,
        "returned": None,
    }


# Against the plain re-implementation.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_and_maturity_are_those_of_a_plain_loop_at_any_moment(seed: int) -> None:
    dataset = shop(seed)
    facts, oracle = Facts.of(dataset), Oracle(dataset)
    chance = random.Random(seed)
    moments = [START + pd.Timedelta(days=chance.uniform(5, DAYS + 25)).floor("us") for _ in range(8)]
    moments += chance.sample(sorted(set(dataset.tables["events"]["happened_at"])), 4)  # exactly when something happens
    seen = set()
    for name, outcome in facts.outcomes.items():
        units = oracle.lines if outcome.unit == "line" else oracle.parcels
        for moment in moments:
            label, mature = outcome.label(us(moment))
            found = [int(v) if m else None for v, m in zip(label, mature, strict=True)]
            expected = [oracle.label(name, u, moment) for u in units]
            assert found == expected, (name, moment)
            seen |= {(name, v) for v in expected}
    assert seen == {(name, v) for name in ALL for v in (None, 0, 1)}


@pytest.mark.parametrize("seed", [3, 4])
def test_steps_add_up_to_the_mature_labels_at_any_moment(seed: int) -> None:
    facts = Facts.of(shop(seed))
    chance = random.Random(seed)
    for outcome in facts.outcomes.values():
        unit, at, dn, dy = outcome.steps(facts.snapshot.as_of)
        for _ in range(20):
            moment = us(START) + np.timedelta64(chance.randrange(DAYS * 86_400), "s")
            label, mature = outcome.label(moment)
            n, y = np.zeros(len(label), dtype=int), np.zeros(len(label), dtype=int)
            np.add.at(n, unit[at < moment], dn[at < moment])
            np.add.at(y, unit[at < moment], dy[at < moment])
            np.testing.assert_array_equal(n, mature)
            np.testing.assert_array_equal(y, label * mature)


# Any sequence of facts, not only those that tables can tell.

times = st.integers(0, 12)
late_or_never = st.one_of(st.none(), times)


@st.composite
def any_outcome(draw: st.DrawFn) -> Outcome:
    n = draw(st.integers(1, 4))
    matures = [draw(late_or_never) for _ in range(n)]
    withdrawn = [draw(st.one_of(st.none(), st.none(), times)) for _ in range(n)]
    facts = sorted(
        draw(st.lists(st.tuples(st.integers(0, n - 1), times, st.integers(0, 1)), max_size=10)), key=lambda f: f[:2]
    )

    def at(values: list[int | None]) -> np.ndarray:
        return np.array(["NaT" if v is None else np.datetime64(v, "us") for v in values], dtype="datetime64[us]")

    unit, when, value = (list(x) for x in zip(*facts, strict=True)) if facts else ([], [], [])
    return Outcome(
        "any",
        "parcel",
        at(matures),
        draw(st.integers(0, 1)),
        np.array(unit, dtype=np.int64),
        at(when),
        np.array(value, dtype=np.int8),
        at(withdrawn),
    )


@given(any_outcome(), st.integers(0, 14))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_steps_add_up_to_the_labels_and_never_see_the_future(outcome: Outcome, end: int) -> None:
    unit, at, dn, dy = outcome.steps(np.datetime64(end, "us"))

    assert (at < np.datetime64(end, "us")).all()
    for moment in range(end + 1):
        label, mature = outcome.label(np.datetime64(moment, "us"))
        before = at < np.datetime64(moment, "us")
        for u in range(len(outcome.matures_at)):
            mine = before & (unit == u)
            assert (dn[mine].sum(), dy[mine].sum()) == (int(mature[u]), int(mature[u]) * int(label[u]))
