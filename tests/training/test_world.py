"""The simulated shop: lawful tables, honest rates, causes with the right sign, and the same shop however large."""

import ast
import itertools
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.contracts import ORDERED_TIMES, TABLES
from features.dataset import Dataset
from features.vocabulary import TEAMS
from training.world import PLANTED_FAULTS, Scenario, generate, meeting
from training.world.decisions import BLOCK, collection, draw
from training.world.equations import causes, risks
from training.world.oracle import PARCEL_TARGETS, Oracle, _shapley, reachable_auc
from training.world.scenario import PACKAGE_TYPES, RETURN_REASONS
from training.world.scenarios import parse, read, scenario, shipped, to_toml
from training.world.shop import open_shop
from training.world.truth import FILES as TRUTH_FILES

ROOT = Path(__file__).resolve().parents[2]
PARCELS = 20_000
SMALL = BLOCK + 1_000
FAULT = {
    "kind": "corridor",
    "words": "slow",
    "where": {"carrier": "alba"},
    "since": date(2025, 3, 1),
    "effect": 0.3,
}
# Nobody has advised this shop or changed its listings.
DRAWN = {name: table for name, table in TABLES.items() if name not in ("decisions", "changes")}
FILES = {"dataset.toml", "truth", *(f"{name}.parquet" for name in DRAWN)}
DAYS = pd.Timedelta(days=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Dataset.open(generate(tmp_path_factory.mktemp("world") / "shop", parcels=PARCELS, seed=0))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("small") / "shop", parcels=SMALL, seed=3)


@pytest.fixture(scope="module")
def parcels(world):
    """Parcels with their order, the time of delivery and the labels that hold in the end."""
    rows = world.tables["parcels"].merge(world.tables["orders"], on="order_id", validate="m:1")
    events = world.tables["events"]
    first = events.sort_values("happened_at").groupby(["kind", "parcel_id"]).happened_at.first()
    for kind in ("handed_over", "delivered", "attempt_failed", "damaged"):
        rows[kind] = rows.parcel_id.map(first[kind])
    rows["is_late"] = ~(rows.delivered <= rows.promised_to)
    rows["is_failed_attempt"] = rows.attempt_failed.notna()
    rows["is_damaged"] = rows.damaged.notna()
    rows["is_undelivered"] = rows.delivered.isna()
    rows["mature"] = rows.packed_at < world.settings.extracted_at - 45 * DAYS
    return rows


@pytest.fixture(scope="module")
def lines(world, parcels):
    """Order lines with their listing, and whether they came back, of parcels delivered long enough ago."""
    rows = world.tables["order_lines"].merge(parcels[["parcel_id", "delivered", "payment_method"]], on="parcel_id")
    products = world.tables["listings"].drop_duplicates("sku", keep="last")
    rows = rows.merge(products, on="sku", validate="m:1")
    rows["is_returned"] = rows.line_id.isin(world.tables["returns"].line_id)
    rows["mature"] = rows.delivered < world.settings.extracted_at - 50 * DAYS
    return rows


@pytest.fixture(scope="module")
def expected(parcels):
    """The same parcels with their true probabilities."""
    return parcels.merge(Oracle(PARCELS).parcels(), on="parcel_id", suffixes=("_seen", ""))


@pytest.fixture(scope="module")
def fragile(world, expected):
    """Fragility of the most fragile thing in each parcel, as listed."""
    products = world.tables["listings"].drop_duplicates("sku", keep="last").set_index("sku").fragility
    lines = world.tables["order_lines"]
    return expected.parcel_id.map(lines.sku.map(products).groupby(lines.parcel_id).max())


