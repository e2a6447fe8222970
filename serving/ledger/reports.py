"""Records what people and systems report about a decision: what became of the parcel, what was done and why.

A report is refused, not recorded, where it contradicts what was reported before, or cannot be about its decision. What
was reported by mistake is replaced by a report that names it in `corrects`, or taken back by a withdrawal that names it
in `withdraws`; the chain keeps all of them, and an export reads what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

from serving.guard import Refused
from serving.ledger.base import stamp
from serving.ledger.schemas import DONE, PATHS, RETURNED
from serving.ledger.store import Change, Entry, Record
from serving.schemas import Fields

ENDS = ("delivered", "lost", "refused", "returned_to_sender", "handover_failed")
"""A parcel ends in one of these, once."""
CONTRADICTIONS: frozenset[frozenset[str]] = frozenset(
    {
        *(frozenset(pair) for pair in combinations(ENDS, 2) if set(pair) != {"refused", "returned_to_sender"}),
        *(frozenset((RETURNED, end)) for end in ENDS if end != "delivered"),
        *(
            frozenset(("handover_failed", kind))
            for kind in ("handed_over", "in_transit", "out_for_delivery", "attempt_failed")
        ),
    }
)
"""Kinds that cannot both be true of one parcel: a refused parcel may come back to the sender, all else ends once."""
ONCE = frozenset((*ENDS, "handed_over"))
EARLIEST, LATEST = timedelta(days=-1), timedelta(days=731)
"""What is reported happens within these of the decision: clocks and zones differ, and a parcel may be packed earlier
than was said; nothing comes of it after two years."""


def report(change: Change, path: str, content: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Record a report, or find it recorded.

    Args:
        change: the ledger, locked.
        path: where it was sent.
        content: from `serving.ledger.schemas.read`.
        now: when it is acknowledged.

    Returns:
        The receipt: the same, whenever the same report comes again.

    Raises:
        Refused: 409 it contradicts what is recorded, 410 the decision's content is gone.
        LookupError: there is no such decision.
    """
    kind, fields = PATHS[path]
    if "sku" in content:
        kind = "change"  # a change's withdrawal is one, too: it names nobody, and must stay as long as the change
    name = ("report", content["key"])
    known = change.find(*name)
    if known is not None:
        _same(kind, fields, content, known)
        return _receipt(content, known)
    if kind == "change":
        wrong = content.get("withdraws")
        if wrong is not None and wrong not in {c["key"] for c in standing(change.changes(content["sku"]))}:
            raise _conflict(fields, "withdraws", content, "the key of a change of this product that still counts")
        change.append([Entry(kind, name, stamp(now), content, listing=content["sku"])])
        recorded = change.find(*name)
        assert recorded is not None
        return _receipt(content, recorded)
    decision = change.find("decision", content["decision_id"])
    if decision is None:
        raise LookupError(content["decision_id"])
    if decision.body is None:
        raise Refused(410, f"What decision {content['decision_id']} said was erased, or has passed its retention.")
    _plausible(fields, content, decision.body)
    parcel_id = decision.body["parcel_id"]
    earlier = current(change.reports(parcel_id))
    if "withdraws" in content and content["withdraws"] not in {r.body["key"] for r in earlier if r.body is not None}:
        raise _conflict(fields, "withdraws", content, "the key of a report about this parcel that still counts")
    if "corrects" in content:
        wrong = [r for r in earlier if r.body is not None and r.body["key"] == content["corrects"]]
        mine = kind == "override" or content["kind"] == DONE
        if not wrong or done(wrong[0]) != mine:
            what = "what was done about" if mine else "what became of"
            raise _conflict(fields, "corrects", content, f"the key of a report of {what} this parcel that still counts")
        earlier.remove(wrong[0])
    if kind == "outcome":
        _outcome(fields, content, earlier)
    elif kind == "override":
        _override(fields, content, earlier)
    entry = Entry(
        kind,
        name,
        stamp(now),
        {**content, "parcel_id": parcel_id},
        content["decision_id"],
        parcel_id,
        subject(decision.body),
    )
    change.append([entry])
    recorded = change.find(*name)
    assert recorded is not None
    return _receipt(content, recorded)


def subject(decision: Mapping[str, Any]) -> tuple[str, str]:
    """Whose key encrypts what is recorded about a parcel: the customer's, else that of the order, else the parcel's."""
    for name in ("customer", "order", "parcel"):
        if decision.get(f"{name}_id") is not None:
            return name, str(decision[f"{name}_id"])
    raise ValueError("a decision names no parcel")


def current(records: Iterable[Record]) -> list[Record]:
    """Outcomes, overrides and changes that count: they can be read, and no later report corrects or withdraws them."""
    readable = [(r, r.body) for r in records if r.body is not None]
    gone = {body[name] for _, body in readable for name in ("corrects", "withdraws") if name in body}
    return [r for r, body in readable if body["key"] not in gone and "withdraws" not in body]


