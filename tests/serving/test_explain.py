"""Points of risk add up exactly to the served probability, keep sign and order, and belong to one team each."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.vocabulary import TEAMS
from serving.explain import by_team, logistic, points

quick = settings(max_examples=150, deadline=None, derandomize=True)

log_odds = st.floats(-40, 40)
contribution = st.one_of(
    st.floats(-1000, 1000),
    st.floats(-1e-7, 1e-7),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1e-6, -1e-6, 745.0, -745.0]),
)


def exact(z: float) -> float:
    """The logistic function in plain Python."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z)) if z > -745 else 0.0


@given(log_odds, st.lists(contribution, min_size=1, max_size=60))
@quick
def test_base_and_points_are_the_probability(base: float, phi: list[float]) -> None:
    probability, risk = points(base, np.array([phi]))

    assert 0 <= probability[0] <= 1
    assert abs(logistic(np.asarray(base)) + risk.sum() - probability[0]) < 1e-9
    assert probability[0] == pytest.approx(exact(base + math.fsum(phi)), abs=1e-9)
    assert np.isfinite(risk).all()


@given(log_odds, st.lists(contribution, min_size=2, max_size=20))
@quick
def test_points_keep_sign_and_order(base: float, phi: list[float]) -> None:
    _, risk = points(base, np.array([phi]))

    for value, point in zip(phi, risk[0], strict=True):
        assert point == 0 or (point > 0) == (value > 0)
    for (a, x), (b, y) in itertools.combinations(zip(phi, risk[0], strict=True), 2):
        assert a == b or (a < b) == (x < y) or x == y


@given(log_odds, st.floats(-3e-6, 3e-6))
@quick
def test_across_the_place_where_the_quotient_gives_way_to_the_slope(base: float, step: float) -> None:
    probability, risk = points(base, np.array([[step]]))

    assert abs(exact(base) + risk[0, 0] - probability[0]) < 1e-15 + 1e-12 * probability[0]


def test_nothing_that_contributes_is_nothing_explained() -> None:
    probability, risk = points(-2.0, np.zeros((2, 3)))

    np.testing.assert_array_equal(probability, logistic(np.array([-2.0, -2.0])))
    assert not risk.any()


def test_contributions_that_cancel_leave_the_probability_and_still_say_who_pulled() -> None:
    probability, risk = points(0.0, np.array([[2.0, -2.0]]))

    assert probability[0] == 0.5
    np.testing.assert_allclose(risk[0], [0.5, -0.5])  # the slope at one half is a quarter


def test_a_worked_example() -> None:
    """From 10 % to 50 %: forty points, shared as the log-odds are."""
    base = math.log(0.1 / 0.9)
    probability, risk = points(base, np.array([[-0.75 * base, -0.25 * base]]))

    assert probability[0] == pytest.approx(0.5)
    np.testing.assert_allclose(risk[0], [0.3, 0.1])


def test_it_is_the_aumann_shapley_share_of_the_straight_path() -> None:
    """The definition: the integral of the slope of the probability along the path, times the contribution."""
    random = np.random.default_rng(0)
    phi = random.normal(0, 2, (5, 7))
    steps = (np.arange(20_000) + 0.5) / 20_000
    for row, risk in zip(phi, points(-1.3, phi)[1], strict=True):
        p = 1 / (1 + np.exp(-(-1.3 + steps * row.sum())))
        np.testing.assert_allclose(risk, row * (p * (1 - p)).mean(), rtol=1e-7)


def test_a_row_is_explained_alone_as_among_others() -> None:
    phi = np.random.default_rng(1).normal(0, 3, (50, 11))
    probability, risk = points(-2.0, phi)
    for i in range(50):
        alone = points(-2.0, phi[i : i + 1])
        np.testing.assert_array_equal(alone[0], probability[i : i + 1])
        np.testing.assert_array_equal(alone[1], risk[i : i + 1])


def test_no_rows_and_no_features() -> None:
    assert [a.shape for a in points(-2.0, np.empty((0, 4)))] == [(0,), (0, 4)]
    probability, risk = points(-2.0, np.empty((3, 0)))
    np.testing.assert_array_equal(probability, logistic(np.full(3, -2.0)))
    assert {team: v.tolist() for team, v in by_team(risk, []).items()} == {team: [0.0] * 3 for team in TEAMS}


@given(st.lists(st.tuples(st.sampled_from(TEAMS), st.floats(-0.2, 0.2)), min_size=1, max_size=40))
@quick
def test_every_point_is_one_teams_and_the_teams_add_up(owned: list[tuple[str, float]]) -> None:
    teams, risk = [t for t, _ in owned], np.array([[p for _, p in owned]])

    found = by_team(risk, teams)

    assert list(found) == list(TEAMS)
    for team in TEAMS:
        assert found[team][0] == pytest.approx(math.fsum(p for t, p in owned if t == team), abs=1e-12)
    assert sum(v[0] for v in found.values()) == pytest.approx(math.fsum(risk[0]), abs=1e-12)


def test_the_logistic_function_neither_overflows_nor_warns() -> None:
    z = np.array([-1e308, -800.0, -40.0, 0.0, 40.0, 800.0, 1e308])

    np.testing.assert_allclose(logistic(z), [0.0, 0.0, exact(-40.0), 0.5, exact(40.0), 1.0, 1.0], rtol=1e-15)
    assert (np.diff(logistic(np.linspace(-40, 40, 10_001))) >= 0).all()