class TestTables:
    def test_every_column_of_the_contract_is_there_and_filled(self, world):
        assert set(world.tables) == set(DRAWN)
        for name, table in DRAWN.items():
            frame = world.tables[name]
            assert tuple(frame.columns) == table.names
            assert not [c for c in table.names if frame[c].isna().all()]
            assert not [c for c in table.required if frame[c].isna().any()]

    def test_keys_name_a_row_once_and_references_are_found(self, world):
        for name, table in DRAWN.items():
            frame = world.tables[name]
            if table.key:
                assert not frame.duplicated(list(table.key)).any()
            for reference in table.references:
                assert frame[reference.column].isin(world.tables[reference.table][reference.to]).all()
        assert world.tables["order_lines"].sku.isin(world.tables["listings"].sku).all()

    def test_values_are_within_bounds_and_codes(self, world):
        for name, table in DRAWN.items():
            for column in table.columns:
                values = world.tables[name][column.name].dropna()
                if column.codes:
                    assert set(values) <= set(column.codes)
                if column.kind == "number":
                    assert column.low is None or values.min() >= column.low
                    assert column.high is None or values.max() <= column.high

    def test_times_are_in_their_order(self, world, parcels):
        orders = world.tables["orders"].set_index("order_id")
        order_of_parcel = world.tables["parcels"].set_index("parcel_id").order_id
        order_of_line = world.tables["order_lines"].set_index("line_id").order_id
        keys = {
            "orders": world.tables["orders"].order_id,
            "parcels": world.tables["parcels"].order_id,
            "events": world.tables["events"].parcel_id.map(order_of_parcel),
            "returns": world.tables["returns"].line_id.map(order_of_line),
        }
        for table, before, other, after in ORDERED_TIMES:
            if other not in DRAWN:
                continue
            later = world.tables[other][after]
            earlier = world.tables[table][before] if table == other else keys[other].map(orders[before])
            assert not (earlier > later).any(), (table, before, other, after)
        assert not (parcels.packed_at > parcels.handed_over).any()
        assert not (parcels.handed_over > parcels.delivered).any()

    def test_an_order_is_worth_its_lines(self, world):
        lines = world.tables["order_lines"]
        value = (lines.unit_price * lines.quantity - lines.discount).groupby(lines.order_id).sum()
        orders = world.tables["orders"].set_index("order_id").order_value
        # The last order of a cut may have a parcel that is not in it.
        assert np.allclose(orders[:-1], value[orders.index[:-1]], atol=0.011)

    def test_parcels_hold_one_to_four_lines_and_orders_one_or_two_parcels(self, world):
        assert set(world.tables["order_lines"].groupby("parcel_id").size()) == {1, 2, 3, 4}
        per_order = world.tables["parcels"].groupby("order_id").size()
        assert set(per_order) == {1, 2}
        assert (per_order == 1).mean() > 0.8

    def test_a_listing_was_there_before_its_product_was_sold(self, world):
        first = world.tables["listings"].groupby("sku").known_at.min()
        sold = world.tables["order_lines"].merge(world.tables["orders"], on="order_id")
        assert (sold.sku.map(first) <= sold.ordered_at).all()
        assert (world.tables["listings"].groupby("sku").size() > 1).mean() > 0.5

    def test_nothing_is_known_after_the_extract_was_taken(self, world):
        extracted = world.settings.extracted_at
        assert (world.tables["events"].known_at < extracted).all()
        assert (world.tables["returns"].known_at < extracted).all()
        assert not (world.tables["returns"].inspected_at >= extracted).any()
        assert (world.tables["listings"].known_at < extracted).all()
        assert (world.tables["parcels"].packed_at < extracted).all()

    def test_young_parcels_have_no_outcome_yet(self, world, parcels):
        age = world.settings.extracted_at - parcels.packed_at
        assert parcels.delivered[age < 1 * DAYS].isna().all()
        assert (age < 1 * DAYS).any()
        assert parcels.delivered[age < 5 * DAYS].isna().mean() > 0.4
        assert parcels.delivered[parcels.mature].isna().mean() < 0.03

    def test_some_facts_come_late(self, world):
        delay = world.tables["events"].known_at - world.tables["events"].happened_at
        assert (delay >= pd.Timedelta(0)).all()
        assert 0.01 < (delay > pd.Timedelta(hours=14)).mean() < 0.06

    def test_even_a_small_world_spans_the_year(self, tmp_path):
        tables = Dataset.open(generate(tmp_path / "tiny", parcels=400, seed=1)).tables
        assert len(tables["parcels"]) == 400
        assert set(tables["parcels"].packed_at.dt.month) == set(range(1, 13))

    def test_stated_reasons_are_noisy_and_some_are_inspected(self, world):
        returns = world.tables["returns"]
        assert set(returns.reason.dropna()) == set(RETURN_REASONS)
        both = returns.dropna(subset=["reason", "inspected_reason"])
        assert 0.2 < len(both) / len(returns) < 0.5
        assert 0.6 < (both.reason == both.inspected_reason).mean() < 0.85

    def test_a_few_returns_come_after_the_window(self, world, lines):
        returns = world.tables["returns"].merge(lines[["line_id", "delivered"]], on="line_id")
        days = (returns.requested_at - returns.delivered) / DAYS
        # A return may be known before the scan of its delivery is.
        assert days.isna().mean() < 0.001
        assert (days.dropna() > 0).all()
        assert 0.005 < (days > world.settings.return_window_days).mean() < 0.04


