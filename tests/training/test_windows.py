"""Training of windows: finite samples against an independent oracle, back-off, honest dates, and what is reported."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from features.history import ENTITIES, key
from features.snapshot import Facts
from serving.bundle import Bundle
from serving.score import score
from serving.windows import LEVELS, moved
from training.evaluate.card import model_card
from training.evaluate.plots import coverage_plot
from training.evaluate.report import table
from training.labels import labels
from training.models.windows import MIN_ROWS, calibrate, conformal, doors, fit_windows, pinball
from training.splits import split


@pytest.fixture(scope="module")
def facts(trained) -> Facts:
    return Facts.of(Dataset.open(trained.dataset))


class TestConformal:
    @pytest.mark.parametrize("level", ["0.5", "0.9", "0.95"])
    def test_the_level_holds_exactly_for_every_small_sample(self, level: str) -> None:
        # Of n + 1 exchangeable scores without ties, each is the new one with the same chance.
        exact = Fraction(level)
        for n in range(1, 60):
            scores = np.arange(n + 1.0)
            covered = sum(scores[i] <= conformal(np.delete(scores, i), float(level)) for i in range(n + 1))
            assert Fraction(covered, n + 1) >= exact
            bound = conformal(scores[1:], float(level))
            if math.isfinite(bound):
                assert Fraction(covered, n + 1) < exact + Fraction(1, n + 1)
            else:
                assert (n + 1) * exact > n

    def test_it_is_an_order_statistic_whatever_the_order(self) -> None:
        random = np.random.default_rng(0)
        for n in (19, 20, 99, 500):
            scores = random.normal(size=n)
            k = -(-(n + 1) * 95 // 100)
            assert conformal(scores, 0.95) == sorted(scores)[k - 1]

    def test_what_is_moved_covers_what_it_says_however_wrong_the_models_are(self) -> None:
        random = np.random.default_rng(1)
        spread = random.uniform(0.5, 2, 8_000)
        took = spread * random.normal(size=8_000) + 4
        wrong = 4 + np.outer(spread, [0.1, 0.2, 0.4])  # skewed and far too narrow
        none = {level: np.zeros(4_000, dtype=np.uint64) for level in LEVELS[:-1]}
        words = {level: np.full(4_000, "x", dtype=object) for level in LEVELS[:-1]}
        groups = calibrate(wrong[:4_000], took[:4_000], none, words)
        assert [len(groups[level]) for level in LEVELS] == [0, 0, 0, 1]
        window = np.log(moved(wrong[4_000:], np.array(groups["all"][0].moves)))
        later = took[4_000:]
        assert np.mean(later < window[:, 0]) == pytest.approx(0.05, abs=0.012)
        assert np.mean(later <= window[:, 1]) == pytest.approx(0.5, abs=0.03)
        assert np.mean(later > window[:, 2]) == pytest.approx(0.05, abs=0.012)
        # In units of the spread: parcels that are hard to tell get wider windows, and are covered alike.
        hard = spread[4_000:] > 1.25
        inside = (later >= window[:, 0]) & (later <= window[:, 2])
        assert inside[hard].mean() == pytest.approx(0.9, abs=0.02)
        assert inside[~hard].mean() == pytest.approx(0.9, abs=0.02)

    def test_a_lane_has_its_own_move_drawn_to_its_parents_and_a_small_one_has_none(self) -> None:
        random = np.random.default_rng(2)
        n = {"slow": 900, "usual": 3_000, "small": MIN_ROWS - 1}
        lane = np.repeat(list(n), list(n.values()))
        took = 4 + random.normal(size=len(lane)) + 1.0 * (lane == "slow")
        log_hours = np.tile([2.4, 4.0, 5.6], (len(lane), 1))
        code = np.array([{"slow": 7, "usual": 3, "small": 5}[x] for x in lane], dtype=np.uint64)
        none = np.zeros(len(lane), dtype=np.uint64)
        keys = {"lane": code, "carrier_service": none, "carrier": none}
        found = calibrate(log_hours, took, keys, dict.fromkeys(keys, lane))
        by_name = {g.name: g for g in found["lane"]}
        assert set(by_name) == {"slow", "usual"}
        assert by_name["slow"].rows == 900
        whole, slow = np.array(found["all"][0].moves), np.array(by_name["slow"].moves)
        own = calibrate(log_hours[:900], took[:900], {k: v[:900] for k, v in keys.items()}, dict.fromkeys(keys, lane))
        assert slow == pytest.approx(0.9 * np.array(own["all"][0].moves) + 0.1 * whole)  # 900 / (900 + 100)
        assert (slow > whole).all()

    def test_too_few_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="99 rows to calibrate on; at least 100 are needed"):
            calibrate(np.zeros((99, 3)), np.zeros(99), {}, {})

    def test_pinball_loss_is_least_at_the_quantile(self) -> None:
        values = np.random.default_rng(3).exponential(size=4_000)
        at = [pinball(values, q, 0.95) for q in np.quantile(values, [0.9, 0.95, 0.99])]
        assert at[1] < min(at[0], at[2])
        assert pinball(np.array([1.0, 3.0]), 2.0, 0.75) == pytest.approx((0.25 + 0.75) / 2)


class TestDeliveries:
    def test_the_delivery_known_first_counts(self, facts: Facts) -> None:
        events = pd.DataFrame({c: v for c, v in facts.tables["events"].items() if c != "reason"})
        events = events[events["kind"] == "delivered"]
        events["known_at"] = events["known_at"].fillna(events["happened_at"])
        first = events.sort_values(["known_at", "happened_at"]).groupby("parcel_id")["happened_at"].first()
        expected = first.reindex(facts.rows.parcel_id).to_numpy()
        found = doors(facts)
        assert (np.isnat(found) == np.isnat(expected)).all()
        assert (found[~np.isnat(found)] == expected[~np.isnat(found)]).all()
        assert 0.9 < np.mean(~np.isnat(found)) < 1

    def test_a_later_extract_changes_no_time_that_was_known(self, trained, facts: Facts) -> None:
        early = Facts.of(Dataset.open(trained.dataset), np.datetime64("2025-08-01", "us"))
        then = dict(zip(early.rows.parcel_id, doors(early), strict=True))
        now = dict(zip(facts.rows.parcel_id, doors(facts), strict=True))
        assert all(now[p] == t for p, t in then.items() if not np.isnat(t))


class TestReported:
    @pytest.fixture
    def document(self, trained) -> dict:
        return json.loads((trained.run / "metrics.json").read_text())["time_to_door"]

    def test_it_is_trained_on_what_was_mature_and_says_how_much_was_not(self, document, facts, result) -> None:
        assert (document["status"], document["why"], document["unit"]) == ("trained", "", "parcel")
        assert document["maturity"] == "of delivered parcels; judged 21 days after the decision"
        start = np.datetime64(result.metrics["holdout_from"][:-1], "us")
        parcels = facts.rows.parcels
        lost_after = np.timedelta64(21, "D")
        before, end = parcels.decided_at < start, facts.snapshot.as_of
        young = (before & (parcels.decided_at + lost_after >= start)) | (
            ~before & (parcels.decided_at + lost_after >= end)
        )
        assert document["excluded_immature"] == young.sum()
        assert document["train"]["to"] < f"{start - lost_after}Z"
        assert document["train"]["learned"] + document["train"]["calibrated"] < document["train"]["rows"]

    def test_it_covers_what_it_says_on_the_holdout_and_is_narrower_than_one_window_for_all(self, document) -> None:
        served, one = document["metrics"], document["rivals"]["global_quantile"]
        assert served["rows"] == document["holdout"]["rows"] > 2_000
        assert served["coverage"]["value"] == pytest.approx(0.9, abs=0.02)
        assert served["coverage"]["low"] < served["coverage"]["value"] < served["coverage"]["high"]
        assert served["mean_width_hours"] < 0.9 * one["mean_width_hours"]
        assert all(served["pinball_hours"][p] < one["pinball_hours"][p] for p in ("from", "likely", "to"))
        assert document["contradictions"]["checked"] > 3_000
        assert document["contradictions"]["before"] > 0 == document["contradictions"]["after"]

    def test_every_slice_is_reported_and_none_is_let_down(self, document) -> None:
        assert {"peak", "new lane", "new product", "value: low"} <= set(document["slices"])
        for name, found in document["slices"].items():
            assert found["meaning"], name
            low, high = found["coverage"]["low"], found["coverage"]["high"]
            assert low <= 0.95, name
            assert high >= 0.85, name

    def test_every_figure_can_be_recomputed_from_the_file(self, trained, document) -> None:
        frame = pd.read_parquet(trained.run / "windows.parquet")
        inside = (frame["from"] <= frame["delivered_at"]) & (frame["delivered_at"] <= frame["to"])
        assert inside.mean() == pytest.approx(document["metrics"]["coverage"]["value"], abs=1e-12)
        width = (frame["to"] - frame["from"]).dt.total_seconds() / 3600
        assert width.mean() == pytest.approx(document["metrics"]["mean_width_hours"])
        for name, found in document["slices"].items():
            hit = frame[f"slice: {name}"]
            assert hit.sum() == found["rows"]
            assert inside[hit].mean() == pytest.approx(found["coverage"]["value"], abs=1e-12)

    def test_what_is_judged_is_what_is_served(self, trained, facts: Facts) -> None:
        frame = pd.read_parquet(trained.run / "windows.parquet").set_index("unit_id")
        served = next(f for f in score(Bundle.load(trained.bundle), facts.rows) if f["target"].iloc[0] == "late")
        served = served.set_index("unit_id").reindex(frame.index)
        for part in ("from", "likely", "to"):
            assert (frame[part] == served[f"window_{part}"]).all()

    def test_moves_are_those_of_the_lanes_in_words(self, trained, facts: Facts) -> None:
        window = Bundle.load(trained.bundle).window
        assert window is not None
        carriers = dict(
            zip(
                key(ENTITIES["carrier"], facts.rows.parcels).tolist(),
                facts.rows.parcels["parcels", "carrier"],
                strict=True,
            )
        )
        assert window.groups["carrier"]
        for group in window.groups["carrier"]:
            assert carriers[group.key] == group.name
            assert group.rows >= MIN_ROWS


class TestTold:
    def test_the_table_has_the_rivals_beside_it_and_the_slices_furthest_off(self, result) -> None:
        document = result.metrics["time_to_door"]
        said = table(result.metrics)
        assert "90 % window" in said
        for rival in ("not_reconciled", "not_calibrated", "global_quantile"):
            assert f"{rival} " in said
        assert f"{document['metrics']['rows']:,} deliveries" in said
        assert "0 of " in said and "windows contradict P(late)" in said
        worst = min(document["slices"], key=lambda name: document["slices"][name]["coverage"]["value"])
        assert f"slices from {worst} " in said

    def test_the_card_has_a_row_per_slice_or_the_reason_there_is_none(self, result) -> None:
        document = result.metrics["time_to_door"]
        card = model_card(result)
        part = card.split("## Time to door")[1].split("\n## ")[0]
        for name, found in document["slices"].items():
            assert f"| {name} | {found['rows']:,} | {found['coverage']['value']:.4f} [" in part
        not_trained = {"status": "not_trained", "why": "it is too early"}
        other = replace(result, metrics={**result.metrics, "time_to_door": not_trained})
        assert "**Not trained:** it is too early" in model_card(other)
        assert "time to door: not trained: it is too early" in table(other.metrics)

    def test_the_plot_is_a_picture(self, result) -> None:
        assert coverage_plot(result.metrics["time_to_door"], simulated=True).startswith(b"\x89PNG")


def test_too_few_deliveries_are_said_so(facts: Facts) -> None:
    units = labels(facts, "undelivered")
    start = np.datetime64("2025-02-15", "us")
    fit, document = fit_windows(facts, units, lambda f, r: np.empty((0, 0)), start, facts.snapshot.as_of, 0, print)
    assert fit is None
    assert document["status"] == "not_trained"
    mature = split(units, start, facts.snapshot.as_of)
    assert document["why"] == (
        f"{int((mature.train_label == 0).sum())} mature deliveries before the holdout; at least 1000 are needed"
    )


def test_a_shop_without_deliveries_has_no_window_and_says_so(trained) -> None:
    dataset = Dataset.open(trained.dataset)
    events = dataset.tables["events"]
    tables = {**dataset.tables, "events": events[events["kind"] != "delivered"].reset_index(drop=True)}
    bare = Facts.of(Dataset(dataset.settings, tables))
    units = labels(bare, "undelivered")
    start = np.datetime64("2025-09-01", "us")
    fit, document = fit_windows(bare, units, lambda f, r: np.empty((0, 0)), start, bare.snapshot.as_of, 0, print)
    assert fit is None
    assert document["why"] == "no event of kind delivered is in the table events"


def test_times_that_stand_in_for_unknown_ones_are_not_learned_from(world_dataset) -> None:
    dataset = Dataset.open(world_dataset)
    packed = dataset.tables["parcels"].set_index("parcel_id")["packed_at"]
    events = dataset.tables["events"].copy()
    hit = (events["kind"] == "delivered").to_numpy()
    events.loc[hit, "happened_at"] = (events.loc[hit, "parcel_id"].map(packed) + pd.Timedelta(hours=48)).to_numpy()
    alike = Facts.of(Dataset(dataset.settings, {**dataset.tables, "events": events}))
    units, start = labels(alike, "undelivered"), np.datetime64("2025-09-01", "us")
    fit, document = fit_windows(alike, units, lambda f, r: np.empty((0, 0)), start, alike.snapshot.as_of, 0, print)
    assert fit is None
    assert document["why"] == "100% of the deliveries took exactly 48 hours: these are stand-ins, no times of delivery"
