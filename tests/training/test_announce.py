"""A dataset's parcels as the shop's system would announce them."""

from __future__ import annotations

import pandas as pd

from features import Dataset
from features.settings import Settings
from training.announce import requests


def test_lines_that_name_no_parcel_travel_in_the_first_of_their_order() -> None:
    at = pd.to_datetime(["2025-03-01", "2025-03-02"], utc=True)
    orders = pd.DataFrame({"order_id": ["a", "b"], "ordered_at": at})
    parcels = pd.DataFrame(
        {
            "parcel_id": ["a-0", "a-1", "b-1"],  # a-1 was packed first
            "order_id": ["a", "a", "b"],
            "packed_at": pd.to_datetime(["2025-03-04", "2025-03-03", "2025-03-05"], utc=True),
        }
    )
    lines = pd.DataFrame({"line_id": ["1", "2", "3"], "order_id": ["a", "a", "b"], "sku": ["x", "y", "z"]})

    def sent(lines: pd.DataFrame) -> dict[str, list[str]]:
        tables = {"orders": orders, "parcels": parcels, "order_lines": lines}
        found = requests(Dataset(Settings(), tables), 3)
        return {r["parcel"]["parcel_id"]: [line["sku"] for line in r["lines"]] for r in found}

    assert sent(lines) == {"a-1": ["x", "y"], "a-0": [], "b-1": ["z"]}
    assert sent(lines.assign(parcel_id=["a-0", None, "b-1"])) == {"a-1": ["y"], "a-0": ["x"], "b-1": ["z"]}
