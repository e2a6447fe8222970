"""Counts and rates against a plain re-implementation; sums that stay sums when they are merged."""

import random

import numpy as np
import pandas as pd
import pytest
from oracles.dataset import END, START, shop
from oracles.history import HistoryOracle

from features.arrays import columns
from features.dataset import Dataset
from features.history import ENTITIES, Entity, History, merge
from features.matrix import catalogue
from features.outcomes import outcomes
from features.rows import Rows
from features.snapshot import Facts, Snapshot, entities

WINDOWS = (None, 1, 7, 28)


def close(found: float, expected: float) -> bool:
    return (np.isnan(found) and np.isnan(expected)) or found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("seed", "as_of"), [(0, END), (1, START + pd.Timedelta(days=41, hours=15)), (2, START + pd.Timedelta(days=45))]
)
def test_every_count_and_rate_of_every_entity_is_what_a_plain_loop_counts(seed: int, as_of: pd.Timestamp) -> None:
    dataset = shop(seed, 45)
    snapshot = Facts.of(dataset, as_of).snapshot
    tables = {name: table for name, table in columns(dataset.tables).items() if name != "listings"}
    rows = Rows(tables, snapshot)  # decisions after as_of, too: they see history, and listings, as of then
    oracle = HistoryOracle(dataset, as_of)
    chance = random.Random(seed)
    compared = positive = 0
    for name, entity in snapshot.history.entities.items():
        level, units = (
            (rows.lines, oracle.units.lines) if entity.level == "line" else (rows.parcels, oracle.units.parcels)
        )
        lookup = level.lookup(name)
        for i in chance.sample(range(level.n), 6):
            for window in chance.sample(WINDOWS, 2):
                for field in entity.fields:
                    expected = oracle.count(entity, units[i], field, window)
                    assert lookup.count(field, window)[i] == expected, (name, field, window, units[i])
                    compared, positive = compared + 1, positive + (expected > 0)
                for outcome in entity.counts:
                    if f"y:{outcome}" in entity.fields:
                        expected = oracle.rate(snapshot.history.entities, name, units[i], outcome, window, 20.0)
                        assert close(lookup.rate(outcome, window, 20.0)[i], expected), (name, outcome, window)
    assert positive > compared / 8  # else the zeros agree, which says little


def test_units_of_the_oracle_are_the_rows_in_order() -> None:
    dataset = shop(0)
    facts = Facts.of(dataset)
    oracle = HistoryOracle(dataset, END).units

    assert [u.id for u in oracle.parcels] == list(facts.rows.parcel_id)
    assert [u.id for u in oracle.lines] == list(facts.rows.line_id)
    decided = [u.decided_at.tz_localize(None) if u.decided_at is not None else pd.NaT for u in oracle.lines]
    np.testing.assert_array_equal(facts.rows.lines.decided_at, np.array(decided, dtype="datetime64[us]"))


def test_a_fact_counts_from_the_day_after_it_was_known_and_a_window_ends_where_it_says() -> None:
    day = pd.Timestamp("2024-05-01", tz="UTC")
    probes = [day + pd.Timedelta(days=d, hours=12) for d in (8, 9, 10, 36, 37, 38)]
    frames = {
        "orders": pd.DataFrame(
            {
                "order_id": [f"o{i}" for i in range(7)],
                "ordered_at": [day, *probes],
                "promised_to": [day + pd.Timedelta(days=9, hours=3), *[pd.NaT] * 6],
            }
        ),
        "parcels": pd.DataFrame({"parcel_id": [f"p{i}" for i in range(7)], "order_id": [f"o{i}" for i in range(7)]}),
    }
    rows = Facts.of(Dataset.from_frames(frames), day + pd.Timedelta(days=99)).rows

    ever = rows.parcels.lookup("all").count("n:late")
    recent = rows.parcels.lookup("all").count("n:late", 28)

    # The promise ends on day 9 at 03:00: a decision at noon of that day has to wait for midnight.
    assert ever.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert recent.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert rows.parcels.lookup("all").rate("late").tolist()[3:] == [1, 1, 1, 1]


def test_nothing_known_at_all_is_no_rate_and_something_known_of_others_is_theirs() -> None:
    facts = Facts.of(shop(0))
    rows = facts.rows
    first = np.argsort(rows.parcels.decided_at)[0]

    assert np.isnan(rows.parcels.lookup("lane").rate("late")[first])

    tables = columns(shop(0).tables)
    tables["parcels"] |= {"carrier": np.full_like(tables["parcels"]["carrier"], "a carrier nobody has seen")}
    unseen = Rows(tables, facts.snapshot).parcels
    np.testing.assert_allclose(unseen.lookup("lane").rate("late"), unseen.lookup("all").rate("late"), rtol=1e-14)


