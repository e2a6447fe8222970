"""What an action is worth, computed again one parcel at a time, from the policy's file and plain numbers.

Written for reading, after docs/policy.md, without a line of `serving`.
"""

from __future__ import annotations

import math
from typing import Any

SIDES = ("package_length_mm", "package_width_mm", "package_height_mm")


def value_of(request: dict[str, Any]) -> float:
    """Worth of the goods: the lines', else the order's."""
    lines = [line_value(x) for x in request["lines"]]
    if lines and None not in lines:
        return float(sum(lines))
    return float(request["order"].get("order_value", 0.0))


def line_value(line: dict[str, Any]) -> float | None:
    if line.get("unit_price") is None:
        return None
    pieces = line.get("quantity")
    return float(line["unit_price"] * (1 if pieces is None else pieces) - (line.get("discount") or 0.0))


def failure(policy: dict[str, Any], target: str, request: dict[str, Any], line: dict[str, Any] | None = None) -> float:
    """What a failure costs."""
    f, value = policy["failures"][target], value_of(request)
    tiers = sorted((t for t in policy.get("tiers", []) if t["from"] <= value), key=lambda t: float(t["from"]))
    factor = float(tiers[-1].get("factor", 1.0)) if tiers else 1.0
    if request["order"].get("is_business"):
        factor *= policy.get("business_factor", 1.0)
    worth = value if line is None else line_value(line) or 0.0
    return float(f["cost"] + f["share_of_value"] * worth) * factor


def saving(
    policy: dict[str, Any],
    request: dict[str, Any],
    before: dict[str, Any],
    after: dict[str, Any],
    weights: dict[str, float] | None = None,
) -> float:
    """Money, from probabilities per target; of `returned` a list, one per line."""
    weights = weights or {}
    total = 0.0
    for target in before:
        weight = weights.get("speed" if target == "late" else "reliability", 1.0)
        if target == "returned":
            for line, b, a in zip(request["lines"], before[target], after[target], strict=True):
                total += weight * failure(policy, target, request, line) * (b - a)
        else:
            total += weight * failure(policy, target, request) * (before[target] - after[target])
    return total


def freight(policy: dict[str, Any], carrier: str, service: str, kg: float, sides: list[float]) -> float:
    """Price of carriage by the larger of weight and dimensional weight."""
    tariff = policy["carriers"][carrier][service]
    dimensional = sides[0] * sides[1] * sides[2] / 1000.0 / tariff["dimensional_divisor"]
    return float(tariff["base_price"] + tariff["price_per_kg"] * max(kg, dimensional))


def cost(policy: dict[str, Any], request: dict[str, Any], key: str) -> float:
    """Money of doing it: the action, material, freight."""
    kind, _, name = key.partition(":")
    parcel = request["parcel"]
    total = float({**policy["actions"][kind], **policy["actions"].get(key, {})}["cost"])
    kg, sides = parcel["weight_g"] / 1000.0, [parcel[s] for s in SIDES]
    now = freight(policy, parcel["carrier"], parcel["service"], kg, sides)
    if kind == "carrier":
        carrier, service = name.split("/")
        return total + freight(policy, carrier, service, kg, sides) - now
    if kind == "package":
        old, new = policy["packages"][parcel["package_type"]], policy["packages"][name]
        total += new["material_cost"] - old["material_cost"]
        if "length_mm" in new:
            sides = [new["length_mm"], new["width_mm"], new["height_mm"]]
        elif "volume_factor" in new and "volume_factor" in old:
            sides = [s * (new["volume_factor"] / old["volume_factor"]) ** (1 / 3) for s in sides]
        if "weight_g" in new and "weight_g" in old:
            kg += (new["weight_g"] - old["weight_g"]) / 1000.0
        total += freight(policy, parcel["carrier"], parcel["service"], kg, sides) - now
    return total


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))
