"""Why a line would come back: shares that sum to one, and points that sum to the share, against independent sums."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest

from features import Dataset
from features.matrix import values
from features.snapshot import Facts
from features.vocabulary import TEAMS
from serving import Bundle
from serving.explain import share_points, softmax
from serving.score import Scoring, answer


@pytest.fixture(scope="module")
def bundle(trained):
    return Bundle.load(trained.bundle)


@pytest.fixture(scope="module")
def facts(trained):
    return Facts.of(Dataset.open(trained.dataset))


@pytest.fixture(scope="module")
def matrix(bundle, facts):
    return bundle.cut("return_reason", values(facts.rows, bundle.columns("line")))[::7]


def test_shares_sum_to_one_and_points_to_the_share(bundle, matrix):
    model = bundle.reasons
    shares, which, base, risk = model.explain(matrix)
    assert shares.shape == (len(matrix), len(model.reasons))
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(which, shares.argmax(axis=1))
    np.testing.assert_allclose(base + risk.sum(axis=1), shares.max(axis=1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.shares(matrix), shares, rtol=0, atol=1e-12)
    assert len(np.unique(which)) > 1, "one reason for everything would explain nothing"


def test_the_compiled_forest_is_lightgbms_own_model(trained, bundle, matrix):
    """Scores and TreeSHAP values of every reason, from the model text that lies in the bundle."""
    model, rows = bundle.reasons, matrix[:60]
    k, f = len(model.reasons), len(model.features.features)
    booster = lgb.Booster(model_file=str(trained.bundle / "models" / "return_reason.txt"))
    theirs = booster.predict(rows, pred_contrib=True).reshape(len(rows), k, f + 1)
    ours = model.trees.contributions(np.tile(rows, (1, k))).reshape(len(rows), k, f)
    np.testing.assert_allclose(ours, theirs[:, :, :f], rtol=0, atol=1e-10)
    # The scores start from the mix; LightGBM's text does not hold where a training started.
    start = np.asarray(model.bases) - theirs[0, :, f]
    np.testing.assert_allclose(np.exp(start), model.mix, rtol=0, atol=1e-9)
    raw = booster.predict(rows, raw_score=True) + start
    expected = softmax(np.asarray(model.intercepts) + model.slope * raw)
    np.testing.assert_allclose(model.shares(rows), expected, rtol=0, atol=1e-10)


def test_one_line_at_a_time_is_the_whole_batch_to_the_last_bit(bundle, matrix):
    rows = matrix[:25]
    together = bundle.reasons.explain(rows)
    for i in range(len(rows)):
        for whole, one in zip(together, bundle.reasons.explain(rows[i : i + 1]), strict=True):
            np.testing.assert_array_equal(whole[i], one[0])


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_points_are_the_integral_along_the_straight_path(spread):
    """Midpoint sums of ds_k/dz_j phi_ji over a fine grid, written out per feature."""
    rng = np.random.default_rng(int(spread * 10))
    n, k, f = 4, 5, 6
    base, phi = rng.normal(size=k), rng.normal(size=(n, k, f)) * spread / np.sqrt(f)
    which = rng.integers(0, k, n)
    shares, start, risk = share_points(base, phi, which)
    steps = 40_000
    for r in range(n):
        t = (np.arange(steps) + 0.5) / steps
        s = softmax(base + t[:, None] * phi[r].sum(axis=1))
        mine = s[:, which[r]]
        pull = -mine[:, None] * s
        pull[:, which[r]] += mine
        np.testing.assert_allclose(risk[r], pull.mean(axis=0) @ phi[r], rtol=0, atol=1e-7)
        assert start[r] == pytest.approx(softmax(base)[which[r]], abs=1e-15)
        assert start[r] + risk[r].sum() == pytest.approx(shares[r, which[r]], abs=1e-9)


def test_every_answer_says_why_a_line_would_come_back(bundle, facts, trained):
    from features.snapshot import Snapshot

    tables = Dataset.open(trained.dataset).tables
    parcels = tables["parcels"].tail(40)
    requests = []
    for parcel in parcels.to_dict("records"):
        order = tables["orders"][tables["orders"]["order_id"] == parcel["order_id"]].iloc[0]
        lines = tables["order_lines"][tables["order_lines"]["parcel_id"] == parcel["parcel_id"]]
        plain = [{k: v for k, v in row.items() if v == v and v is not None} for row in lines.to_dict("records")]
        given = {k: v for k, v in parcel.items() if v == v and v is not None}
        ordered = {k: v for k, v in order.items() if v == v and v is not None}
        for part in (given, ordered):
            for name, value in part.items():
                part[name] = value.isoformat() if hasattr(value, "isoformat") else value
        requests.append({"order": ordered, "parcel": given, "lines": plain})
    bodies = answer(bundle, Snapshot.load(trained.snapshot), requests)
    seen = 0
    for body in bodies:
        lost = body["risks"]["undelivered"]["probability"]
        for line in body["returns"]:
            seen += 1
            assert sum(line["reasons"].values()) == pytest.approx(1, abs=1e-12)
            assert line["not_kept"] == pytest.approx(1 - (1 - lost) * (1 - line["probability"]), abs=1e-12)
            why = line["reason"]
            assert why["share"] == max(line["reasons"].values()) == line["reasons"][why["reason"]]
            assert why["owner"] in TEAMS
            assert why["base"] + sum(why["teams"].values()) == pytest.approx(why["share"], abs=1e-9)
            assert why["base"] + sum(d["points"] for d in why["drivers"]) == pytest.approx(why["share"], abs=1e-9)
    assert seen > 40


def test_without_a_snapshot_the_mix_of_reasons_is_answered(bundle):
    request = {"order": {"order_id": "o"}, "parcel": {"parcel_id": "p"}, "lines": [{"line_id": "l", "sku": "s"}]}
    (body,) = answer(bundle, None, [request])
    assert body["degraded"]
    assert body["returns"][0]["reasons"] == dict(zip(bundle.reasons.reasons, bundle.reasons.mix, strict=True))


def test_a_batch_has_the_shares_beside_the_risk_of_a_return(bundle, facts):
    frames = {frame["target"].iloc[0]: frame for frame in _frames(bundle, facts)}
    returned = frames["returned"]
    columns = [f"reason_{name}" for name in bundle.reasons.reasons]
    np.testing.assert_allclose(returned[columns].sum(axis=1), 1, rtol=0, atol=1e-12)
    assert (returned["reason_drivers"].str.len() > 0).mean() > 0.9
    assert not set(columns) & set(frames["late"].columns)


def _frames(bundle, facts):
    from serving.score import score

    return list(score(bundle, facts.rows, np.datetime64("2025-12-01")))


def test_scoring_says_none_where_there_is_no_model(bundle, facts):
    silent = Bundle("0" * 12, bundle.settings, bundle.targets, None, {})
    assert Scoring(silent, facts.rows).reasons() is None