class TestSameShop:
    def test_same_seed_same_bytes(self, small, tmp_path):
        again = generate(tmp_path / "again", parcels=SMALL, seed=3)
        other = generate(tmp_path / "other", parcels=SMALL, seed=4)
        assert {p.name for p in again.iterdir()} == FILES
        for name in FILES - {"truth"} | {f"truth/{name}" for name in TRUTH_FILES}:
            assert (small / name).read_bytes() == (again / name).read_bytes()
        assert (small / "parcels.parquet").read_bytes() != (other / "parcels.parquet").read_bytes()

    @pytest.mark.parametrize("more", [SMALL + 1, 2 * BLOCK + 700])
    def test_the_first_parcels_do_not_depend_on_how_many_follow(self, small, tmp_path, more):
        few, many = Dataset.open(small).tables, Dataset.open(generate(tmp_path / "more", parcels=more, seed=3)).tables
        pd.testing.assert_frame_equal(few["listings"], many["listings"])
        keep = {"parcels": few["parcels"].parcel_id, "orders": few["orders"].order_id}
        for name, ids in keep.items():
            rows = many[name][many[name][f"{name[:-1]}_id"].isin(ids)]
            pd.testing.assert_frame_equal(few[name], rows.reset_index(drop=True))
        for name in ("order_lines", "events"):
            rows = many[name][many[name].parcel_id.isin(few["parcels"].parcel_id)]
            pd.testing.assert_frame_equal(few[name], rows.reset_index(drop=True))
        rows = many["returns"][many["returns"].line_id.isin(few["order_lines"].line_id)]
        pd.testing.assert_frame_equal(few["returns"], rows.reset_index(drop=True))

    def test_the_truth_has_the_rows_of_the_tables(self, small):
        tables = Dataset.open(small).tables
        assert list(Oracle(SMALL, 3).parcels().parcel_id) == list(tables["parcels"].parcel_id)
        own = Oracle(SMALL, 3).lines()
        assert list(own.line_id) == list(tables["order_lines"].line_id)
        assert list(own.parcel_id) == list(tables["order_lines"].parcel_id)
        pd.testing.assert_frame_equal(Oracle(50, 3).parcels(), Oracle(SMALL, 3).parcels().head(50))

    def test_progress_after_every_block(self, tmp_path):
        seen = []
        generate(tmp_path / "w", parcels=SMALL, progress=seen.append)
        assert seen == ["5,000 of 6,000 parcels", "6,000 of 6,000 parcels"]


class TestRates:
    @pytest.mark.parametrize("seed", [0, 1, 2, 7])
    def test_base_rates_are_those_of_the_trade(self, seed):
        rate = Oracle(PARCELS, seed).parcels()[list(PARCEL_TARGETS)].mean()
        assert 0.05 <= rate.late <= 0.12
        assert 0.04 <= rate.failed_attempt <= 0.08
        assert 0.01 <= rate.damaged <= 0.03
        assert 0.01 <= rate.undelivered <= 0.02

    def test_returns_range_by_category(self, lines):
        expected = Oracle(PARCELS).lines().set_index("line_id").returned
        by_category = expected[lines.line_id].groupby(lines.category.to_numpy()).mean()
        assert by_category.between(0.045, 0.36).all()
        assert by_category.idxmin() in ("books", "beauty")
        assert set(by_category.nlargest(2).index) == {"apparel", "shoes"}

    @pytest.mark.parametrize("target", PARCEL_TARGETS)
    def test_what_happens_agrees_with_the_truth(self, parcels, target):
        p = Oracle(PARCELS).parcels()[target].to_numpy()
        y = parcels[f"is_{target}"].to_numpy()
        _assert_calibrated(p[parcels.mature], y[parcels.mature])

    def test_what_comes_back_agrees_with_the_truth(self, lines):
        p = Oracle(PARCELS).lines().set_index("line_id").returned[lines.line_id].to_numpy()
        _assert_calibrated(p[lines.mature], lines.is_returned.to_numpy()[lines.mature])

    def test_there_is_signal_and_there_is_chance(self):
        parcels, lines = Oracle(PARCELS).parcels(), Oracle(PARCELS).lines()
        for target in PARCEL_TARGETS:
            assert 0.70 < reachable_auc(parcels[target].to_numpy()) < 0.83
        assert 0.70 < reachable_auc(lines.returned.to_numpy()) < 0.80

    def test_reasons_sum_to_the_return(self):
        lines = Oracle(BLOCK).lines()
        assert np.allclose(lines[list(RETURN_REASONS)].sum(axis=1), lines.returned, atol=1e-12)
        assert lines.returned.between(0, 1).all()

    def test_reachable_auc_is_the_expected_share_of_right_pairs(self):
        p = np.array([0.1, 0.4, 0.4, 0.8, 0.95])
        right = pairs = 0.0
        for a in p:
            for b in p:
                # One positive drawn as a, one negative drawn as b: in proportion to a and to 1 - b.
                pairs += a * (1 - b)
                right += a * (1 - b) * (1.0 if a > b else 0.5 if a == b else 0.0)
        assert reachable_auc(p) == pytest.approx(right / pairs)


def _assert_calibrated(p, y, bins=8):
    """Realised counts lie within four standard errors of the true ones, in every part of the range."""
    for part in np.array_split(np.argsort(p), bins):
        error = y[part].sum() - p[part].sum()
        assert abs(error) < 4 * np.sqrt((p[part] * (1 - p[part])).sum())


