"""Acting in the simulated shop: potential outcomes are the oracle's, and what is not acted on comes out the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features import Dataset
from training.check import require
from training.world import generate
from training.world.acting import CONFIRMED, FILLED, SIMPLE, Acting
from training.world.equations import POINT_UNCOLLECTED
from training.world.oracle import PARCEL_TARGETS, Oracle
from training.world.scenario import PACKAGE_TYPES

PARCELS = 6_000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("acting") / "shop", parcels=PARCELS, seed=5)


@pytest.fixture(scope="module")
def oracle(world):
    return Oracle.open(world)


def test_doing_nothing_packing_and_carriers_are_as_the_oracle_has_them(world, oracle):
    acting = Acting(oracle)
    packages, late = oracle.packages(), oracle.carriers("late")
    carriers = [c.name for c in oracle.shop.scenario.carriers.carriers]
    actions = [None, *(f"package:{p}" for p in PACKAGE_TYPES), *(f"carrier:{c}/standard" for c in carriers)]
    found = acting.potential(actions)
    truth = oracle.parcels()
    assert found.parcel_id == truth.parcel_id.tolist()
    for target in PARCEL_TARGETS:
        np.testing.assert_array_equal(found.probability[target][:, 0], truth[target])
    np.testing.assert_array_equal(found.probability["returned"][:, 0], oracle.lines().returned)
    np.testing.assert_array_equal(found.probability["damaged"][:, 1:6], packages[list(PACKAGE_TYPES)])
    standard = (pd.read_parquet(world / "parcels.parquet").service == "standard").to_numpy()
    np.testing.assert_array_equal(
        found.probability["late"][standard, 6:], late[carriers].to_numpy(dtype=float)[standard]
    )


def test_every_action_does_what_it_is_for(oracle):
    acting = Acting(oracle)
    found = acting.potential([None, *SIMPLE])
    change = {(a, t): p[:, k] - p[:, 0] for t, p in found.probability.items() for k, a in enumerate(found.actions) if a}
    tiny = 1e-12
    for action, target in (
        ("add_fill", "damaged"),
        ("fix_label", "late"),
        ("fix_label", "undelivered"),
        ("complete_documents", "late"),
        ("confirm_address", "failed_attempt"),
        ("notify_customer", "failed_attempt"),
        ("pickup_point", "failed_attempt"),
    ):
        most = POINT_UNCOLLECTED if action == "pickup_point" else tiny  # who is always at home may forget to collect it
        assert (change[action, target] <= most).all(), (action, target)
        assert change[action, target].mean() < -1e-4, (action, target)
    assert (change["pickup_point", "undelivered"] > 0).any()  # some are never collected
    assert change["hold_next_pickup", "late"].mean() > 0.01
    assert np.abs(change["add_fill", "failed_attempt"]).max() < tiny


def test_the_year_happens_again_with_the_same_chance_but_for_what_was_done(world, oracle, tmp_path):
    acting = Acting(oracle)
    nobody = acting.act(world, tmp_path / "nobody", {}, pd.DataFrame())
    for name in ("orders", "order_lines", "listings", "parcels", "events", "returns"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(nobody / f"{name}.parquet"), pd.read_parquet(world / f"{name}.parquet")
        )
    assert not (nobody / "decisions.parquet").exists()

    before = pd.read_parquet(world / "parcels.parquet").set_index("parcel_id")
    ids = list(before.index)
    standard = [i for i in ids if before.service[i] == "standard" and before.carrier[i] != "alba"]
    done = {
        ids[0]: "package:foam_box",
        ids[1]: "add_fill",
        ids[2]: "fix_label",
        ids[3]: "complete_documents",
        ids[4]: "confirm_address",
        ids[5]: "notify_customer",
        ids[6]: "pickup_point",
        ids[7]: "hold_next_pickup",
        next(i for i in standard if i not in ids[:8]): "carrier:alba/express",
    }
    decisions = pd.DataFrame(
        {
            "decision_id": [f"d{i}" for i in done],
            "parcel_id": list(done),
            "decided_at": before.packed_at[list(done)].array,
            "action": list(done.values()),
            "arm": "act",
            "propensity": 1.0,
            "done": list(done.values()),
            "known_at": before.packed_at[list(done)].array,
        }
    )
    folder = acting.act(world, tmp_path / "some", done, decisions)
    after = pd.read_parquet(folder / "parcels.parquet").set_index("parcel_id")
    others = [i for i in ids if i not in done]
    pd.testing.assert_frame_equal(after.loc[others], before.loc[others])
    named = {a: i for i, a in done.items()}
    assert after.package_type[ids[0]] == "foam_box" and after.protection_level[ids[0]] == 4
    assert after.void_fill_ratio[ids[1]] >= FILLED or np.isnan(after.void_fill_ratio[ids[1]])
    assert after.label_grade[ids[2]] == "A" and after.documents_complete[ids[3]]
    assert after.address_quality[ids[4]] >= CONFIRMED
    moved = after.loc[named["carrier:alba/express"]]
    assert (moved.carrier, moved.service) == ("alba", "express")
    events = [pd.read_parquet(x / "events.parquet") for x in (world, folder)]
    early = set(before.index[before.packed_at < pd.Timestamp("2025-11-01", tz="UTC")]) - set(done)
    for kind in ("attempt_failed", "damaged", "delivered", "refused"):
        one, other = (early & set(e.parcel_id[e.kind == kind]) for e in events)
        assert one == other, kind
    dataset = Dataset.open(folder)
    require(dataset)
    assert len(dataset.tables["decisions"]) == len(done)


def test_what_happens_agrees_with_the_potential_outcomes(world, oracle, tmp_path):
    """Everybody gets a pickup point: as many failed attempts as its probabilities say, within chance."""
    acting = Acting(oracle)
    found = acting.potential([None, "pickup_point"])
    done = dict.fromkeys(found.parcel_id, "pickup_point")
    folder = acting.act(world, tmp_path / "all", done, pd.DataFrame())
    early = pd.read_parquet(folder / "parcels.parquet")
    early = early.packed_at < pd.Timestamp("2025-11-15", tz="UTC")
    events = pd.read_parquet(folder / "events.parquet")
    failed = np.isin(found.parcel_id, events.parcel_id[events.kind == "attempt_failed"])[early]
    p = found.probability["failed_attempt"][early]
    assert abs(failed.sum() - p[:, 1].sum()) < 4 * np.sqrt((p[:, 1] * (1 - p[:, 1])).sum())
    assert failed.sum() < 0.6 * p[:, 0].sum()


def test_what_cannot_be_done_is_refused(world, oracle, tmp_path):
    acting = Acting(oracle)
    with pytest.raises(ValueError, match="is no action"):
        acting.potential(["pray"])
    with pytest.raises(ValueError, match="no action of this shop"):
        acting.potential(["carrier:nobody/express"])
    assert "carrier:borea/express" not in acting.actions()
    with pytest.raises(ValueError, match="is not possible"):
        acting.act(world, tmp_path / "x", {"P000000003": "carrier:borea/express"}, pd.DataFrame())
