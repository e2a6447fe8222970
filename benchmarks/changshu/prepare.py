"""Turn the Changshu home deliveries into a Doorstep dataset: `python benchmarks/changshu/prepare.py SRC OUT`.

SRC is `deliveries.parquet`, OUT a folder. This is what a user would write for a file of their own: pandas, three tables
and a `dataset.toml`. The columns `slot`, `tdelta` and `auto` are not read: they are known, or may be, only afterwards.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

COLUMNS = ["uid", "date", "gx", "gy", "weight", "volume", "h1", "h2", "redeliv"]
FIRST_DAY_LEFT_OUT = pd.Timestamp("2024-09-01")  # from here on only stragglers are in the file, half of them failures
HEAVIEST = 5_000_000  # g; three rows weigh more, up to 200 t
DECISION = pd.Timedelta(hours=9)
END_OF_DAY = pd.Timedelta(hours=23, minutes=59)


def tables(deliveries: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The three tables; times are Changshu's, as `dataset.toml` says."""
    d = deliveries[deliveries["date"] < FIRST_DAY_LEFT_OUT]
    day = d["date"].astype("datetime64[us]")
    key = pd.Series(d.index, index=d.index).map("D{:06d}".format)  # the file has no key: its row is one
    cell = d["gx"].astype(str) + "-" + d["gy"].astype(str)
    block = (d["gx"] // 3).astype(str) + "-" + (d["gy"] // 3).astype(str)
    # 0 and 1 stand for "not weighed". The unit is not documented: grams are the one that makes these home deliveries.
    weighed = (d["weight"] > 1) & (d["weight"] <= HEAVIEST)
    orders = pd.DataFrame(
        {
            "order_id": key,
            "ordered_at": day + DECISION,
            "customer_id": d["uid"],
            "destination_country": "CN",
            "destination_region": "block " + block,
            "destination_city": "Changshu",
            "destination_postal": "cell " + cell,
        }
    )
    parcels = pd.DataFrame(
        {
            "parcel_id": key,
            "order_id": key,
            "packed_at": day + DECISION,
            "weight_g": d["weight"].where(weighed),
            "volume": d["volume"],
            "h1": d["h1"],
            "h2": d["h2"],
        }
    )
    # Nothing that happens on a day is known to any decision of that day.
    delivered = pd.DataFrame({"parcel_id": key, "kind": "delivered", "happened_at": day + END_OF_DAY})
    failed = delivered[d["redeliv"] == 1].assign(kind="attempt_failed")
    events = pd.concat([failed, delivered], ignore_index=True)
    return {"orders": orders, "parcels": parcels, "events": events}


def main(source: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables(pd.read_parquet(source, columns=COLUMNS)).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        print(f"{name}: {len(table):,} rows", file=sys.stderr)
    shutil.copy(Path(__file__).with_name("dataset.toml"), folder)
    print(f"next: doorstep check {out}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/changshu/prepare.py SRC OUT\n  SRC  deliveries.parquet\n  OUT  a folder")
    main(sys.argv[1], sys.argv[2])
