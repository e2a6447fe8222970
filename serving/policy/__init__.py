"""`policy.toml`: what failures cost, what can be done about a parcel at what price, and the shop's rules of packing.

A policy is data: the service reads it and takes up a new one while it runs, and `doorstep policy check` reads it the
same way. A mistake never hides another: everything that is wrong is raised as one `PolicyError`.

    keys     what a policy file may hold
    parts    what it is made of once it is read
    reader   from the file to a `Policy`
"""

from serving.policy.keys import ACTIONS, ANY, FIELDS, OPERATORS, SECTIONS, SOURCES, Key
from serving.policy.parts import (
    Action,
    Condition,
    Effect,
    Failure,
    Package,
    Protocol,
    Rule,
    Tariff,
    Tier,
    Weights,
)
from serving.policy.reader import Policy, PolicyError

__all__ = [
    "ACTIONS",
    "ANY",
    "FIELDS",
    "OPERATORS",
    "SECTIONS",
    "SOURCES",
    "Action",
    "Condition",
    "Effect",
    "Failure",
    "Key",
    "Package",
    "Policy",
    "PolicyError",
    "Protocol",
    "Rule",
    "Tariff",
    "Tier",
    "Weights",
]
