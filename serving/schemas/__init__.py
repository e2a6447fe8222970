"""What the service accepts and answers: pydantic types derived from the table contracts, and refusals in plain words.

A request is the columns of the tables, nested: one `order`, one `parcel`, its `lines`, and `listings` for products the
snapshot does not know. `Rules` is compiled once per set of extra columns; reading one request takes some 50 µs and
gives plain dictionaries holding only what was given, times as aware datetimes.

    requests   what may be sent: `Rules` of parcels to score, `Fields` of a report
    refusals   `Invalid`: what was wrong with it
    answers    what comes back
    document   all of it as OpenAPI
"""

from serving.schemas.answers import (
    Advice,
    Announced,
    Answer,
    Driver,
    Exceptional,
    Fault,
    Handoff,
    Incomplete,
    Option,
    Problem,
    ReasonShare,
    Receipt,
    ReturnRisk,
    Risk,
    Rung,
    ValueTier,
    Violation,
    Window,
    problem_type,
)
from serving.schemas.document import EXAMPLE, ReportDocs, openapi
from serving.schemas.refusals import Invalid
from serving.schemas.requests import MAX_PARCELS, SECTIONS, Fields, Rules

__all__ = [
    "EXAMPLE",
    "MAX_PARCELS",
    "SECTIONS",
    "Advice",
    "Announced",
    "Answer",
    "Driver",
    "Exceptional",
    "Fault",
    "Fields",
    "Handoff",
    "Incomplete",
    "Invalid",
    "Option",
    "Problem",
    "ReasonShare",
    "Receipt",
    "ReportDocs",
    "ReturnRisk",
    "Risk",
    "Rules",
    "Rung",
    "ValueTier",
    "Violation",
    "Window",
    "openapi",
    "problem_type",
]
