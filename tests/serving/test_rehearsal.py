"""What is made when it is first needed is made before the first parcel is asked about."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json
from shops import Shop

from serving.policy import Policy
from serving.rehearsal import parcel_for, rehearse
from serving.schemas import EXAMPLE, Rules
from serving.score import decide


def test_all_that_the_policy_has_is_weighed_for_the_parcel_it_is_rehearsed_with(shop: Shop) -> None:
    policy = shop.policy()
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [parcel_for(policy)])
    kinds = {option["action"].partition(":")[0] for option in body["actions"]}
    assert kinds >= {"package", "carrier", "add_fill", "fix_label", "complete_documents", "confirm_address"}
    assert [rung["current"] for rung in body["packages"]].count(True) == 1
    assert Rules().one(to_json(parcel_for(policy))), "a parcel that a shop could ask about"


def test_a_country_and_a_region_are_found_that_two_carriers_serve(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        tariff = {"base_price": 1.0, "price_per_kg": 1.0, "dimensional_divisor": 5000}
        document["carriers"] = {
            "alba": {"standard": tariff | {"destinations": ["DE/Bayern", "AT"]}},
            "borea": {"standard": tariff | {"destinations": ["CH"]}, "express": tariff | {"destinations": ["AT"]}},
            "corvus": {"standard": tariff | {"destinations": ["DE", "FR"]}},
        }

    request = parcel_for(shop.policy(change))
    assert (request["parcel"]["carrier"], request["parcel"]["service"]) == ("alba", "standard")
    assert (request["order"]["destination_country"], request["order"]["destination_region"]) == ("DE", "Bayern")
    anywhere = parcel_for(shop.policy(lambda d: d["carriers"].update(change_to_anywhere(d))))
    assert anywhere["parcel"]["carrier"] == "nord"
    assert anywhere["parcel"]["service"] is None and anywhere["order"]["destination_country"] is None


@pytest.mark.parametrize("free", [True, False])
def test_where_services_may_change_a_carrier_of_another_service_is_weighed(shop: Shop, free: bool) -> None:
    def change(document: dict[str, Any]) -> None:
        tariff = {"base_price": 1.0, "price_per_kg": 1.0, "dimensional_divisor": 5000}
        document["carriers"] = {
            "alba": {"economy": tariff | {"destinations": ["CH"]}},
            "borea": {"standard": tariff | {"destinations": ["AT"]}},
            "corvus": {"express": tariff | {"destinations": ["AT", "FR"]}},
        }
        document["actions"]["carrier"]["change_service"] = free

    policy = shop.policy(change)
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [parcel_for(policy)])
    weighed = {option["action"] for option in body["actions"] if option["action"].startswith("carrier:")}
    assert weighed == ({"carrier:corvus/express"} if free else set())


def change_to_anywhere(document: dict[str, Any]) -> dict[str, Any]:
    document["carriers"].clear()
    tariff = {"base_price": 1.0, "price_per_kg": 1.0, "dimensional_divisor": 5000, "destinations": ["*"]}
    return {"nord": {"*": tariff}, "sud": {"*": tariff}}


@pytest.mark.parametrize("empty", [("carriers",), ("packages", "tiers"), ("carriers", "packages", "actions", "tiers")])
def test_a_policy_that_has_little_is_rehearsed_all_the_same(shop: Shop, empty: tuple[str, ...]) -> None:
    def change(document: dict[str, Any]) -> None:
        for part in empty:
            document.pop(part, None)

    policy: Policy = shop.policy(change)
    for bundle in (shop.bundle, None):
        for snapshot in (shop.snapshot, None):
            rehearse(bundle, snapshot, policy)
            rehearse(bundle, snapshot, None)
    assert parcel_for(None) == EXAMPLE
