"""How long `doorstep check` takes on a large dataset with planted failures of every kind, and in how much memory.

    python benchmarks/check.py [--parcels 1000000] [--csv] [--keep FOLDER]

The dataset is synthetic. The check runs in a process of its own, so that its peak memory is its own; each planted
failure must be found with exactly its count, or the status is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

DAY = np.timedelta64(1, "D")
PLANTED: dict[tuple[str, str, str], int] = {
    ("orders", "order_id", "more than once"): 40,
    ("orders", "ordered_at", "no time"): 25,
    ("orders", "order_value", "negative"): 31,
    ("orders", "promised_to", "before orders.ordered_at"): 17,
    ("orders", "is_business", "neither true nor false"): 6,
    ("order_lines", "order_id", "names no row"): 53,
    ("order_lines", "parcel_id", "another order"): 44,
    ("order_lines", "quantity", "above"): 12,
    ("order_lines", "sku", "empty"): 19,
    ("parcels", "weight_g", "negative"): 61,
    ("parcels", "distance_km", "no number"): 9,
    ("parcels", "label_grade", "unknown code"): 23,
    ("parcels", "packed_at", "before orders.ordered_at"): 37,
    ("events", "kind", "unknown kind of event"): 71,
    ("events", "parcel_id", "names no row"): 83,
    ("events", "happened_at", "before orders.ordered_at"): 47,
    ("events", "known_at", "before events.happened_at"): 29,
    ("returns", "line_id", "names no row"): 13,
    ("returns", "quantity", "more pieces"): 8,
    ("listings", "sku", "more than once"): 11,
    ("listings", "rating", "above"): 14,
}


def names(prefix: str, numbers: np.ndarray) -> pd.Series:
    return pd.Series(np.char.add(prefix, numbers.astype(str)).astype(object), dtype=object)


def utc(times: np.ndarray) -> pd.Series:
    return pd.Series(times).dt.tz_localize("UTC")


class Planter:
    """Hands out rows nothing was planted in yet, so that each failure keeps its own count."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.used: set[tuple[str, int]] = set()

    def rows(self, failure: tuple[str, str, str], orders_of_rows: np.ndarray) -> np.ndarray:
        chosen: list[int] = []
        for r in self.rng.permutation(len(orders_of_rows))[: 40 * PLANTED[failure] + 2_000]:
            order = ("order", int(orders_of_rows[r]))
            if order not in self.used and len(chosen) < PLANTED[failure]:
                self.used.add(order)
                chosen.append(int(r))
        return np.array(chosen)


