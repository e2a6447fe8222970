"""Who was treated: left out where an action moves the outcome, stood for by those it was withheld from by lot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from features.snapshot import Facts
from features.treated import EVERY, MOVES, treated

DAY = np.timedelta64(1, "D")
T0 = np.datetime64("2025-06-01T12:00:00.000000", "us")
NAT = np.datetime64("NaT", "us")


def decisions(*rows):
    """Rows of (parcel, arm, action, propensity, done, days until it was known)."""
    parcel, arm, action, propensity, done, known = zip(*rows, strict=True)
    return {
        "parcel_id": np.array(parcel, dtype=object),
        "decided_at": T0 + np.arange(len(rows)) * DAY,
        "arm": np.array(arm, dtype=object),
        "action": np.array(action, dtype=object),
        "propensity": np.array(propensity, dtype=float),
        "done": np.array(done, dtype=object),
        "known_at": np.array([NAT if k is None else T0 + k * DAY for k in known]),
    }


def test_an_advised_parcel_is_left_out_by_lot_and_a_withheld_one_stands_for_it():
    ids = np.array(list("abcdefgh"), dtype=object)
    found = treated(
        decisions(
            ("a", "act", "package:foam_box", 0.9, None, None),  # by lot: left out, followed or not
            ("b", "control", "package:foam_box", 0.9, None, None),  # stands for ten
            ("c", "act", "add_fill", 1.0, None, None),  # no lot, nothing known to be done
            ("d", "act", "add_fill", 1.0, "add_fill", 9),  # no lot, done: left out from when it is known
            ("e", "control", "pickup_point", 0.8, "pickup_point", 9),  # withheld, and done all the same
            ("f", "none", None, 1.0, "carrier:alba/express", 9),  # counts for the carrier that took it
            ("nobody", "act", "add_fill", 0.5, None, None),
            ("g", "act", "juggle", 0.5, None, None),  # an action nobody knows may move everything
        ),
        ids,
    )
    out = {o: {i: t for i, t in zip(ids, found.left_out_at[o], strict=True) if not np.isnat(t)} for o in EVERY}
    assert out["damaged"] == {"a": T0, "d": T0 + 9 * DAY, "g": T0 + 7 * DAY}
    assert out["failed_attempt"] == {"e": T0 + 9 * DAY, "g": T0 + 7 * DAY} == out["undelivered"] == out["late"]
    assert found.weight["damaged"].tolist() == [1, 10, 1, 1, 1, 1, 1, 1]
    assert found.weight["late"].tolist() == [1, 1, 1, 1, 5, 1, 1, 1]


def test_who_followed_the_advice_and_asked_again_is_treated():
    for again in (("none", None, 1.0, None, None), ("act", "fix_label", 1.0, None, None)):
        found = treated(
            decisions(("a", "act", "add_fill", 0.9, None, None), ("a", *again)), np.array(["a"], dtype=object)
        )
        assert not np.isnat(found.left_out_at["damaged"]).any()
    reported = treated(
        decisions(("a", "act", "add_fill", 1.0, None, None), ("a", "act", "fix_label", 1.0, "fix_label", None)),
        np.array(["a"], dtype=object),
    )
    assert reported.done.tolist() == ["fix_label"]


def test_every_action_of_a_policy_is_known_here():
    from serving.policy import ACTIONS

    assert set(ACTIONS) == set(MOVES)
    assert {o for moved in MOVES.values() for o in moved} <= set(EVERY)


def with_decisions(dataset: Dataset, table: pd.DataFrame) -> Dataset:
    return Dataset(dataset.settings, {**dataset.tables, "decisions": table})


@pytest.fixture(scope="module")
def dataset(world_dataset):
    return Dataset.open(world_dataset)


def table(parcels, **columns):
    return pd.DataFrame(
        {
            "decision_id": [f"d{i}" for i in range(len(parcels))],
            "parcel_id": parcels.parcel_id.array,
            "decided_at": parcels.packed_at.array,
            "action": pd.Series("add_fill", index=range(len(parcels)), dtype=object),
            **columns,
        }
    )


def test_where_nobody_was_treated_every_count_and_label_is_the_same(dataset):
    parcels = dataset.tables["parcels"].head(4_000)
    nothing = table(parcels, arm="none", propensity=1.0).assign(action=None)
    plain, told = Facts.of(dataset), Facts.of(with_decisions(dataset, nothing))
    for name, counts in plain.snapshot.history.counts.items():
        other = told.snapshot.history.counts[name]
        for part in ("keys", "order", "sums"):
            np.testing.assert_array_equal(getattr(counts, part), getattr(other, part))
    for name, outcome in plain.outcomes.items():
        for one, other in zip(
            outcome.label(plain.snapshot.as_of), told.outcomes[name].label(plain.snapshot.as_of), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_counts_stay_what_they_would_be_without_the_action_on_average(dataset):
    """Half of the parcels are advised by lot and nothing of them breaks: the rate is that of the others, twice."""
    parcels = dataset.tables["parcels"]
    rng = np.random.default_rng(0)
    act = rng.random(len(parcels)) < 0.5
    events = dataset.tables["events"]
    saved = set(parcels.parcel_id[act])
    events = events[~(events.parcel_id.isin(saved) & (events.kind == "damaged"))]
    arms = np.where(act, "act", "control")
    acted = Dataset(
        dataset.settings, {**dataset.tables, "events": events, "decisions": table(parcels, arm=arms, propensity=0.5)}
    )
    naive = Dataset(dataset.settings, {**dataset.tables, "events": events})

    def rate(of: Dataset) -> tuple[float, float]:
        facts = Facts.of(of)
        counts = facts.snapshot.history.counts["all"].sums[-1]
        place = facts.snapshot.history.entities["all"].place
        return float(counts[place["n:damaged"]]), counts[place["y:damaged"]] / counts[place["n:damaged"]]

    (n, true), (_, forgets), (m, kept) = rate(dataset), rate(naive), rate(acted)
    assert abs(m / n - 1) < 0.05
    assert forgets < 0.65 * true
    assert abs(kept / true - 1) < 0.25
