"""The matrix: exact columns and types, whatever tables there are, in whatever parts it is computed."""

import dataclasses
import gc
import re
import weakref

import numpy as np
import pandas as pd
import pytest
from oracles.dataset import shop

from features.arrays import columns
from features.contracts import TABLES
from features.dataset import Dataset
from features.definitions import FEATURES
from features.feature import Feature
from features.matrix import (
    RELATED,
    FeatureSet,
    build,
    catalogue,
    chunks,
    depending,
    fingerprint,
    inputs,
    values,
    whole,
)
from features.rows import Level, Rows
from features.settings import Settings
from features.snapshot import Facts, Snapshot
from features.vocabulary import TARGETS


def everything(unit: str, settings: Settings) -> FeatureSet:
    chosen = (f for f in catalogue(settings).values() if unit == "line" or f.level == "parcel" or f.aggregate)
    return FeatureSet(unit, tuple(chosen))


def one(feature: Feature, rows: Rows, unit: str = "parcel") -> list[float]:
    return values(rows, FeatureSet(unit, (feature,)))[:, 0].tolist()


def planted(compute, level: str = "parcel", aggregate: str | None = None) -> Feature:
    return Feature("planted", level, "order", "Planted", "Planted.", compute, aggregate=aggregate)


@pytest.mark.parametrize("unit", ["parcel", "line"])
def test_the_frame_has_the_features_as_float32_columns_and_the_ids_as_index(unit: str) -> None:
    facts = Facts.of(shop(0))
    features = everything(unit, facts.snapshot.settings)

    frame = build(facts.rows, features)

    assert list(frame.columns) == features.names
    assert set(frame.dtypes) == {np.dtype("float32")}
    assert frame.index.name == f"{unit}_id"
    assert list(frame.index) == list(facts.rows.parcel_id if unit == "parcel" else facts.rows.line_id)
    assert not np.isinf(frame.to_numpy()).any()
    np.testing.assert_array_equal(frame.to_numpy(), values(facts.rows, features))


def test_every_feature_takes_several_values_somewhere() -> None:
    """One that never does tells nothing, and the other tests would pass over it."""
    facts = Facts.of(shop(0))
    lines = build(facts.rows, everything("line", facts.snapshot.settings))
    parcels = build(facts.rows, everything("parcel", facts.snapshot.settings))

    for name in lines.columns:
        kinds = lines[name].nunique(dropna=True)
        if name in parcels:
            kinds = max(kinds, parcels[name].nunique(dropna=True))
        assert kinds > 1, name


@pytest.mark.parametrize(
    "keep",
    [
        {"orders": ("order_id", "ordered_at")},
        {"orders": TABLES["orders"].names},
        {"orders": ("order_id", "ordered_at"), "parcels": ("parcel_id", "order_id")},
        {"orders": ("order_id", "ordered_at"), "order_lines": ("line_id", "order_id", "sku")},
        {
            "orders": ("order_id", "ordered_at"),
            "parcels": ("parcel_id", "order_id"),
            "events": ("parcel_id", "kind", "happened_at"),
        },
        {"orders": ("order_id", "ordered_at"), "listings": ("sku",), "returns": ("line_id", "requested_at")},
    ],
)
def test_every_feature_is_computed_on_whatever_tables_and_columns_there_are(keep: dict[str, tuple[str, ...]]) -> None:
    whole_shop = shop(1, 30, extras=False)
    dataset = Dataset(
        Settings(),
        {n: whole_shop.tables[n][[c for c in TABLES[n].names if c in columns]] for n, columns in keep.items()},
    )
    facts = Facts.of(dataset)

    for unit, n in (("parcel", facts.rows.parcels.n), ("line", len(dataset.tables.get("order_lines", ())))):
        matrix = values(facts.rows, everything(unit, dataset.settings))
        assert matrix.shape == (n, len(everything(unit, dataset.settings).features))
        assert not np.isinf(matrix).any()
    ordered = build(facts.rows, everything("parcel", dataset.settings))["ordered_weekday"]
    assert ordered.notna().all() and len(ordered) >= 30


