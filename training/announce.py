"""A dataset's latest parcels as requests of the service, for its packing station to be tried on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from features import Dataset
from features.contracts import TABLES

BATCH = 100
"""Parcels sent in one request: they stay below the 2 MB a body may have."""
SECONDS = 30.0


class AnnounceError(OSError):
    """The service did not take the parcels; says which service, what it answered and what to do."""


def requests(dataset: Dataset, last: int) -> list[dict[str, Any]]:
    """The latest parcels as the shop's system would send them: raw columns of the parcel, its order and its lines.

    Args:
        dataset: the shop.
        last: how many parcels; by when they were packed, else ordered.

    Returns:
        The bodies of `/v1/risk`, the oldest first.
    """
    tables = dataset.tables
    orders, parcels, lines = (tables.get(n, pd.DataFrame()) for n in ("orders", "parcels", "order_lines"))
    joined = parcels.merge(orders[["order_id", "ordered_at"]], on="order_id", how="inner")
    packed = joined["packed_at"] if "packed_at" in joined else joined["ordered_at"]
    at = packed.fillna(joined["ordered_at"])
    joined = joined.assign(_at=at).sort_values(["_at", "parcel_id"], kind="stable")
    chosen = joined.tail(last)
    of_parcel = _placed(lines, joined)
    of_parcel = of_parcel[of_parcel["parcel_id"].isin(chosen["parcel_id"])]
    by_parcel = dict(iter(of_parcel.groupby("parcel_id"))) if len(of_parcel) else {}
    by_order = orders[orders["order_id"].isin(chosen["order_id"])].set_index("order_id", drop=False)
    flags = {n: {c.name for c in t.columns if c.kind == "flag"} for n, t in TABLES.items()}
    flags |= {e.table: flags[e.table] | {e.column} for e in dataset.settings.extra if e.kind == "flag"}
    out = []
    for row in chosen[parcels.columns].to_dict("records"):
        own = by_parcel.get(row["parcel_id"], of_parcel.head(0))
        out.append(
            {
                "order": _plain(by_order.loc[row["order_id"]].to_dict(), flags["orders"]),
                "parcel": _plain(row, flags["parcels"]),
                "lines": [_plain(line, flags["order_lines"]) for line in own.to_dict("records")],
            }
        )
    return out


def _placed(lines: pd.DataFrame, parcels: pd.DataFrame) -> pd.DataFrame:
    """Order lines with their parcel; those that name none travel in the first of their order, as the models take it.

    Args:
        lines: order lines, with or without a column `parcel_id`.
        parcels: the oldest first.
    """
    if not len(lines):
        return lines.assign(parcel_id=pd.Series(dtype=object))
    first = parcels.drop_duplicates("order_id").set_index("order_id")
    usual = lines["order_id"].map(first["parcel_id"])
    return lines.assign(parcel_id=lines["parcel_id"].fillna(usual) if "parcel_id" in lines else usual)


def _plain(row: dict[Any, Any], flags: set[str]) -> dict[str, Any]:
    """A row as JSON values, times with their zone; what is missing is left out."""
    given = {str(k): v for k, v in row.items() if v is not None and v == v}  # NaN and NaT differ from themselves
    said = {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in given.items()}
    return {k: bool(v) if k in flags else v for k, v in said.items()}


def send(url: str, parcels: Sequence[dict[str, Any]]) -> Iterator[int]:
    """Announce parcels to a running service; yields how many are sent after each batch.

    Raises:
        AnnounceError: it did not take them.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = f"{parts.path.rstrip('/')}/v1/parcels"
    connection = kind(parts.hostname or "", parts.port, timeout=SECONDS)
    try:
        for start in range(0, len(parcels), BATCH):
            body = json.dumps(parcels[start : start + BATCH])
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise AnnounceError(f"{url} answered {response.status}: {_detail(content)}")
            yield min(start + BATCH, len(parcels))
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, AnnounceError):
            raise
        raise AnnounceError(f"{url} does not answer ({error}): start it with doorstep serve, or name another") from None
    finally:
        connection.close()


def _detail(content: bytes) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")
