"""Advice from a running service: taken up, changed and broken policies, with and without a model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from pydantic import TypeAdapter

from features.dataset import Dataset
from serving.advice import withheld
from serving.policy import Policy
from serving.schemas import EXAMPLE, Answer
from training.policy import draft


@pytest.fixture(scope="module")
def text(trained: Any) -> str:
    return draft(Dataset.open(trained.dataset))


@pytest.fixture(scope="module")
def request_(trained: Any) -> dict[str, Any]:
    """A parcel of the shop's, that something can be done about."""
    tables = Dataset.open(trained.dataset).tables
    newest = tables["parcels"].sort_values("packed_at").iloc[-1]
    order = tables["orders"].set_index("order_id").loc[newest["order_id"]]
    line = tables["order_lines"][tables["order_lines"]["parcel_id"] == newest["parcel_id"]].iloc[0]
    keep = ("node", "carrier", "service", "package_type", "protection_level", "weight_g", "distance_km")
    return {
        "order": {
            "order_id": newest["order_id"],
            "ordered_at": order["ordered_at"].isoformat(),
            "destination_country": order["destination_country"],
            "destination_region": order["destination_region"],
        },
        "parcel": {
            "parcel_id": newest["parcel_id"],
            "packed_at": newest["packed_at"].isoformat(),
            "label_grade": "F",
            "void_fill_ratio": 0.1,
            "documents_complete": False,
            "address_quality": 0.2,
            **{k: newest[k] for k in keep},
        },
        "lines": [{"line_id": line["line_id"], "sku": line["sku"], "unit_price": 400.0, "quantity": 1.0}],
    }


