"""Whether an action is worth it: failures by their price, less what the action costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from features.arrays import Array
from features.matrix import values
from features.rows import Rows
from features.vocabulary import TARGETS
from serving.actions.book import Book
from serving.actions.effects import ESTIMATED, moved
from serving.actions.packages import Ladder, other_packages
from serving.actions.parcels import Parcels
from serving.actions.rules import Facts, breaks, demanded, facts
from serving.actions.services import other_services, rescored
from serving.bundle import Bundle
from serving.policy import Action, Policy

LIKELY = 0.430727
"""Standard errors from the estimate to the end that the truth is beyond in one of three cases, not in one of twenty as
for `effects.BAD_END`: another carrier's effects are shrunken, so that their errors are not what is picked."""


@dataclass(frozen=True)
class Options:
    """What K actions would do for n parcels with l lines.

    Attributes:
        keys, actions: what can be done, and what the policy says of it.
        place: position of each key.
        told: something is known of what it does; of a package: what it does to damage.
        offered: (n, K) it can be done to the parcel, and something is known of what it does.
        before: per target, (n,) or (l,) probabilities as they are.
        after: per target, (n, K) or (l, K) with the action.
        evidence: per target and action, one of `TRUST`; None where it changes nothing.
        saving: (n, K) money that failures would cost less, expected.
        cost: (n, K) money: of the action, of material and freight; negative where it saves some.
        co2e_g: (n, K) added; NaN where it is not known, and counts as nothing.
        benefit: (n, K) net, weighted as the policy says.
        low, high: (n, K) 95 % interval of it by what is known of the action's effects, the risks before taken as they
            are; NaN where nobody says how sure one of the effects is.
        unsure: per target, (n, K) or (l, K) where that is so.
        least: (K,) benefit below which the action is not recommended.
        safe: (n, K) false for a weaker package that is worth it only if its effect is as small as estimated: the best
            of many estimates is too good to be true, and protection is taken away only where the bad end is worth it.
            False also for another service of a carrier that is less likely than two to one to be worth anything.
        breaks: (n, K) another package or service with which the parcel breaks a packing rule that reads it.
        demanded: (n, K) it changes what a broken packing rule, or the handoff, tells the packer to mend, or a protocol
            asks for it: that is done whatever it is worth, so it is not left to chance.
        parcels, ladder, known: what it was made from, for the answer; `known` is what packing rules read.
        line_parcel: (l,) the parcel of each line.
    """

    keys: tuple[str, ...]
    actions: tuple[Action, ...]
    place: Mapping[str, int]
    told: tuple[bool, ...]
    offered: Array
    before: Mapping[str, Array]
    after: Mapping[str, Array]
    evidence: Mapping[str, list[str | None]]
    saving: Array
    cost: Array
    co2e_g: Array
    benefit: Array
    low: Array
    high: Array
    unsure: Mapping[str, Array]
    least: Array
    safe: Array
    breaks: Array
    demanded: Array
    parcels: Parcels
    ladder: Ladder
    known: Facts
    line_parcel: Array

    def ranked(self, row: int) -> list[int]:
        """The actions that are offered for a parcel, the highest benefit first; ties in the order of the keys."""
        benefit, offered = self.benefit[row].tolist(), self.offered[row].tolist()
        return sorted((k for k in range(len(self.keys)) if offered[k]), key=lambda k: -benefit[k])

    @property
    def open(self) -> Array:
        """(n, K) what may be recommended, if it is worth it."""
        return np.asarray(self.offered & self.safe & ~self.breaks)

    def best(self) -> Array:
        """The one action worth doing for each parcel, (n,) position in `keys`; -1 where nothing is worth it."""
        if not self.keys:
            return np.full(len(self.offered), -1)
        worth = np.where(self.open & (self.benefit > self.least), self.benefit, -np.inf)
        best = worth.argmax(axis=1)
        return np.where(np.isfinite(np.take_along_axis(worth, best[:, None], axis=1)[:, 0]), best, -1)


