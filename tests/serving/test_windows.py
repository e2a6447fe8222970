"""Windows: what reconciling promises for any numbers, back-off, files, and a shop of 12,000 without contradiction."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.arrays import HOUR
from features.dataset import Dataset
from features.files import ArtefactError
from features.matrix import values
from features.snapshot import Facts
from serving.bundle import Bundle
from serving.score import score
from serving.windows import Group, WindowModel, chance_late, contradictions, moved, times, windows

DECIDED = np.datetime64("2025-03-01T10:15:30.250000", "us")


@pytest.fixture(scope="module")
def bundle(trained) -> Bundle:
    return Bundle.load(trained.bundle)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> WindowModel:
    assert bundle.window is not None
    return bundle.window


@pytest.fixture(scope="module")
def facts(trained) -> Facts:
    return Facts.of(Dataset.open(trained.dataset))


hours = st.lists(st.floats(0.01, 2000), min_size=3, max_size=3).map(sorted)
chance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))


class TestReconciliation:
    @given(hours, st.floats(-100, 2100), chance)
    def test_it_never_contradicts_keeps_the_order_and_moves_to_the_promise_only(self, took, promise, late) -> None:
        decided, late = np.array([DECIDED]), np.array([late])
        promised = np.array([DECIDED + np.timedelta64(round(promise * 3.6e9), "us")])

        free = times(decided, np.array([took]), promised, None)
        agreed = times(decided, np.array([took]), promised, late)

        assert not contradictions(agreed, decided, promised, late).any()
        for some in (free, agreed):
            assert (some[:, :-1] <= some[:, 1:]).all()
            assert (some >= decided[:, None]).all()
        assert ((agreed == free) | (agreed == np.maximum(promised, decided)[:, None])).all()

    @given(hours, st.floats(1, 2100), chance)
    def test_what_agrees_already_is_left_alone(self, took, promise, late) -> None:
        decided, promised = np.array([DECIDED]), np.array([DECIDED + np.timedelta64(round(promise * 3600), "s")])
        once = times(decided, np.array([took]), promised, np.array([late]))
        free = times(decided, np.array([took]), promised, None)
        if not contradictions(free, decided, promised, np.array([late])).any():
            assert (once == free).all()

    @given(hours)
    def test_times_are_rounded_outwards_to_the_minute(self, took) -> None:
        (found,) = times(np.array([DECIDED]), np.array([took]), np.array([np.datetime64("NaT", "us")]), None)
        start, likely, end = found - DECIDED
        assert -60 < start / np.timedelta64(1, "s") - took[0] * 3600 <= 0.01 or found[0] == DECIDED
        assert abs(likely / np.timedelta64(1, "s") - took[1] * 3600) <= 31
        assert -0.01 <= end / np.timedelta64(1, "s") - took[2] * 3600 < 60.01

    def test_without_a_promise_nothing_moves_and_a_broken_one_is_before_every_arrival(self) -> None:
        took, decided = np.array([[10.0, 20.0, 30.0]] * 2), np.array([DECIDED, DECIDED])
        promised = np.array([np.datetime64("NaT", "us"), DECIDED - HOUR])
        low = np.array([0.01, 0.01])  # the model says on time, the calendar knows better
        assert (times(decided, took, promised, low) == times(decided, took, promised, None)).all()
        assert not contradictions(times(decided, took, promised, low), decided, promised, low).any()

    def test_the_chance_is_of_those_that_arrive(self) -> None:
        late, undelivered = np.array([0.145, 0.02, 0.3]), np.array([0.1, 0.05, 0.0])
        found = chance_late(late, undelivered)
        assert found is not None
        assert found == pytest.approx([0.05, 0.0, 0.3])
        assert chance_late(None, undelivered) is None
        assert chance_late(late, None) == pytest.approx(late)

    def test_no_parcel_of_a_shop_is_told_two_things(self, bundle: Bundle, facts: Facts) -> None:
        frames = {f["target"].iloc[0]: f.set_index("unit_id") for f in score(bundle, facts.rows)}
        late, lost = frames["late"], frames["undelivered"]["probability"].reindex(frames["late"].index)
        level = facts.rows.parcels
        known = pd.DataFrame({"promised": level["orders", "promised_to"], "decided": level.decided_at})
        known.index = pd.Index(facts.rows.parcel_id)
        both = late.join(known)
        promised = both["promised"].dt.tz_localize("UTC")
        share = ((late["probability"] - lost) / (1 - lost)).clip(0, 1)
        share = share.where(promised > both["decided_at"], 1.0)
        assert len(late) >= 10_000
        assert promised.notna().all()
        for part, above in (("window_to", 0.05), ("window_likely", 0.5), ("window_from", 0.95)):
            assert not ((share > above) & (both[part] < promised)).any()
            assert not ((share < above) & (both[part] > promised)).any()
        assert (both["window_from"] <= both["window_likely"]).all()
        assert (both["window_likely"] <= both["window_to"]).all()
        assert (both["window_from"] >= both["decided_at"]).all()
        # Not by shutting windows: most are a day wide at least, and none is a point.
        wide = both["window_to"] - both["window_from"]
        assert wide.quantile(0.1) > timedelta(days=1)
        assert (wide > timedelta(0)).all()


class TestMoves:
    def test_hours_stay_in_order_and_within_a_year(self) -> None:
        quantiles = np.log([[20.0, 40.0, 60.0], [30.0, 30.0, 30.0], [5.0, 6.0, 8000.0]])
        found = moved(quantiles, np.array([3.0, 0.0, -2.0]))
        assert (found[:, :-1] <= found[:, 1:]).all()
        assert moved(quantiles, np.array([0.0, 0.0, 0.0]))[0] == pytest.approx([20, 40, 60])
        assert moved(quantiles, np.array([-0.5, 0.0, 9.0])).max() <= 24 * 366 + 1e-6

    def test_a_parcel_takes_the_closest_group_that_is_known(self, model: WindowModel, facts: Facts) -> None:
        from features.history import ENTITIES, key

        parcels = facts.rows.parcels
        lane, carrier = key(ENTITIES["lane"], parcels), key(ENTITIES["carrier"], parcels)
        groups = {
            "lane": (Group(int(lane[0]), "a", 200, (0.1, 0.2, 0.3)),),
            "carrier_service": (),
            "carrier": (Group(int(carrier[0]), "b", 900, (0.4, 0.5, 0.6)),),
            "all": (Group(1, "all parcels", 9000, (0.7, 0.8, 0.9)),),
        }
        moves, level = replace(model, groups=groups).moves(parcels)
        expected = np.where(lane == lane[0], 0, np.where(carrier == carrier[0], 2, 3))
        assert (level == expected).all()
        assert set(expected) == {0, 2, 3}
        assert (moves == np.array([[0.1, 0.2, 0.3], [0, 0, 0], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])[expected]).all()

    def test_a_carrier_nobody_has_seen_is_answered_from_all(self, trained, bundle: Bundle) -> None:
        from features.snapshot import Snapshot
        from serving.score import answer

        request = {
            "order": {"order_id": "1", "ordered_at": "2025-06-01T08:10:00Z", "promised_to": "2025-06-05T18:00:00Z"},
            "parcel": {"parcel_id": "1", "carrier": "nobody", "packed_at": "2025-06-01T09:00:00+02:00"},
        }
        said = answer(bundle, Snapshot.load(trained.snapshot), [request])[0]["window"]
        assert said["measured_on"] == "all"
        assert list(said) == ["from", "likely", "to", "coverage", "measured_on"]
        assert "2025-06-01T07:00" <= said["from"] <= said["likely"] <= said["to"]
        assert all(said[part].endswith("Z") for part in ("from", "likely", "to"))


class TestFiles:
    def test_a_saved_model_says_the_same_bit_for_bit(self, bundle: Bundle, model: WindowModel, tmp_path: Path) -> None:
        model.save(tmp_path / "window", bundle.settings)
        loaded = WindowModel.load(tmp_path / "window", bundle.settings)
        model.save(tmp_path / "again", bundle.settings)
        assert loaded.groups == model.groups
        random = np.random.default_rng(0).normal(size=(300, len(model.features.names))).astype(np.float32)
        random[random > 2] = np.nan
        assert (loaded.log_hours(random) == model.log_hours(random)).all()
        for file in (tmp_path / "window").rglob("*.*"):
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "window")).read_bytes()

    def test_rows_are_scored_alike_alone_and_together(self, model: WindowModel, facts: Facts) -> None:
        matrix = values(facts.rows, model.features)[:400]
        together = model.log_hours(matrix)
        alone = np.concatenate([model.log_hours(matrix[i : i + 1]) for i in range(len(matrix))])
        assert (together == alone).all()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda w: w.pop("groups"), "window.json cannot be read"),
            (lambda w: w["groups"].update(all=[]), "level all has 0 groups, it must be 1"),
            (lambda w: w.update(features=["no_such_feature"]), "unknown features no_such_feature"),
            (lambda w: w.update(fingerprint="0"), "compute something else in this version"),
        ],
    )
    def test_a_changed_file_is_refused(self, bundle, trained, tmp_path: Path, change, says) -> None:
        folder = tmp_path / "window"
        shutil.copytree(trained.bundle / "window", folder)
        content = json.loads((folder / "window.json").read_text())
        change(content)
        (folder / "window.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=says):
            WindowModel.load(folder, bundle.settings)

    def test_a_missing_model_and_a_bundle_tampered_with_are_refused(self, bundle, trained, tmp_path: Path) -> None:
        folder = tmp_path / "bundle"
        shutil.copytree(trained.bundle, folder)
        shutil.rmtree(folder / "window" / "likely")
        with pytest.raises(ValueError, match="likely holds no compiled trees"):
            WindowModel.load(folder / "window", bundle.settings)
        with pytest.raises(ArtefactError):
            Bundle.load(folder)

    def test_a_bundle_without_one_answers_without_one(self, trained, bundle: Bundle, tmp_path: Path) -> None:
        from features.snapshot import Snapshot
        from serving.score import answer

        bare = Bundle.save(tmp_path / "bare", bundle.settings, bundle.targets, {}, {})
        assert bare.window is None
        snapshot = Snapshot.load(trained.snapshot)
        request = {
            "order": {"order_id": "1", "ordered_at": "2025-06-01T08:10:00Z"},
            "parcel": {"parcel_id": "1", "packed_at": "2025-06-01T09:00:00Z"},
        }
        for models in (bare, None):
            assert answer(models, snapshot, [request])[0]["window"] is None


def test_without_a_model_of_lateness_the_window_stands_alone(model: WindowModel, facts: Facts) -> None:
    matrix = values(facts.rows, model.features)
    found = windows(model, facts.rows.parcels, matrix, None, None)
    assert (found.times[:, 0] <= found.times[:, 2]).all()
    assert found.answer(0) is not None
