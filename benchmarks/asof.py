"""As-of features of a year of a simulated shop: rows per second, peak memory and growth, beside pandas' merge_asof.

    python benchmarks/asof.py [--parcels 100000 --parcels 300000 --parcels 1000000] [--peer-parcels 100000]

Each size runs in a process of its own. The peer answers the same questions (every share of every entity that a
registered feature asks for) on the same counts with `pandas.merge_asof`; the answers are compared, then the times.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

AIM_SECONDS, AIM_GB = 60.0, 4.0


def _sets(settings):
    from features.matrix import FeatureSet
    from features.vocabulary import TARGETS

    chosen = {
        u: [FeatureSet.for_target(t, settings) for t, x in TARGETS.items() if x.unit == u] for u in ("parcel", "line")
    }
    return {unit: FeatureSet.union(sets) for unit, sets in chosen.items()}


def measure(folder: Path) -> dict:
    """Time the steps for one dataset, in this process."""
    from features import Dataset
    from features.matrix import whole
    from features.snapshot import Facts

    clock = [time.perf_counter()]
    data = Dataset.open(folder)
    clock.append(time.perf_counter())
    facts = Facts.of(data)
    clock.append(time.perf_counter())
    rows = 0
    for features in _sets(data.settings).values():
        rows += len(whole(facts, features))
    clock.append(time.perf_counter())
    read, history, matrix = np.diff(clock).tolist()
    return {
        "parcels": facts.rows.parcels.n,
        "rows": rows,
        "read_s": read,
        "history_s": history,
        "matrix_s": matrix,
        "features_s": history + matrix,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def peer(folder: Path) -> dict:
    """The same shares by merge_asof: two joins per share, one at the decision and one at the start of its window."""
    from features import Dataset
    from features.definitions import FEATURES
    from features.history import _bucket, key
    from features.snapshot import Facts

    facts = Facts.of(Dataset.open(folder))
    history = facts.snapshot.history
    asked = set()
    for f in FEATURES.values():
        if f.entity and f.name.split("_rate_")[0] == f.about:
            last = f.name.rsplit("_", 1)[1]
            asked.add((f.entity, f.about, int(last[:-1]) if last[-1] == "d" and last[:-1].isdigit() else None))
    ours = theirs = 0.0
    for entity_name, outcome, window in sorted(asked, key=str):
        entity, level = history.entities[entity_name], facts.rows.parcels
        if history.entities[entity_name].level == "line":
            level = facts.rows.lines
        keys, day = key(entity, level), _bucket(level.decided_at, entity)
        counts = history.counts[entity_name]
        level._lookups.clear()  # both sides start with nothing at hand
        start = time.perf_counter()
        found = history.lookup(entity_name, level).count(f"y:{outcome}", window)
        ours += time.perf_counter() - start
        at_key, bucket, sums = counts.table()
        table = pd.DataFrame({"key": at_key, "day": bucket, "y": sums[:, entity.fields.index(f"y:{outcome}")]})
        start = time.perf_counter()
        table = table.sort_values("day", kind="stable")
        table["total"] = table.groupby("key")["y"].cumsum()
        rows = pd.DataFrame({"key": keys, "day": day, "row": np.arange(len(keys))}).sort_values("day", kind="stable")
        joined = pd.merge_asof(rows, table, on="day", by="key", allow_exact_matches=False)["total"].fillna(0).to_numpy()
        if window is not None:
            rows["day"] -= window
            joined = (
                joined
                - pd.merge_asof(rows, table, on="day", by="key", allow_exact_matches=False)["total"]
                .fillna(0)
                .to_numpy()
            )
        answer = np.empty(len(rows))
        answer[rows["row"].to_numpy()] = joined
        theirs += time.perf_counter() - start
        known = keys != 0
        if not np.array_equal(answer[known], found[known]):
            raise AssertionError(f"{entity_name} {outcome} {window}: the peer counts something else")
    return {"shares": len(asked), "doorstep_s": ours, "merge_asof_s": theirs, "ratio": theirs / ours}


@click.command()
@click.option("--parcels", multiple=True, type=int, default=(100_000, 300_000, 1_000_000), show_default=True)
@click.option("--peer-parcels", type=int, default=100_000, show_default=True, help="Size for the comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--one", type=click.Path(path_type=Path), hidden=True)
@click.option("--one-peer", type=click.Path(path_type=Path), hidden=True)
def main(parcels, peer_parcels, as_json, one, one_peer) -> None:
    """As-of features for a growing shop, and the same by merge_asof."""
    if one or one_peer:
        click.echo(json.dumps(measure(one) if one else peer(one_peer)))
        return
    from training.world import generate

    def run(option: str, folder: Path) -> dict:
        done = subprocess.run([sys.executable, __file__, option, folder], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    found = []
    with tempfile.TemporaryDirectory() as work:
        for n in sorted({*parcels, peer_parcels}):
            click.echo(f"simulating {n:,} parcels", err=True)
            generate(Path(work) / str(n), parcels=n)
        for n in parcels:
            click.echo(f"describing {n:,} parcels", err=True)
            found.append(run("--one", Path(work) / str(n)))
        click.echo("the same shares by merge_asof", err=True)
        beside = run("--one-peer", Path(work) / str(peer_parcels))
    if as_json:
        click.echo(json.dumps({"sizes": found, "peer": beside}, indent=2))
        return
    click.echo("parcels    rows       read s  history s  matrix s  features s  rows/s    peak GB  s per 100k parcels")
    for f in found:
        click.echo(
            f"{f['parcels']:<10,} {f['rows']:<10,} {f['read_s']:6.1f}  {f['history_s']:9.1f}  {f['matrix_s']:8.1f}  "
            f"{f['features_s']:10.1f}  {f['rows'] / f['features_s']:8,.0f}  {f['peak_gb']:7.2f}  "
            f"{f['features_s'] / f['parcels'] * 1e5:.2f}"
        )
    last = found[-1]
    aim = f"aim for 1,000,000 parcels: under {AIM_SECONDS:.0f} s and {AIM_GB:.0f} GB"
    click.echo(f"{aim}; here {last['parcels']:,} in {last['features_s']:.1f} s and {last['peak_gb']:.2f} GB")
    click.echo(
        f"{beside['shares']} shares of {peer_parcels:,} parcels: {beside['doorstep_s']:.2f} s, "
        f"merge_asof {beside['merge_asof_s']:.2f} s: {beside['ratio']:.1f} times as long"
    )


if __name__ == "__main__":
    main()
