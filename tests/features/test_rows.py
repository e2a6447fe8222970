"""The join, and the small tools it stands on: stable codes, lookups, wall-clock time, listings as of a moment."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import SMALL, absent, columns, combine, hash_codes, hours_between, local, match, take, utc
from features.dataset import Dataset
from features.listings import Listings
from features.rows import Rows
from features.settings import Extra, Settings
from features.snapshot import Snapshot

NOON = pd.Timestamp("2024-05-01 12:00", tz="UTC")
NAT = np.datetime64("NaT", "us")

text = st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["a", "b", "c"]))
quick = settings(max_examples=100, deadline=None, derandomize=True)


def objects(values: list) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def hours(n: float) -> pd.Timestamp:
    return NOON + pd.Timedelta(hours=n)


# Arrays.


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"])
@given(st.integers(0, 365 * 24 * 60))
@quick
def test_a_wall_clock_is_read_back(zone: str, minutes: int) -> None:
    moment = np.array([np.datetime64("2025-01-01", "us") + np.timedelta64(minutes, "m")])
    shown = local(moment, zone)
    assert local(utc(shown, zone), zone) == shown  # of an hour shown twice, either will do
    assert np.isnat(utc(np.array([NAT]), zone)).all()


@given(st.lists(text, max_size=8), st.lists(text, max_size=8), st.booleans())
@quick
def test_match_finds_the_first_place_of_each_needle_and_nothing_for_the_missing(
    needles: list, hay: list, large: bool
) -> None:
    if large:  # the other of the two ways it is done
        hay = hay + [f"unique {i}" for i in range(SMALL + 1)]

    found = match(objects(needles), objects(hay))

    assert found.tolist() == [hay.index(n) if n is not None and n in hay else -1 for n in needles]


@given(st.lists(text, min_size=1, max_size=6))
@quick
def test_codes_of_text_are_the_same_among_few_and_among_many(values: list) -> None:
    few = hash_codes(objects(values))
    many = hash_codes(objects(values * (SMALL + 1)))

    np.testing.assert_array_equal(many, np.tile(few, SMALL + 1))
    assert [c == 0 for c in few] == [v is None for v in values]
    assert len(set(few.tolist())) == len(set(values))


def test_codes_of_text_are_the_same_on_every_machine_for_ever() -> None:
    """Snapshots hold these numbers: if one changes, every history must be counted again (raise its PROTOCOL)."""
    codes = hash_codes(objects(["JNE", "Reguler", "Jawa Barat", "", "ß ü 日本", None]))

    assert codes.tolist() == [
        18344459710597500149,
        8144690419392484564,
        6225650785746677658,
        13020603013274838756,
        2572986695989667433,
        0,
    ]
    assert combine(codes[:1], codes[1:2], codes[2:3]).tolist() == [15217255970801209991]
    assert codes.dtype == np.uint64


def test_numbers_used_as_codes_and_missing_ones() -> None:
    few = np.array([1.0, 2.0, np.nan])

    assert hash_codes(few)[2] == 0
    np.testing.assert_array_equal(hash_codes(np.tile(few, 40)), np.tile(hash_codes(few), 40))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@quick
def test_a_combination_is_known_where_all_its_parts_are_and_differs_where_any_part_does(parts: list) -> None:
    codes = [hash_codes(objects([None if p == 0 else f"{p}" for p in column])) for column in zip(*parts, strict=True)]

    found = combine(*codes)

    assert [c == 0 for c in found] == [0 in p for p in parts]
    whole = {p: c for p, c in zip(parts, found.tolist(), strict=True) if 0 not in p}
    assert len(set(whole.values())) == len(whole)  # also (1, 2, 3) and (3, 2, 1)


def test_take_puts_missing_where_there_is_no_place() -> None:
    assert take(np.array([1.0, 2.0]), np.array([1, -1]), -9.0).tolist() == [2.0, -9.0]
    assert take(np.empty(0), np.array([-1, -1]), -9.0).tolist() == [-9.0, -9.0]
    assert take(np.array([1.0]), np.empty(0, dtype=np.int64), -9.0).tolist() == []


def test_absent_and_hours_between() -> None:
    assert absent(objects(["", None, "x"])).tolist() == [False, True, False]
    start = np.array(["2024-05-01T10:00", "2024-05-01T10:00", "NaT"], dtype="datetime64[us]")
    end = np.array(["2024-05-01T11:30", "NaT", "2024-05-01T11:30"], dtype="datetime64[us]")
    np.testing.assert_array_equal(hours_between(start, end), [1.5, np.nan, np.nan])


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Jakarta",
    "Asia/Kolkata",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
)


@pytest.mark.parametrize("zone", ZONES)
def test_local_time_is_that_of_the_zone_and_to_the_minute_where_clocks_change(zone: str) -> None:
    chance, tz = random.Random(0), ZoneInfo(zone)
    start, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(2039, 12, 31, tzinfo=UTC)
    moments = [start + timedelta(seconds=chance.randrange(int((end - start).total_seconds()))) for _ in range(300)]
    at = datetime(2024, 1, 1, tzinfo=UTC)
    while at < datetime(2025, 1, 1, tzinfo=UTC):
        after = at + timedelta(minutes=30)
        if at.astimezone(tz).utcoffset() != after.astimezone(tz).utcoffset():
            moments += [at + timedelta(minutes=m, seconds=s) for m in range(-1, 32) for s in (0, 59)]
        at = after
    utc = np.array([m.replace(tzinfo=None) for m in moments] + ["NaT"], dtype="datetime64[us]")

    found = local(utc, zone)

    expected = [np.datetime64(m.astimezone(tz).replace(tzinfo=None), "us") for m in moments]
    np.testing.assert_array_equal(found[:-1], np.array(expected))
    assert np.isnat(found[-1])


# Listings.


@st.composite
def listings_and_questions(draw: st.DrawFn):
    time = st.one_of(st.none(), st.integers(0, 9), st.integers(0, 9).map(lambda s: s + 0.5))
    versions = draw(st.lists(st.tuples(st.one_of(st.none(), st.sampled_from("abc")), time), max_size=10, unique=True))
    questions = draw(st.lists(st.tuples(st.one_of(st.none(), st.sampled_from("abcd")), time), min_size=1, max_size=8))
    return versions, questions


def seconds(values: list[float | None]) -> np.ndarray:
    base = np.datetime64("2024-05-01", "us")
    return np.array(
        [NAT if v is None else base + np.timedelta64(int(v * 1e6), "us") for v in values], dtype="datetime64[us]"
    )


@given(listings_and_questions())
@quick
def test_a_listing_is_the_latest_version_known_before_the_second(asked) -> None:
    versions, questions = asked
    table = {
        "sku": objects([sku for sku, _ in versions]),
        "known_at": seconds([at for _, at in versions]),
        "number": np.arange(len(versions), dtype=float),
    }
    listings = Listings.from_columns(table)

    found = listings.find(hash_codes(objects([sku for sku, _ in questions])), seconds([at for _, at in questions]))

    for (sku, at), place in zip(questions, found.tolist(), strict=True):
        fits = [
            (-1.0 if known is None else known, i)
            for i, (s, known) in enumerate(versions)
            if s is not None and s == sku and at is not None and (known is None or int(known) < int(at))
        ]
        assert (listings.columns["number"][place] if place >= 0 else None) == (float(max(fits)[1]) if fits else None)


def test_listings_of_a_snapshot_hold_no_version_known_later() -> None:
    table = {"sku": objects(["a", "a", "b"]), "known_at": seconds([1, 5, None]), "rating": np.array([1.0, 2.0, 3.0])}

    kept = Listings.from_columns(table, before=seconds([5])[0])

    assert kept.columns["rating"].tolist() == [1.0, 3.0]
    assert Listings.from_columns({"sku": objects(["a"]), "rating": np.array([4.0])}).n == 1  # known_at may be absent
    assert Listings.from_columns({"sku": objects([])}).find(hash_codes(objects(["a"])), seconds([1])).tolist() == [-1]


# The join.


def rows(
    frames: dict[str, pd.DataFrame], settings: Settings | None = None, listings: pd.DataFrame | None = None
) -> Rows:
    """Rows of frames; the snapshot knows `listings`, the frames may bring others."""
    dataset = Dataset.from_frames(frames, settings)
    known = (
        {}
        if listings is None
        else columns(Dataset.from_frames({"orders": frames["orders"], "listings": listings}, settings).tables)
    )
    end = np.datetime64("2030-01-01", "us")
    return Rows(columns(dataset.tables), Snapshot.empty(dataset.settings, end, known))


def test_orders_without_parcels_have_a_row_and_lines_find_their_parcel() -> None:
    joined = rows(
        {
            "orders": pd.DataFrame(
                {
                    "order_id": ["o1", "o2", "o3"],
                    "ordered_at": [hours(0), hours(1), hours(2)],
                    "customer_id": ["x", "y", "z"],
                }
            ),
            "parcels": pd.DataFrame(
                {
                    "parcel_id": ["late", "early", "p2", "stray"],
                    "order_id": ["o1", "o1", "o2", "o9"],
                    "packed_at": [hours(9), hours(5), pd.NaT, hours(7)],
                }
            ),
            "order_lines": pd.DataFrame(
                {
                    "line_id": ["named", "unnamed", "unknown", "only", "bare", "lost"],
                    "order_id": ["o1", "o1", "o1", "o2", "o3", "o9"],
                    "parcel_id": ["late", None, "not yet known", None, "not yet known", None],
                    "sku": ["u"] * 6,
                }
            ),
        }
    )

    assert joined.parcel_id.tolist() == ["late", "early", "p2", "stray", None]
    assert joined.order_id.tolist() == ["o1", "o1", "o2", None, "o3"]
    # Packing decides, else the order.
    assert joined.parcels.decided_at.tolist() == [
        t.tz_localize(None) for t in (hours(9), hours(5), hours(1), hours(7), hours(2))
    ]
    # A line goes with the parcel it names; else with the one of its order that was packed first; else with the order.
    assert [joined.parcel_id[i] if i >= 0 else "-" for i in joined.line_parcel] == [
        "late",
        "early",
        "-",
        "p2",
        None,
        "-",
    ]
    assert joined.first_of_order.tolist() == [False, True, True, False, True]
    assert joined.lines["orders", "customer_id"].tolist() == ["x", "x", None, "y", "z", None]
    assert np.isnat(joined.lines.decided_at).tolist() == [False, False, True, False, False, True]


def test_a_column_that_was_not_given_is_missing_and_a_parcel_has_no_single_sku() -> None:
    joined = rows({"orders": pd.DataFrame({"order_id": ["o"], "ordered_at": [hours(0)]})})

    assert joined.parcels["parcels", "carrier"].tolist() == [None]
    assert np.isnan(joined.parcels["orders", "order_value"]).all()
    assert np.isnat(joined.parcels["orders", "promised_to"]).all()
    assert joined.lines["order_lines", "sku"].tolist() == []
    with pytest.raises(KeyError, match="use the level of lines"):
        joined.parcels["order_lines", "sku"]


def test_an_extra_column_is_known_from_its_own_time_and_else_with_its_row() -> None:
    extra = (
        Extra("parcels", "scan", "number", "packing", known_at="scan_at"),
        Extra("parcels", "dock", "code", "packing", known_at="packed_at"),
    )
    joined = rows(
        {
            "orders": pd.DataFrame({"order_id": ["o"], "ordered_at": [hours(-9)]}),
            "parcels": pd.DataFrame(
                {
                    "parcel_id": ["before", "at", "after", "never"],
                    "order_id": ["o"] * 4,
                    "packed_at": [hours(0)] * 4,
                    "scan": [1.0, 2.0, 3.0, 4.0],
                    "scan_at": [hours(-0.001), hours(0), hours(1), pd.NaT],
                    "dock": ["d"] * 4,
                }
            ),
        },
        Settings(extra=extra),
    )

    np.testing.assert_array_equal(joined.parcels["parcels", "scan"], [1.0, np.nan, np.nan, np.nan])
    assert joined.parcels["parcels", "dock"].tolist() == ["d"] * 4  # packed_at is the row's own time, not a later one


def test_a_given_listing_is_used_for_products_the_snapshot_does_not_know() -> None:
    frames = {
        "orders": pd.DataFrame({"order_id": ["o"], "ordered_at": [hours(0)]}),
        "order_lines": pd.DataFrame(
            {"line_id": ["1", "2", "3"], "order_id": ["o"] * 3, "sku": ["known", "new", "none"]}
        ),
        "listings": pd.DataFrame({"sku": ["known", "new"], "rating": [1.0, 2.0], "brand": ["given", "given"]}),
    }

    joined = rows(frames, listings=pd.DataFrame({"sku": ["known"], "rating": [5.0]}))

    np.testing.assert_array_equal(joined.lines["listings", "rating"], [5.0, 2.0, np.nan])
    assert joined.lines["listings", "brand"].tolist() == [None, "given", None]


def test_values_of_lines_are_summarised_per_parcel() -> None:
    joined = rows(
        {
            "orders": pd.DataFrame({"order_id": ["o1", "o2", "o3"], "ordered_at": [hours(0)] * 3}),
            "order_lines": pd.DataFrame(
                {"line_id": list("abcde"), "order_id": ["o1", "o1", "o1", "o2", "o9"], "sku": ["u"] * 5}
            ),
        }
    )
    given_values = np.array([-3.0, np.nan, -1.0, np.nan, 100.0])

    for how, expected in (("max", -1.0), ("sum", -4.0), ("mean", -2.0)):
        np.testing.assert_array_equal(joined.per_parcel(given_values, how), [expected, np.nan, np.nan])
