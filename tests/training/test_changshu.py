"""The Changshu mapping, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from features.dataset import Dataset

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "changshu" / "prepare.py"
PUBLISHED = ROOT.parent / "shared" / "data" / "changshu" / "deliveries.parquet"


def prepare(source: Path, out: Path) -> Dataset:
    done = subprocess.run([sys.executable, SCRIPT, source, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "data only on stdout"
    return Dataset.open(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("changshu")
    deliveries = pd.DataFrame(
        {
            "uid": ["a", "a", "b", "c"],
            "slot": [11, 12, 13, 14],
            "gx": [0, 0, 5, 8],
            "gy": [3, 3, 2, 8],
            "weight": [1200.0, 1.0, 2e8, 500.0],
            "volume": [0.5, 1.0, 2.0, 3.0],
            "h1": [7.0, None, 9.0, 9.0],
            "h2": [0.1, None, 0.3, 0.3],
            "date": pd.to_datetime(["2024-03-01", "2024-03-02", "2024-08-31", "2024-09-01"]).astype("datetime64[ms]"),
            "tdelta": [0, 5, 1, 1],
            "auto": [0, 1, 0, 1],
            "redeliv": [0, 1, 0, 1],
        }
    )
    deliveries.to_parquet(folder / "deliveries.parquet")
    return prepare(folder / "deliveries.parquet", folder / "out")


def test_a_row_is_an_order_and_a_parcel(small: Dataset) -> None:
    orders, parcels = small.tables["orders"], small.tables["parcels"]
    assert orders["order_id"].tolist() == parcels["order_id"].tolist() == ["D000000", "D000001", "D000002"]
    assert orders["customer_id"].tolist() == ["a", "a", "b"]
    assert orders["destination_postal"].tolist() == ["cell 0-3", "cell 0-3", "cell 5-2"]
    assert orders["destination_region"].tolist() == ["block 0-1", "block 0-1", "block 1-0"]


def test_a_second_delivery_means_that_the_first_attempt_failed(small: Dataset) -> None:
    events = small.tables["events"]
    assert events.query("kind == 'attempt_failed'")["parcel_id"].tolist() == ["D000001"]
    assert sorted(events.query("kind == 'delivered'")["parcel_id"]) == ["D000000", "D000001", "D000002"]


def test_nothing_of_a_day_is_known_to_its_decisions(small: Dataset) -> None:
    events = small.tables["events"].merge(small.tables["parcels"], on="parcel_id")
    happened = events["happened_at"].dt.tz_convert(small.settings.timezone)
    decided = events["packed_at"].dt.tz_convert(small.settings.timezone)
    assert (happened > decided).all()
    assert (happened.dt.normalize() == decided.dt.normalize()).all(), "and the next day may know it"
    # Days of knowledge are counted in UTC: both times must fall on the same one.
    assert (events["happened_at"].dt.normalize() == events["packed_at"].dt.normalize()).all()


def test_what_was_not_weighed_has_no_weight(small: Dataset) -> None:
    assert small.tables["parcels"]["weight_g"].fillna(-1).tolist() == [1200, -1, -1]


def test_signals_nobody_foresaw_are_kept_and_leaks_are_not(small: Dataset) -> None:
    assert [e.column for e in small.settings.extra] == ["volume", "h1", "h2"]
    assert {"volume", "h1", "h2"} <= set(small.tables["parcels"])
    for table in small.tables.values():
        assert not {"slot", "tdelta", "auto", "redeliv"} & set(table.columns)


def test_without_arguments_the_script_says_how_to_call_it() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "SRC OUT" in done.stderr


@pytest.mark.shared_data
@pytest.mark.skipif(
    not PUBLISHED.exists(),
    reason="the Changshu deliveries are not beside the project (benchmarks/changshu/README.md names their source)",
)
def test_the_whole_file(tmp_path: Path) -> None:
    data = prepare(PUBLISHED, tmp_path / "out")
    kinds = data.tables["events"]["kind"].value_counts()
    assert len(data.tables["orders"]) == kinds["delivered"] == 154_488 - 53
    assert kinds["attempt_failed"] == 6_537 - 26
    assert data.tables["orders"]["customer_id"].nunique() == 3_788
