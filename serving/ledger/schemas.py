"""What a report of an outcome, an override, its withdrawal or a changed listing may hold. No database here."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from features.contracts import Column
from features.vocabulary import EVENT_KINDS
from serving.ledger.base import stamp
from serving.policy import ACTIONS
from serving.schemas import Fields, ReportDocs

RETURNED, DONE = "returned", "done"
AHEAD = timedelta(minutes=2)
"""A report's time may be this far ahead of our clock: two clocks never agree."""

_KEY = Column("key", "id", "names this report: sent again with the same key, it is recorded once", required=True)
_ABOUT = "the decision it is about, from the answer's advice"
_DECISION = Column("decision_id", "id", _ABOUT, required=True)
_ACTION_HELP = "such as package:<package_type>, carrier:<carrier>/<service> or add_fill; null: nothing was done"
_CORRECTS = Column("corrects", "id", "key of an earlier report about the same parcel that this one replaces")

OUTCOME = Fields(
    "Outcome",
    "What became of a parcel, or what was done about it",
    (
        _KEY,
        _DECISION,
        Column("kind", "code", "what happened", required=True, codes=(*EVENT_KINDS, RETURNED, DONE)),
        Column("happened_at", "time", "when it happened (when the return was requested)", required=True),
        Column("reason", "code", "the reason that was given"),
        Column("line_id", "id", "the order line that was returned; with kind returned only"),
        Column("action", "code", f"what was done; with kind done only; {_ACTION_HELP}"),
        _CORRECTS,
    ),
)
OVERRIDE = Fields(
    "Override",
    "That something else was done than advised, and why",
    (
        _KEY,
        _DECISION,
        Column("action", "code", f"what was done instead; {_ACTION_HELP}"),
        Column("reason", "id", "why", required=True),
        Column("at", "time", "when it was decided", required=True),
        _CORRECTS,
    ),
)
WITHDRAWAL = Fields(
    "Withdrawal",
    "That an earlier report was wrong, and nothing is to stand in its place",
    (
        _KEY,
        Column("decision_id", "id", f"{_ABOUT}; not where a change of a listing is withdrawn"),
        Column("sku", "id", "the product, where a change of its listing is withdrawn; no decision_id then"),
        Column("withdraws", "id", "key of the earlier report about the same parcel or product", required=True),
        Column("reason", "id", "why", required=True),
    ),
)
CHANGE = Fields(
    "Change",
    "That the listing of a product was changed: what comes back is compared before and after",
    (
        _KEY,
        Column("sku", "id", "the product", required=True),
        Column("changed_at", "time", "since when the listing reads so", required=True),
        Column("what", "id", "what was changed, in a few words", required=True),
    ),
)
PATHS: dict[str, tuple[str, Fields]] = {
    "/v1/outcomes": ("outcome", OUTCOME),
    "/v1/overrides": ("override", OVERRIDE),
    "/v1/withdrawals": ("withdrawal", WITHDRAWAL),
    "/v1/changes": ("change", CHANGE),
}
"""Path -> kind of record, and what its body may hold."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/outcomes": {
        "key": "scan-88123",
        "decision_id": "5f0c2f0d5a4c4f6c9f1f0a7b7c1d2e3f",
        "kind": "delivered",
        "happened_at": "2025-03-04T10:15:00+00:00",
    },
    "/v1/overrides": {
        "key": "station-4-1741",
        "decision_id": "5f0c2f0d5a4c4f6c9f1f0a7b7c1d2e3f",
        "action": "package:box_l",
        "reason": "the advised box is out of stock",
        "at": "2025-03-01T13:42:00+00:00",
    },
    "/v1/withdrawals": {
        "key": "desk-2-310",
        "decision_id": "5f0c2f0d5a4c4f6c9f1f0a7b7c1d2e3f",
        "withdraws": "scan-88123",
        "reason": "the scan was of another parcel",
    },
    "/v1/changes": {
        "key": "listing-team-77",
        "sku": "SKU00552",
        "changed_at": "2025-03-01T00:00:00+00:00",
        "what": "size guide added",
    },
}
"""The worked examples of the documentation."""
DOCS: dict[str, ReportDocs] = {
    path: ReportDocs(
        kind,
        fields.help,
        fields,
        EXAMPLES[path],
        {
            "key": EXAMPLES[path]["key"],
            **({"decision_id": EXAMPLES[path]["decision_id"]} if "decision_id" in EXAMPLES[path] else {}),
            "recorded_at": "2025-03-04T10:15:02.184321Z",
            "seq": 4711,
            "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
    )
    for path, (kind, fields) in PATHS.items()
}
"""How the endpoints are described."""


def read(path: str, body: bytes, now: datetime) -> dict[str, Any]:
    """A report as plain data for JSON, times in UTC.

    Args:
        path: a key of `PATHS`.
        body: of the request.
        now: the service's clock.

    Raises:
        serving.schemas.Invalid: with every fault.
    """
    kind, fields = PATHS[path]
    content = fields.read(body)
    faults = []
    for name, value in content.items():
        if isinstance(value, datetime):
            if value > now + AHEAD:
                allowed = f"until {stamp(now + AHEAD)}, 2 minutes after the service's clock"
                faults.append(fields.fault(name, "is in the future", value.isoformat(), allowed))
            content[name] = stamp(value)
    action = content.get("action")
    if action is not None and not _known(action):
        allowed = ", ".join(a for a in ACTIONS if a not in ("package", "carrier"))
        allowed = f"package:<package_type>, carrier:<carrier>/<service>, {allowed}"
        faults.append(fields.fault("action", "is no action", action, allowed))
    if kind == "outcome":
        if content["kind"] == RETURNED and "line_id" not in content:
            faults.append(fields.fault("line_id", "is missing", None, "the order line that was returned"))
        for name, only in (("line_id", RETURNED), ("action", DONE)):
            if name in content and content["kind"] != only:
                faults.append(fields.fault(name, f"does not go with kind {content['kind']}", content[name], only))
    if kind == "withdrawal" and ("sku" in content) == ("decision_id" in content):
        given = content.get("decision_id")
        allowed = "either the decision of the report, or the sku of the listing that was not changed"
        faults.append(fields.fault("decision_id", "or sku, one of the two, must be given", given, allowed))
    if faults:
        raise fields.refusal(*faults)
    return content


def _known(action: str) -> bool:
    kind, _, which = action.partition(":")
    return bool(which) if kind in ("package", "carrier") else action in ACTIONS