def standing(changes: Iterable[Record]) -> list[dict[str, Any]]:
    """What the changes of listings that count say, the latest first."""
    said = [r.body for r in current(changes) if r.body is not None]
    return sorted(said, key=lambda body: str(body["changed_at"]), reverse=True)


def done(record: Record) -> bool:
    """Whether a report says what was done: an override, or an outcome of kind done."""
    return record.kind == "override" or (record.body is not None and record.body["kind"] == DONE)


def _same(kind: str, fields: Fields, content: Mapping[str, Any], known: Record) -> None:
    """Raises Refused unless what is recorded under the key is this."""
    if known.kind != kind:
        said = f"key {content['key']!r} was used at {known.recorded_at} for a report of another kind, {known.kind}"
        raise _conflict(fields, "key", content, "a key that was not used before", f"{said}: send this under another")
    if known.body is None:
        raise Refused(
            410,
            f"What was reported under key {content['key']!r} was erased, or has passed its retention; it is recorded.",
        )
    was = {name: value for name, value in known.body.items() if name in fields.columns}
    faults = [
        fields.fault(name, "differs from what is recorded under this key", content.get(name), f"{was.get(name)!r}")
        for name in fields.columns
        if content.get(name) != was.get(name)
    ]
    if faults:
        differing = ", ".join(f["field"] for f in faults)
        raise Refused(
            409,
            f"key {content['key']!r} was used at {known.recorded_at} for a report that differs in {differing}: "
            "send another report under a key of its own, naming this one in `corrects` if it replaces it",
            errors=faults,
        )


def _plausible(fields: Fields, content: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
    """Raises Refused where a report cannot be about the decision: long before it, long after it, of other lines."""
    faults = []
    decided = datetime.fromisoformat(decision["decided_at"])
    first, last = stamp(decided + EARLIEST), stamp(decided + LATEST)
    for name in ("happened_at", "at"):
        if name in content and not first <= content[name] <= last:
            allowed = f"from {first} to {last}: the decision was at {stamp(decided)}"
            faults.append(fields.fault(name, "cannot have come of this decision", content[name], allowed))
    lines = decision.get("lines")  # older records do not say them, and a request need not
    if lines and content.get("line_id", lines[0]) not in lines:
        faults.append(fields.fault("line_id", "is no line of this parcel", content["line_id"], " or ".join(lines)))
    if faults:
        said = "; ".join(f"{f['field']} {f['given']!r} {f['message']}; allowed: {f['allowed']}" for f in faults)
        raise Refused(409, said, errors=faults)


def _receipt(content: Mapping[str, Any], record: Record) -> dict[str, Any]:
    about = {} if record.decision_id is None else {"decision_id": record.decision_id}
    return {
        "key": content["key"],
        **about,
        "recorded_at": record.recorded_at,
        "seq": record.seq,
        "hash": record.hash,
    }


def _conflict(fields: Fields, field: str, content: Mapping[str, Any], allowed: str, detail: str = "") -> Refused:
    fault = fields.fault(field, "contradicts what is recorded", content.get(field), allowed)
    return Refused(409, detail or f"{field} {content.get(field)!r}: allowed: {allowed}", errors=[fault])


def _against(fields: Fields, field: str, content: Mapping[str, Any], record: Record, why: str) -> Refused:
    assert record.body is not None
    what = record.body.get("kind", "an override")
    when = record.body.get("happened_at", record.body.get("at"))
    key = record.body["key"]
    return _conflict(
        fields,
        field,
        content,
        f"what agrees with {what} at {when}, or `corrects`: {key!r} if that was wrong",
        f"{field} {content.get(field)!r}: {why}: {what} at {when} was reported under key {key!r}",
    )


def _outcome(fields: Fields, content: Mapping[str, Any], earlier: list[Record]) -> None:
    """Raises Refused where an outcome cannot be true together with what was reported."""
    if content["kind"] == DONE:
        _done(fields, content, earlier)
        return
    for record in earlier:
        body = record.body
        if body is None or done(record):
            continue
        line = body.get("line_id") == content.get("line_id")
        if frozenset((body["kind"], content["kind"])) in CONTRADICTIONS:
            raise _against(fields, "kind", content, record, "cannot be true of one parcel with what was reported")
        if body["kind"] == content["kind"] and line:
            if content["kind"] in ONCE:
                raise _against(fields, "kind", content, record, "happens to a parcel once, and is reported")
            if body["happened_at"] == content["happened_at"]:
                raise _against(fields, "happened_at", content, record, "is reported already")


def _override(fields: Fields, content: Mapping[str, Any], earlier: list[Record]) -> None:
    for record in earlier:
        if record.kind == "override" and record.decision_id == content["decision_id"]:
            raise _against(fields, "decision_id", content, record, "a decision is overridden once")
    _done(fields, content, earlier)


def _done(fields: Fields, content: Mapping[str, Any], earlier: list[Record]) -> None:
    """Raises Refused where something else was said to be done about the decision."""
    for record in earlier:
        if done(record) and record.decision_id == content["decision_id"]:
            assert record.body is not None
            if record.body.get("action") != content.get("action"):
                raise _against(fields, "action", content, record, "something else was said to be done")
