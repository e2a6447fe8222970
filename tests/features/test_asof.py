"""No value knows the future, and none depends on the rows beside it: over every feature there is, for both units.

The property is a function (`oracles.asof`), so it can be shown to catch what it is for: a planted leak and four ways
to compare times wrongly.
"""

import random

import numpy as np
import pandas as pd
import pytest
from oracles.asof import before, decided_at, moved_alone, moved_by_deletion
from oracles.dataset import DAYS, END, EXTRAS, START, shop

import features.snapshot
from features.dataset import Dataset
from features.definitions import FEATURES
from features.feature import Feature
from features.history import History, Lookup
from features.listings import Listings
from features.matrix import catalogue
from features.rows import Level
from training.world import generate


def every_feature(dataset: Dataset) -> list[Feature]:
    return list(catalogue(dataset.settings).values())


def moments(dataset: Dataset, seed: int, n: int) -> list[pd.Timestamp]:
    """Moments of decisions (the hardest: other facts come to be known at the very same), midnights, and any time."""
    chance = random.Random(seed)
    decided = sorted(set(decided_at(dataset.tables)))
    middle = decided[len(decided) // 4 :]
    any_time = [START + pd.Timedelta(days=chance.uniform(10, DAYS + 20)) for _ in range(n)]
    midnights = [t.normalize() for t in chance.sample(middle, n)]
    return [*chance.sample(middle, n), *midnights, *(t.floor("us") for t in any_time)]


@pytest.mark.parametrize("seed", range(2))
def test_deleting_the_future_moves_no_value_of_any_feature(seed: int) -> None:
    dataset = shop(seed)

    assert moved_by_deletion(dataset, every_feature, moments(dataset, seed, 3)) == set()


def test_the_property_is_asked_of_every_registered_feature_and_every_kind_of_extra_column() -> None:
    names = {f.name for f in every_feature(shop(0, 5))}

    assert set(FEATURES) < names
    for extra in EXTRAS:
        assert any(f"{extra.table}.{extra.column}" in name for name in names), extra


def test_deleting_the_future_of_a_simulated_year_moves_nothing(tmp_path) -> None:
    dataset = Dataset.open(generate(tmp_path / "world", parcels=400, seed=5))
    decided = sorted(decided_at(dataset.tables))

    assert moved_by_deletion(dataset, every_feature, [decided[150], decided[300]]) == set()


@pytest.mark.parametrize(
    "without", ["listings", "returns", "events.known_at", "parcels.packed_at", "order_lines.parcel_id"]
)
def test_it_holds_where_a_table_or_column_is_missing(without: str) -> None:
    dataset = shop(7, extras=False, without=(without,))

    assert moved_by_deletion(dataset, every_feature, moments(dataset, 7, 1)[:2]) == set()


@pytest.mark.parametrize("seed", [11])
def test_an_order_alone_has_the_values_it_has_among_all_others_bit_for_bit(seed: int) -> None:
    dataset = shop(seed)
    some = random.Random(seed).sample(list(dataset.tables["orders"]["order_id"]), 40)

    assert moved_alone(dataset, every_feature, some) == set()


def test_an_order_alone_has_the_values_it_has_in_a_batch_of_hundreds(tmp_path) -> None:
    dataset = Dataset.open(generate(tmp_path / "world", parcels=500, seed=3))
    some = random.Random(0).sample(list(dataset.tables["orders"]["order_id"]), 25)

    assert moved_alone(dataset, every_feature, some) == set()


# What the property is worth: each of these is a mistake somebody makes, and it must be found.


def planted(name: str, compute) -> Feature:
    return Feature(name, "parcel", "order", name, name, compute)


def test_a_feature_that_reads_an_outcome_is_caught() -> None:
    def with_leak(dataset: Dataset) -> list[Feature]:
        events = dataset.tables["events"]
        delivered = set(events.loc[events["kind"] == "delivered", "parcel_id"])

        def was_delivered(rows: Level) -> np.ndarray:
            return np.array([p in delivered for p in rows.rows.parcel_id], dtype=float)

        return [*FEATURES.values(), planted("was_delivered", was_delivered)]

    dataset = shop(1, extras=False)

    assert moved_by_deletion(dataset, with_leak, moments(dataset, 1, 2)) == {"was_delivered"}


def test_a_feature_that_reads_all_of_history_instead_of_what_was_known_is_caught() -> None:
    def late_of_all_time(rows: Level) -> np.ndarray:
        return np.full(rows.n, rows.rows.snapshot.history.counts["all"].sums[-1, 1], dtype=float)

    dataset = shop(1, extras=False)

    found = moved_by_deletion(dataset, lambda _: [planted("all_time", late_of_all_time)], moments(dataset, 1, 2))

    assert found == {"all_time"}


def test_a_feature_that_reads_its_place_among_the_rows_is_caught() -> None:
    def place(rows: Level) -> np.ndarray:
        return np.arange(rows.n, dtype=float)

    dataset = shop(1, 12, extras=False)

    found = moved_alone(dataset, lambda _: [planted("place", place)], list(dataset.tables["orders"]["order_id"]))

    assert found == {"place"}


def test_history_that_counts_the_day_of_the_decision_is_caught(monkeypatch) -> None:
    honest = History.lookup

    def up_to_and_including(self: History, entity: str, level: Level) -> Lookup:
        found = honest(self, entity, level)
        return Lookup(found.entity, found.counts, found.keys, found.bucket + 1, found.parent)

    dataset = shop(2, extras=False)
    at = moments(dataset, 2, 3)
    monkeypatch.setattr(History, "lookup", up_to_and_including)

    found = moved_by_deletion(dataset, every_feature, at)

    assert "node_load" in found
    assert any(name.startswith("returned_rate") for name in found)
    assert any(name.startswith("late_rate") for name in found)


def test_history_that_goes_by_when_things_happened_is_caught(monkeypatch) -> None:
    honest = features.snapshot.outcomes

    def by_happening(tables, rows, settings):
        events = {c: v for c, v in tables["events"].items() if c != "known_at"}
        return honest({**tables, "events": events}, rows, settings)

    dataset = shop(2, extras=False)
    at = moments(dataset, 2, 3)
    monkeypatch.setattr(features.snapshot, "outcomes", by_happening)

    assert any("_rate_" in name for name in moved_by_deletion(dataset, every_feature, at))


def test_a_listing_that_is_read_from_the_moment_it_is_known_is_caught(monkeypatch) -> None:
    honest = Listings.find

    def at_or_before(self: Listings, sku: np.ndarray, at: np.ndarray) -> np.ndarray:
        return honest(self, sku, at + np.timedelta64(1, "s"))

    dataset = shop(3, extras=False)
    known = dataset.tables["listings"]["known_at"]
    at = [t for t in sorted(set(decided_at(dataset.tables))) if (known == t).any()]
    monkeypatch.setattr(Listings, "find", at_or_before)

    assert {"photo_count", "rating"} & moved_by_deletion(dataset, every_feature, at[:12])


def test_an_extra_column_that_counts_from_the_moment_it_is_known_is_caught(monkeypatch) -> None:
    dataset = shop(3)
    parcels = dataset.tables["parcels"]
    ties = parcels.loc[parcels["taped_known_at"] == decided_at(dataset.tables).to_numpy(), "taped_known_at"]
    honest = Level.__getitem__

    def at_or_before(self: Level, at: tuple[str, str]) -> np.ndarray:
        if at in self.rows.known_at:
            values = self._get(*at)
            return np.where(
                honest(self, (at[0], self.rows.known_at[at])) <= self.decided_at, values, self.rows.missing(*at)
            )
        return honest(self, at)

    monkeypatch.setattr(Level, "__getitem__", at_or_before)

    assert "parcels.taped" in moved_by_deletion(dataset, every_feature, sorted(set(ties))[-6:])


def test_deletion_deletes() -> None:
    dataset = shop(4)
    t = START + pd.Timedelta(days=30)

    past = before(dataset.tables, dataset.settings, t)

    for name, column in [("orders", "ordered_at"), ("parcels", "packed_at"), ("returns", "requested_at")]:
        assert 0 < len(past[name]) < len(dataset.tables[name])
        assert past[name][column].max() < t
    assert past["parcels"]["taped_known_at"].max() < t
    assert dataset.tables["parcels"]["taped_known_at"].max() > t
    assert t < END
