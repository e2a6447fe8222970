"""The OpenAPI document, made from the types that requests are read by and answers are described by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from features.contracts import TABLES
from serving.schemas.answers import Announced, Answer, Problem, Receipt, problem_type
from serving.schemas.refusals import Invalid
from serving.schemas.requests import MAX_PARCELS, Fields, Rules, may_hold

EXAMPLE: dict[str, Any] = {
    "order": {
        "order_id": "O-1001",
        "ordered_at": "2025-03-01T08:10:00+00:00",
        "customer_id": "C-77",
        "channel": "web",
        "payment_method": "cod",
        "destination_country": "ID",
        "destination_region": "Jawa Barat",
        "destination_city": "Bandung",
        "promised_to": "2025-03-05T18:00:00+00:00",
        "order_value": 249000,
    },
    "parcel": {
        "parcel_id": "P-1001",
        "node": "WH-1",
        "packed_at": "2025-03-01T13:40:00+00:00",
        "pickup_cutoff_at": "2025-03-01T16:00:00+00:00",
        "carrier": "JNE",
        "service": "Reguler",
        "protection_level": 1,
        "weight_g": 820,
        "void_fill_ratio": 0.4,
        "label_grade": "C",
        "documents_complete": True,
        "address_quality": 0.6,
    },
    "lines": [{"line_id": "L-1", "sku": "SKU-9", "quantity": 1, "unit_price": 249000, "variant": "M"}],
    "listings": [{"sku": "SKU-9", "category": "shoes", "photo_count": 2, "has_size_guide": False, "rating": 4.1}],
}
"""The worked example of the documentation; `/v1/risk/batch` takes a list of such objects."""


@dataclass(frozen=True)
class ReportDocs:
    """How an endpoint that takes reports is described.

    Attributes:
        name, summary: of the operation.
        fields: what a report holds.
        example, receipt: a report, and the answer to it.
        answer: type of the answer; None: a receipt.
    """

    name: str
    summary: str
    fields: Fields
    example: dict[str, Any]
    receipt: dict[str, Any]
    answer: Any = None


def openapi(
    rules: Rules, *, version: str, answers: list[Any], reports: Mapping[str, ReportDocs] | None = None
) -> dict[str, Any]:
    """The OpenAPI 3.1 document, with one worked example per endpoint.

    Args:
        rules: what this service accepts now, extra columns included.
        version: version of the project.
        answers: what the service answers to `EXAMPLE`, a list of one.
        reports: endpoints that take reports, by path.
    """
    reports = reports or {}
    named = [("request", rules.request), ("answer", Answer), ("problem", Problem), ("receipt", Receipt)]
    named += [("announced", Announced)]
    named += [(r.name, r.fields.type) for r in reports.values()]
    named += [(f"{r.name} answer", r.answer) for r in reports.values() if r.answer is not None]
    types: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (name, "validation", TypeAdapter(type_)) for name, type_ in named
    ]
    refs, definitions = TypeAdapter.json_schemas(types, ref_template="#/components/schemas/{model}")
    schema: dict[str, Any] = {name: refs[(name, "validation")] for name, _, _ in types}

    def body(of: Any, example: Any, kind: str = "application/json") -> dict[str, Any]:
        return {kind: {"schema": of, "example": example}}

    fault = {"field": "parcel.weight_g", "message": "is out of bounds", "given": -5}
    fault["allowed"] = may_hold(TABLES["parcels"]["weight_g"])
    refusal = {
        "type": problem_type("invalid-request"),
        "title": "Bad Request",
        "status": 400,
        "detail": Invalid.of([fault]).detail,
        "errors": [fault],
    }
    problems = {
        str(status): {"description": text}
        for status, text in (
            (408, "The body took too long to arrive"),
            (413, "The body is too large"),
            (415, "The body is not application/json"),
            (503, "Too many requests at once; try again after Retry-After seconds"),
        )
    }
    for p in problems.values():
        p["content"] = {"application/problem+json": {"schema": schema["problem"]}}  # type: ignore[assignment]
    problems["400"] = {
        "description": "The request is not valid: what, what was given, what is allowed",
        "content": body(schema["problem"], refusal, "application/problem+json"),  # type: ignore[dict-item]
    }

    def post(name: str, text: str, given: Any, given_example: Any, answer: Any, answer_example: Any) -> dict[str, Any]:
        ok = {"description": "The risks, and what they are made of", "content": body(answer, answer_example)}
        return {
            "post": {
                "operationId": name,
                "summary": text,
                "requestBody": {"required": True, "content": body(given, given_example)},
                "responses": {"200": ok, **dict(sorted(problems.items()))},
            }
        }

    def report(docs: ReportDocs) -> dict[str, Any]:
        answer = schema["receipt"] if docs.answer is None else schema[f"{docs.name} answer"]
        out = post(docs.name, docs.summary, schema[docs.name], docs.example, answer, docs.receipt)
        responses = out["post"]["responses"]
        if docs.answer is not None:
            responses["200"]["description"] = docs.answer.__doc__
            again = "It was announced before the shop's settings changed: announce it again"
            responses["409"] = {"description": again, "content": problems["408"]["content"]}
            return out
        responses["200"]["description"] = "It is recorded"
        for status, text in (
            ("404", "There is no such decision, or no ledger is kept"),
            ("409", "It contradicts what is recorded: in what, and under which key"),
            ("410", "What the decision said was erased, or has passed its retention"),
            ("503", "The ledger's database does not answer; nothing is recorded, try again after Retry-After seconds"),
        ):
            responses[status] = {"description": text, "content": problems["408"]["content"]}
        return out

    def get(name: str, text: str) -> dict[str, Any]:
        return {"get": {"operationId": name, "summary": text, "responses": {"200": {"description": text}}}}

    listed = {"type": "array", "maxItems": MAX_PARCELS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Doorstep",
            "version": version,
            "description": "Risk that a parcel fails at the door or comes back, why, and whose lever it is. Send "
            "`X-Request-ID` to find a request again: it is echoed on every answer. Errors are problem+json (RFC 9457).",
        },
        "paths": {
            "/v1/risk": post(
                "risk", "The risks of one parcel", schema["request"], EXAMPLE, schema["answer"], answers[0]
            ),
            "/v1/risk/batch": post(
                "risk_batch",
                f"The risks of up to {MAX_PARCELS:,} parcels, in order",
                {**listed, "items": schema["request"]},
                [EXAMPLE],
                {**listed, "items": schema["answer"]},
                answers,
            ),
            "/v1/parcels": post(
                "announce",
                f"Announce up to {MAX_PARCELS:,} parcels that wait to be packed; one that waits already is replaced",
                {**listed, "items": schema["request"]},
                [EXAMPLE],
                schema["announced"],
                {"announced": 1, "waiting": 1},
            ),
            **{path: report(docs) for path, docs in reports.items()},
            "/livez": get("livez", "The process is alive"),
            "/readyz": get("readyz", "The service can answer"),
            "/metrics": get("metrics", "Prometheus metrics"),
        },
        "components": {"schemas": definitions.get("$defs", {})},
    }
