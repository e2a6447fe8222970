"""What is answered, as types: the risks and advice of a parcel, the receipts of reports, and problems."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class Driver(TypedDict):
    """One feature's share of a probability."""

    feature: Annotated[
        str, Field(description="its name (docs/features.md); other: the smaller ones of a team together")
    ]
    team: str
    value: Annotated[
        float | None, Field(description="the value it had, as the feature counts it; null if it was not known")
    ]
    usual: Annotated[
        float | None, Field(description="the value that is usual in the shop, likewise; null if there is none")
    ]
    points: Annotated[float, Field(description="share of the probability, -1 to 1; all of them and `base` sum to it")]
    lever: Annotated[bool, Field(description="the team can change it before the parcel leaves")]
    text: Annotated[str, Field(description="the same in words")]


class Risk(TypedDict):
    """A probability, and what it is made of: base + sum(teams) = probability, to 1e-9."""

    probability: Annotated[float, Field(ge=0, le=1)]
    base: Annotated[float, Field(ge=0, le=1, description="where the model starts; the points are counted from here")]
    base_rate: Annotated[float, Field(ge=0, le=1, description="what is usual: the share among the shop's mature units")]
    teams: Annotated[dict[str, float], Field(description="share of the probability by owner team")]
    drivers: list[Driver]


class ReasonShare(TypedDict):
    """The likeliest reason of a return, and what makes it that likely: base + sum(teams) = share, to 1e-9."""

    reason: str
    owner: Annotated[str, Field(description="the team that could prevent returns for this reason")]
    share: Annotated[float, Field(ge=0, le=1, description="if the line comes back, the chance that it is for this")]
    base: Annotated[float, Field(ge=0, le=1, description="the share before anything is known of the line")]
    teams: Annotated[dict[str, float], Field(description="share by the owner team of the features")]
    drivers: list[Driver]


class ReturnRisk(Risk):
    """The risk that one order line is sent back, once it is delivered."""

    line_id: str
    not_kept: NotRequired[
        Annotated[float, Field(ge=0, le=1, description="chance that it never arrives, or arrives and is sent back")]
    ]
    reasons: NotRequired[
        Annotated[dict[str, float], Field(description="if it comes back, the chance of each reason; they sum to 1")]
    ]
    reason: NotRequired[ReasonShare]


Window = TypedDict(
    "Window",
    {
        "from": Annotated[str, Field(description="start, UTC: one in twenty of such parcels arrives before")],
        "likely": Annotated[str, Field(description="as many arrive before as after")],
        "to": Annotated[str, Field(description="end, UTC: one in twenty of such parcels arrives after")],
        "coverage": Annotated[float, Field(ge=0, le=1, description="share of arrivals inside such windows")],
        "measured_on": Annotated[
            Literal["lane", "carrier_service", "carrier", "all"],
            Field(description="whose past deliveries the window was set by; all: neither lane nor carrier is known"),
        ],
    },
)
Window.__doc__ = "When a parcel is at the door, if it arrives at all."


class Option(TypedDict):
    """One thing that can be done about the parcel, what it would do, and what it costs."""

    action: Annotated[str, Field(description="its key, such as package:foam_box or add_fill")]
    owner: Annotated[str, Field(description="the team that does it")]
    recommended: Annotated[bool, Field(description="do it; at most one is")]
    saving: Annotated[float, Field(description="money that failures are expected to cost less")]
    cost: Annotated[float, Field(description="money it costs, material and freight included; negative: it saves some")]
    net_benefit: Annotated[float, Field(description="what is left, weighted as the policy says")]
    low: Annotated[
        float | None,
        Field(
            description="lower end of the 95 % interval of net_benefit, by what is known of the action's effects, the "
            "risks before taken as they are; null if nobody says how sure an effect is"
        ),
    ]
    high: Annotated[float | None, Field(description="its upper end")]
    why_no_interval: Annotated[str | None, Field(description="why low and high are null; null if they are not")]
    co2e_g: Annotated[float | None, Field(description="g of CO2e it adds; null if not known")]
    evidence: Annotated[
        Literal["measured", "model-estimated", "assumed"],
        Field(description="what its effect is known from; the least trusted of the risks it moves"),
    ]
    risks: Annotated[
        dict[str, list[float]],
        Field(description="by target, the risk before and after; of `returned`: that any line comes back"),
    ]
    text: Annotated[str, Field(description="the same in words")]
    why_not: Annotated[str | None, Field(description="why it is not recommended; null if it is")]


class Rung(TypedDict):
    """The parcel in one of the shop's packages."""

    package: str
    protection_level: float
    current: Annotated[bool, Field(description="the parcel is in it")]
    recommended: bool
    fits: Annotated[bool, Field(description="it takes the goods and the weight, and the parcel's tier allows it")]
    risks: Annotated[
        dict[str, float] | None, Field(description="by target; null where it is not known what the package would do")
    ]
    material_cost: float
    dimensional_weight_kg: Annotated[float | None, Field(description="with the parcel's tariff; null without")]
    freight: Annotated[float | None, Field(description="with the parcel's tariff; null without")]
    co2e_g: float
    net_benefit: Annotated[float | None, Field(description="of changing to it; null where it is not known")]