def weigh(
    bundle: Bundle,
    policy: Policy,
    rows: Rows,
    probability: Mapping[str, Array],
    matrix: Callable[[str], Array] | None = None,
) -> Options:
    """What every action of the policy would do for every parcel.

    Args:
        bundle: the models, and its levers.
        policy: what things cost.
        rows: the parcels.
        probability: per target of the bundle, (n,) or (l,), as served.
        matrix: the values of `bundle.columns` of a unit for the rows, where they are there already.
    """
    book = Book.of(policy)
    parcels = Parcels.of(rows, policy)
    ladder = Ladder.of(book, rows, parcels)
    n, k = rows.parcels.n, len(book.keys)
    boxes, services = book.boxes, book.services
    before = {t: probability[t] for t in TARGETS if t in probability}
    offered = np.ones((n, k), dtype=bool)
    cost, co2e = np.zeros((n, k)), np.zeros((n, k))
    if boxes.stop > boxes.start:
        offered[:, boxes], cost[:, boxes], co2e[:, boxes] = other_packages(book, parcels, ladder)
    scored: dict[str, tuple[Array, Array]] = {}
    if services.stop > services.start:
        offered[:, services], cost[:, services], co2e[:, services] = other_services(book, parcels)
        whole = matrix or (lambda unit: values(rows, bundle.columns(unit)))
        for target, found, error in rescored(bundle, book, rows, offered[:, services], before, whole):
            scored[target] = found, error
    cost += np.array([a.cost for a in book.actions])
    after, evidence, worst, between = moved(bundle, book, rows, parcels, before, scored, offered)

    # Nothing is offered of which nobody can say what it does: a weaker box of unknown risk would look free.
    says = [{t for t in before if evidence[t][j] is not None} for j in range(k)]
    decisive = {"damaged"} if "damaged" in before else set(before)
    told = tuple(bool(says[j] & (decisive if j < boxes.stop else set(before))) for j in range(k))
    offered &= np.array(told, dtype=bool)
    factor = _factor(policy, parcels)
    saving, weighted, doubt = np.zeros((n, k)), np.zeros((n, 3 * k)), np.zeros((n, k))
    variance = np.zeros((n, services.stop - services.start))
    for target, p in before.items():
        each, line = _failure(policy, parcels, target)[:, None], TARGETS[target].unit == "line"
        gain = (p[:, None] - np.concatenate([after[target], *between[target]], axis=1)) * each
        if line:
            gain = _per_parcel(gain, rows.line_parcel, n)
        gain *= factor[:, None]
        saving += gain[:, :k]
        weighted += policy.weights.of(target) * gain
        if target in worst:
            loss = np.maximum(worst[target] - after[target][:, boxes], 0.0) * each
            loss = _per_parcel(loss, rows.line_parcel, n) if line else loss
            doubt[:, boxes] += policy.weights.of(target) * loss * factor[:, None]
        if target in scored:
            # A carrier is as good or bad to all lines of the parcel; what it does to one target says nothing of others.
            p_after = after[target][:, services]
            by_lever = np.array([e == ESTIMATED for e in evidence[target][services]])
            error = np.where(by_lever, np.nan_to_num(scored[target][1]), 0.0) * p_after * (1.0 - p_after) * each
            error = _per_parcel(error, rows.line_parcel, n) if line else error
            variance += (policy.weights.of(target) * error * factor[:, None]) ** 2
    doubt[:, services] = LIKELY * np.sqrt(variance)
    kilograms = np.where(np.isnan(co2e), 0.0, co2e) / 1000.0
    # Both ends at once for all targets: what an estimate of one is off by may go with what that of another is off by.
    paid = (policy.weights.cost * cost)[:, None], (policy.weights.co2e * kilograms)[:, None]
    benefit, low, high = (weighted.reshape(n, 3, k) - paid[0] - paid[1]).transpose(1, 0, 2)
    least = np.array([a.least_benefit for a in book.actions])
    known = facts(rows, policy, parcels.value)
    doubtful = np.zeros((n, k), dtype=bool)
    doubtful[:, boxes] = book.levels[: boxes.stop] < parcels.level[:, None]
    doubtful[:, services] = True
    return Options(
        keys=book.keys,
        actions=book.actions,
        place=book.place_of,
        told=told,
        offered=offered,
        before=before,
        after=after,
        evidence=evidence,
        saving=saving,
        cost=cost,
        co2e_g=co2e,
        benefit=benefit,
        low=low,
        high=high,
        unsure={target: np.asarray(np.isnan(ends).any(axis=0)) for target, ends in between.items()},
        least=least,
        safe=~doubtful | (benefit - doubt > 0.0),
        breaks=breaks(book, known, n),
        demanded=demanded(book, rows, known, before),
        parcels=parcels,
        ladder=ladder,
        known=known,
        line_parcel=rows.line_parcel,
    )


def spent(policy: Policy, rows: Rows, happened: Mapping[str, Array]) -> Array:
    """What parcels cost at the policy's prices, as they were packed and sent: failures, material and freight, (n,).

    What has no price there, a package or a service that the policy does not know, counts as nothing.

    Args:
        policy: what things cost.
        rows: the parcels.
        happened: per target, (n,) or (l,), 1 where it happened, else 0.
    """
    book, parcels = Book.of(policy), Parcels.of(rows, policy)
    out = np.zeros(rows.parcels.n)
    for target, which in happened.items():
        money = (which * _failure(policy, parcels, target))[:, None]
        out += (_per_parcel(money, rows.line_parcel, len(out)) if TARGETS[target].unit == "line" else money)[:, 0]
    out *= _factor(policy, parcels)
    out += np.array([*(p.material_cost for p in book.packages), 0.0])[book.own_package(parcels)]
    tariff = book.own_tariff(parcels)
    sent = np.flatnonzero(tariff >= 0)
    out[sent] += book.prices(parcels)[sent, tariff[sent]]
    return out


def _failure(policy: Policy, parcels: Parcels, target: str) -> Array:
    """What one failure costs of each parcel or line, (n,) or (l,), before the factors of `_factor`."""
    failure = policy.failures[target]
    value = parcels.line_value if TARGETS[target].unit == "line" else parcels.value
    return np.asarray(failure.cost + failure.share_of_value * np.where(np.isnan(value), 0.0, value))


def _per_parcel(of_lines: Array, line_parcel: Array, n: int) -> Array:
    """Sums (n, K) of figures of lines (l, K), added line by line whatever else there is."""
    out = np.zeros((n, of_lines.shape[1]))
    mine = line_parcel >= 0
    np.add.at(out, line_parcel[mine], of_lines[mine])
    return out


def _factor(policy: Policy, parcels: Parcels) -> Array:
    """How many times as much a failure of each parcel costs, (n,)."""
    tiers = np.array([*(t.factor for t in policy.tiers), 1.0])
    return tiers[parcels.tier] * np.where(parcels.business, policy.business_factor, 1.0)