class TestCauses:
    """Signs, by the true probabilities."""

    def test_fragile_goods_get_better_boxes(self, expected, fragile):
        assert expected.protection_level.groupby(fragile).mean().is_monotonic_increasing
        # The habit confounds: without regard to the goods, boxes look guiltier than bags.
        crude = expected.damaged.groupby(expected.protection_level).mean()
        assert crude[3] > crude[1] > crude[0]

    def test_weaker_protection_breaks_more_of_the_same_goods(self, expected, fragile):
        for level_of_fragility in (1.0, 2.0, 3.0):
            own = expected[fragile == level_of_fragility]
            by_level = own.damaged.groupby(own.protection_level).agg(["mean", "size"])
            assert by_level["mean"][by_level["size"] >= 300].is_monotonic_decreasing

    def test_a_stronger_package_on_the_very_same_parcel_lowers_only_damage(self):
        shop = open_shop(0)
        d = draw(shop, 0)
        stronger = np.minimum(d.level + 1, len(PACKAGE_TYPES) - 1)
        now, then = (risks(shop.scenario, *causes(shop, x)) for x in (d, replace(d, level=stronger)))
        changed = stronger > d.level
        assert (then.damaged[changed] < now.damaged[changed]).all()
        assert (then.damaged[~changed] == now.damaged[~changed]).all()
        assert (then.failed_attempt == now.failed_attempt).all()
        assert (then.returned <= now.returned + 1e-12).all()

    @pytest.mark.parametrize(
        ("column", "target", "up"),
        [
            ("void_fill_ratio", "damaged", False),
            ("address_quality", "failed_attempt", False),
            ("address_quality", "undelivered", False),
            ("slack", "late", False),
            ("bad_label", "late", True),
            ("cod", "undelivered", True),
            ("cod", "failed_attempt", True),
            ("is_business", "failed_attempt", False),
            ("rough_carrier", "damaged", True),
        ],
    )
    def test_signs(self, expected, column, target, up):
        causes = {
            "slack": (expected.pickup_cutoff_at - expected.packed_at) / DAYS,
            "bad_label": expected.label_grade.isin(["D", "F"]),
            "cod": expected.payment_method == "cod",
            "rough_carrier": expected.carrier == "corvus",
        }
        cause = causes.get(column, expected.get(column)).astype(float)
        known = cause.notna()
        correlation = np.corrcoef(cause[known].rank(), expected[target][known].rank())[0, 1]
        assert correlation > 0.03 if up else correlation < -0.03

    def test_missed_pickups_are_late_before_the_dock(self, expected):
        missed = expected.handed_over > expected.pickup_cutoff_at
        assert 0.05 < missed.mean() < 0.25
        assert expected.late[missed].mean() > 2 * expected.late[~missed].mean()

    def test_a_size_guide_keeps_shoes_and_clothes(self, lines):
        expected = Oracle(PARCELS).lines().set_index("line_id").wrong_size[lines.line_id].to_numpy()
        for category in ("apparel", "shoes"):
            own = (lines.category == category).to_numpy()
            guide = (lines.has_size_guide == 1.0).to_numpy()
            assert expected[own & guide].mean() < expected[own & ~guide].mean()

    def test_a_few_customers_and_products_make_much_of_the_trade(self, world):
        sold = world.tables["order_lines"].sku.value_counts()
        assert sold.head(len(sold) // 10).sum() > 0.5 * sold.sum()
        assert world.tables["orders"].customer_id.duplicated().mean() > 0.1

    def test_a_lane_is_served_by_one_carrier_alone(self, parcels):
        assert set(parcels.carrier[parcels.destination_region == "CH"]) == {"alba"}
        per_region = parcels[parcels.destination_region != "CH"].groupby("destination_region").carrier.nunique()
        assert (per_region == 4).all()


class TestFaults:
    @pytest.mark.parametrize("fault", PLANTED_FAULTS, ids=lambda f: f.name)
    def test_it_harms_what_meets_it_and_nothing_before_it_began(self, fault):
        sound = Scenario(faults=tuple(f for f in PLANTED_FAULTS if f.name != fault.name))
        shop, healed = open_shop(0), open_shop(0, sound)
        for block in range(2):
            d, e = draw(shop, block), draw(healed, block)
            with_it, without = (risks(x.scenario, *causes(x, y)) for x, y in ((shop, d), (healed, e)))
            began = d.packed >= shop.clock.since(fault.since)
            for target in fault.targets:
                a, b = getattr(with_it, target), getattr(without, target)
                early = ~began if len(a) == len(began) else ~began[d.parcel_row]
                assert (a[early] == b[early]).all()
                assert a.mean() > b.mean() * 1.0005
                # A pickup moved to the next week meets the carrier in another form, which may be a better one.
                assert (a < b - 1e-9).mean() < 0.001

    @pytest.mark.parametrize("fault", PLANTED_FAULTS, ids=lambda f: f.name)
    def test_it_can_be_found_in_the_tables(self, world, fault):
        target = fault.targets[0]
        expected = (
            Oracle(PARCELS).lines().set_index("line_id").returned
            if target == "returned"
            else Oracle(PARCELS).parcels().set_index("parcel_id")[target]
        )
        met = meeting(fault, world.tables, world.settings.timezone)
        assert len(met) >= 50
        assert expected[met].mean() > 1.3 * expected.drop(met).mean()

    def test_where_names_columns_and_values_of_the_tables(self, world):
        columns = {c: t for t in ("listings", "orders", "parcels") for c in world.tables[t]}
        for fault in PLANTED_FAULTS:
            for column, value in fault.where.items():
                assert column == "shift" or (world.tables[columns[column]][column] == value).any()

    def test_faults_of_a_kind_add_up(self):
        fault = PLANTED_FAULTS[0]
        shops = [open_shop(0, replace(Scenario(), faults=(fault,) * k)) for k in range(3)]
        none, one, two = (causes(shop, draw(shop, 0))[0].corridor for shop in shops)
        assert not none.any()
        assert set(np.unique(one)) == {0.0, fault.effect}
        assert (two == 2 * one).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("wrong", "says"), [({"parcels": 0}, "at least 1"), ({"parcels": 9, "seed": -1}, "0 or more")]
    )
    def test_numbers_out_of_range(self, tmp_path, wrong, says):
        with pytest.raises(ValueError, match=says):
            generate(tmp_path / "w", **wrong)
        assert not (tmp_path / "w").exists()

    def test_a_folder_with_other_things_is_left_alone(self, tmp_path):
        (tmp_path / "orders.csv").write_text("mine")
        with pytest.raises(FileExistsError, match=r"orders\.csv"):
            generate(tmp_path, parcels=10)
        assert [p.name for p in tmp_path.iterdir()] == ["orders.csv"]

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "w").write_text("mine")
        with pytest.raises(FileExistsError, match="must be a folder"):
            generate(tmp_path / "w", parcels=10)

    def test_nothing_is_half_written(self, tmp_path):
        def stop(words):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "w", parcels=10, progress=stop)
        assert list((tmp_path / "w").iterdir()) == []

    def test_an_earlier_world_is_replaced(self, tmp_path):
        generate(tmp_path, parcels=20, seed=1)
        assert len(Dataset.open(generate(tmp_path, parcels=10, seed=2)).tables["parcels"]) == 10
        assert {p.name for p in tmp_path.iterdir()} == FILES


