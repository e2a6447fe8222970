"""Reports to the ledger: the same once, contradictions, withdrawals and refusals."""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ledgers.load import NOW, decision
from ledgers.recorders import CHANGES, OUTCOMES, OVERRIDES, WITHDRAWALS, happened, refused, sound, tell

from serving import ledger
from serving.ledger import Recorder
from serving.ledger.export import export
from serving.ledger.reports import standing
from serving.ledger.schemas import read
from serving.ledger.upkeep import erase, retain
from serving.schemas import Invalid


def test_the_same_report_gets_the_same_receipt_across_a_restart(told: Recorder, make: Callable[..., Recorder]) -> None:
    first = happened(told, "k1", "d1", "delivered")
    assert set(first) == {"key", "decision_id", "recorded_at", "seq", "hash"}
    assert happened(told, "k1", "d1", "delivered", "2026-03-01T13:00:00+02:00") == first, "the same moment"
    told.close()
    again = make()
    assert happened(again, "k1", "d1", "delivered") == first
    for other, field in (
        ({"kind": "lost"}, "kind"),
        ({"name": "d2"}, "decision_id"),
        ({"at": "2026-03-01T11:00:01Z"}, "happened_at"),
        ({"reason": "left at the door"}, "reason"),
    ):
        said = refused(409, happened, again, **({"key": "k1", "name": "d1", "kind": "delivered"} | other))
        assert field in said.detail and [e["field"] for e in said.errors or []] == [field]
    other = {"key": "k1", "decision_id": "d1", "reason": "r", "at": "2026-03-01T11:00:00Z"}
    said = refused(409, tell, again, OVERRIDES, **other)
    assert "another kind, outcome" in said.detail and [e["field"] for e in said.errors or []] == ["key"]
    assert sound(again).records == 6


