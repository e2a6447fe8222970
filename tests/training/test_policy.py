"""The draft of a policy: what a dataset has is in it, and what it has not is not made up."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from features.dataset import Dataset
from features.settings import Settings
from serving.policy import Policy
from training.cli import main
from training.policy import RARE, draft, lacking, never_offered, usual_value


@pytest.fixture(scope="module")
def shop(world_dataset: Path) -> Dataset:
    return Dataset.open(world_dataset)


def test_a_draft_has_what_the_dataset_has(shop: Dataset) -> None:
    policy = Policy.parse(draft(shop))
    parcels = shop.tables["parcels"].merge(shop.tables["orders"], on="order_id")
    levels = parcels.groupby("package_type")["protection_level"].median()
    assert {name: p.protection_level for name, p in policy.packages.items()} == levels.to_dict()
    shipped = parcels.groupby(["carrier", "service"]).size()
    assert {*policy.carriers} == {*shipped[shipped >= RARE].index}
    assert policy.currency == shop.settings.currency
    assert lacking(policy, shop) == []

    # A service may go where it has gone, and nowhere else.
    places = set(zip(parcels["destination_country"], parcels["destination_region"], strict=True))
    for (carrier, service), tariff in policy.carriers.items():
        own = parcels[(parcels["carrier"] == carrier) & (parcels["service"] == service)]
        gone = set(zip(own["destination_country"], own["destination_region"], strict=True))
        assert {p for p in places if tariff.serves(*p)} == gone


def test_a_stronger_package_of_the_draft_costs_weighs_and_measures_more(shop: Dataset) -> None:
    packages = [*Policy.parse(draft(shop)).packages.values()]
    for weak, strong in pairwise(packages):
        assert weak.material_cost < strong.material_cost
        assert weak.weight_g is not None and strong.weight_g is not None and weak.weight_g < strong.weight_g
        assert weak.volume_factor is not None and strong.volume_factor is not None
        assert weak.volume_factor < strong.volume_factor


def test_what_a_shop_does_not_have_is_left_out() -> None:
    orders = pd.DataFrame({"order_id": ["o"], "ordered_at": pd.to_datetime(["2025-01-01"], utc=True)})
    policy = Policy.parse(draft(Dataset(Settings(currency="IDR"), {"orders": orders})))
    assert policy.currency == "IDR"
    assert not policy.packages
    assert not policy.carriers
    assert {*policy.actions} == {"notify_customer", "pickup_point", "hold_next_pickup"}


def test_a_currency_is_not_made_up() -> None:
    orders = pd.DataFrame({"order_id": ["o"], "ordered_at": pd.to_datetime(["2025-01-01"], utc=True)})
    text = draft(Dataset(Settings(), {"orders": orders}))
    assert 'currency = "XXX"             # the dataset names none: replace it' in text
    assert Policy.parse(text).currency == "XXX"


def test_another_carrier_that_can_never_be_advised_is_told() -> None:
    n = RARE
    orders = pd.DataFrame(
        {"order_id": [f"o{i}" for i in range(2 * n)], "ordered_at": pd.to_datetime(["2025-01-01"] * 2 * n, utc=True)}
    )
    parcels = pd.DataFrame(
        {"parcel_id": orders["order_id"], "order_id": orders["order_id"], "carrier": ["SPX"] * n + ["JNE"] * n}
    )

    def drafted(*services: str) -> str:
        given = parcels.assign(service=[s for s in services for _ in range(n)])
        return draft(Dataset(Settings(), {"orders": orders, "parcels": given}))

    apart = drafted("SPX Hemat", "JNE Reguler")
    assert ["change_service = true" in said for said in never_offered(Policy.parse(apart))] == [True]
    assert never_offered(Policy.parse(apart.replace("change_service = false", "change_service = true"))) == []
    assert never_offered(Policy.parse(drafted("standard", "standard"))) == []


def test_guesses_go_by_what_a_usual_order_is_worth() -> None:
    orders = pd.DataFrame({"order_id": ["a", "b"], "ordered_at": pd.to_datetime(["2025-01-01"] * 2, utc=True)})
    lines = pd.DataFrame(
        {
            "line_id": ["1", "2", "3"],
            "order_id": ["a", "a", "b"],
            "sku": ["x"] * 3,
            "quantity": [2.0, 1.0, 1.0],
            "unit_price": [100_000.0, 50_000.0, 300_000.0],
            "discount": [50_000.0, 0.0, 0.0],
        }
    )
    bare = Dataset(Settings(currency="IDR"), {"orders": orders})
    priced = Dataset(Settings(currency="IDR"), {"orders": orders, "order_lines": lines})
    assert usual_value(bare) is None and usual_value(priced) == 250_000  # of 200,000 and 300,000
    assert "THE DATASET HAS NO VALUES OF ORDERS" in draft(bare)
    assert "THE DATASET HAS NO VALUES" not in draft(priced) and draft(bare, 250_000) == draft(priced)
    costs = [Policy.parse(text).failures["late"].cost for text in (draft(bare), draft(priced))]
    assert costs[1] == 5_000 * costs[0]


def test_names_of_any_kind_survive() -> None:
    n = RARE
    names: dict[str, Any] = {
        "parcel_id": [f"p{i}" for i in range(n)],
        "order_id": [f"o{i}" for i in range(n)],
        "carrier": ['J&T "Ekspres"'] * n,
        "service": ["Reguler (Cashless)"] * n,
        "package_type": ["carton é / 3"] * n,
        "protection_level": [1.0] * n,
    }
    moment = pd.to_datetime(["2025-01-01"] * n, utc=True)
    orders = pd.DataFrame({"order_id": names["order_id"], "ordered_at": moment, "destination_region": "Jawa Barat"})
    shop = Dataset(Settings(), {"orders": orders, "parcels": pd.DataFrame(names)})
    policy = Policy.parse(draft(shop))
    assert {*policy.packages} == {"carton é / 3"}
    assert {*policy.carriers} == {('J&T "Ekspres"', "Reguler (Cashless)")}
    assert policy.carriers['J&T "Ekspres"', "Reguler (Cashless)"].serves(None, "Jawa Barat")
    assert lacking(policy, shop) == []


def test_the_commands(shop: Dataset, world_dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "policy.toml"
    run = CliRunner().invoke
    assert run(main, ["policy", "init", str(world_dataset), "--out", str(file)]).exit_code == 0
    again = run(main, ["policy", "init", str(world_dataset), "--out", str(file)])
    assert again.exit_code == 2
    assert "is there already" in again.output
    done = run(main, ["policy", "check", str(file), "--dataset", str(world_dataset)])
    assert done.exit_code == 0
    assert "5 packages" in done.output

    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("[packages.bag]", "[packages.sack]"), encoding="utf-8")
    done = run(main, ["policy", "check", str(file), "--dataset", str(world_dataset), "--json"])
    assert done.exit_code == 1
    assert [x.split(":")[0] for x in json.loads(done.stdout)["lacking"]] == ["packages.bag"]
    assert run(main, ["policy", "check", str(file)]).exit_code == 0

    drawn = text.replace("randomize = 0.0", "randomize = 0.1", 1)
    asked = [line for line in text.splitlines() if line.startswith("actions = ")]
    assert len(asked) == 4
    for said, warned in ((text, 0), (drawn, 0), (drawn.replace(asked[0], ""), 1), (text.replace(asked[0], ""), 0)):
        file.write_text(said, encoding="utf-8")
        done = run(main, ["policy", "check", str(file), "--json"])
        warnings = json.loads(done.stdout)["warnings"]
        assert (done.exit_code, len(warnings)) == (0, warned)
        if warned:
            assert warnings[0].startswith("exceptions.late.actions: is missing, and package is withheld by lot")
            assert warnings[0] in run(main, ["policy", "check", str(file)]).output

    file.write_text(text.replace("co2e = 0.0", "co2 = 0.0"), encoding="utf-8")
    done = run(main, ["policy", "check", str(file)])
    assert done.exit_code == 2
    assert "did you mean 'co2e'?" in done.output