def make(folder: Path, n: int, as_csv: bool) -> None:
    """A dataset of n orders and parcels, 2n lines and about 5n events, with `PLANTED` failures."""
    rng = np.random.default_rng(0)
    plant = Planter(rng)
    order = np.arange(n)
    ordered = np.datetime64("2024-01-01", "us") + rng.integers(0, 365 * 86_400, n).astype("timedelta64[s]")
    times = ordered.copy()

    def rows(table: str, column: str, what: str, of: np.ndarray = order) -> np.ndarray:
        return plant.rows((table, column, what), of)

    orders = pd.DataFrame(
        {
            "order_id": names("o", order),
            "customer_id": names("c", rng.integers(0, n // 3 + 1, n)),
            "payment_method": pd.Series(
                np.array(["cod", "card", "transfer"], object)[rng.integers(0, 3, n)], dtype=object
            ),
            "is_business": pd.Series(np.array(["yes", "no"], object)[rng.integers(0, 2, n)], dtype=object),
            "destination_region": names("region ", rng.integers(0, 40, n)),
            "destination_city": names("city ", rng.integers(0, 600, n)),
            "order_value": rng.gamma(2.0, 30.0, n),
        }
    )
    orders.loc[rows("orders", "order_value", "negative"), "order_value"] = -1.0
    orders.loc[rows("orders", "is_business", "neither true nor false"), "is_business"] = "perhaps"
    promised = times + 5 * DAY
    promised[rows("orders", "promised_to", "before orders.ordered_at")] -= 9 * DAY
    orders["promised_to"] = utc(promised)
    text = pd.Series(np.datetime_as_string(times, unit="s"), dtype=object) + "Z"
    text[rows("orders", "ordered_at", "no time")] = "31/12/2024"
    orders["ordered_at"] = text.astype(object)

    of_line = np.repeat(order, 2)
    lines = pd.DataFrame(
        {
            "line_id": names("l", np.arange(2 * n)),
            "order_id": names("o", of_line),
            "parcel_id": names("p", of_line),
            "sku": names("s", rng.integers(0, 50_000, 2 * n)),
            "quantity": rng.integers(1, 4, 2 * n).astype(float),
            "unit_price": rng.gamma(2.0, 15.0, 2 * n),
        }
    )
    lines.loc[rows("order_lines", "quantity", "above", of_line), "quantity"] = 1e9
    lines.loc[rows("order_lines", "sku", "empty", of_line), "sku"] = None
    lines.loc[rows("order_lines", "order_id", "names no row", of_line), "order_id"] = "nobody's"
    other = rows("order_lines", "parcel_id", "another order", of_line)
    lines.loc[other, "parcel_id"] = names("p", (of_line[other] + 1) % n).to_numpy()

    packed = times + DAY
    packed[rows("parcels", "packed_at", "before orders.ordered_at")] -= 3 * DAY
    distance = pd.Series(np.round(rng.gamma(2.0, 150.0, n), 1).astype(str).astype(object), dtype=object)
    distance[rows("parcels", "distance_km", "no number")] = "12,5 km"
    parcels = pd.DataFrame(
        {
            "parcel_id": names("p", order),
            "order_id": names("o", order),
            "node": names("node ", rng.integers(0, 5, n)),
            "packed_at": utc(packed),
            "carrier": names("carrier ", rng.integers(0, 8, n)),
            "weight_g": rng.gamma(2.0, 700.0, n),
            "label_grade": pd.Series(np.array(list("ABCDF"), object)[rng.integers(0, 5, n)], dtype=object),
            "distance_km": distance,
        }
    )
    parcels.loc[rows("parcels", "weight_g", "negative"), "weight_g"] = -5.0
    parcels.loc[rows("parcels", "label_grade", "unknown code"), "label_grade"] = "very good"

    of_event = np.repeat(order, 5)
    kinds = np.tile(
        np.array(["handed_over", "in_transit", "out_for_delivery", "attempt_failed", "delivered"], object), n
    )
    happened = times[of_event] + np.tile(np.arange(1, 6), n) * DAY
    early = rows("events", "happened_at", "before orders.ordered_at", of_event)
    happened[early] = times[of_event[early]] - DAY
    known = happened + np.timedelta64(1, "h")
    known[rows("events", "known_at", "before events.happened_at", of_event)] -= np.timedelta64(2, "h")
    kinds[rows("events", "kind", "unknown kind of event", of_event)] = "beamed up"
    events = pd.DataFrame(
        {
            "parcel_id": names("p", of_event),
            "kind": pd.Series(kinds, dtype=object),
            "happened_at": utc(happened),
            "known_at": utc(known),
        }
    )
    events.loc[rows("events", "parcel_id", "names no row", of_event), "parcel_id"] = "nobody's"

    back = rng.choice(2 * n, n // 8, replace=False)
    returns = pd.DataFrame(
        {
            "line_id": names("l", back),
            "requested_at": utc(times[back // 2] + 12 * DAY),
            "reason": names("reason ", rng.integers(0, 6, len(back))),
            "quantity": np.ones(len(back)),
        }
    )
    returns.loc[rows("returns", "line_id", "names no row", back // 2), "line_id"] = "nobody's"
    returns.loc[rows("returns", "quantity", "more pieces", back // 2), "quantity"] = 99.0

    listings = pd.DataFrame({"sku": names("s", np.arange(50_000)), "rating": rng.uniform(1, 5, 50_000)})
    listings.loc[: PLANTED["listings", "rating", "above"] - 1, "rating"] = 50.0
    listings = pd.concat([listings, listings.tail(PLANTED["listings", "sku", "more than once"])], ignore_index=True)
    # Whole rows once more: the second ones are no row's order, so they break nothing but the key.
    clean = np.array(
        [i for i in order if ("order", int(i)) not in plant.used][: PLANTED["orders", "order_id", "more than once"]]
    )
    orders = pd.concat([orders, orders.iloc[clean]], ignore_index=True)

    folder.mkdir(parents=True, exist_ok=True)
    tables = {"orders": orders, "order_lines": lines, "parcels": parcels, "events": events, "returns": returns}
    for name, frame in {**tables, "listings": listings}.items():
        if as_csv:
            frame.to_csv(folder / f"{name}.csv", index=False)
        else:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "dataset.toml").write_text('name = "benchmark"\ntimezone = "UTC"\nextracted_at = 2025-06-01T00:00:00Z\n')


CHECK = """
import json, resource, sys, time
start = time.perf_counter()
from training.check import check
def say(words):
    print(f"  {time.perf_counter() - start:5.1f} s {words}", file=sys.stderr)
report = check(sys.argv[1], progress=say)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "cpu": time.process_time(), "peak_mb": peak, "report": report.to_dict()}))
"""


def run(folder: Path) -> int:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", CHECK, str(folder)], cwd=root, stdout=subprocess.PIPE, check=True)
    answer = json.loads(done.stdout)
    report = answer["report"]
    print(f"rows: {', '.join(f'{n:,} {t}' for t, n in report['rows'].items())}")
    cpu = f"imports included; {answer['cpu']:.1f} s of CPU"
    print(f"time {answer['seconds']:.1f} s ({cpu}), peak {answer['peak_mb']:,.0f} MB")
    found = {(f["table"], f["column"], f["what"]): f for f in report["findings"]}
    missed = 0
    print(f"{'planted failure':62} {'planted':>8} {'found':>8} {'rows shown':>11}")
    for (table, column, what), count in PLANTED.items():
        hits = [f for (t, c, w), f in found.items() if (t, c) == (table, column) and what in w]
        counts = sum(f["count"] for f in hits)
        shown = sum(len(f["examples"]) for f in hits)
        missed += counts != count or shown != 3
        print(f"{table + '.' + column + ': ' + what:62} {count:8} {counts:8} {shown:11}")
    others = [k for k in found if not any(k[:2] == p[:2] and p[2] in k[2] for p in PLANTED)]
    for table, column, what in others:
        finding = found[table, column, what]
        print(f"also: {finding['severity']} {table}.{column}: {what} ({finding['count']})")
    print("every planted failure was found with its count" if not missed else f"{missed} kinds differ")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parcels", type=int, default=1_000_000)
    parser.add_argument("--csv", action="store_true", help="as CSV instead of Parquet")
    parser.add_argument("--keep", type=Path, help="make the dataset here and keep it; use it if it is there already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "dataset"
        if not (folder / "dataset.toml").exists():
            print(f"making {options.parcels:,} parcels ...", file=sys.stderr)
            make(folder, options.parcels, options.csv)
        return run(folder)


if __name__ == "__main__":
    sys.exit(main())
