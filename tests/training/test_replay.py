"""`doorstep policy diff`: the same parcels under two policies, against a service that is asked one by one."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from click.testing import CliRunner, Result

from features import Dataset
from features.arrays import local
from features.matrix import values
from features.snapshot import Facts
from features.vocabulary import TARGETS
from serving.actions import weigh
from serving.advice import Capacity, withheld
from serving.bundle import Bundle
from serving.policy import Policy
from training.cli import main
from training.policy import draft
from training.policy.replay import replay, table

SINCE, UNTIL = pd.Timestamp("2025-10-01", tz="UTC"), pd.Timestamp("2025-11-15", tz="UTC")


@pytest.fixture(scope="module")
def shop(world_dataset: Path) -> Dataset:
    return Dataset.open(world_dataset)


@pytest.fixture(scope="module")
def bundle(trained) -> Bundle:
    return Bundle.load(trained.bundle)


@pytest.fixture(scope="module")
def plain(shop: Dataset) -> str:
    return draft(shop)


def policy(text: str, **actions: dict[str, object]) -> Policy:
    """The drafted policy with some keys of its actions set."""
    document = tomllib.loads(text)
    for name, keys in actions.items():
        document["actions"].setdefault(name, {}).update(keys)
    return Policy.parse(tomli_w.dumps(document))


TIGHT = {"package": {"capacity_per_day": 2}, "add_fill": {"capacity_per_day": 5, "randomize": 0.25}}


@pytest.fixture(scope="module")
def old(plain: str) -> Policy:
    return policy(plain)


@pytest.fixture(scope="module")
def tight(plain: str) -> Policy:
    return policy(plain, **TIGHT)


@pytest.fixture(scope="module")
def found(shop: Dataset, old: Policy, tight: Policy, bundle: Bundle):
    return replay(shop, old, tight, bundle, since=SINCE, until=UNTIL)


@pytest.fixture(scope="module")
def one_by_one(shop: Dataset, bundle: Bundle):
    """What each parcel of the period gets, asked for one after another, as the service does it."""
    rows = Facts.of(shop).rows
    matrix = {u: values(rows, bundle.columns(u)) for u in ("parcel", "line")}
    probability = {t: m.probability(bundle.cut(t, matrix[TARGETS[t].unit])) for t, m in bundle.targets.items()}
    decided = rows.parcels.decided_at
    inside = (decided >= SINCE.tz_convert(None).to_datetime64()) & (decided < UNTIL.tz_convert(None).to_datetime64())
    at = [i for i in np.flatnonzero(inside) if rows.parcel_id[i] is not None]
    at.sort(key=lambda i: (decided[i], rows.parcel_id[i]))
    days = local(decided, rows.zone).astype("datetime64[D]")

    def decide(p: Policy) -> pd.DataFrame:
        options, capacity, out = weigh(bundle, p, rows, probability), Capacity(), []
        for i in at:
            chosen, net = None, 0.0
            for k in options.ranked(i):
                key, parcel, day = options.keys[k], rows.parcel_id[i], str(days[i])
                if options.benefit[i, k] <= options.least[k] or not options.open[i, k]:
                    continue
                held = not options.demanded[i, k] and withheld(p, key, parcel)
                if held or capacity.take(p, key, day, parcel, do=True):
                    chosen, net = key, 0.0 if held else options.saving[i, k] - options.cost[i, k]
                    break
            out.append((rows.parcel_id[i], str(days[i]), chosen, net))
        return pd.DataFrame(out, columns=["parcel_id", "day", "action", "net"]).set_index("parcel_id")

    return decide


def test_the_same_policy_changes_nothing(shop, old, bundle):
    document = replay(shop, old, old, bundle, since=SINCE, until=UNTIL).document
    assert document["changed"] == {"parcels": 0, "share": 0.0, "pairs": []}
    assert document["net_at_new_prices"]["old"] == document["net_at_new_prices"]["new"] > 0
    assert "0 decisions change" in table(document)
    net = document["net_at_new_prices"]["new"]
    assert f"{net:,.2f} EUR before" in table(document)
    assert f"{net:,.0f} JPY before" in table({**document, "currency": "JPY"}), "there is no smaller coin than a yen"


def test_decisions_money_and_capacity_are_those_of_a_service_that_is_asked_one_by_one(found, one_by_one, old, tight):
    before, after = one_by_one(old), one_by_one(tight)
    document, changed = found.document, found.changed.set_index("parcel_id")
    assert document["parcels"] == len(before)
    differs = before["action"].fillna("") != after["action"].fillna("")
    assert set(changed.index) == set(before.index[differs]) and len(changed) > 50
    for name, want in (("old", before), ("new", after)):
        own = want.loc[changed.index]
        assert changed[name].fillna("").tolist() == own["action"].fillna("").tolist()
        np.testing.assert_allclose(changed[f"{name}_net"], own["net"], atol=1e-9)
        told = document[name]
        assert told["money"]["as_served"]["net"] == pytest.approx(want["net"].sum())
        assert told["nothing_worth_doing"] == want["action"].isna().sum()
        assert {a: f["recommended"] for a, f in told["actions"].items()} == Counter(want["action"].dropna())
    pairs = Counter(
        zip(before["action"].fillna("nothing")[differs], after["action"].fillna("nothing")[differs], strict=True)
    )
    assert {(p["old"], p["new"]): p["parcels"] for p in document["changed"]["pairs"]} == pairs
    packed = after[after["action"].fillna("").str.startswith("package:")].groupby("day").size()
    assert document["capacity"]["new"]["package"]["used"]["most"] == packed.max() == 2
    assert document["capacity"]["new"]["package"]["used"]["mean"] == pytest.approx(packed.sum() / document["days"])


def test_old_decisions_are_valued_at_the_new_prices(shop, plain, old, bundle):
    """The new policy pays three more for filling, and has no repacking."""
    dearer = tomllib.loads(plain)
    dearer["actions"]["add_fill"]["cost"] += 3
    del dearer["actions"]["package"]
    new = Policy.parse(tomli_w.dumps(dearer))
    done = replay(shop, old, new, bundle, since=SINCE, until=UNTIL)
    filled = done.changed[done.changed["old"] == "add_fill"]
    assert len(filled)
    np.testing.assert_allclose(filled["old_net"] - filled["old_net_at_new_prices"], 3)
    repacked = done.changed["old"].fillna("").str.startswith("package:")
    assert done.changed.loc[repacked, "old_net_at_new_prices"].isna().all()
    net = done.document["net_at_new_prices"]
    assert net["old_without_price"] == repacked.sum() > 0
    assert net["new"] >= net["old"]


def test_the_least_benefit_that_is_said_to_be_enough_is_and_a_lower_one_is_not(shop, plain, old, bundle, found):
    capacity = found.document["capacity"]["new"]
    assert set(capacity) == {"package", "add_fill"}
    assert all(f["days_short"] > 0 and f["wanted"]["most"] > f["limit"] for f in capacity.values())
    enough = {n: {**TIGHT[n], "least_benefit": f["least_benefit_enough"]} for n, f in capacity.items()}
    kept = replay(shop, old, policy(plain, **enough), bundle, since=SINCE, until=UNTIL).document
    for name, f in kept["capacity"]["new"].items():
        assert f["days_short"] == 0 and f["wanted"]["most"] == f["limit"], name
    money = found.document["new"]["money"]
    assert kept["new"]["money"]["as_served"] == pytest.approx(money["least_benefit_enough"])
    for name in enough:
        less = {**enough, name: {**enough[name], "least_benefit": enough[name]["least_benefit"] - 0.001}}
        document = replay(shop, old, policy(plain, **less), bundle, since=SINCE, until=UNTIL).document
        assert document["capacity"]["new"][name]["days_short"] > 0


def test_the_least_benefit_that_earns_most_earns_what_is_said(shop, plain, old, bundle, found):
    money = found.document["new"]["money"]
    assert money["least_benefit_best"]["net"] >= money["as_served"]["net"]
    best = {
        n: {**TIGHT[n], "least_benefit": f["least_benefit_best"]} for n, f in found.document["capacity"]["new"].items()
    }
    document = replay(shop, old, policy(plain, **best), bundle, since=SINCE, until=UNTIL).document
    assert document["new"]["money"]["as_served"] == pytest.approx(money["least_benefit_best"])


def test_a_policy_without_actions_does_nothing(shop, plain, old, bundle):
    document = tomllib.loads(plain)
    del document["actions"]
    idle = Policy.parse(tomli_w.dumps(document))
    stopped = replay(shop, old, idle, bundle, since=SINCE, until=UNTIL)
    told = stopped.document
    assert told["new"]["actions"] == {} and told["new"]["nothing_worth_doing"] == told["parcels"]
    assert told["net_at_new_prices"] == {"old": 0.0, "new": 0.0, "old_without_price": told["changed"]["parcels"]}
    assert "have no price in the new policy" in table(told)
    begun = replay(shop, idle, old, bundle, since=SINCE, until=UNTIL).document
    assert begun["net_at_new_prices"]["old"] == 0 < begun["net_at_new_prices"]["new"]


def test_days_are_those_of_the_shops_clock(found):
    zone = {"timezone": "Asia/Jakarta", "from": "2025-10-01T18:00:00Z", "to": "2025-11-14T16:59:00Z"}
    assert "from 2025-10-02 to 2025-11-14 (" in table(found.document | zone)


def test_what_cannot_be_compared_is_refused(shop, plain, old, bundle):
    other = Policy.parse(plain.replace('currency = "EUR"', 'currency = "USD"'))
    with pytest.raises(ValueError, match="in EUR, the other in USD"):
        replay(shop, old, other, bundle)
    with pytest.raises(ValueError, match=r"no parcel was decided from 2031-01-01.* give another period"):
        replay(shop, old, old, bundle, since=pd.Timestamp("2031-01-01"), until=pd.Timestamp("2031-02-01"))


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(w) for w in words])


def test_the_command_prints_the_table_the_document_and_the_changed_decisions(trained, plain, tmp_path):
    files = []
    tight = {**policy(plain, **TIGHT).document, "specification": []}  # no rule that takes parcels out of the lot
    for name, text in (("old", plain), ("new", tomli_w.dumps(tight))):
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(text)
    words = ("policy", "diff", *files, trained.dataset, "--bundle", trained.bundle, "--from", "2025-10-01")
    done = run(*words, "--to", "2025-11-15", "--out", tmp_path / "changed.csv")
    assert done.exit_code == 0, done.output
    assert "decisions change" in done.stdout and "keeps every day" in done.stdout and "SIMULATED" in done.stdout
    assert "are withheld by lot" in done.stdout
    document = json.loads(run(*words, "--to", "2025-11-15", "--json").stdout)
    changed = pd.read_csv(tmp_path / "changed.csv")
    assert len(changed) == document["changed"]["parcels"] > 0
    for which, file in zip(("old", "new"), files, strict=True):
        stated = Policy.load(file)
        held = [isinstance(a, str) and withheld(stated, a, p) for a, p in changed[[which, "parcel_id"]].to_numpy()]
        assert changed[f"{which}_withheld"].tolist() == held
    assert changed["new_withheld"].any()
    assert run(*words, "--out", tmp_path / "changed.xlsx").exit_code == 2
    (tmp_path / "new.toml").write_text("currency = 3")
    broken = run(*words)
    assert broken.exit_code == 2 and "new.toml" in broken.stderr
