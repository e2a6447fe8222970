"""What `doorstep effect` says of trials whose truth is known: planted, absent, spoiled, or no trial at all."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import tomli_w
from click.testing import CliRunner, Result

from features import Dataset
from serving.advice import withheld
from serving.policy import Policy
from training.cli import main
from training.effect import effect
from training.effect.report import fragment, table
from training.policy import draft

ROOT = Path(__file__).resolve().parents[2]
STRONG, FILL, LABEL = "package:strong", "add_fill", "fix_label"
SHARE = {STRONG: 0.5, FILL: 0.3, LABEL: 0.0}
"""Withheld by lot; `fix_label` is always advised."""


def advised(shop: Dataset, seed: int = 1) -> pd.DataFrame:
    """A decision about every parcel when it was packed, four of five advised things done."""
    rng, parcels = np.random.default_rng(seed), shop.tables["parcels"]
    n = len(parcels)
    action = rng.choice(list(SHARE), n)
    share = np.array([SHARE[a] for a in action])
    act = rng.random(n) >= share
    done = act & (rng.random(n) < 0.8)
    return pd.DataFrame(
        {
            "decision_id": [f"D{k}" for k in range(n)],
            "parcel_id": parcels["parcel_id"],
            "decided_at": parcels["packed_at"] - pd.Timedelta("1min"),
            "action": action,
            "arm": np.where(act, "act", "control"),
            "propensity": 1 - share,
            "done": np.where(done, action, None),
            "known_at": parcels["packed_at"] + pd.Timedelta("2h"),
            "override_reason": np.where(act & ~done, "no time", None),
        }
    )


def with_decisions(shop: Dataset, decisions: pd.DataFrame, spared: dict[str, float] | None = None) -> Dataset:
    """The shop with decisions; of who was drawn for an action, so much of the damage never happened (or was added)."""
    events, rng = shop.tables["events"], np.random.default_rng(2)
    for action, share in (spared or {}).items():
        treated = decisions.loc[(decisions["action"] == action) & (decisions["arm"] == "act"), "parcel_id"]
        chosen = treated[rng.random(len(treated)) < abs(share)]
        if share > 0:
            events = events[~((events["kind"] == "damaged") & events["parcel_id"].isin(set(chosen)))]
        else:
            arrived = events[(events["kind"] == "delivered") & events["parcel_id"].isin(set(chosen))]
            events = pd.concat([events, arrived.assign(kind="damaged")])
    tables = {**shop.tables, "events": events.reset_index(drop=True), "decisions": decisions}
    return Dataset.from_frames(tables, shop.settings)


@pytest.fixture(scope="module")
def shop(world_dataset: Path) -> Dataset:
    whole = Dataset.open(world_dataset)
    # A strong parcel breaks more often than in the world, so that 12,000 of them tell something.
    parcels, rng = whole.tables["parcels"]["parcel_id"], np.random.default_rng(3)
    arrived = whole.tables["events"].query("kind == 'delivered'")
    broken = arrived[arrived["parcel_id"].isin(set(parcels[rng.random(len(parcels)) < 0.08]))].assign(kind="damaged")
    events = pd.concat([whole.tables["events"], broken], ignore_index=True)
    return replace(whole, tables={**whole.tables, "events": events})


@pytest.fixture(scope="module")
def decisions(shop: Dataset) -> pd.DataFrame:
    return advised(shop)


@pytest.fixture(scope="module")
def planted(shop: Dataset, decisions: pd.DataFrame) -> Dataset:
    return with_decisions(shop, decisions, {STRONG: 0.7})


@pytest.fixture(scope="module")
def found(planted: Dataset):
    return effect(planted)


class TestAnswers:
    def test_one_answer_per_action_and_each_is_right(self, found):
        actions = found.document["actions"]
        assert {a: f["answer"] for a, f in actions.items()} == {
            STRONG: "works",
            FILL: "cannot tell yet",
            LABEL: "not randomized",
        }
        assert [f["primary"] for f in actions.values()] == ["damaged", "late", "damaged"]  # in the order of names
        assert actions[FILL]["more_parcels"] > 0 and actions[STRONG]["more_parcels"] is None
        assert "damaged 2." in actions[STRONG]["why"] or "damaged 3." in actions[STRONG]["why"]

    def test_what_was_not_randomized_is_not_estimated(self, found, planted, decisions):
        assert "targets" not in found.document["actions"][LABEL]
        assert "nothing is estimated" in found.document["actions"][LABEL]["why"]
        for spoiled in (decisions.drop(columns="propensity"), decisions.assign(propensity=1.0)):
            document = effect(with_decisions(planted, spoiled)).document
            assert {f["answer"] for f in document["actions"].values()} == {"not randomized"}
            assert document["randomized"] == []

    def test_the_level_is_shared_and_a_new_trial_changes_no_other(self, found, planted, decisions):
        order = found.document["randomized"]
        assert sorted(order) == [FILL, STRONG]
        first = decisions[decisions["propensity"] < 1].sort_values("decided_at")["action"].drop_duplicates()
        assert order == list(first)
        for share, action in zip((1 / 2, 1 / 6), order, strict=True):
            roles = {t: (f["role"], f["level"]) for t, f in found.document["actions"][action]["targets"].items()}
            assert roles.pop("damaged") == ("primary", pytest.approx(0.05 * share))
            assert set(roles.values()) == {("guardrail", 0.05 * share / 4)} and len(roles) == 4
        begun = decisions.copy()
        late = (decisions["action"] == LABEL) & (decisions["decided_at"] > pd.Timestamp("2025-06-01", tz="UTC"))
        begun.loc[late, "propensity"] = 0.5
        again = effect(with_decisions(planted, begun)).document
        assert again["randomized"] == [*order, LABEL]
        assert all(again["actions"][a] == found.document["actions"][a] for a in order)

    def test_harm_to_a_guardrail_is_harm(self, shop, decisions):
        """What is taken to make fewer parcels late, and breaks some."""
        named = decisions.assign(action=decisions["action"].replace(FILL, "carrier:post/express"))
        document = effect(with_decisions(shop, named, {"carrier:post/express": -0.15})).document
        answer = document["actions"]["carrier:post/express"]
        assert answer["primary"] == "late" and answer["answer"] == "does harm"
        assert answer["why"].startswith("damaged")

    def test_an_action_nobody_knows_has_guardrails_only(self, shop, decisions):
        named = decisions.assign(action=decisions["action"].replace(FILL, "sing_to_it"))
        answer = effect(with_decisions(shop, named)).document["actions"]["sing_to_it"]
        assert (answer["answer"], answer["primary"]) == ("cannot tell yet", None)
        assert {f["role"] for f in answer["targets"].values()} == {"guardrail"}


class TestJudging:
    def test_figures_are_those_counted_from_the_tables(self, found, planted, decisions):
        """The long way: windows by hand, rates by arm, young parcels nowhere."""
        as_of = pd.Timestamp(found.document["as_of"])
        windows = planted.settings.lost_after_days, planted.settings.return_window_days
        parcels = planted.tables["parcels"].merge(planted.tables["orders"][["order_id", "promised_to"]], on="order_id")
        parcels = parcels.merge(decisions, on="parcel_id")
        events = planted.tables["events"]
        known = events[events["known_at"].fillna(events["happened_at"]) < as_of]
        gone = set(known.loc[known["kind"] == "handover_failed", "parcel_id"])
        lines = planted.tables["order_lines"]
        came_back = set(planted.tables["returns"].query("known_at < @as_of")["line_id"])
        arrived = known[known["kind"] == "delivered"].groupby("parcel_id")["happened_at"].min()
        on_time = set(parcels.loc[parcels["parcel_id"].map(arrived) <= parcels["promised_to"], "parcel_id"])
        happened = {
            "damaged": set(known.loc[known["kind"] == "damaged", "parcel_id"]),
            "failed_attempt": set(known.loc[known["kind"] == "attempt_failed", "parcel_id"]),
            "late": set(parcels["parcel_id"]) - on_time,
            "returned": set(lines.loc[lines["line_id"].isin(came_back), "parcel_id"]),
        }
        due = {
            "damaged": parcels["packed_at"] + pd.Timedelta(days=windows[0]),
            "failed_attempt": parcels["packed_at"] + pd.Timedelta(days=windows[0]),
            "late": parcels[["promised_to", "packed_at"]].max(axis=1, skipna=False),
            "returned": parcels["packed_at"] + pd.Timedelta(days=sum(windows)),
        }
        for action in (STRONG, FILL):
            for target, those in happened.items():
                told = found.document["actions"][action]["targets"][target]
                mine = (parcels["action"] == action) & ~parcels["parcel_id"].isin(gone)
                ready = parcels[mine & (due[target] < as_of)]
                for arm in ("act", "control"):
                    rows = ready[ready["arm"] == arm]
                    assert told["judged"][arm] == len(rows), (action, target, arm)
                    assert told["events"][arm] == rows["parcel_id"].isin(those).sum(), (action, target, arm)
                    assert told["rate"][arm] == pytest.approx(rows["parcel_id"].isin(those).mean())
                assert told["young"] == (mine & ~(due[target] < as_of)).sum() > 0
                assert told["difference"]["value"] == pytest.approx(told["rate"]["act"] - told["rate"]["control"])

    def test_what_was_seen_on_a_day_is_what_is_drawn_of_it_later(self, found, planted):
        day = np.datetime64("2025-10-01T00:00:00", "us")
        then = effect(planted, as_of=day).paths[STRONG]["damaged"]
        now = found.paths[STRONG]["damaged"]
        k = len(then.look)
        assert 0 < k < len(now.look)
        np.testing.assert_array_equal(now.look[:k], then.look)
        np.testing.assert_array_equal(now.units[:k], then.units)
        np.testing.assert_allclose(now.value[:k], then.value, atol=1e-3)  # but for what came to be known after all
        assert then.units[-1] + (then.look[-1] == now.look[k]) <= now.units[k]

    def test_an_arm_does_not_decide_when_a_return_is_judged(self, shop, decisions):
        """Who is advised gets their parcel five days sooner: by the rule of training more of them would be judged."""
        treated = set(decisions.loc[decisions["arm"] == "act", "parcel_id"])
        events = shop.tables["events"].copy()
        sooner = (events["kind"] == "delivered") & events["parcel_id"].isin(treated)
        for column in ("happened_at", "known_at"):
            events.loc[sooner, column] -= pd.Timedelta("5D")
        hurried = replace(shop, tables={**shop.tables, "events": events})
        ours, theirs = (
            effect(with_decisions(s, decisions)).document["actions"][STRONG]["targets"]["returned"]
            for s in (shop, hurried)
        )
        assert ours["judged"] == theirs["judged"]

    def test_without_a_table_its_outcome_is_unknown_and_not_absent(self, planted):
        bare = {n: t for n, t in planted.tables.items() if n != "returns"}
        targets = effect(replace(planted, tables=bare)).document["actions"][STRONG]["targets"]
        assert "returned" not in targets and "damaged" in targets


def test_in_a_simulated_year_in_which_they_were_tried_effects_are_what_they_truly_are(tmp_path):
    """Advised by risk, skipped more in one warehouse, outcomes of the world: the truth is what its equations say."""
    spec = importlib.util.spec_from_file_location("effect_benchmark", ROOT / "benchmarks" / "effect.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark
    spec.loader.exec_module(benchmark)
    true, _ = benchmark.shop(tmp_path / "tried", 12_000, 1)
    shop = Dataset.open(tmp_path / "tried")
    document = effect(shop).document
    actions = document["actions"]
    held = {
        (action, target): found["difference"]["low"] <= true[action, target] <= found["difference"]["high"]
        for action, told in actions.items()
        for target, found in told.get("targets", {}).items()
        if (action, target) in true and found["difference"]["low"] is not None
    }
    assert all(held.values()) and len(held) >= 5, held
    assert actions["pickup_point"]["answer"] == "works"
    assert actions["fix_label"]["answer"] == "not randomized"
    stated, pasted = tomllib.loads(draft(shop)), tomllib.loads(fragment(document))
    for action, section in pasted["actions"].items():
        stated["actions"].setdefault(action, {}).setdefault("effects", {}).update(section["effects"])
    measured = Policy.parse(tomli_w.dumps(stated)).actions["pickup_point"].effects["failed_attempt"]
    own = actions["pickup_point"]["targets"]["failed_attempt"]["odds_ratio"]
    assert measured.source == "experiment"
    assert (measured.low, measured.odds_ratio, measured.high) == pytest.approx(
        (own["low"], own["value"], own["high"]), rel=1e-3
    )


def test_the_arms_that_the_service_draws_are_what_it_logs_and_do_not_hang_together(planted, decisions):
    stated = tomllib.loads(draft(planted))
    for action, share in (("add_fill", 0.3), ("fix_label", 0.1)):
        stated["actions"][action]["randomize"] = share
    policy = Policy.parse(tomli_w.dumps(stated))
    held = {a: np.array([withheld(policy, a, p) for p in decisions["parcel_id"]]) for a in ("add_fill", "fix_label")}
    both = pd.concat(
        decisions.assign(
            decision_id=action + decisions["decision_id"],
            action=action,
            arm=np.where(held[action], "control", "act"),
            propensity=1 - stated["actions"][action]["randomize"],
        )
        for action in held
    )
    document = effect(with_decisions(planted, both)).document["actions"]
    for action, found in document.items():
        assert found["arms"]["evidence"] < 10 and found["decisions"]["in_both_arms"] == 0, action
    assert abs(np.corrcoef(*held.values())[0, 1]) < 0.04


class TestOddDecisions:
    def test_who_is_asked_about_again_stays_in_the_first_draw(self, planted, decisions, found):
        """A parcel packed anew has nothing left to recommend: to go by that would drop exactly the treated."""
        again = decisions[(decisions["action"] == STRONG) & (decisions["arm"] == "act")].copy()
        again = again.assign(
            decision_id="again-" + again["decision_id"],
            decided_at=again["decided_at"] + pd.Timedelta("30s"),
            action=None,
            arm="none",
            propensity=1.0,
            done=None,
        )
        once_more = decisions[decisions["action"] == STRONG].copy()
        once_more["decision_id"] = "more-" + once_more["decision_id"]
        once_more["decided_at"] += pd.Timedelta("45s")
        document = effect(with_decisions(planted, pd.concat([decisions, again, once_more]))).document
        assert document["actions"][STRONG]["targets"] == found.document["actions"][STRONG]["targets"]
        assert document["actions"][STRONG]["decisions"]["asked_again"] == len(once_more)
        assert document["actions"][STRONG]["adherence"] == found.document["actions"][STRONG]["adherence"]
        assert document["decisions"]["nothing_worth_doing"] == len(again)

    def test_a_parcel_in_both_arms_counts_by_its_first_draw_and_is_told(self, planted, decisions, found):
        other = decisions[decisions["action"] == STRONG].head(40).copy()
        other["arm"] = np.where(other["arm"] == "act", "control", "act")
        other["decision_id"] = "other-" + other["decision_id"]
        other["decided_at"] += pd.Timedelta("30s")
        document = effect(with_decisions(planted, pd.concat([other, decisions]))).document
        assert document["actions"][STRONG]["targets"] == found.document["actions"][STRONG]["targets"]
        assert document["actions"][STRONG]["decisions"]["in_both_arms"] == 40
        assert "40 parcels were drawn for both arms" in table(document)

    def test_decisions_about_parcels_that_left_or_are_unknown_are_counted_and_not_used(self, planted, decisions, found):
        odd = decisions[decisions["action"] == FILL].head(20).copy()
        odd["decision_id"] = "odd-" + odd["decision_id"]
        stray = odd.assign(parcel_id="nobody-" + odd["parcel_id"], decision_id="stray-" + odd["decision_id"])
        late = odd.assign(decided_at=odd["decided_at"] + pd.Timedelta("200D"))
        late = late[late["decided_at"] < pd.Timestamp(found.document["as_of"])]
        document = effect(with_decisions(planted, pd.concat([decisions, stray, late]))).document
        told = document["actions"][FILL]
        assert told["decisions"]["not_in_dataset"] == 20 == document["decisions"]["of_unknown_parcels"]
        assert told["decisions"]["after_handover"] > 0.8 * len(late) > 0
        assert told["targets"] == found.document["actions"][FILL]["targets"]
        only = effect(with_decisions(planted, late.assign(action=FILL))).document["actions"][FILL]
        assert only["answer"] == "cannot tell yet"

    def test_arms_that_are_not_what_was_logged_are_found_and_nothing_is_concluded(self, planted, decisions):
        rng = np.random.default_rng(4)
        lost = (decisions["action"] == STRONG) & (decisions["arm"] == "act") & (rng.random(len(decisions)) < 0.3)
        document = effect(with_decisions(planted, decisions[~lost])).document
        assert document["actions"][STRONG]["answer"] == "cannot tell yet"
        assert "not what the logged propensities say" in document["actions"][STRONG]["why"]
        assert document["actions"][STRONG]["arms"]["evidence"] > 1e3 > document["actions"][FILL]["arms"]["evidence"]
        assert STRONG not in fragment(document)

    def test_parcels_that_go_missing_after_the_draw_are_found_too(self, planted, decisions):
        rng = np.random.default_rng(4)
        lost = decisions[
            (decisions["action"] == STRONG) & (decisions["arm"] == "act") & (rng.random(len(decisions)) < 0.3)
        ]
        parcels = planted.tables["parcels"]
        kept = parcels[~parcels["parcel_id"].isin(set(lost["parcel_id"]))]
        arms = effect(replace(planted, tables={**planted.tables, "parcels": kept.reset_index(drop=True)})).document[
            "actions"
        ][STRONG]
        assert arms["arms"]["evidence"] < 1e3 < arms["arms"]["evidence_judged"]
        assert "the parcels that can be judged" in arms["why"]

    def test_one_arm_only_and_no_decision_at_all(self, planted, decisions):
        everybody = decisions[(decisions["action"] != STRONG) | (decisions["arm"] == "act")]
        assert effect(with_decisions(planted, everybody)).document["actions"][STRONG]["answer"] == "cannot tell yet"
        few = decisions[decisions["action"] == STRONG].head(3)
        document = effect(with_decisions(planted, few.assign(arm="act"))).document["actions"][STRONG]
        assert document["targets"]["damaged"]["rate"]["control"] is None
        none = effect(with_decisions(planted, decisions.head(0))).document
        assert none["actions"] == {} and none["decisions"]["all"] == 0
        assert "nothing is estimated" in table(none)

    def test_parcels_too_young_are_waited_for(self, planted, decisions):
        first = decisions["decided_at"].min()
        document = effect(planted, as_of=(first + pd.Timedelta("3D")).tz_convert(None).to_datetime64()).document
        told = document["actions"][STRONG]
        assert told["answer"] == "cannot tell yet" and "no parcel is old enough" in told["why"]
        assert sum(told["targets"]["damaged"]["judged"].values()) == 0 < told["targets"]["damaged"]["young"]


class TestPolicy:
    """With a policy: what an action is judged by, what is expected of it, and what a parcel cost as a guardrail."""

    def test_the_declared_target_is_the_primary_one_and_the_stated_odds_are_planned_for(self, planted, decisions):
        document = priced(planted)
        document["actions"]["add_fill"] |= {
            "primary": "late",
            "effects": {"late": {"odds_ratio": 0.5, "source": "assumed"}},
        }
        large = effect(planted, policy=Policy.parse(tomli_w.dumps(document))).document["actions"][FILL]
        assert large["primary"] == "late" and large["targets"]["late"]["role"] == "primary"
        document["actions"]["add_fill"]["effects"]["late"]["odds_ratio"] = 0.9
        small = effect(planted, policy=Policy.parse(tomli_w.dumps(document))).document["actions"][FILL]
        assert small["more_parcels"] > 3 * large["more_parcels"]

    def test_what_a_parcel_cost_is_counted_from_the_tables(self, planted, decisions, found):
        document = priced(planted)
        told = effect(planted, policy=Policy.parse(tomli_w.dumps(document))).document
        as_of, days = (
            pd.Timestamp(told["as_of"]),
            planted.settings.lost_after_days + planted.settings.return_window_days,
        )
        parcels = (
            planted.tables["parcels"].merge(planted.tables["orders"], on="order_id").merge(decisions, on="parcel_id")
        )
        events = planted.tables["events"]
        cost = parcels["package_type"].map({n: p["material_cost"] for n, p in document["packages"].items()}).fillna(0)
        for kind, target in (("attempt_failed", "failed_attempt"), ("damaged", "damaged")):
            cost += parcels["parcel_id"].isin(events.loc[events["kind"] == kind, "parcel_id"]) * COSTS[target]
        came = planted.tables["order_lines"].merge(planted.tables["returns"], on="line_id").drop_duplicates("line_id")
        cost += parcels["parcel_id"].map(came.groupby("parcel_id").size()).fillna(0) * COSTS["returned"]
        arrived = parcels["parcel_id"].map(
            events.query("kind == 'delivered'").groupby("parcel_id")["happened_at"].min()
        )
        cost += ~(arrived <= parcels["promised_to"]) * COSTS["late"]
        last = events[events["kind"].isin(["delivered", "lost", "refused", "returned_to_sender"])]
        last = last.sort_values("happened_at").drop_duplicates("parcel_id", keep="last").set_index("parcel_id")["kind"]
        cost += (parcels["parcel_id"].map(last) != "delivered") * COSTS["undelivered"]
        volume = (
            parcels[["package_length_mm", "package_width_mm", "package_height_mm"]].prod(axis=1, skipna=False) / 1e3
        )
        for (carrier, service), rows in parcels.groupby(["carrier", "service"]):
            t = document["carriers"].get(carrier, {}).get(service)
            if t is not None:
                billed = np.fmax(rows["weight_g"] / 1e3, volume[rows.index] / t["dimensional_divisor"])
                cost[rows.index] += t["base_price"] + t["price_per_kg"] * billed.fillna(0)
        cost += parcels["done"].map({STRONG: 0.5, FILL: 0.25, LABEL: 0.125}).fillna(0)
        due = parcels[["promised_to", "packed_at"]].max(axis=1)
        due = np.fmax(due, parcels["packed_at"] + pd.Timedelta(days=days))
        for action in (STRONG, FILL):
            own = told["actions"][action]["targets"]["cost"]
            assert own["role"] == "guardrail" and own["odds_ratio"] is None and own["events"] is None
            mine = parcels[(parcels["action"] == action) & (due < as_of)]
            gone = set(events.loc[events["kind"] == "handover_failed", "parcel_id"])
            mine = mine[~mine["parcel_id"].isin(gone)]
            for arm in ("act", "control"):
                rows = mine[mine["arm"] == arm]
                assert own["judged"][arm] == len(rows)
                assert own["rate"][arm] == pytest.approx(cost[rows.index].mean()), (action, arm)
        assert "cost" not in fragment(told) and "cost" in table(told)

    def test_an_action_that_costs_more_than_it_saves_does_not_pay(self, planted, tmp_path):
        document = priced(planted)
        document["actions"]["package"]["cost"] = 60.0
        found = effect(planted, policy=Policy.parse(tomli_w.dumps(document)))
        told = found.document["actions"][STRONG]
        assert told["answer"] == "does harm" and told["why"].startswith("a parcel costs")
        assert "damaged" in told["why"] and STRONG in fragment(found.document)


COSTS = {"late": 3.0, "failed_attempt": 4.0, "damaged": 20.0, "undelivered": 30.0, "returned": 7.0}


def priced(shop: Dataset) -> dict[str, Any]:
    """A policy of round prices, whatever the goods are worth."""
    document = tomllib.loads(draft(shop))
    document["failures"] = {t: {"cost": cost, "share_of_value": 0.0} for t, cost in COSTS.items()}
    document["business_factor"] = 1.0
    document["tiers"] = []
    for action, cost in (("package", 0.5), ("add_fill", 0.25), ("fix_label", 0.125)):
        document["actions"][action]["cost"] = cost
    return document


class TestAdherence:
    def test_it_is_counted_by_action_and_node(self, found, planted, decisions):
        nodes = planted.tables["parcels"].set_index("parcel_id")["node"]
        for action, told in found.document["actions"].items():
            mine = decisions[(decisions["action"] == action) & (decisions["arm"] == "act")]
            done = mine["done"] == action
            assert told["adherence"] == {
                "advised": len(mine),
                "done": int(done.sum()),
                "something_else": 0,
                "nothing": int((~done).sum()),
                "not_reported": 0,
                "reported_later": 0,
            }
            by_node = done.groupby(mine["parcel_id"].map(nodes)).agg(["size", "sum"])
            assert {n: (f["advised"], f["done"]) for n, f in told["adherence_by_node"].items()} == {
                n: (row["size"], row["sum"]) for n, row in by_node.iterrows()
            }
            assert told["override_reasons"] == {"no time": int((~done).sum())}

    def test_who_was_to_go_without_and_did_not_is_told_and_stays_where_it_was_drawn(self, planted, decisions, found):
        given_all_the_same = decisions.copy()
        crossed = (decisions["action"] == STRONG) & (decisions["arm"] == "control")
        given_all_the_same.loc[crossed, "done"] = STRONG
        told = effect(with_decisions(planted, given_all_the_same)).document["actions"][STRONG]
        assert told["withheld_and_done"] == told["withheld"] == crossed.sum()
        assert told["targets"] == found.document["actions"][STRONG]["targets"]

    def test_what_is_reported_later_is_not_known_yet(self, planted, decisions, found):
        later = decisions.assign(known_at=pd.Timestamp(found.document["as_of"]) + pd.Timedelta("1D"))
        document = effect(with_decisions(planted, later)).document
        told = document["actions"][STRONG]
        assert told["adherence"]["not_reported"] == told["adherence"]["advised"]
        assert told["adherence"]["reported_later"] == told["adherence"]["advised"]
        said = table(document)
        assert "never reported" not in said
        assert f"{told['adherence']['advised']:,} reports of what was done do not count" in said
        assert told["override_reasons"] == {}


@pytest.fixture(scope="module")
def folder(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("effect") / "shop"
    planted.save(folder)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> Result:
    return run("effect", folder, "--out", folder.parent / "out")


class TestCommand:
    def test_it_says_what_it_found(self, done, found):
        assert done.exit_code == 0
        for said in (
            "SIMULATED data",
            f"{STRONG}: WORKS: damaged",
            f"{FILL}: CANNOT TELL YET",
            f"{LABEL}: NOT RANDOMIZED",
            "not done because: no time",
            "more parcels to see damaged fall",
        ):
            assert said in done.stdout

    def test_files_are_the_document_a_drawing_per_trial_and_what_can_be_pasted(self, done, folder, found):
        out = folder.parent / "out"
        assert sorted(f.name for f in out.iterdir()) == [
            "add_fill.svg",
            "effect.json",
            "effects.toml",
            "package-strong.svg",
        ]
        assert json.loads((out / "effect.json").read_text()) == json.loads(json.dumps(found.document))
        for drawing in out.glob("*.svg"):
            assert ElementTree.fromstring(drawing.read_bytes()).tag.endswith("svg")
        pasted = tomllib.loads((out / "effects.toml").read_text())["actions"]
        assert set(pasted) == {STRONG}
        own = pasted[STRONG]["effects"]["damaged"]
        assert own["source"] == "experiment" and 0 < own["low"] <= own["odds_ratio"] <= own["high"] < 1

    def test_json_is_the_document(self, folder):
        done = run("effect", folder, "--json", "--level", "0.1")
        assert json.loads(done.stdout)["level"] == 0.1

    def test_a_dataset_without_decisions_is_one_clear_message(self, world_dataset):
        done = run("effect", world_dataset)
        assert done.exit_code == 2
        assert "has no table decisions" in done.stderr and "doorstep ledger export" in done.stderr


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])