class Advice(TypedDict):
    """What to do about the parcel."""

    decision_id: Annotated[str, Field(description="names the decision when its outcome is reported")]
    action: Annotated[str | None, Field(description="what to do; null: nothing")]
    text: Annotated[str, Field(description="the same in words")]
    arm: Annotated[
        Literal["act", "control", "none"],
        Field(
            description="control: left as it is, to measure an action or in shadow mode; none: nothing is worth doing"
        ),
    ]
    propensity: Annotated[float, Field(ge=0, le=1, description="the chance that the arm was act; 1 where it is none")]
    owner: Annotated[str | None, Field(description="the team that does it")]


class Violation(TypedDict):
    """A rule of the packing specification that the parcel breaks: what is given, and how it would have to be."""

    rule: Annotated[str, Field(description="in the shop's words")]
    field: Annotated[str, Field(description="what of the parcel is not as required")]
    given: Annotated[float | bool | str, Field(description="what it is")]
    relation: Annotated[
        Literal["at_least", "at_most", "is", "one_of"],
        Field(description="how the given must compare; at_least C of a label_grade is met by A, B and C"),
    ]
    required_value: Annotated[
        float | bool | str | list[str], Field(description="what it must compare with; a list with one_of")
    ]
    required: Annotated[str, Field(description="field, relation and value in words")]
    text: Annotated[str, Field(description="the same in words")]


class Incomplete(TypedDict):
    """Something that was given for the handoff and is not enough."""

    column: str
    given: Any
    text: str


class Handoff(TypedDict):
    """Whether the carrier will know what it needs."""

    complete: bool
    missing: Annotated[list[str], Field(description="columns that are not known, as table.column")]
    incomplete: list[Incomplete]


class Exceptional(TypedDict):
    """The shop's protocol for a failure that is likely here."""

    target: str
    line_id: Annotated[str | None, Field(description="the line; null if it is about the parcel")]
    probability: Annotated[float, Field(ge=0, le=1)]
    at_least: Annotated[float, Field(ge=0, le=1, description="the risk from which the protocol is called for")]
    owner: str
    steps: Annotated[list[str], Field(description="what to do, in the shop's words")]
    actions: Annotated[list[str], Field(description="keys of the actions they ask for, as far as the policy says")]


class ValueTier(TypedDict):
    """The parcel's class by value."""

    name: str
    handling: Annotated[str, Field(description="what the packer does with such a parcel; may be empty")]


class Answer(TypedDict):
    """The answer for one parcel."""

    parcel_id: str
    bundle: Annotated[str | None, Field(description="the model that answered; null if none is loaded")]
    as_of: Annotated[str | None, Field(description="until when history was known; null if no snapshot is loaded")]
    degraded: Annotated[bool, Field(description="base rates only: no model, or no snapshot, is loaded")]
    missing: Annotated[list[str], Field(description="columns the models read that were not given, as table.column")]
    warnings: Annotated[list[str], Field(description="codes never seen before, an old snapshot, base rates")]
    risks: Annotated[dict[str, Risk], Field(description="by target")]
    returns: list[ReturnRisk]
    window: Annotated[Window | None, Field(description="time to the door; null if there is no model of it")]
    policy: Annotated[str | None, Field(description="the policy that was applied; null, and no advice, without one")]
    tier: Annotated[ValueTier | None, Field(description="class by value; null if there is none, or no value is known")]
    advice: Advice | None
    actions: Annotated[list[Option], Field(description="what can be done, the highest net benefit first")]
    packages: Annotated[list[Rung], Field(description="the parcel in each package of the shop, weakest first")]
    violations: list[Violation]
    handoff: Handoff | None
    exceptions: list[Exceptional]


class Announced(TypedDict):
    """Parcels that were announced."""

    announced: int
    waiting: Annotated[int, Field(description="how many wait to be packed now")]


class Receipt(TypedDict):
    """That a report is recorded: the same, whenever the same report is sent again."""

    key: str
    decision_id: NotRequired[Annotated[str, Field(description="the decision it is about; not of a change")]]
    recorded_at: Annotated[str, Field(description="when it was acknowledged, UTC")]
    seq: Annotated[int, Field(description="its place in the chain of records")]
    hash: Annotated[str, Field(description="the chain's hash up to it")]


class Fault(TypedDict):
    """One thing that is wrong with a request."""

    field: str
    message: str
    given: Any
    allowed: str


class Problem(TypedDict):
    """An error after RFC 9457, served as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: NotRequired[list[Fault]]


def problem_type(slug: str) -> str:
    """The identifier (a URI) of one kind of problem, such as `invalid-request`."""
    return f"urn:problem-type:doorstep:{slug}"
