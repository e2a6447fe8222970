"""Answers before the first question: what is made when it is first needed is made before anybody waits for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from features.snapshot import Snapshot
from serving.bundle import Bundle
from serving.policy import ANY, Policy, Tariff
from serving.schemas import EXAMPLE
from serving.score import decide


def rehearse(bundle: Bundle | None, snapshot: Snapshot | None, policy: Policy | None) -> None:
    """Answer once about a parcel for which all that a policy has may be weighed, with and without a listing of its own.

    Raises:
        Exception: whatever keeps these from answering.
    """
    request = parcel_for(policy)
    decide(bundle, snapshot, policy, [request, {k: v for k, v in request.items() if k != "listings"}])


def parcel_for(policy: Policy | None) -> dict[str, Any]:
    """The documentation's example, in a package of the policy and with a carrier that another could stand in for."""
    request = copy.deepcopy(EXAMPLE)
    if policy is None:
        return request
    request["parcel"]["documents_complete"] = False
    for package in policy.packages.values():
        request["parcel"] |= {"package_type": package.name, "protection_level": package.protection_level}
        break
    for tariff, country, region in _replaceable(policy):
        request["parcel"] |= {"carrier": tariff.carrier, "service": None if tariff.service == ANY else tariff.service}
        request["order"] |= {"destination_country": country, "destination_region": region}
        break
    return request


def _replaceable(policy: Policy) -> Iterator[tuple[Tariff, str | None, str | None]]:
    """Services of carriers with a country and region that another one serves as well, which the policy may offer."""
    tariffs = policy.carriers.values()
    action = policy.actions.get("carrier")
    free = action is not None and action.change_service
    for tariff in tariffs:
        for place in sorted(tariff.destinations):
            country, _, region = (None if place == ANY else place or None for place in place.partition("/"))
            others = (t for t in tariffs if t is not tariff and (free or t.service == tariff.service))
            if any(t.serves(country, region) for t in others):
                yield tariff, country, region
