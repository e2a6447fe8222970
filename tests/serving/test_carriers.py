"""Carriers' levers: there and back is nothing, what is not known is not said, and a bundle keeps them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from features import Dataset
from features.snapshot import Facts
from serving import Bundle
from serving.carriers import CarrierLever, region_of

PAIRS = (("alba", "express"), ("alba", "standard"), ("borea", "standard"), ("corvus", "own"), ("dorado", ""))
KINDS = ("express", "standard", "standard", "", "")
ROOT = np.array([[2, 0, 0, 0, 0], [0, 1, 0.5, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, -0.5], [0, 0, 0, 0, 2]]) / 10
COVARIANCE = tuple(map(tuple, (ROOT @ ROOT.T).tolist()))
LEVER = CarrierLever(
    "damaged",
    PAIRS,
    KINDS,
    ("DE-BY", "DE-HH"),
    ((0.1, 0.2, -0.3, 0.4, -0.5), (0.0, 0.7, 0.2, 0.1, 0.1), (0.05, 0.15, -0.05, 0.2, -0.2)),
    (COVARIANCE, COVARIANCE, COVARIANCE),
    900,
    40,
)


def at(*carriers):
    carrier, service = np.array(carriers, dtype=object).T
    return LEVER.positions(carrier, service)


def test_another_carrier_shifts_by_the_difference_of_effects_in_the_region_and_back_is_the_same_way():
    now, then = at(("alba", "standard"), ("alba", "standard"), ("corvus", "own")), at(*PAIRS[2:3] * 2, PAIRS[4])
    place = LEVER.places(np.array(["DE-HH", "elsewhere", None], dtype=object))
    shift, error = LEVER.shift(place, now, then)
    np.testing.assert_allclose(shift, [-0.5, -0.2, -0.4])
    back, same = LEVER.shift(place, then, now)
    np.testing.assert_allclose(back, -shift)
    np.testing.assert_allclose(same, error)
    gap = ROOT[1] - ROOT[2]
    np.testing.assert_allclose(error[0], np.sqrt(gap @ gap))
    none, sure = LEVER.shift(place, now, now)
    assert (none == 0).all()
    assert (sure == 0).all()


def test_nothing_is_said_of_unknown_carriers_and_other_services():
    known = at(("alba", "standard"))
    for other in (("alba", "express"), ("nobody", "standard"), ("borea", None), ("dorado", "")):
        shift, error = LEVER.shift(np.array([0]), known, at(other))
        assert np.isnan([shift[0], error[0]]).all(), other


def test_a_region_is_the_country_where_there_is_none(world_dataset):
    rows = Facts.of(Dataset.open(world_dataset)).rows
    region, country = rows.parcels["orders", "destination_region"], rows.parcels["orders", "destination_country"]
    assert region_of(rows, "parcel").tolist() == [r or c for r, c in zip(region, country, strict=True)]
    assert len(region_of(rows, "line")) == rows.lines.n


def test_a_bundle_keeps_them(trained, tmp_path):
    bundle = Bundle.load(trained.bundle)
    kept = Bundle.save(tmp_path / "bundle", bundle.settings, {}, {}, {}, carriers=(LEVER,))
    assert kept.carriers == {"damaged": LEVER}
    assert CarrierLever.from_json(json.loads(json.dumps(LEVER.to_json()))) == LEVER
    assert LEVER.unit == "parcel"
    with pytest.raises(AttributeError):
        kept.carriers["damaged"].rows = 1