@pytest.mark.parametrize("empty", ["order_lines", "parcels", "listings", "events", "returns"])
def test_a_table_without_rows_is_like_one_that_is_not_there(empty: str) -> None:
    dataset = shop(1, 30, extras=False)
    none = Dataset(dataset.settings, {n: f.iloc[:0] if n == empty else f for n, f in dataset.tables.items()})
    absent = Dataset(dataset.settings, {n: f for n, f in dataset.tables.items() if n != empty})

    for unit in ("parcel", "line"):
        features = everything(unit, dataset.settings)
        np.testing.assert_array_equal(values(Facts.of(none).rows, features), values(Facts.of(absent).rows, features))


def test_no_feature_reads_what_was_advised_and_no_snapshot_holds_it() -> None:
    dataset = shop(1, 60, extras=False)
    parcels = dataset.tables["parcels"]
    advised = pd.DataFrame(
        {
            "decision_id": parcels["parcel_id"],
            "parcel_id": parcels["parcel_id"],
            "decided_at": parcels["packed_at"],
            "action": ["add_fill", "package:box"] * (len(parcels) // 2) + ["add_fill"] * (len(parcels) % 2),
            "arm": "act",
        }
    )
    end = parcels["packed_at"].max()
    plain = Facts.of(dataset, end)
    told = Facts.of(Dataset(dataset.settings, dataset.tables | {"decisions": advised}), end)

    for unit in ("parcel", "line"):
        features = everything(unit, dataset.settings)
        np.testing.assert_array_equal(values(told.rows, features), values(plain.rows, features))
    assert told.snapshot.codes == plain.snapshot.codes


def test_no_rows_at_all_make_an_empty_matrix() -> None:
    snapshot = Snapshot.from_dataset(shop(1, 30))
    for unit in ("parcel", "line"):
        features = everything(unit, snapshot.settings)
        assert values(Rows({}, snapshot), features).shape == (0, len(features.features))


@pytest.mark.parametrize("parcels", [5, 1000])
def test_in_parts_every_row_has_the_values_it_has_in_the_whole(parcels: int) -> None:
    dataset = shop(2)
    some = dataset.tables["parcels"].iloc[::2].reset_index(drop=True)
    facts = Facts.of(Dataset(dataset.settings, {**dataset.tables, "parcels": some}))
    assert None in facts.rows.parcel_id and -1 in facts.rows.line_parcel  # orders without parcel, lines of none
    for unit in ("parcel", "line"):
        features = everything(unit, facts.snapshot.settings)
        expected = values(facts.rows, features)
        found = np.full_like(expected, -1.0)
        seen = np.zeros(len(expected), dtype=int)
        for rows, parcel, line in chunks(facts, parcels):
            at = parcel if unit == "parcel" else line
            found[at] = values(rows, features)
            seen[at] += 1
        assert (seen == 1).all()
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(whole(facts, features), expected)


@pytest.mark.parametrize("asked_before", [False, True])
def test_as_if_a_column_had_been_otherwise_is_the_same_tables_with_that_column(asked_before: bool) -> None:
    facts = Facts.of(shop(2))
    names = {"carrier": "package_type", "service": "node", "pickup_cutoff_at": "packed_at"}  # any other values will do
    at = np.flatnonzero(facts.rows.parcel_id != None)[[5, 2, 2, 9, 0]]  # noqa: E711
    source = [facts.rows.parcels["parcels", other][::-1][at] for other in names.values()]
    instead = dict(zip(names, source, strict=True))
    sets = {unit: everything(unit, facts.snapshot.settings) for unit in ("parcel", "line")}
    if asked_before:
        for unit in sets:
            values(facts.rows, sets[unit])
    rows, lines = facts.rows.as_if(at, instead)
    changed = [f"parcels.{name}" for name in names]
    for m, parcel in enumerate(at):
        mine = dict(facts.tables["parcels"])
        row = facts.tables["parcels"]["parcel_id"].tolist().index(facts.rows.parcel_id[parcel])
        for name, new in instead.items():
            mine[name] = mine[name].copy()
            mine[name][row] = new[m]
        plain = Rows({**facts.tables, "parcels": mine}, facts.snapshot)
        np.testing.assert_array_equal(values(rows, sets["parcel"])[m], values(plain, sets["parcel"])[parcel])
        own = np.flatnonzero(rows.line_parcel == m)
        assert {*rows.line_id[own]} == {*plain.line_id[plain.line_parcel == parcel]}
        np.testing.assert_array_equal(values(rows, sets["line"])[own], values(plain, sets["line"])[lines[own]])
        # What cannot depend on the columns has not changed.
        still = ~depending(sets["parcel"], changed, facts.snapshot.settings)
        assert 0 < still.sum() < len(still)
        before = values(facts.rows, sets["parcel"])[parcel]
        np.testing.assert_array_equal(values(plain, sets["parcel"])[parcel][still], before[still])


def test_what_was_computed_of_a_part_is_gone_when_the_next_one_is_asked_for() -> None:
    parts = chunks(Facts.of(shop(2)), 20)
    gc.disable()
    try:
        rows, _, _ = next(parts)
        computed = [weakref.ref(rows.parcels["orders", "order_value"]), weakref.ref(rows.lines.lookup("sku"))]
        assert all(kept() is not None for kept in computed)
        next(parts)
        assert all(kept() is None for kept in computed)
    finally:
        gc.enable()


def test_no_value_depends_on_which_features_were_computed_before() -> None:
    facts = Facts.of(shop(2))
    for unit in ("parcel", "line"):
        features = everything(unit, facts.snapshot.settings)
        backwards = FeatureSet(unit, features.features[::-1])
        expected = values(facts.rows, features)
        found = values(Rows(facts.tables, facts.snapshot), backwards)[:, ::-1]
        np.testing.assert_array_equal(found, expected)


def test_the_order_of_the_rows_in_the_files_changes_no_value() -> None:
    dataset = shop(3)
    shuffled = Dataset(
        dataset.settings,
        {n: f.sample(frac=1, random_state=1).reset_index(drop=True) for n, f in dataset.tables.items()},
    )
    for unit in ("parcel", "line"):
        features = everything(unit, dataset.settings)
        expected, found = (build(Facts.of(d).rows, features) for d in (dataset, shuffled))
        named = [i for i in expected.index if i is not None]
        # Sums over a parcel's lines may be added in another order.
        pd.testing.assert_frame_equal(found.loc[named], expected.loc[named], rtol=1e-6)


def test_a_parcels_value_holds_for_its_lines_and_its_lines_are_summarised_for_it() -> None:
    facts = Facts.of(shop(4))
    rows = facts.rows
    lines = build(rows, FeatureSet("line", (FEATURES["parcel_weight"], FEATURES["quantity"])))
    parcels = build(rows, FeatureSet("parcel", (FEATURES["parcel_weight"], FEATURES["quantity"])))

    for i, parcel in enumerate(rows.line_parcel):
        expected = parcels["parcel_weight"].iloc[parcel] if parcel >= 0 else np.nan
        np.testing.assert_equal(lines["parcel_weight"].iloc[i], expected)
    for p in range(rows.parcels.n):
        pieces = lines["quantity"].to_numpy()[rows.line_parcel == p]
        pieces = pieces[~np.isnan(pieces)]
        np.testing.assert_equal(
            parcels["quantity"].iloc[p], np.float32(pieces.sum()) if len(pieces) else np.float32(np.nan)
        )


def test_what_float32_cannot_hold_is_not_known() -> None:
    rows = Facts.of(shop(0, 10)).rows
    for absurd in (1e300, -1e300, np.inf):
        assert np.isnan(one(planted(lambda level, v=absurd: np.full(level.n, v)), rows)).all()


def test_a_feature_of_lines_only_cannot_describe_a_parcel() -> None:
    rows = Facts.of(shop(0, 10)).rows
    with pytest.raises(ValueError, match="planted is of order lines only"):
        one(planted(lambda level: np.ones(level.n), "line"), rows)


def test_a_feature_is_computed_once_however_often_it_is_asked_for() -> None:
    rows, calls = Facts.of(shop(0, 10)).rows, []

    def counted(level: Level) -> np.ndarray:
        calls.append(level.name)
        return np.ones(level.n)

    feature = planted(counted, "line", "sum")
    for unit in ("line", "parcel", "line"):
        one(feature, rows, unit)

    assert calls == ["line"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_told_of_related_outcomes_only_and_by_name_as_well(target: str) -> None:
    settings = shop(0, 5).settings
    features = FeatureSet.for_target(target, settings)

    assert features.unit == TARGETS[target].unit
    assert {f.about for f in features.features} <= {"", *RELATED[target]}
    assert any(f.about == target for f in features.features)
    assert (
        FeatureSet.named(features.unit, features.names, settings) == features
        or [f.name for f in FeatureSet.named(features.unit, features.names, settings).features] == features.names
    )
    assert FeatureSet.union([features, features]).names == features.names


def test_an_unknown_feature_is_named() -> None:
    with pytest.raises(ValueError, match="unknown features late_rate_moon"):
        FeatureSet.named("parcel", ["promise_days", "late_rate_moon"], Settings())


def test_inputs_are_the_raw_columns_that_are_read() -> None:
    features = FeatureSet.named("parcel", ["pickup_slack_hours", "fill_share", "late_rate_lane_28d"], Settings())

    assert inputs(features, Settings()) == [
        "listings.height_mm",
        "listings.length_mm",
        "listings.width_mm",
        "order_lines.quantity",
        "order_lines.sku",
        "orders.destination_country",
        "orders.destination_region",
        "parcels.carrier",
        "parcels.package_height_mm",
        "parcels.package_length_mm",
        "parcels.package_width_mm",
        "parcels.packed_at",
        "parcels.pickup_cutoff_at",
        "parcels.service",
    ]


@pytest.mark.parametrize("unit", ["parcel", "line"])
def test_the_fingerprint_knows_every_feature_by_what_it_computes(unit: str) -> None:
    """Each feature is replaced by one that is a little different, and the fingerprint must change."""
    settings = shop(0, 5).settings
    features = everything(unit, settings)
    original = fingerprint(features, settings)

    assert fingerprint(features, settings) == original
    for i in range(0, len(features.features), 40):
        f = features.features[i]
        for other in (
            dataclasses.replace(f, compute=lambda rows, f=f: f.compute(rows) * 1.01 + 0.001),
            dataclasses.replace(f, team="packing" if f.team != "packing" else "order"),
            dataclasses.replace(f, name=f"{f.name}_"),
        ):
            changed = FeatureSet(unit, (*features.features[:i], other, *features.features[i + 1 :]))
            assert fingerprint(changed, settings) != original, f.name
    better_words = dataclasses.replace(features.features[0], text="other words", help="other words")
    assert fingerprint(FeatureSet(unit, (better_words, *features.features[1:])), settings) == original


@pytest.mark.parametrize("name", [n for n in FEATURES if re.search(r"_rate_.*_\d+d$", n)][::3])
def test_the_fingerprint_knows_the_window_of_a_rate(name: str) -> None:
    outcome, rest = name.split("_rate_")
    entity, days = rest.rsplit("_", 1)
    f, window = FEATURES[name], int(days[:-1])

    def half(rows: Level) -> np.ndarray:
        return rows.lookup(entity).rate(outcome, window // 2, 5)

    def honest(rows: Level) -> np.ndarray:
        return rows.lookup(entity).rate(outcome, window, 5)

    original, shorter = (
        fingerprint(FeatureSet(f.level, (dataclasses.replace(f, compute=c),)), Settings()) for c in (honest, half)
    )
    assert shorter != original


def test_settings_that_do_not_touch_the_features_keep_the_fingerprint() -> None:
    features = everything("parcel", Settings())

    assert fingerprint(features, Settings(name="other", currency="IDR")) == fingerprint(features, Settings())
    assert fingerprint(features, Settings(timezone="Asia/Jakarta")) != fingerprint(features, Settings())


def test_one_request_reads_no_table_but_its_own() -> None:
    """Events and returns in the tables of a request are nothing: what happened comes through history alone."""
    dataset = shop(5, extras=False)
    facts = Facts.of(dataset)
    tables = columns(dataset.tables)
    without = {n: t for n, t in tables.items() if n not in ("events", "returns")}
    features = everything("parcel", dataset.settings)

    np.testing.assert_array_equal(
        values(Rows(without, facts.snapshot), features), values(Rows(tables, facts.snapshot), features)
    )