class TestTruthFolder:
    def test_it_says_what_the_oracle_says(self, small):
        oracle = Oracle.open(small)
        files = {name: pd.read_parquet(small / "truth" / f"{name}.parquet") for name in ("parcels", "lines", "returns")}
        assert {p.name for p in (small / "truth").iterdir()} == set(TRUTH_FILES)
        pd.testing.assert_frame_equal(files["parcels"].drop(columns="driver_skipped"), oracle.parcels())
        pd.testing.assert_frame_equal(files["lines"], oracle.lines())
        pd.testing.assert_frame_equal(files["returns"], oracle.returns())

    def test_the_true_reason_of_every_return_is_there(self, small):
        known = Dataset.open(small).tables["returns"]
        true = pd.read_parquet(small / "truth" / "returns.parquet").set_index("line_id").true_reason
        assert known.line_id.isin(true.index).all()
        told = known.dropna(subset="inspected_reason")
        assert 0.9 < (told.inspected_reason == told.line_id.map(true)).mean() < 0.99

    def test_it_names_the_faults_and_the_scenario(self, small):
        faults = json.loads((small / "truth" / "faults.json").read_text())
        assert [f["name"] for f in faults] == [f.name for f in PLANTED_FAULTS]
        assert read(small / "truth" / "scenario.toml") == Scenario()

    def test_a_truth_of_other_equations_is_refused(self, tmp_path):
        folder = generate(tmp_path / "w", parcels=20)
        toml = folder / "truth" / "scenario.toml"
        toml.write_text(toml.read_text().replace("damage_zero = -5.5", "damage_zero = -5.4"))
        with pytest.raises(ValueError, match="another version"):
            Oracle.open(folder)

    def test_a_dataset_without_a_truth_has_no_oracle(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="doorstep world"):
            Oracle.open(tmp_path)

    def test_a_foreign_file_in_it_is_not_lost(self, tmp_path):
        generate(tmp_path / "w", parcels=10)
        (tmp_path / "w" / "truth" / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"truth/notes\.txt"):
            generate(tmp_path / "w", parcels=10)


