"""The snapshot: what it holds is what was known before its moment, and what is loaded is what was saved."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from oracles.asof import before, matrix, to_score
from oracles.dataset import END, START, shop

from features.arrays import columns
from features.dataset import Dataset
from features.files import ArtefactError
from features.matrix import catalogue
from features.rows import Rows
from features.settings import Settings
from features.snapshot import Facts, Snapshot, known_at, known_before, moment, moment_of

MIDDLE = START + pd.Timedelta(days=33, hours=7)


def same(one: Snapshot, other: Snapshot) -> None:
    """Every part of two snapshots is equal."""
    assert one.as_of == other.as_of
    assert one.settings == other.settings
    assert one.codes == other.codes
    assert one.history.entities == other.history.entities
    assert one.history.counts.keys() == other.history.counts.keys()
    for name, counts in one.history.counts.items():
        for a, b in zip(counts.table(), other.history.counts[name].table(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    np.testing.assert_array_equal(one.listings.order, other.listings.order)
    np.testing.assert_array_equal(one.listings.products, other.listings.products)
    assert list(one.listings.columns) == list(other.listings.columns)
    for name, column in one.listings.columns.items():
        assert column.dtype == other.listings.columns[name].dtype
        np.testing.assert_array_equal(column, other.listings.columns[name], err_msg=name)
        assert [v is None for v in column] == [v is None for v in other.listings.columns[name]]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("extras", [True, False])
def test_what_is_loaded_is_what_was_saved_and_answers_the_same(tmp_path: Path, seed: int, extras: bool) -> None:
    dataset = shop(seed, extras=extras)
    snapshot = Snapshot.from_dataset(dataset, MIDDLE)

    snapshot.save(tmp_path / "snapshot")
    loaded = Snapshot.load(tmp_path / "snapshot")

    same(loaded, snapshot)
    every = list(catalogue(dataset.settings).values())
    tables = columns(dataset.tables)
    for unit in ("parcel", "line"):
        expected, found = (matrix(Rows(tables, s), unit, every) for s in (snapshot, loaded))
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("without", [("listings",), ("parcels", "events", "returns", "order_lines", "listings")])
def test_a_snapshot_of_little_is_saved_and_loaded(tmp_path: Path, without: tuple[str, ...]) -> None:
    snapshot = Snapshot.from_dataset(shop(2, 20, extras=False, without=without))

    snapshot.save(tmp_path / "snapshot")

    same(Snapshot.load(tmp_path / "snapshot"), snapshot)


def test_a_snapshot_from_before_anything_was_known_is_saved_and_loaded(tmp_path: Path) -> None:
    snapshot = Snapshot.from_dataset(shop(2, 20), pd.Timestamp("2001-01-01", tz="UTC"))
    snapshot.save(tmp_path / "snapshot")
    loaded = Snapshot.load(tmp_path / "snapshot")

    same(loaded, snapshot)
    rows = Rows(columns(shop(2, 20).tables), loaded)
    assert np.isnan(rows.parcels.lookup("lane").rate("late")).all()


def test_a_later_snapshot_takes_the_place_of_the_older(tmp_path: Path) -> None:
    older, newer = (Snapshot.from_dataset(shop(2, 20), t) for t in (MIDDLE, END))
    older.save(tmp_path / "snapshot")
    newer.save(tmp_path / "snapshot")

    same(Snapshot.load(tmp_path / "snapshot"), newer)


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Snapshot.from_dataset(shop(3, 20)).save(tmp_path / name)

    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_snapshot_of_another_make_is_refused(tmp_path: Path) -> None:
    Snapshot.from_dataset(shop(3, 20)).save(tmp_path / "snapshot")
    meta = tmp_path / "snapshot" / "history" / "history.json"
    meta.write_text(meta.read_text().replace("2024", "2025", 1))

    with pytest.raises(ArtefactError, match="checksum differs"):
        Snapshot.load(tmp_path / "snapshot")


def test_history_counted_by_other_entities_is_refused_and_they_are_named(tmp_path: Path) -> None:
    from features.history import History

    history = Snapshot.from_dataset(shop(3, 20, extras=False)).history
    history.save(tmp_path / "history")
    meta = tmp_path / "history" / "history.json"
    document = json.loads(meta.read_text())
    document["entities"]["lane"][1] = document["entities"]["lane"][1][:-1]  # another key under the same name
    meta.write_text(json.dumps(document))

    with pytest.raises(ValueError, match=r"keeps other counts than this version \(lane\): make a new one"):
        History.load(tmp_path / "history", history.entities)


@pytest.mark.parametrize("seed", [0, 4])
def test_as_of_a_moment_the_snapshot_is_that_of_the_tables_of_that_moment(seed: int) -> None:
    dataset = shop(seed)
    past = Dataset(dataset.settings, before(dataset.tables, dataset.settings, MIDDLE))

    one, other = Snapshot.from_dataset(dataset, MIDDLE), Snapshot.from_dataset(past, MIDDLE)

    same(other, one)


def test_known_before_leaves_out_what_was_known_at_the_moment_or_later() -> None:
    dataset = shop(5, extras=False)
    tables = columns(dataset.tables)
    t = sorted(dataset.tables["parcels"]["packed_at"].dropna())[40]

    found = known_before(tables, moment(t))
    expected = before(dataset.tables, dataset.settings, t)

    assert found.keys() == expected.keys()
    for name, key in (("orders", "order_id"), ("parcels", "parcel_id"), ("order_lines", "line_id")):
        assert list(found[name][key]) == list(expected[name][key])
    for name, frame in expected.items():
        assert len(next(iter(found[name].values()))) == len(frame), name
    assert moment(t) not in known_at(found)["parcels"]
    assert moment(t) in known_at(tables)["parcels"]


def test_a_decision_after_the_snapshot_sees_history_as_of_the_snapshot() -> None:
    dataset = shop(6, extras=False)
    snapshot = Snapshot.from_dataset(dataset, MIDDLE)
    every = list(catalogue(dataset.settings).values())
    tables = columns(to_score(dataset.tables, dataset.settings, END))
    rates = [f for f in every if "_rate_" in f.name and f.level == "parcel"]

    once = matrix(Rows(tables, snapshot), "parcel", rates)
    later = Rows(
        {
            **tables,
            "parcels": {**tables["parcels"], "packed_at": tables["parcels"]["packed_at"] + np.timedelta64(900, "D")},
        },
        snapshot,
    )
    much_later = matrix(later, "parcel", rates)

    decided = Rows(tables, snapshot).parcels.decided_at
    after = decided >= moment(MIDDLE) + np.timedelta64(1, "D")
    packed = ~np.isnat(Rows(tables, snapshot).parcels["parcels", "packed_at"])
    assert (after & packed).sum() > 10
    pd.testing.assert_frame_equal(much_later[after & packed], once[after & packed])


def test_the_extract_ends_when_it_says_or_else_after_its_last_fact() -> None:
    dataset = shop(0, 10)
    assert Facts.of(dataset).snapshot.as_of == moment(END)

    tables = columns(dataset.tables)
    latest = max(known[~np.isnat(known)].max() for known in known_at(tables).values())
    assert moment_of(Settings(), tables) == latest + np.timedelta64(1, "us")


def test_moments_in_any_zone_are_utc() -> None:
    assert moment(pd.Timestamp("2024-05-01 07:00", tz="Asia/Jakarta")) == np.datetime64("2024-05-01T00:00", "us")
    assert moment(np.datetime64("2024-05-01")) == np.datetime64("2024-05-01T00:00", "us")


def test_codes_are_listed_but_never_ids_and_never_those_of_the_future() -> None:
    dataset = shop(0, extras=False)
    whole, early = Snapshot.from_dataset(dataset), Snapshot.from_dataset(dataset, START + pd.Timedelta(days=3))

    assert whole.codes["orders.payment_method"] == ("bank", "card", "cod")
    assert not any(name.endswith(("_id", "sku", "node_id")) for name in whole.codes)
    assert set(early.codes["parcels.carrier"]) <= set(whole.codes["parcels.carrier"])
    assert early.codes["order_lines.variant"] != () and len(early.codes) == len(whole.codes)