@pytest.mark.parametrize("partitions", [2, 5])
def test_histories_of_partitions_are_merged_by_adding(partitions: int) -> None:
    dataset = shop(3)
    end = np.datetime64(END.tz_localize(None), "us")
    tables = columns(dataset.tables)
    kept = entities(dataset.settings)

    def build(orders: set[str]) -> History:
        """History of some orders with all their parcels, lines, events and returns."""
        own = {
            n: {c: v[np.isin(t["order_id"], list(orders))] for c, v in t.items()}
            for n, t in tables.items()
            if "order_id" in t
        }
        own["listings"] = tables["listings"]
        for name, column, ids in (
            ("events", "parcel_id", own["parcels"]["parcel_id"]),
            ("returns", "line_id", own["order_lines"]["line_id"]),
        ):
            own[name] = {c: v[np.isin(tables[name][column], ids)] for c, v in tables[name].items()}
        rows = Rows(own, Snapshot.empty(dataset.settings, end, own))
        return History.build(rows, outcomes(own, rows, dataset.settings), end, kept)

    ids = list(tables["orders"]["order_id"])
    whole = build(set(ids))
    parts = [build({o for i, o in enumerate(ids) if i % partitions == p}) for p in range(partitions)]

    for name, entity in kept.items():
        for expected, found in zip(
            whole.counts[name].table(), merge(entity, [p.counts[name] for p in parts]).table(), strict=True
        ):
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_what_is_merged_answers_as_the_whole(tmp_path) -> None:
    facts = Facts.of(shop(3))
    snapshot = facts.snapshot
    same = {n: merge(e, [snapshot.history.counts[n]]) for n, e in snapshot.history.entities.items()}
    other = Snapshot(
        snapshot.as_of,
        snapshot.settings,
        History(snapshot.as_of, same, snapshot.history.entities),
        snapshot.listings,
        {},
    )

    for name in ("lane", "sku", "customer"):
        level = "lines" if snapshot.history.entities[name].level == "line" else "parcels"
        expected = getattr(facts.rows, level).lookup(name).rate("undelivered", 28)
        found = getattr(Rows(facts.tables, other), level).lookup(name).rate("undelivered", 28)
        np.testing.assert_array_equal(found, expected)


def test_rows_without_a_key_are_counted_nowhere_but_in_the_shop() -> None:
    dataset = shop(5)
    parcels = dataset.tables["parcels"].assign(carrier=None).astype({"carrier": object})
    history = Facts.of(Dataset(dataset.settings, dataset.tables | {"parcels": parcels})).snapshot.history

    assert len(history.counts["carrier"].table()[0]) == 0
    assert len(history.counts["lane"].table()[0]) == 0
    assert history.counts["all"].sums[-1].max() > 20


@pytest.mark.parametrize("absurd", ["1899-12-30", "9999-12-31"])
def test_an_absurd_date_does_not_reach_the_counts_of_another_key(absurd: str) -> None:
    dataset = shop(6, extras=False)
    frames = {name: frame.copy() for name, frame in dataset.tables.items()}
    odd = pd.DataFrame(
        {
            "order_id": ["odd"],
            "ordered_at": pd.to_datetime([absurd], utc=True).astype("datetime64[us, UTC]"),
            "customer_id": pd.Series(["c3"], dtype=object),
        }
    )
    frames["orders"] = pd.concat([frames["orders"], odd], ignore_index=True)

    facts = Facts.of(Dataset(dataset.settings, frames), END)
    before = Facts.of(dataset, END)
    n = before.rows.parcels.n
    for entity in ("customer", "node_hours"):
        for field in ENTITIES[entity].fields:
            found = facts.rows.parcels.lookup(entity).count(field, 700)
            np.testing.assert_array_equal(
                found[:n], before.rows.parcels.lookup(entity).count(field, 700), err_msg=entity
            )
    tables = [c.table() for c in facts.snapshot.history.counts.values()]
    assert all((np.diff(c.order) > 0).all() for c in facts.snapshot.history.counts.values())
    assert all((bucket >= 0).all() for _, bucket, _ in tables)


def test_a_missing_time_counts_nothing_before_it() -> None:
    rows = Facts.of(shop(6)).rows
    lookup = rows.parcels.lookup("customer")

    none = lookup.count("n:ordered", before=np.full(rows.parcels.n, np.datetime64("NaT", "us")))

    assert none.tolist() == [0.0] * rows.parcels.n


def test_every_chain_of_parents_ends_and_keeps_the_outcomes_its_children_fall_back_to() -> None:
    kept = entities(shop(0, 5).settings)
    for entity in kept.values():
        seen, at = [entity.name], entity
        while at.parent is not None:
            parent = kept[at.parent]
            outcomes_of = {c for c in at.counts if f"y:{c}" in at.fields}
            assert outcomes_of <= set(parent.counts), f"{parent.name} cannot stand in for {at.name}"
            assert parent.name not in seen
            assert set(parent.columns) <= set(at.columns) or parent.name in ("all", "category", "region")
            seen.append(parent.name)
            at = parent
        assert at.name == "all" or not any(f.startswith("y:") for f in entity.fields)


def test_a_rate_without_a_parent_to_fall_back_to_says_so() -> None:
    facts = Facts.of(shop(0, 20))
    kept = {
        "all": Entity("all", "parcel", (), None, ("late",)),
        "node": Entity("node", "parcel", (("parcels", "node"),), "all", ("damaged",)),
    }
    history = History.build(facts.rows, facts.outcomes, facts.snapshot.as_of, kept)
    rows = Rows(
        facts.tables, Snapshot(facts.snapshot.as_of, facts.snapshot.settings, history, facts.snapshot.listings, {})
    )

    with pytest.raises(KeyError, match="all keeps no counts of damaged, so node cannot fall back to it"):
        rows.parcels.lookup("node").rate("damaged")


def test_every_rate_that_is_registered_can_be_computed_for_its_entity() -> None:
    settings = shop(0, 5).settings
    kept = entities(settings)
    for name, feature in catalogue(settings).items():
        if feature.about and "_rate_" in name:
            entity = next(e for e in sorted(kept, key=len, reverse=True) if name.split("_rate_")[1].startswith(e))
            assert feature.about in kept[entity].counts, name
