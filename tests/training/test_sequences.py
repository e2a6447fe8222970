"""Intervals that may be looked at daily: as the definition says, and never fooled more often than they claim."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.sequences import best_mixture, boundary, contrast, wealth
from scipy.stats import binom

from training.effect import sequences
from training.effect.sequences import BEST_AT, LEAST_EVENTS, difference, half_width, mismatch, needed, odds_ratio


def trial(rng, n=4_000, a_day=40, rate=0.1, ratio=1.0, propensity=0.7):
    treated = rng.random(n) < propensity
    outcome = (rng.random(n) < np.where(treated, ratio, 1) * rate).astype(float)
    return outcome, treated, np.full(n, propensity), np.arange(n) // a_day


class TestWidth:
    @pytest.mark.parametrize("level", [0.05, 0.0125, 0.001])
    @pytest.mark.parametrize("n", [50, 3_000, 10_000, 250_000])
    def test_it_is_where_the_mixture_of_likelihood_ratios_reaches_one_over_the_level(self, n, level):
        ours = float(half_width(np.array([n]), np.array([0.37]), level)[0])
        assert ours == pytest.approx(boundary(n, 0.37, level, best_mixture(BEST_AT, level)), rel=1e-6)

    @given(
        st.floats(1, 1e7), st.floats(1.01, 50), st.floats(1e-6, 10), st.floats(1e-4, 0.4), st.floats(1.01, 2)
    )  # fmt: skip
    def test_more_parcels_narrow_it_more_variance_and_more_certainty_widen_it(self, n, times, variance, level, factor):
        at, one = np.array([n]), np.array([variance])
        width = half_width(at, one, level)
        assert half_width(at * times, one, level) < width
        assert half_width(at, one * factor, level) > width
        assert half_width(at, one, level / factor) > width

    def test_it_is_wider_than_the_interval_that_holds_once_and_goes_to_nothing(self):
        n = np.array([100.0, 1e4, 1e8])
        width = half_width(n, np.ones(3), 0.05)
        assert (width > 1.96 / np.sqrt(n)).all()
        assert width[-1] < 1e-3


@st.composite
def trials(draw):
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chance = rng.choice([0.3, 0.5, 0.8], n)
    outcome = (rng.random(n) < 0.5).astype(float)
    return outcome, rng.random(n) < chance, chance, rng.integers(0, draw(st.integers(1, 8)), n)


class TestPaths:
    @given(trials())
    @settings(max_examples=60)
    def test_every_look_is_what_the_long_way_says(self, given_):
        least, sequences.LEAST_EVENTS = sequences.LEAST_EVENTS, 0
        try:
            points, odds = difference(*given_, 0.05), odds_ratio(*given_, 0.05)
        finally:
            sequences.LEAST_EVENTS = least
        assert points.look.tolist() == sorted(set(given_[3].tolist()))
        for k, at in enumerate(points.look):
            want = contrast(*given_, at)
            assert points.units[k] == odds.units[k] == want["units"]
            assert points.value[k] == pytest.approx(want["difference"], abs=1e-9, nan_ok=True)
            if np.isnan(want["difference"]):
                assert (points.low[k], points.high[k]) == (-np.inf, np.inf)
                continue
            half = half_width(np.array([want["units"]]), np.array([want["variance"]]), 0.05)[0]
            assert (points.low[k], points.high[k]) == pytest.approx(
                (want["difference"] - half, want["difference"] + half), abs=1e-9
            )
            if "log_odds" in want:
                half = half_width(np.array([want["units"]]), np.array([want["log_odds_variance"]]), 0.05)[0]
                logs = np.log([odds.low[k], odds.value[k], odds.high[k]])
                assert logs == pytest.approx(want["log_odds"] + half * np.array([-1, 0, 1]), abs=1e-6)
            else:
                assert (odds.low[k], odds.high[k]) == (0, np.inf)

    def test_what_comes_later_changes_no_earlier_look_and_the_order_of_rows_none_at_all(self):
        rng = np.random.default_rng(5)
        given_ = trial(rng)
        whole, early = difference(*given_, 0.05), given_[3] < 60
        part = difference(*(x[early] for x in given_), 0.05)
        shuffled = rng.permutation(len(early))
        other = difference(*(x[shuffled] for x in given_), 0.05)
        for name in ("look", "units", "value", "low", "high"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:60])
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), atol=1e-12)

    def test_arms_the_other_way_round_give_the_opposite(self):
        outcome, treated, propensity, look = trial(np.random.default_rng(6))
        one, other = (
            difference(outcome, treated, propensity, look, 0.05),
            difference(outcome, ~treated, 1 - propensity, look, 0.05),
        )
        np.testing.assert_allclose(one.low, -other.high, atol=1e-12)
        odds = [odds_ratio(outcome, d, p, look, 0.05) for d, p in ((treated, propensity), (~treated, 1 - propensity))]
        np.testing.assert_allclose(odds[0].value, 1 / odds[1].value)

    def test_a_share_that_changes_while_rates_drift_deceives_nobody(self):
        """Half withheld of few, then a tenth of many events: as many events as there are, so no effect at all."""
        n = 40_000
        look = np.arange(n) // 400
        chance = np.where(look < 50, 0.5, 0.9)
        rng = np.random.default_rng(7)
        treated = rng.random(n) < chance
        outcome = (rng.random(n) < np.where(look < 50, 0.05, 0.15)).astype(float)
        assert outcome[treated].mean() - outcome[~treated].mean() > 0.02
        path = difference(outcome, treated, chance, look, 0.05)
        assert path.low[-1] < 0 < path.high[-1]

    def test_nothing_is_said_of_few_events(self):
        outcome, treated, propensity, look = trial(np.random.default_rng(8), propensity=0.875)
        path = difference(outcome, treated, propensity, look, 0.05)
        spoken = np.isfinite(path.high)
        events = np.cumsum(outcome)[path.units - 1]
        np.testing.assert_array_equal(spoken, events * 0.125 >= LEAST_EVENTS)
        assert not path.excludes()[~spoken].any()

    def test_nobody_judged_is_an_empty_path(self):
        empty = np.empty(0)
        for made in (difference, odds_ratio):
            path = made(empty, empty.astype(bool), empty, empty.astype(int), 0.05)
            assert not len(path.units) and not len(path.excludes())
        assert not len(mismatch(empty.astype(bool), empty))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: (t[0], t[1], np.ones(len(t[0])), t[3]), "propensity of 1.0: only what was drawn by lot"),
            (lambda t: (t[0][:-1], *t[1:]), "3999 outcomes, 4000 arms"),
            (lambda t: (np.where(t[1], np.nan, t[0]), *t[1:]), "leave out who cannot be judged"),
        ],
    )
    def test_what_is_no_trial_is_refused(self, change, said):
        with pytest.raises(ValueError, match=said):
            difference(*change(trial(np.random.default_rng(9))), 0.05)


TRIALS = 300


def at_most(share: float) -> int:
    """So many of the trials would be exceeded once in a thousand, were the share just that."""
    return int(binom.ppf(0.999, TRIALS, share))


class TestDailyLooks:
    """The benchmark does this in earnest: `python benchmarks/effect.py`."""

    def test_an_action_that_does_nothing_wins_no_more_often_than_it_may(self):
        rng, ours, usual = np.random.default_rng(10), 0, 0
        for _ in range(TRIALS):
            outcome, treated, propensity, look = trial(rng)
            path = difference(outcome, treated, propensity, look, 0.05)
            ours += path.excludes().any()
            ends = path.units[np.isfinite(path.high)] - 1
            n = [np.cumsum(arm)[ends] for arm in (treated, ~treated)]
            p = [np.cumsum(arm * outcome)[ends] / m for arm, m in zip((treated, ~treated), n, strict=True)]
            error = np.sqrt(sum(q * (1 - q) / m for q, m in zip(p, n, strict=True)))
            usual += (np.abs(p[0] - p[1]) > 1.96 * error).any()
        assert ours <= at_most(0.05)
        assert usual > at_most(0.15)

    def test_a_planted_effect_is_found_and_all_days_hold_it(self):
        rng, found, missed, odds_missed = np.random.default_rng(11), 0, 0, 0
        true_odds = (0.06 / 0.94) / (0.12 / 0.88)
        for _ in range(TRIALS):
            given_ = trial(rng, rate=0.12, ratio=0.5, n=6_000, a_day=100)
            path, odds = difference(*given_, 0.05), odds_ratio(*given_, 0.05)
            found += path.excludes()[-1] < 0
            missed += ((path.low > -0.06) | (path.high < -0.06)).any()
            odds_missed += ((odds.low > true_odds) | (odds.high < true_odds)).any()
        assert found > 0.95 * TRIALS
        assert missed <= at_most(0.05) and odds_missed <= at_most(0.05)

    def test_as_many_parcels_as_are_said_to_be_needed_show_the_effect(self):
        rng = np.random.default_rng(12)
        n = needed(0.1, 0.04, 0.7, 0.05)
        seen = sum(
            difference(*trial(rng, n=n, a_day=n, rate=0.1, ratio=0.6), 0.05).excludes()[-1] < 0 for _ in range(TRIALS)
        )
        assert binom.ppf(0.001, TRIALS, 0.8) <= seen <= 0.95 * TRIALS
        assert needed(0.1, 0.02, 0.7, 0.05) > 3 * n
        assert needed(0.1, 0.04, 0.9, 0.05) > n


class TestArms:
    def test_the_evidence_is_the_mixture_and_is_worth_one_on_average(self):
        propensity = np.array([0.2, 0.5, 0.9, 0.7])
        mean = 0.0
        for arms in itertools.product([False, True], repeat=4):
            chance = np.prod(np.where(arms, propensity, 1 - propensity))
            evidence = mismatch(np.array(arms), propensity)
            assert evidence[-1] == pytest.approx(wealth(arms, propensity, sequences.TILTS))
            mean += chance * evidence[-1]
        assert mean == pytest.approx(1.0)

    def test_arms_as_logged_are_never_doubted_and_lost_parcels_are_found(self):
        rng = np.random.default_rng(13)
        for _ in range(50):
            chance = rng.choice([0.5, 0.9], 5_000)
            treated = rng.random(5_000) < chance
            assert mismatch(treated, chance).max() < 1_000
            kept = ~treated | (rng.random(5_000) > 0.3)
            assert mismatch(treated[kept], chance[kept]).max() > 1_000

    def test_overwhelming_evidence_is_still_a_number(self):
        evidence = mismatch(np.ones(20_000, dtype=bool), np.full(20_000, 0.5))
        assert evidence[-1] == np.inf and (np.diff(evidence[:100]) > 0).all()