class TestPotentialOutcomes:
    def test_what_was_done_has_the_probability_of_the_parcel(self, small):
        oracle = Oracle.open(small)
        parcels = oracle.parcels()
        packages, at = oracle.packages(), np.arange(SMALL)
        used = packages.columns.get_indexer(packages.package)
        assert (packages.to_numpy()[at, used] == parcels.damaged).all()
        for target in PARCEL_TARGETS:
            carriers = oracle.carriers(target)
            used = carriers.columns.get_indexer(carriers.carrier)
            assert (carriers.to_numpy()[at, used] == parcels[target]).all()

    def test_a_stronger_package_never_breaks_more(self, small):
        assert (np.diff(Oracle.open(small).packages()[list(PACKAGE_TYPES)], axis=1) < 0).all()

    def test_who_does_not_serve_has_no_outcome(self, small):
        tables = Dataset.open(small).tables
        parcels = tables["parcels"].merge(tables["orders"], on="order_id")
        late = Oracle.open(small).carriers("late")
        swiss, express = (parcels.destination_region == "CH").to_numpy(), (parcels.service == "express").to_numpy()
        assert late.loc[swiss, ["borea", "corvus", "dorado"]].isna().all().all()
        assert late.loc[swiss, "alba"].notna().all()
        assert late.loc[express, "borea"].isna().all()
        assert late.loc[~swiss & ~express, ["alba", "borea", "corvus"]].notna().all().all()

    def test_another_carrier_collects_at_its_own_time(self, small):
        shop = Oracle.open(small).shop
        d = draw(shop, 0)
        as_it_was = collection(shop, d.node, d.carrier, d.packed, d.planned)
        assert all((a == b).all() for a, b in zip(as_it_was, (d.cutoff, d.handover_day, d.slack_minutes), strict=True))
        other = collection(shop, d.node, (d.carrier + 1) % 4, d.packed, d.planned)
        assert (other[0] != d.cutoff).mean() > 0.3


class TestTeamShares:
    @pytest.mark.parametrize("target", [*PARCEL_TARGETS, "returned"])
    def test_they_add_up_to_the_probability(self, small, target):
        oracle = Oracle.open(small)
        frame, unit = (oracle.lines(), "line_id") if target == "returned" else (oracle.parcels(), "parcel_id")
        truth = frame.set_index(unit)[target].sample(60, random_state=0)
        shares = oracle.teams(target, list(truth.index), references=4)
        assert np.allclose(shares.sum(axis=1), truth, atol=1e-12)
        assert (shares.std() > 0).sum() >= 4

    def test_they_are_shapley_values_by_their_definition(self):
        rng = np.random.default_rng(0)
        worth = rng.random((8, 5))  # three players, who is in read from the bits from the left
        shares = _shapley(worth, 3)
        for unit in range(5):
            by_order = np.zeros(3)
            for order in itertools.permutations(range(3)):
                coalition = 0
                for player in order:
                    joined = coalition | 4 >> player
                    by_order[player] += (worth[joined, unit] - worth[coalition, unit]) / 6
                    coalition = joined
            assert np.allclose(shares[unit], by_order)

    def test_a_team_without_a_part_in_a_target_has_no_share(self, small):
        oracle = Oracle.open(small)
        ids = list(oracle.parcels().parcel_id[:40])
        damaged = oracle.teams("damaged", ids, references=4)
        assert np.abs(damaged[["customer", "fulfilment", "order"]].to_numpy()).max() < 0.01
        assert damaged[["packing", "listing", "carrier"]].abs().max().min() > 0.005
        assert (oracle.teams("failed_attempt", ids, references=4)["listing"].abs() < 1e-12).all()

    def test_where_there_is_no_cause_nobody_has_a_share(self):
        oracle = Oracle(BLOCK, 0, scenario("null"))
        for target, ids in (("late", oracle.parcels().parcel_id), ("returned", oracle.lines().line_id)):
            assert np.abs(oracle.teams(target, list(ids[:200]), references=4)[list(TEAMS)].to_numpy()).max() < 1e-12

    def test_units_and_targets_must_exist(self, small):
        oracle = Oracle.open(small)
        with pytest.raises(ValueError, match="no target"):
            oracle.teams("lost", ["P000000000"])
        with pytest.raises(ValueError, match="'P9'"):
            oracle.teams("late", ["P000000000", "P9"])
        with pytest.raises(ValueError, match="no target of parcels"):
            oracle.carriers("returned")


