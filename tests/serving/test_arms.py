"""Who is left as he is, and how often; and what a day has room for."""

from __future__ import annotations

import copy
import datetime
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from shops import Shop

from serving.advice import Asking, Capacity, withheld
from serving.policy import Policy
from serving.score import decide


def test_arms_are_as_frequent_as_the_policy_says_and_stay(shop: Shop) -> None:
    def share(salt: str, action: str, randomize: float) -> tuple[float, list[bool]]:
        def change(document: dict[str, Any]) -> None:
            document["salt"] = salt
            document["actions"]["add_fill"]["randomize"] = randomize
            document["actions"]["fix_label"]["randomize"] = randomize

        policy = shop.policy(change)
        drawn = [withheld(policy, action, f"P{i:06d}") for i in range(20_000)]
        assert drawn == [withheld(policy, action, f"P{i:06d}") for i in range(20_000)]
        return sum(drawn) / len(drawn), drawn

    found, drawn = share("1", "add_fill", 0.1)
    assert abs(found - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)
    assert share("1", "add_fill", 0.0)[0] == 0.0
    # A larger share keeps those it had; another salt or action draws anew.
    larger = share("1", "add_fill", 0.3)[1]
    assert all(a <= b for a, b in zip(drawn, larger, strict=True))
    for other in (share("2", "add_fill", 0.1)[1], share("1", "fix_label", 0.1)[1]):
        both = sum(a and b for a, b in zip(drawn, other, strict=True)) / len(drawn)
        assert abs(both - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 20_000)