def test_a_report_comes_back_the_same_from_two_workers_at_once(told: Recorder, make: Callable[..., Recorder]) -> None:
    receipts: list[Any] = []
    workers = [told, make(), make()]
    threads = [
        threading.Thread(target=lambda w=w: receipts.append(happened(w, "k", "d1", "delivered"))) for w in workers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 3 and receipts[0] == receipts[1] == receipts[2]


def test_an_unknown_decision_is_told_from_one_that_is_on_its_way(
    told: Recorder, make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WAIT_SECONDS", 0.0)
    assert "no decision 'nix'" in refused(404, happened, told, "k", "nix", "delivered").detail
    other = make()
    other.record([decision("d9")])
    assert refused(404, happened, told, "k", "nix", "delivered")
    waiting = refused(503, happened, told, "k", "d9", "delivered")
    assert "on its way" in waiting.detail and dict(waiting.headers)[b"retry-after"] == b"2"
    other.deliver()
    assert happened(told, "k", "d9", "delivered")["seq"] == 7


CONTRADICTIONS = [
    ("delivered", "lost"),
    ("lost", "delivered"),
    ("delivered", "refused"),
    ("returned_to_sender", "delivered"),
    ("handover_failed", "attempt_failed"),
    ("lost", "returned"),
    ("returned", "refused"),
    ("delivered", "delivered"),
    ("handed_over", "handed_over"),
]


@pytest.mark.parametrize(("first", "second"), CONTRADICTIONS)
def test_a_contradiction_is_refused_and_a_correction_is_not(told: Recorder, first: str, second: str) -> None:
    def line(kind: str) -> dict[str, str]:
        return {"line_id": "l1"} if kind == "returned" else {}

    told.record([decision("again", "C-1", parcel_id="P-d1")])  # the bench asked twice about the parcel
    told.deliver()
    happened(told, "k1", "d1", first, **line(first))
    said = refused(409, happened, told, "k2", "again", second, "2026-03-01T11:30:00Z", **line(second))
    assert first in said.detail and "'k1'" in said.detail and said.errors
    happened(told, "k2", "again", second, "2026-03-01T11:30:00Z", corrects="k1", **line(second))
    assert refused(409, happened, told, "k3", "d1", first, "2026-03-01T11:31:00Z", **line(first))
    wrong = refused(409, happened, told, "k3", "d1", first, corrects="k1", **line(first))
    assert "still counts" in wrong.detail


def test_a_change_of_a_listing_is_withdrawn_and_stays_so(
    told: Recorder, make: Callable[..., Recorder], tmp_path: Path
) -> None:
    def changed(key: str, sku: str, what: str = "photos") -> Any:
        return tell(told, CHANGES, key=key, sku=sku, what=what, changed_at="2026-02-01T00:00:00Z")

    def undo(recorder: Recorder, key: str, sku: str, wrong: str, reason: str = "not changed") -> Any:
        return tell(recorder, WITHDRAWALS, key=key, sku=sku, withdraws=wrong, reason=reason)

    for key, sku in (("c1", "A"), ("c2", "A"), ("c3", "B")):
        changed(key, sku)
    receipt = undo(told, "u1", "A", "c1")
    assert undo(told, "u1", "A", "c1") == receipt and set(receipt) == {"key", "recorded_at", "seq", "hash"}
    assert changed("c1", "A")["key"] == "c1", "what was recorded stays so"
    # What is another product's, was never recorded, is withdrawn or is itself a withdrawal cannot be withdrawn.
    for sku, wrong in (("A", "c3"), ("A", "nix"), ("A", "c1"), ("A", "u1"), ("C", "c1")):
        said = refused(409, undo, told, "u2", sku, wrong)
        assert [e["field"] for e in said.errors or []] == ["withdraws"]
    assert "reason" in refused(409, undo, told, "u1", "A", "c1", "another").detail
    assert "withdraws" in refused(409, undo, told, "c2", "A", "c2").detail, "a key is used once"
    happened(told, "k1", "d1", "lost")
    refused(409, undo, told, "u2", "A", "k1")
    refused(409, withdraw, told, "w1", "d1", "c2")
    assert [c["key"] for c in standing(told.database.changes("A"))] == ["c2"]
    told.clock.now += timedelta(days=90)  # type: ignore[attr-defined]
    assert retain(told.database, told.paths, 20, told.clock()) > 0
    told.close()
    again = make()
    assert [c["key"] for c in standing(again.database.changes("A"))] == ["c2"], "neither passes away"
    assert sound(again).ok
    assert export(again.database, tmp_path / "out").rows["changes"] == 2
    assert pd.read_parquet(tmp_path / "out" / "changes.parquet")["sku"].tolist() == ["A", "B"]
    for both in ({}, {"sku": "A", "decision_id": "d1"}):
        with pytest.raises(Invalid) as wrong_one:
            read(WITHDRAWALS, json.dumps({"key": "u", "withdraws": "c2", "reason": "r", **both}).encode(), NOW)
        assert wrong_one.value.errors[0]["field"] == "decision_id"


def withdraw(recorder: Recorder, key: str, name: str, wrong: str) -> Any:
    return tell(recorder, WITHDRAWALS, key=key, decision_id=name, withdraws=wrong, reason="another parcel's")


def test_a_wrong_report_is_withdrawn_and_no_longer_counts(
    told: Recorder, make: Callable[..., Recorder], tmp_path: Path
) -> None:
    happened(told, "k1", "d1", "lost")
    tell(told, OVERRIDES, key="o1", decision_id="d1", action=None, reason="r", at="2026-03-01T11:00Z")
    receipt = withdraw(told, "w1", "d1", "k1")
    assert withdraw(told, "w1", "d1", "k1") == receipt
    told.close()
    again = make()
    assert withdraw(again, "w1", "d1", "k1") == receipt, "across a restart"
    assert [e["field"] for e in refused(409, withdraw, again, "w1", "d1", "o1").errors or []] == ["withdraws"]
    assert happened(again, "k1", "d1", "lost")["key"] == "k1", "what was recorded stays so"
    # What is not of this parcel, was never reported, is withdrawn or is itself a withdrawal cannot be withdrawn.
    for name, wrong in (("d2", "o1"), ("d1", "nix"), ("d1", "k1"), ("d1", "w1")):
        said = refused(409, withdraw, again, "w2", name, wrong)
        assert [e["field"] for e in said.errors or []] == ["withdraws"] and "still counts" in said.detail
    assert refused(409, happened, again, "k2", "d1", "delivered", corrects="k1"), "nor corrected"
    assert "no decision" in refused(404, withdraw, again, "w2", "nix", "k1").detail
    happened(again, "k2", "d1", "delivered")
    withdraw(again, "w2", "d1", "o1")
    happened(again, "k3", "d1", "done", action="add_fill")
    # With the report that is withdrawn goes what it had corrected.
    happened(again, "k4", "d2", "lost")
    happened(again, "k5", "d2", "delivered", corrects="k4")
    withdraw(again, "w3", "d2", "k5")
    written = export(again.database, tmp_path / "out")
    assert (written.rows["events"], written.gone) == (1, 0)
    events = pd.read_parquet(tmp_path / "out" / "events.parquet")
    assert events[["parcel_id", "kind"]].to_numpy().tolist() == [["P-d1", "delivered"]]
    decisions = pd.read_parquet(tmp_path / "out" / "decisions.parquet").set_index("decision_id")
    assert decisions.loc["d1", "done"] == "add_fill"
    verdict = sound(again)
    assert verdict.records == 14
    assert erase(again.database, again.paths, ("customer", "C-1"), again.clock()) == 7, "withdrawals are erased, too"
    sound(again)


def test_what_cannot_have_come_of_the_decision_is_refused(told: Recorder) -> None:
    told.record([decision("lines", lines=["l1", "l2"])])
    told.deliver()
    for at in ("2025-03-01T11:00:00Z", "1970-01-01T00:00:00Z", "2026-02-28T11:58:59Z"):
        said = refused(409, happened, told, "k", "d1", "delivered", at)
        (error,) = said.errors or []
        assert (error["field"], error["message"]) == ("happened_at", "cannot have come of this decision")
        assert "the decision was at 2026-03-01T11:59:00.000000Z" in error["allowed"]
    content = {"key": "k", "decision_id": "d1", "reason": "r"}
    assert (refused(409, tell, told, OVERRIDES, **content, at="2020-01-01T00:00Z").errors or [])[0]["field"] == "at"
    happened(told, "early", "d1", "handed_over", "2026-02-28T12:00:00Z")
    said = refused(409, happened, told, "k", "lines", "returned", "2020-03-01T11:00:00Z", line_id="l3")
    assert [e["field"] for e in said.errors or []] == ["happened_at", "line_id"]
    assert (said.errors or [])[1]["allowed"] == "l1 or l2" and "is no line of this parcel" in said.detail
    happened(told, "k", "lines", "returned", line_id="l2")
    told.clock.now += timedelta(days=3000)  # type: ignore[attr-defined]
    assert refused(409, happened, told, "late", "d1", "delivered", "2029-03-01T11:00:00Z").errors
    happened(told, "late", "d1", "delivered", "2028-03-01T11:00:00Z")


def test_what_agrees_is_accepted(told: Recorder) -> None:
    for i, kind in enumerate(("handed_over", "in_transit", "out_for_delivery", "attempt_failed", "damaged")):
        happened(told, f"a{i}", "d1", kind)
    happened(told, "b1", "d1", "attempt_failed", "2026-03-01T11:40:00Z")
    happened(told, "b2", "d1", "delivered", "2026-03-01T11:50:00Z")
    for line in ("l1", "l2"):
        happened(told, line, "d1", "returned", line_id=line, reason="wrong_size")
    assert "already" in refused(409, happened, told, "l3", "d1", "returned", line_id="l1").detail
    happened(told, "c1", "d2", "refused")
    happened(told, "c2", "d2", "returned_to_sender")


def test_what_was_done_is_said_once(told: Recorder) -> None:
    def override(key: str, name: str, action: str | None, **other: Any) -> Any:
        content = {"key": key, "decision_id": name, "action": action, "reason": "none left", "at": "2026-03-01T11:00Z"}
        return tell(told, OVERRIDES, **content, **other)

    override("o1", "d1", "package:box l")
    assert "overridden once" in refused(409, override, "o2", "d1", None).detail
    assert refused(409, happened, told, "o3", "d1", "done", action="add_fill")
    happened(told, "o4", "d1", "done", action="package:box l")
    override("o5", "d2", None)
    assert "something else" in refused(409, happened, told, "o6", "d2", "done", action="add_fill").detail
    happened(told, "o7", "d2", "done", action="add_fill", corrects="o5")
    assert refused(409, override, "o8", "d2", None)
    assert refused(409, happened, told, "o9", "d2", "delivered", corrects="o7"), "not what was done"


def fault(path: str, **content: Any) -> dict[str, Any]:
    whole = {"key": "k", "decision_id": "d"}
    whole |= (
        {"kind": "delivered", "happened_at": "2026-03-01T11:00Z"}
        if path == OUTCOMES
        else {"reason": "r", "at": "2026-03-01T11:00Z"}
    )
    body = {k: v for k, v in (whole | content).items() if v != "absent"}
    with pytest.raises(Invalid) as raised:
        read(path, json.dumps(body).encode(), NOW)
    assert raised.value.errors[0]["field"] in raised.value.detail
    return raised.value.errors[0]


@pytest.mark.parametrize(
    ("path", "content", "field", "message"),
    [
        (OUTCOMES, {"key": "absent"}, "key", "is missing"),
        (OUTCOMES, {"decision_id": ""}, "decision_id", "is empty"),
        (OUTCOMES, {"decision_id": 7}, "decision_id", "is of the wrong type"),
        (OUTCOMES, {"kind": "Delivered"}, "kind", "is not a known code"),
        (OUTCOMES, {"kind": None}, "kind", "is not a known code"),
        (OUTCOMES, {"happened_at": "2026-03-01T12:03Z"}, "happened_at", "is in the future"),
        (OUTCOMES, {"happened_at": "2026-03-01T12:00"}, "happened_at", "has no zone"),
        (OUTCOMES, {"happened_at": "absent"}, "happened_at", "is missing"),
        (OUTCOMES, {"kind": "returned"}, "line_id", "is missing"),
        (OUTCOMES, {"line_id": "l"}, "line_id", "does not go with kind delivered"),
        (OUTCOMES, {"action": "add_fill"}, "action", "does not go with kind delivered"),
        (OUTCOMES, {"kind": "done", "action": "add_fil"}, "action", "is no action"),
        (OUTCOMES, {"kind": "done", "action": "package:"}, "action", "is no action"),
        (OUTCOMES, {"reson": "x"}, "reson", "is not a known field"),
        (OUTCOMES, {"reason": "x" * 201}, "reason", "is out of bounds"),
        (OVERRIDES, {"reason": None}, "reason", "is of the wrong type"),
        (OVERRIDES, {"at": "2099-01-01T00:00Z"}, "at", "is in the future"),
        (OVERRIDES, {"kind": "lost"}, "kind", "is not a known field"),
        (WITHDRAWALS, {"at": "absent"}, "withdraws", "is missing"),
        (WITHDRAWALS, {"withdraws": "k", "reason": "absent", "at": "absent"}, "reason", "is missing"),
    ],
)
def test_a_report_that_is_wrong_is_refused_by_field(path: str, content: Any, field: str, message: str) -> None:
    said = fault(path, **content)
    assert (said["field"], said["message"]) == (field, message)
    assert said["allowed"]


def test_clocks_may_differ_a_little() -> None:
    late = fault(OUTCOMES, happened_at="2026-03-01T12:03Z")
    assert late["allowed"] == "until 2026-03-01T12:02:00.000000Z, 2 minutes after the service's clock"
    body = json.dumps({"key": "k", "decision_id": "d", "kind": "delivered", "happened_at": "2026-03-01T12:01:30Z"})
    assert read(OUTCOMES, body.encode(), NOW)["happened_at"] == "2026-03-01T12:01:30.000000Z"
    for body in ("[]", "7", "{", '{"key": NaN}'):
        with pytest.raises(Invalid):
            read(OUTCOMES, body.encode(), NOW)
