"""From the policy to the effect: what the service decides is recorded, exported, and read as a trial."""

from __future__ import annotations

import json
import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w
from click.testing import CliRunner
from ledgers.load import paths

from features import Dataset
from features.snapshot import Snapshot
from serving.bundle import Bundle
from serving.ledger import Recorder
from serving.ledger.schemas import read
from serving.policy import Policy
from serving.score import decide
from training.cli import main
from training.policy import draft

FRAGILE = [{"field": "fragility", "at_least": 2}]
NOW = datetime(2025, 12, 30, tzinfo=UTC)  # before the extract: what is reported later is not known yet


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as a request has it."""
    flags = ("is_business", "documents_complete")
    return {
        k: bool(v) if k in flags else v.isoformat() if isinstance(v, pd.Timestamp) else v
        for k, v in row.items()
        if v is not None and v == v
    }


def run(*words: object) -> str:
    done = CliRunner().invoke(main, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_the_service_decided_comes_back_as_a_trial(trained: Any, tmp_path: Path) -> None:
    dataset = Dataset.open(trained.dataset)
    stated = tomllib.loads(draft(dataset))
    stated["actions"] = {"add_fill": stated["actions"]["add_fill"] | {"randomize": 0.4}}
    filled = [{"field": "void_fill_ratio", "at_least": 0.3}]
    stated["specification"] = [{"rule": "fragile goods do not rattle", "when": FRAGILE, "require": filled}]
    policy = Policy.parse(tomli_w.dumps(stated))
    tables = dataset.tables
    parcels = tables["parcels"].sort_values("packed_at").iloc[6_000:6_500]
    orders = tables["orders"].set_index("order_id", drop=False)
    lines = dict(list(tables["order_lines"].groupby("parcel_id")))
    asked = [
        {
            "order": plain(orders.loc[p["order_id"]].to_dict()),
            "parcel": plain(p),
            "lines": [plain(x) for x in lines[p["parcel_id"]].to_dict("records")],
        }
        for p in parcels.to_dict("records")
    ]
    answers, decided = decide(Bundle.load(trained.bundle), Snapshot.load(trained.snapshot), policy, asked)
    again = decide(Bundle.load(trained.bundle), Snapshot.load(trained.snapshot), policy, asked[:50])[1]
    demanded = [d for d in decided if d["demanded"]]
    advised = [d for d in decided if d["arm"] == "act" and not d["demanded"]]
    withheld = [d for d in decided if d["arm"] == "control"]
    assert len(advised) > 20 and len(withheld) > 10 and len(demanded) > 10
    assert {(d["arm"], d["propensity"]) for d in demanded} == {("act", 1.0)}
    broken = {b["parcel_id"] for b in answers if b["violations"]}
    assert {d["parcel_id"] for d in demanded} == {d["parcel_id"] for d in decided if d["action"]} & broken

    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    recorder = Recorder(url, paths(tmp_path), clock=lambda: NOW)
    recorder.record([*decided, *again])
    recorder.deliver()
    for k, d in enumerate(advised[:10]):
        skipped = k < 4
        path = "/v1/overrides" if skipped else "/v1/outcomes"
        said: dict[str, Any] = {"key": f"k{k}", "decision_id": d["decision_id"]}
        said |= (
            {"reason": "no time", "action": None, "at": d["decided_at"]}
            if skipped
            else {"kind": "done", "action": "add_fill", "happened_at": d["decided_at"]}
        )
        recorder.report(path, read(path, json.dumps(said).encode(), NOW))
    recorder.deliver()
    recorder.close()

    shop = shutil.copytree(trained.dataset, tmp_path / "shop", ignore=shutil.ignore_patterns("truth"))
    files = ("--key", tmp_path / "key", "--heads", tmp_path / "heads")
    run("ledger", "export", url, "--out", tmp_path / "out", *files)
    shutil.copy(tmp_path / "out" / "decisions.parquet", shop)
    assert "done in 60 % of 10 that were reported" in run("effect", shop)
    document = json.loads(run("effect", shop, "--json"))
    assert document["decisions"]["all"] == 550
    told = document["actions"]["add_fill"]
    assert told["parcels"] == {"act": len(advised), "control": len(withheld)}
    assert told["propensity"] == {"low": 0.6, "high": 0.6}
    drawn_again = [d for d in again if d["arm"] != "none" and not d["demanded"]]
    assert told["decisions"]["asked_again"] == len(drawn_again)
    assert told["decisions"]["demanded"] == len(demanded) + sum(d["demanded"] for d in again)
    assert told["decisions"]["not_drawn"] == told["decisions"]["demanded"]
    assert told["decisions"]["in_both_arms"] == told["decisions"]["not_in_dataset"] == 0
    assert told["arms"]["evidence"] < 1_000 and told["decisions"]["after_handover"] == 0
    assert told["adherence"]["done"] == 6 and told["adherence"]["nothing"] == 4
    assert told["override_reasons"] == {"no time": 4}
    assert told["answer"] == "cannot tell yet"
    assert f"{told['decisions']['demanded']} of them asked for by a packing rule, the handoff or a protocol" in run(
        "effect", shop
    )
    table = pd.read_parquet(shop / "decisions.parquet")
    table[table["demanded"].astype(bool)].to_parquet(shop / "decisions.parquet")
    alone = json.loads(run("effect", shop, "--json"))["actions"]["add_fill"]
    assert alone["answer"] == "not randomized" and "never left to chance" in alone["why"]
