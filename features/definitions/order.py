"""What was ordered, when, how it is paid, where it goes and what was promised."""

from __future__ import annotations

import numpy as np

from features.arrays import HOUR, Array, absent, hours_between, take
from features.feature import Show, Theme, one_of, unit, yes_no
from features.rows import Level

feature = Theme("order")


def _clock(value: float) -> str:
    minutes = round(value * 60)
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


clock = Show(_clock)
"""Hours of the day as a clock shows them: 20.25 is 20:15."""


WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def weekday(local: Array) -> Array:
    """Monday 0 to Sunday 6, (n,) float64; NaN where the time is missing."""
    days = local.astype("datetime64[D]")
    return np.where(np.isnat(days), np.nan, (days.astype(np.int64) + 3) % 7)  # 1970-01-01 was a Thursday


def hour(local: Array) -> Array:
    """Hour of the day with its fraction, (n,) float64; NaN where the time is missing."""
    return (local - local.astype("datetime64[D]")) / HOUR


@feature("Ordered on", show=one_of(*WEEKDAYS))
def ordered_weekday(rows: Level) -> Array:
    """Day of the week of the order, on the shop's clock."""
    return weekday(rows.local(rows["orders", "ordered_at"]))


@feature("Ordered at", show=clock)
def ordered_hour(rows: Level) -> Array:
    """Hour of the day of the order, on the shop's clock."""
    return hour(rows.local(rows["orders", "ordered_at"]))


@feature("Order value", show=Show(lambda v: f"{v:,.0f}"))
def order_value(rows: Level) -> Array:
    """What the order was worth when it was placed, in the shop's currency."""
    return rows["orders", "order_value"]


@feature("Cash on delivery", show=yes_no, signs={"failed_attempt": 1, "undelivered": 1})
def cash_on_delivery(rows: Level) -> Array:
    """The order is paid at the door (payment code `cod`)."""
    method = rows["orders", "payment_method"]
    return np.where(absent(method), np.nan, np.equal(method, "cod").astype(float))


@feature("Business customer", show=yes_no)
def business(rows: Level) -> Array:
    """The customer is a business."""
    return rows["orders", "is_business"]


@feature("Promised within", show=unit("days"), signs={"late": -1})
def promise_days(rows: Level) -> Array:
    """Days from the decision to the end of the promised window: what is left of the promise."""
    return hours_between(rows.decided_at, rows["orders", "promised_to"]) / 24


@feature("Promised window of", show=unit("h"), signs={"late": -1})
def promise_window_hours(rows: Level) -> Array:
    """Length of the promised window in hours."""
    return hours_between(rows["orders", "promised_from"], rows["orders", "promised_to"])


@feature("Promised for a", show=one_of(*WEEKDAYS))
def promise_weekday(rows: Level) -> Array:
    """Day of the week on which the promise ends, on the shop's clock."""
    return weekday(rows.local(rows["orders", "promised_to"]))


@feature("Products in the parcel:", level="line", aggregate="max", show=Show(lambda v: f"{v:.0f}"))
def lines_in_parcel(rows: Level) -> Array:
    """How many order lines travel in the parcel."""
    parcel = rows.rows.line_parcel
    lines = np.bincount(parcel[parcel >= 0], minlength=rows.rows.parcels.n).astype(float)
    return take(lines, parcel, np.nan)


@feature("Pieces:", level="line", aggregate="sum", show=Show(lambda v: f"{v:.0f}"))
def quantity(rows: Level) -> Array:
    """Pieces of the line, or of the whole parcel."""
    return rows["order_lines", "quantity"]


@feature("Price of a piece", level="line", aggregate="max", show=Show(lambda v: f"{v:,.2f}"))
def unit_price(rows: Level) -> Array:
    """Price of one piece before discount, in the shop's currency."""
    return rows["order_lines", "unit_price"]


@feature("Discount on the line", level="line", aggregate="max", show=Show(lambda v: f"{100 * v:.0f}", "percent"))
def discount_share(rows: Level) -> Array:
    """Discount as a share of the line's price."""
    gross = rows["order_lines", "unit_price"] * rows["order_lines", "quantity"]
    return np.where(gross > 0, rows["order_lines", "discount"] / np.where(gross > 0, gross, 1), np.nan)


feature.rate("undelivered", "payment", "Undelivered share with this payment")
feature.rate("failed_attempt", "payment", "Failed attempts with this payment")
feature.rate("returned", "payment", "Return share with this payment")
feature.rate("undelivered", "channel", "Undelivered share of this channel")
feature.rate("returned", "channel", "Return share of this channel")