class TestScenarios:
    def test_those_that_are_shipped(self):
        assert list(shipped()) == [
            "plain",
            "bad_corridor",
            "bad_handoffs_good_carrier",
            "confounded_packaging",
            "misleading_listings",
            "noisy_reasons",
            "null",
            "peak",
            "sole_carrier",
        ]
        assert len({s.words for s in shipped().values()}) == 9

    @pytest.mark.parametrize("name", sorted(shipped()))
    def test_each_is_an_honest_shop(self, name):
        rate = Oracle(BLOCK, 0, shipped()[name]).reachable().rate
        assert 0.05 <= rate.late <= 0.12
        assert 0.04 <= rate.failed_attempt <= 0.08
        assert 0.01 <= rate.damaged <= 0.03
        assert 0.01 <= rate.undelivered <= 0.02

    @pytest.mark.parametrize("name", sorted(shipped()))
    def test_written_whole_it_reads_the_same(self, name, tmp_path):
        file = tmp_path / "own.toml"
        file.write_text(to_toml(shipped()[name]))
        assert read(file) == shipped()[name]

    def test_the_null_shop_has_no_cause_of_anything(self):
        oracle = Oracle(PARCELS, 0, scenario("null"))
        assert oracle.parcels().std(numeric_only=True).max() < 1e-12
        assert oracle.lines().returned.std() < 1e-12

    def test_confounded_packaging_turns_the_crude_sign_and_not_the_true_one(self):
        packages = Oracle(PARCELS, 0, scenario("confounded_packaging")).packages()
        own = packages.to_numpy()[np.arange(PARCELS), packages.columns.get_indexer(packages.package)]
        crude = pd.Series(own.astype(float)).groupby(packages.package).mean()
        assert crude["light_carton"] > 1.5 * crude["bag"]
        assert (packages.light_carton < packages.bag).all()

    def test_the_good_carrier_looks_bad_and_is_not(self, tmp_path):
        made = scenario("bad_handoffs_good_carrier")
        oracle = Oracle(PARCELS, 0, made)
        late, carriers = oracle.parcels().late, oracle.carriers("late")
        crude = late.groupby(carriers.carrier).mean()
        assert crude.idxmax() == "dorado"
        # The very same parcels would be late more often with any other carrier.
        hers = carriers[carriers.carrier == "dorado"]
        assert (hers[["alba", "borea", "corvus"]].mean() > hers.dorado.mean()).all()

    def test_misleading_listings_raise_returns_where_they_are(self):
        made = scenario("misleading_listings")
        honest = replace(made, faults=())
        with_them, without = (Oracle(BLOCK, 0, s).lines() for s in (made, honest))
        worse = with_them.returned > without.returned * 1.05
        assert 0.01 < worse.mean() < 0.15
        assert (with_them.returned[~worse] == without.returned[~worse]).mean() > 0.95

    def test_reasons_are_noisy_where_it_says_so(self, tmp_path):
        share = {}
        for name in ("plain", "noisy_reasons"):
            folder = generate(tmp_path / name, parcels=BLOCK, scenario=scenario(name))
            returns = Dataset.open(folder).tables["returns"].dropna(subset="reason")
            true = pd.read_parquet(folder / "truth" / "returns.parquet").set_index("line_id").true_reason
            share[name] = (returns.reason == returns.line_id.map(true)).mean()
        assert share["noisy_reasons"] < 0.6 < 0.75 < share["plain"]

    def test_a_file_of_ones_own(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text("[carriers.carriers.alba]\ntransit = 0.4\n")
        made = scenario(file)
        assert (made.name, made.faults) == ("mine", ())
        assert [c.transit for c in made.carriers.carriers] == [0.4, 0.0, 0.06, -0.1]

    def test_what_has_a_new_name_is_added(self):
        new = {"share": 0.1, "services": ["standard"], "transit": 0.0, "roughness": 0.0, "loss": 0.0, "attempts": 0.0}
        new |= {"notifies": 0.5, "scans_late": 0.02}
        made = parse({"name": "x", "carriers": {"carriers": {"eule": new}}})
        assert [c.name for c in made.carriers.carriers] == ["alba", "borea", "corvus", "dorado", "eule"]
        assert len(Oracle(100, 0, made).carriers("late").columns) == 7

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"carrers": {}}, "carrers is no parameter; do you mean carriers?"),
            ({"outcomes": {"damage_voidd": 1.0}}, "outcomes.damage_voidd .* damage_void"),
            ({"carriers": {"carriers": {"alba": {"transit": "fast"}}}}, "carriers.carriers.alba.transit: .*'fast'"),
            ({"carriers": {"carriers": {"eule": {"share": 1.0}}}}, "carriers.carriers.eule.services: is missing"),
            ({"carriers": {"carriers": {"alba": {"skips": 2.0}}}}, "alba.skips is 2.0; a share is 0 to 1"),
            ({"carriers": 3}, r"a table of its own, \[carriers\]"),
            ({"carriers": {"sole": {"CH": "borea"}}}, "borea has no express"),
            ({"carriers": {"sole": {"XX": "alba"}}}, "no region of that code"),
            ({"outcomes": {"damage_zero": float("nan")}}, "finite number"),
            ({"customers": {"absence_sigma": -1.0}}, "absence_sigma is -1.0; a spread is 0 or more"),
            ({"outcomes": {"inspected_share": 1.5}}, "inspected_share is 1.5; a share is 0 to 1"),
            ({"nodes": {"nodes": {"munich": {"leans_to": "eule"}}}}, "leans_to: there are alba"),
            ({"calendar": {"extracted_on": date(2025, 1, 20)}}, "spans 19 days"),
            ({"carriers": {"carriers": {"foo": 3}}}, r"carriers.carriers.foo is 3; .*\[carriers.carriers.foo\]"),
            ({"carriers": {"carriers": {"alba": {"share": -1.0}}}}, "alba.share is -1.0; it is 0 or more"),
            ({"carriers": {"transit_days": [1.0]}}, "carriers.transit_days has 1 numbers; it takes 3"),
            ({"carriers": {"transit_sigma": [0.0, 0.4, 0.4]}}, "transit_sigma must be above 0"),
            ({"outcomes": {"free_reasons": [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]}}, "free_reasons holds a number below"),
            ({"outcomes": {"delay_days": [1.0]}}, "delay_days has 1 numbers; it takes 7"),
            ({"products": {"categories": {"toys": {"size": -1.0}}}}, "toys.size is -1.0; it is 0 or more"),
            ({"calendar": {"peaks": [[date(2025, 5, 2), date(2025, 5, 1), 2.0]]}}, "2025-05-02 to 2025-05-01 .* round"),
            ({"calendar": {"timezone": "Mars"}}, "'Mars'; give a name like"),
            ({"calendar": {"opens": 23}}, "opens at 23 and closes at 22"),
            ({"nodes": {"cutoff_hours": [19.0, 16.0]}}, "cutoff_hours are 19.0 and 16.0"),
            ({"lost_after_days": -5}, "lost_after_days is -5"),
            ({"faults": {"x": 3}}, r"faults.x is 3; .*\[faults.x\]"),
            ({"faults": {"f": {**FAULT, "effect": -0.5}}}, "faults.f.effect is -0.5; it must be above 0"),
            ({"faults": {"f": {**FAULT, "since": date(2031, 1, 1)}}}, "since is 2031-01-01; it lies from 2025-01-01"),
            ({"faults": {"f": {**FAULT, "kind": "flood"}}}, "faults.f.kind is 'flood'; there are corridor"),
            ({"faults": {"f": {**FAULT, "where": {}}}}, "names no place"),
            ({"faults": {"f": {**FAULT, "where": {"node": "munich"}}}}, "placed by carrier, destination_region"),
            ({"faults": {"f": {**FAULT, "where": {"carrier": "eule"}}}}, "'eule'; there are alba"),
        ],
    )
    def test_mistakes_are_named(self, given, says):
        with pytest.raises(ValueError, match=says):
            parse({"name": "x", **given})

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(ValueError, match=r"is no scenario: .*plain, bad_corridor"):
            scenario("plane")
        file = tmp_path / "bad.toml"
        file.write_text("a = = 1")
        with pytest.raises(ValueError, match=r"bad\.toml is no TOML"):
            scenario(file)
        file.write_text("[outcomes]\ndamage = 1\n")
        with pytest.raises(ValueError, match=r"bad\.toml: outcomes\.damage is no parameter"):
            scenario(file)


