"""Levers: shifts of the beneficial sign, whatever was estimated; what is not known is not moved; kept by a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features import Dataset
from features.files import ArtefactError
from features.snapshot import Facts
from serving import Bundle
from serving.levers import BETTER, ONE, Lever

LEVER = Lever(
    "damaged", "protection_level", (ONE, "fragility"), (-0.2, -0.1), ((0.04, -0.01), (-0.01, 0.01)), (1.0, 1.5), 900, 40
)
NUMBER = st.floats(-5, 5)


@given(st.sampled_from(sorted(BETTER)), NUMBER, NUMBER, arrays(float, 6, elements=NUMBER), NUMBER, NUMBER)
def test_better_is_never_riskier_and_back_is_the_same_way(column, one, other, term, before, after):
    lever = replace(LEVER, column=column, coefficients=(one, other))
    at = np.column_stack([np.ones(6), term])
    there, back = lever.shift(at, before, after), lever.shift(at, after, before)
    better = (after - before) * BETTER[column] >= 0
    assert (there <= 0).all() if better else (there >= 0).all()
    np.testing.assert_allclose(there, -back)
    half = (before + after) / 2
    np.testing.assert_allclose(lever.shift(at, before, half) + lever.shift(at, half, after), there, atol=1e-9)


def test_a_shift_is_the_step_times_the_sum_of_the_terms():
    at = np.array([[1, 0.0], [1, 4.0]])
    np.testing.assert_allclose(LEVER.shift(at, 1.0, np.array([3.0, 0.0])), [2 * -0.2, -1 * -0.6])
    np.testing.assert_allclose(LEVER.shift(at, np.nan, 3.0), 0)


def test_the_interval_is_that_of_the_sum_of_correlated_numbers():
    at = np.array([[1, 0.0], [1, 2.0]])
    low, high = LEVER.interval(at, z=2.0)
    np.testing.assert_allclose((low + high) / 2, [-0.2, -0.4])
    np.testing.assert_allclose((high - low) / 4, [0.2, np.sqrt(0.04 - 2 * 2 * 0.01 + 4 * 0.01)])


def test_moderators_are_the_features_and_codes_of_the_rows(world_dataset):
    rows = Facts.of(Dataset.open(world_dataset)).rows
    lever = replace(LEVER, terms=(ONE, "fragility", "orders.destination_country != DE"), usual=(1.0, 1.25, 0.5))
    for unit, level in (("parcel", rows.parcels), ("line", rows.lines)):
        one, fragility, abroad = replace(lever, target="damaged" if unit == "parcel" else "returned").moderators(rows).T
        assert (one == 1).all()
        np.testing.assert_array_equal(abroad, level["orders", "destination_country"] != "DE")
        told = rows.lines["listings", "fragility"]
        told = rows.per_parcel(told, "max") if unit == "parcel" else told
        np.testing.assert_allclose(fragility, np.where(np.isnan(told), 1.25, told), rtol=1e-6)
        assert np.isnan(told).any()


def test_a_bundle_keeps_its_levers_and_refuses_what_they_cannot_mean(trained, tmp_path):
    bundle = Bundle.load(trained.bundle)
    kept = Bundle.save(tmp_path / "bundle", bundle.settings, {}, {}, {}, levers=(LEVER,))
    assert kept.levers == (LEVER,) == (Lever.from_json(json.loads(json.dumps(LEVER.to_json()))),)
    assert Bundle.load(tmp_path / "bundle").levers == (LEVER,)
    with mock.patch("serving.bundle.fingerprint", lambda *_: "of another version"):
        Bundle.save(tmp_path / "other", bundle.settings, {}, {}, {}, levers=(LEVER,))
    with pytest.raises(ArtefactError, match="effect of protection_level on damaged depends on is computed in another"):
        Bundle.load(tmp_path / "other")