@pytest.fixture(scope="module")
def file(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("policy") / "policy.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def advising(run_service: Callable[..., Any], trained: Any, file: Path) -> Iterator[Any]:
    env = {"DOORSTEP_BUNDLE": trained.bundle, "DOORSTEP_SNAPSHOT": trained.snapshot, "DOORSTEP_POLICY": file}
    with run_service(**env) as service:
        yield service


def replace(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_answer_has_advice(advising: Any, request_: dict[str, Any], text: str) -> None:
    body = advising.http.post("/v1/risk", json=request_).json()
    TypeAdapter(Answer).validate_python(body)
    assert body["policy"] == Policy.parse(text).digest
    assert body["advice"]["arm"] in ("act", "none")
    assert len(body["actions"]) > 3
    assert [rung["package"] for rung in body["packages"]] == [*Policy.parse(text).packages]
    assert "labels that scan" in {v["rule"] for v in body["violations"]}
    assert {x["column"] for x in body["handoff"]["incomplete"]} == {
        "parcels.documents_complete",
        "parcels.address_quality",
    }
    assert "orders.destination_postal" in body["handoff"]["missing"]
    action, arm = body["advice"]["action"] or "none", body["advice"]["arm"]
    assert advising.metrics()[f'doorstep_advice_total{{action="{action}",arm="{arm}"}}'] >= 1


def test_one_by_one_together_and_as_a_batch_are_the_same(advising: Any, request_: dict[str, Any]) -> None:
    requests = []
    for i in range(12):
        parcel = request_["parcel"] | {"parcel_id": f"p{i}", "weight_g": 500.0 + 100 * i}
        requests.append(request_ | {"parcel": parcel})

    def plain(bodies: list[Any]) -> list[Any]:
        for body in bodies:
            assert body["advice"].pop("decision_id")
        return bodies

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(base_url=advising.url, trust_env=False, timeout=30) as http:
            return [r.json() for r in await asyncio.gather(*(http.post("/v1/risk", json=r) for r in requests))]

    alone = plain([advising.http.post("/v1/risk", json=r).json() for r in requests])
    assert plain(asyncio.run(ask())) == alone
    assert plain(advising.http.post("/v1/risk/batch", json=requests).json()) == alone


def test_the_worked_example_has_advice(advising: Any) -> None:
    document = advising.http.get("/docs.json").json()
    example = document["paths"]["/v1/risk"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    TypeAdapter(Answer).validate_python(example)
    assert example["advice"]["text"]
    assert "Option" in document["components"]["schemas"]


def test_a_changed_policy_is_taken_up_and_a_broken_one_refused(
    advising: Any, request_: dict[str, Any], text: str, file: Path
) -> None:
    def digest() -> str:
        return str(advising.http.post("/v1/risk", json=request_).json()["policy"])

    changed = text.replace("business_factor = 1.5", "business_factor = 1.6")
    replace(file, changed)
    until(lambda: digest() == Policy.parse(changed).digest)

    replace(file, changed.replace("[failures.late]", "[failures.later]").replace("co2e = 0.0", "co2e = -1"))
    until(lambda: "the last good one stays in use" in advising.log)
    assert "failures.later: is no target" in advising.log
    assert "weights.co2e: given -1" in advising.log
    assert digest() == Policy.parse(changed).digest
    assert advising.http.get("/readyz").status_code == 200

    replace(file, text)
    until(lambda: digest() == Policy.parse(text).digest)


def test_what_a_broken_rule_demands_is_in_no_lot(
    advising: Any, request_: dict[str, Any], text: str, file: Path
) -> None:
    document = tomllib.loads(text)
    effects = {"late": {"odds_ratio": 0.5, "source": "assumed"}}
    fix_label = {"cost": 0.0, "owner": "packing", "randomize": 0.9, "least_benefit": 0.0, "effects": effects}
    document |= {"actions": {"fix_label": fix_label}, "least_benefit": 0.0}
    changed = Policy.parse(tomli_w.dumps(document))
    replace(file, tomli_w.dumps(document))

    def asked(i: int, grade: str) -> dict[str, Any]:
        parcel = request_["parcel"] | {"parcel_id": f"lot{i}", "label_grade": grade}
        return dict(advising.http.post("/v1/risk", json=request_ | {"parcel": parcel}).json())

    until(lambda: bool(asked(0, "F")["policy"] == changed.digest))
    for i in range(20):
        broken, kept = asked(i, "F")["advice"], asked(i, "C")["advice"]  # "labels that scan" asks for C or better
        assert (broken["action"], broken["arm"], broken["propensity"]) == ("fix_label", "act", 1.0)
        held = withheld(changed, "fix_label", f"lot{i}")
        assert (kept["arm"], kept["propensity"]) == ("control" if held else "act", pytest.approx(0.1))
    replace(file, text)
    until(lambda: bool(asked(0, "F")["policy"] == Policy.parse(text).digest))


def test_rules_and_handoff_need_no_model(
    run_service: Callable[..., Any], request_: dict[str, Any], file: Path, tmp_path: Path
) -> None:
    with run_service(DOORSTEP_POLICY=file) as service:
        body = service.http.post("/v1/risk", json=request_).json()
        TypeAdapter(Answer).validate_python(body)
        assert body["degraded"]
        assert (body["actions"], body["packages"], body["advice"]["action"]) == ([], [], None)
        assert "labels that scan" in {v["rule"] for v in body["violations"]}
        assert not body["handoff"]["complete"]
        assert service.http.post("/v1/risk", json=json.loads(json.dumps(EXAMPLE))).status_code == 200
    with run_service(DOORSTEP_POLICY=tmp_path / "none.toml") as service:
        body = service.http.post("/v1/risk", json=request_).json()
        assert (body["policy"], body["advice"], body["actions"], body["violations"]) == (None, None, [], [])
        assert "no policy is published at" in service.log
        assert f"policy: not there: {tmp_path / 'none.toml'}: no advice" in service.log
        assert "none: no advice" in service.http.get("/").text
        assert service.http.get("/readyz").status_code == 200


def test_a_policy_that_is_refused_is_told_so_at_the_start_and_on_the_overview(
    run_service: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    broken, nowhere = tmp_path / "broken.toml", tmp_path / "nowhere"
    broken.write_text("failures = 3")
    with run_service(DOORSTEP_POLICY=broken, DOORSTEP_DIAGNOSIS=nowhere) as service:
        assert f"policy: refused: {broken}: no advice; the error above says why" in service.log
        assert f"diagnosis: not there: {nowhere}: its pages say how to make one" in service.log
        told = service.http.get("/").text
        assert "refused: no advice." in told
        assert "broken.toml cannot be used" in told
        assert service.metrics()['doorstep_published{state="refused",what="policy"}'] == 1
        shutil.copy(file, tmp_path / "mended")
        (tmp_path / "mended").replace(broken)
        until(lambda: service.metrics()['doorstep_published{state="loaded",what="policy"}'] == 1)
        assert "refused" not in service.http.get("/").text