def test_a_driver_who_passes_by_says_nobody_was_in(tmp_path):
    lazy = parse({"name": "x", "carriers": {"carriers": {"borea": {"skips": 0.3}}}})
    folder = generate(tmp_path / "w", parcels=BLOCK, scenario=lazy)
    tables = Dataset.open(folder).tables
    truth = pd.read_parquet(folder / "truth" / "parcels.parquet").set_index("parcel_id").driver_skipped
    failed = tables["events"][tables["events"].kind == "attempt_failed"].merge(tables["parcels"], on="parcel_id")
    skipped = failed.parcel_id.map(truth)
    by_carrier = skipped.groupby(failed.carrier).mean()
    assert by_carrier["borea"] > 0.7
    assert by_carrier["alba"] == 0
    assert (failed.reason[skipped] == "absent").mean() > 0.9
    assert (failed.reason[~skipped] == "absent").mean() < 0.85


def test_nothing_that_trains_or_serves_can_ask_for_the_truth():
    """What it may know of the world is what `training.world` itself offers, none of which reads the truth."""
    import training.world

    for package in ("features", "serving", "training"):
        for file in (ROOT / package).rglob("*.py"):
            if ROOT / "training" / "world" in file.parents:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    assert not any("world" in alias.name for alias in node.names), file
                elif isinstance(node, ast.ImportFrom):
                    names = {alias.name for alias in node.names}
                    assert not (node.module or "").startswith("training.world."), file
                    assert not (node.module in ("training", None) and "world" in names), file
                    if (node.module or "").endswith("world"):
                        assert names <= set(training.world.__all__), file
                elif isinstance(node, ast.Call):  # importlib
                    given = [a.value for a in node.args if isinstance(a, ast.Constant)]
                    assert not any(str(v).startswith("training.world") for v in given), file


def test_what_the_world_offers_does_not_read_the_truth():
    import training.world

    offered = {
        getattr(training.world, name) for name in training.world.__all__ if callable(getattr(training.world, name))
    }
    assert not offered & {Oracle, Oracle.open, Oracle.parcels, Oracle.lines, Oracle.teams}
    assert not hasattr(training.world, "Oracle")