def test_a_parcel_of_the_control_arm_is_shown_nothing_to_do(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        for name, action in document["actions"].items():
            action["randomize"] = 0.9 * (name != "complete_documents")

    sure, random = shop.policy(), shop.policy(change)
    plain, _ = decide(shop.bundle, shop.snapshot, sure, shop.requests)
    bodies, decisions = decide(shop.bundle, shop.snapshot, random, shop.requests)
    seen, kinds = set(), set()
    for before, body, decision in zip(plain, bodies, decisions, strict=True):
        action = before["advice"]["action"]
        assert decision["action"] == action
        seen.add(decision["arm"])
        if action is None:
            assert (decision["arm"], decision["propensity"]) == ("none", 1.0)
            continue
        if decision["demanded"]:
            continue
        assert decision["propensity"] == body["advice"]["propensity"] == pytest.approx(0.1)
        assert decision["arm"] == ("control" if withheld(random, action, decision["parcel_id"]) else "act")
        assert action in {o["action"] for o in decision["actions"]}
        if decision["arm"] == "control":
            assert body["advice"]["action"] is None
            assert body["advice"]["owner"] is None
            assert not any(o["recommended"] for o in body["actions"])
            assert action not in {o["action"] for o in body["actions"]}
            assert not any(rung["recommended"] for rung in body["packages"])
            # What it is not to get it is shown nowhere, whatever field is read.
            assert json.dumps(action.partition(":")[2] or action) not in json.dumps(body | {"advice": None})
            kinds.add(action.partition(":")[0])
            assert all(o["why_not"] != "one action is enough" for o in body["actions"])
            assert action not in body["advice"]["text"]
        else:
            assert body["advice"]["action"] == action
            assert [rung["package"] for rung in body["packages"]] == [*random.packages]
    assert seen == {"act", "control", "none"}
    assert "package" in kinds


def test_what_a_rule_or_the_handoff_demands_is_not_left_to_chance(shop: Shop) -> None:
    """Where the answer tells the packer to mend what an action changes, that is not withheld; elsewhere it is."""

    def change(document: dict[str, Any]) -> None:
        for name, action in document["actions"].items():
            action["randomize"] = 0.9 * (name != "complete_documents")
        document["handoff"]["least_address_quality"] = 0.6
        document["specification"] = [
            {
                "rule": "fill dear parcels",
                "when": [{"field": "value", "at_least": 40}],
                "require": [{"field": "void_fill_ratio", "at_least": 0.5}, {"field": "fragility", "at_most": 1}],
            },
            {"rule": "labels", "require": [{"field": "label_grade", "at_least": "B"}]},
            {
                "rule": "boxes",
                "when": [{"field": "fragility", "at_least": 2}],
                "require": [{"field": "protection_level", "at_least": 3}],
            },
        ]

    # What of a parcel an action changes, told apart from the code by the answer's own words.
    fields = {
        "package": {"package_type", "protection_level"},
        "carrier": {"carrier", "service"},
        "add_fill": {"void_fill_ratio"},
        "fix_label": {"label_grade"},
        "complete_documents": {"parcels.documents_complete"},
        "confirm_address": {"parcels.address_quality"},
    }
    random = shop.policy(change)
    requests = copy.deepcopy(shop.requests)
    for i, request in enumerate(requests):
        now = {"documents_complete": i % 5 > 0, "address_quality": 0.3 + 0.02 * i, "label_grade": "ABCDF"[i % 5]}
        request["parcel"] |= now
    bodies, decisions = decide(shop.bundle, shop.snapshot, random, requests)
    seen: set[tuple[str, bool]] = set()
    for body, decision in zip(bodies, decisions, strict=True):
        key = decision["action"]
        if key is None:
            assert decision["demanded"] is False
            continue
        told = {v["field"] for v in body["violations"]} | {x["column"] for x in body["handoff"]["incomplete"]}
        kind = key.partition(":")[0]
        demanded = bool(told & fields.get(kind, set()))
        assert decision["demanded"] is demanded, (key, told)
        held = not demanded and withheld(random, key, decision["parcel_id"])
        assert decision["arm"] == body["advice"]["arm"] == ("control" if held else "act")
        assert decision["propensity"] == body["advice"]["propensity"] == pytest.approx(1.0 if demanded else 0.1)
        assert body["advice"]["action"] == (None if held else key)
        seen.add((kind, demanded))
    assert {("package", True), ("package", False)} <= seen, seen
    assert len({kind for kind, demanded in seen if demanded}) >= 3, seen
    hidden, recorded = decide(shop.bundle, shop.snapshot, random, requests, asking=Asking(shown=False))
    assert {d["propensity"] for d in recorded if d["action"] is not None} == {0.0}, "in shadow mode nothing is done"
    assert {b["advice"]["action"] for b in hidden} == {None}


def test_what_a_protocol_asks_for_is_not_left_to_chance_where_it_is_called_for(shop: Shop) -> None:
    """From the risk on at which the protocol stands in the answer; of another action, or below it, a lot is drawn."""

    def decided(target: str, at_least: float, **asked: list[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        def change(document: dict[str, Any]) -> None:
            action = {"cost": 0.0, "owner": "customer", "randomize": 0.9, "least_benefit": 0.0}
            action["effects"] = {"late": {"odds_ratio": 0.3, "source": "assumed"}}
            document |= {"actions": {"notify_customer": action}, "specification": [], "least_benefit": 0.0}
            document["exceptions"] = {target: {"at_least": at_least, "owner": "customer", "steps": ["Call."], **asked}}

        bodies, decisions = decide(shop.bundle, shop.snapshot, shop.policy(change), shop.requests)
        return list(zip(bodies, decisions, strict=True))

    plain = decided("late", 1.0)
    risk = {"late": np.median([b["risks"]["late"]["probability"] for b, _ in plain])}
    risk["returned"] = np.median([line["probability"] for b, _ in plain for line in b["returns"]])
    for target, at_least in risk.items():
        for asked in ({}, {"actions": []}, {"actions": ["pickup_point"]}):
            assert not any(d["demanded"] for _, d in decided(target, float(at_least), **asked))
        called = []
        for body, decision in decided(target, float(at_least), actions=["pickup_point", "notify_customer"]):
            assert decision["action"] == "notify_customer"
            assert decision["demanded"] is bool(body["exceptions"])
            assert decision["propensity"] == pytest.approx(1.0 if body["exceptions"] else 0.1)
            assert all(x["actions"] == ["pickup_point", "notify_customer"] for x in body["exceptions"])
            assert decision["arm"] == "act" or not body["exceptions"]
            called.append(bool(body["exceptions"]))
        assert {*called} == {True, False}


def test_what_a_day_has_no_room_for_is_not_recommended(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        document["actions"] = {"add_fill": document["actions"]["add_fill"] | {"cost": 0.0, "capacity_per_day": 3}}
        document["least_benefit"] = 0.0

    policy, capacity = shop.policy(change), Capacity()
    requests = copy.deepcopy(shop.requests[:8])
    for i, request in enumerate(requests):
        request["parcel"] |= {"void_fill_ratio": 0.1}
        day = 10 if i < 6 else 11
        request["parcel"]["packed_at"] = datetime.datetime(2025, 12, day, 22, 30, tzinfo=datetime.UTC)
        request["order"]["ordered_at"] = datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)
    bodies, decisions = decide(shop.bundle, shop.snapshot, policy, requests, capacity)
    assert [d["action"] for d in decisions] == ["add_fill"] * 3 + [None] * 3 + ["add_fill"] * 2
    assert bodies[3]["actions"][0]["why_not"] == "all 3 of the day are used up"
    assert "the day's capacity is used up" in bodies[3]["advice"]["text"]
    # Asked again, a parcel has the place it had; the day is the shop's, where 23:30 UTC is the next one.
    again, _ = decide(shop.bundle, shop.snapshot, policy, requests, capacity)
    assert [b["advice"]["action"] for b in again] == [d["action"] for d in decisions]
    late = copy.deepcopy(requests[3])
    late["parcel"]["packed_at"] = datetime.datetime(2025, 12, 10, 23, 30, tzinfo=datetime.UTC)
    [body], _ = decide(shop.bundle, shop.snapshot, policy, [late], capacity)
    assert body["advice"]["action"] == "add_fill"
    assert decide(shop.bundle, shop.snapshot, policy, [requests[3]])[1][0]["action"] == "add_fill"  # nobody counts


def test_the_control_arm_takes_no_room(shop: Shop) -> None:
    def change(document: dict[str, Any]) -> None:
        action = document["actions"]["add_fill"] | {"cost": 0.0, "capacity_per_day": 2, "randomize": 0.5}
        document |= {"actions": {"add_fill": action}, "least_benefit": 0.0, "salt": salt, "specification": []}

    for salt in "0123456789":  # noqa: B007
        policy = shop.policy(change)
        if withheld(policy, "add_fill", shop.requests[0]["parcel"]["parcel_id"]):
            break
    requests = copy.deepcopy(shop.requests[:20])
    for request in requests:
        request["parcel"] |= {"void_fill_ratio": 0.1}
        request["parcel"]["packed_at"] = datetime.datetime(2025, 12, 30, 12, tzinfo=datetime.UTC)
        request["order"]["ordered_at"] = datetime.datetime(2025, 12, 1, tzinfo=datetime.UTC)
    _, decisions = decide(shop.bundle, shop.snapshot, policy, requests, Capacity())
    expected: list[str] = []
    for request in requests:
        held = withheld(policy, "add_fill", request["parcel"]["parcel_id"])
        expected.append("none" if expected.count("act") == 2 else "control" if held else "act")
    assert [d["arm"] for d in decisions] == expected
    assert {*expected} == {"act", "control", "none"}


WORKER = """
import sys
from pathlib import Path
from serving.advice import Capacity
from serving.policy import Policy

policy, capacity = Policy.load(sys.argv[1]), Capacity(Path(sys.argv[2]))
for i in range(60):
    parcel = (int(sys.argv[3]) + i) % 60
    if capacity.take(policy, "add_fill", "2025-12-10", f"P{parcel}", do=True):
        print(parcel)
"""


def places(file: Path, policy: Policy) -> int:
    """How many of the same 60 parcels have a place, or get one."""
    capacity = Capacity(file)
    had = [capacity.take(policy, "add_fill", "2025-12-10", f"P{i}", do=True) for i in range(60)]
    capacity.close()
    return sum(had)


def test_processes_keep_one_capacity_between_them_and_remember_it(shop: Shop, tmp_path: Path) -> None:
    policy = shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=25))
    file = tmp_path / "shared" / "capacity.sqlite"
    (tmp_path / "policy.toml").write_text(tomli_w.dumps(policy.document), encoding="utf-8")
    command = [sys.executable, "-c", WORKER, str(tmp_path / "policy.toml"), str(file)]
    workers = [subprocess.Popen([*command, first], stdout=subprocess.PIPE, text=True) for first in ("0", "30")]
    given = [set(worker.communicate()[0].split()) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(given[0] | given[1]) == 25, given
    assert places(file, policy) == 25, "after a restart those that had one"
    assert places(file, shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=25, cost=1.0))) == 25
    assert places(file, shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=26))) == 26
    other = Capacity(file)
    assert other.take(policy, "add_fill", "2025-12-11", "P1", do=True), "another day has its own"
    assert not other.take(policy, "add_fill", "2025-12-10", "Q", do=False)
    other.close()
    assert b"P1" not in file.read_bytes()


def test_the_packer_is_advised_where_nobody_can_count(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = shop.policy(lambda d: d["actions"]["add_fill"].update(capacity_per_day=1))
    file = tmp_path / "capacity.sqlite"
    file.write_bytes(b"no database " * 500)
    capacity = Capacity(file)
    assert "the day's capacity is not kept" in caplog.text
    assert [capacity.take(policy, "add_fill", "2025-12-10", p, do=True) for p in "aab"] == [True, True, False]
    capacity.close()
    assert capacity.take(policy, "add_fill", "2025-12-10", "c", do=True)
    (tmp_path / "folder").mkdir()
    assert Capacity(tmp_path / "folder").take(policy, "add_fill", "2025-12-10", "c", do=True)
