"""Slices say what their names say, on whatever columns there are, and know nothing of the rows they are used on."""

import numpy as np
import pandas as pd
import pytest
from oracles.dataset import shop

from features import Dataset
from features.settings import Settings
from features.snapshot import Facts
from training.evaluate.slices import meaning, slices
from training.world import Scenario


@pytest.fixture(scope="module")
def facts(world_dataset):
    return Facts.of(Dataset.open(world_dataset))


AT = np.datetime64("2025-09-20", "us")


@pytest.mark.parametrize("unit", ["parcel", "line"])
def test_a_frame_of_flags_with_names_that_mean_something(facts, unit):
    found = slices(facts, unit, AT)
    level = facts.rows.parcels if unit == "parcel" else facts.rows.lines
    assert len(found) == level.n
    assert all(kind is np.dtype(bool) for kind in found.dtypes)
    assert list(found)[:6] == ["new product", "new lane", "peak", "value: low", "value: middle", "value: high"]
    assert list(found)[-1] == "other regions"
    assert all(meaning(name) for name in found)
    some = np.array([5, 3, 900])
    pd.testing.assert_frame_equal(slices(facts, unit, AT, some), found.iloc[some].reset_index(drop=True))


def test_a_peak_is_found_where_the_scenario_put_it(facts):
    day = facts.rows.parcels.decided_at.astype("datetime64[D]")
    peak = slices(facts, "parcel", AT)["peak"].to_numpy()
    true = np.zeros(len(day), dtype=bool)
    for first, last, _ in Scenario().calendar.peaks:
        true |= (day >= np.datetime64(first)) & (day <= np.datetime64(last))
    assert (peak & true).sum() > 0.8 * true.sum()
    assert (peak & true).sum() > 0.8 * peak.sum()


def test_each_value_tier_holds_a_third_of_what_was_decided_before(facts):
    found = slices(facts, "parcel", AT)
    before = (facts.rows.parcels.decided_at < AT) & facts.rows.first_of_order
    tiers = found[[c for c in found if c.startswith("value")]]
    assert (tiers.sum(axis=1) == 1).all()
    assert tiers[before].mean().to_numpy() == pytest.approx(np.full(3, 1 / 3), abs=0.02)
    value = facts.rows.parcels["orders", "order_value"]
    assert value[tiers["value: low"]].max() < value[tiers["value: high"]].min()


def test_every_region_is_in_one_slice_and_the_named_ones_are_the_largest(facts):
    found = slices(facts, "line", AT)
    regions = found[[c for c in found if "region" in c]]
    assert (regions.sum(axis=1) == 1).all()
    before = facts.rows.parcels.decided_at < AT
    largest = pd.Series(facts.rows.parcels["orders", "destination_region"][before]).value_counts()
    assert [c.removeprefix("region: ") for c in regions][:-1] == list(largest.index[: len(regions.columns) - 1])


def test_a_new_product_or_lane_is_one_with_little_behind_it(facts):
    parcels, lines = facts.rows.parcels, facts.rows.lines
    found = slices(facts, "parcel", AT)
    lane = pd.Series(list(zip(*(parcels[t, c] for t, c in _LANE), strict=True)))
    before = lane[parcels.decided_at < AT].value_counts()
    assert (found["new lane"].to_numpy() == (lane.map(before).fillna(0) < 50).to_numpy()).all()

    new = slices(facts, "line", AT)["new product"].to_numpy()
    listed = pd.Series(facts.tables["listings"]["known_at"]).groupby(facts.tables["listings"]["sku"]).min()
    first = listed.reindex(lines["order_lines", "sku"]).to_numpy()
    assert (lines.decided_at[new] - first[new]).max() < np.timedelta64(30, "D")
    assert 0 < new.sum() < 0.1 * len(new)
    with_new = pd.Series(new).groupby(facts.rows.line_parcel).any()
    assert (found["new product"][with_new.index].to_numpy() == with_new.to_numpy()).all()


_LANE = (
    ("parcels", "carrier"),
    ("parcels", "service"),
    ("orders", "destination_country"),
    ("orders", "destination_region"),
)


@pytest.mark.parametrize("unit", ["parcel", "line"])
def test_later_rows_cannot_change_the_slice_of_an_earlier_one(facts, world_dataset, unit):
    """What counts as a high value, a large region or a new lane is settled before the holdout begins."""
    earlier = Facts.of(Dataset.open(world_dataset), np.datetime64("2025-11-01", "us"))
    found = []
    for f in (facts, earlier):
        packed = ~np.equal(f.rows.parcel_id, None)
        packed = packed if unit == "parcel" else packed[f.rows.line_parcel] & (f.rows.line_parcel >= 0)
        ids = f.rows.parcel_id if unit == "parcel" else f.rows.line_id
        frame = slices(f, unit, AT).set_axis(pd.Index(ids, dtype=object))
        # A week is a peak beside the weeks around it, also those after it.
        found.append(frame[packed].drop(columns="peak"))
    assert len(found[1]) > 5_000
    pd.testing.assert_frame_equal(found[0].loc[found[1].index], found[1])


def test_what_the_shop_does_not_bring_is_no_slice():
    without = ("orders.destination_region", "orders.order_value", "parcels.carrier", "listings")
    found = slices(Facts.of(shop(0, without=without)), "parcel", np.datetime64("2024-05-01", "us"))
    assert list(found) == ["new product", "peak"]
    short = shop(0, without=("orders.destination_region",))
    assert "new lane" in slices(Facts.of(short), "line", np.datetime64("2024-05-01", "us"))


def test_in_the_first_days_of_an_extract_no_product_is_new_for_having_been_sold_first():
    start = pd.Timestamp("2025-01-01", tz="UTC")
    times = start + pd.to_timedelta([0, 20, 40, 50, 100], unit="D")
    names = [f"o{i}" for i in range(5)]
    tables = {
        "orders": pd.DataFrame({"order_id": names, "ordered_at": times}),
        "order_lines": pd.DataFrame(
            {"line_id": [f"l{i}" for i in range(5)], "order_id": names, "sku": ["a", "b", "c", "c", "c"]}
        ),
    }
    facts = Facts.of(Dataset.from_frames(tables, Settings(extracted_at=start + pd.Timedelta(days=200))))
    found = slices(facts, "line", np.datetime64("2025-02-01", "us"))
    assert found["new product"].tolist() == [False, False, True, True, False]
    assert list(slices(facts, "parcel", np.datetime64("2025-02-01", "us"))) == ["new product", "peak"]


def test_an_unknown_slice_has_no_meaning():
    with pytest.raises(KeyError):
        meaning("region: ")
