"""What can be done about each parcel, what it would do to the risks, what it costs, and whether it is worth it.

Everything is computed in arrays, for all parcels and all actions together: a request of one parcel and the replay of a
season run through the same code, and a parcel's figures do not depend on the parcels beside it.

An action shifts the log-odds of a target, z_after = z_before + shift. What is known of the shift, in order of trust:

    measured         the policy states it as an experiment's result
    model-estimated  a lever of the bundle (`serving.levers`); for another carrier the carriers' lever
                     (`serving.carriers`), the parcel scored again for its other pickup; for what that lever does not
                     know, another service mostly, the parcel scored again with the other carrier
    assumed          the policy states it, and nobody has measured it

Benefit is money: what failures cost times the change of their probabilities, less what the action costs.

    parcels    what a parcel is worth, weighs and measures, and how it is sent
    book       a policy as arrays
    packages   the parcel in every package: the ladder
    services   the parcel with every other carrier and service
    effects    what each action does to the risks
    rules      packing rules and the handoff: what they forbid, and what they ask for whatever it is worth
    benefit    what an action is worth: `weigh`
"""

from serving.actions.benefit import Options, spent, weigh
from serving.actions.effects import ASSUMED, ESTIMATED, MEASURED, PROTECTED, TRUST
from serving.actions.packages import Ladder
from serving.actions.parcels import Parcels, goods_value
from serving.actions.rules import facts, incomplete, mends

__all__ = [
    "ASSUMED",
    "ESTIMATED",
    "MEASURED",
    "PROTECTED",
    "TRUST",
    "Ladder",
    "Options",
    "Parcels",
    "facts",
    "goods_value",
    "incomplete",
    "mends",
    "spent",
    "weigh",
]
