"""The tables of a diagnosis beside corridors: standards, warehouses, shares, departures, changes; shops with little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hsettings
from hypothesis import strategies as st

from features import Dataset
from features.settings import Settings
from features.snapshot import Facts
from serving.bundle import Bundle
from training.diagnosis.artefact import TABLES, rows
from training.diagnosis.diagnose import diagnose
from training.diagnosis.excess import SOURCES, by_legs, by_model, by_owner
from training.diagnosis.listings import changes
from training.diagnosis.parcels import Parcels, mondays, shifts
from training.diagnosis.products import named, products
from training.diagnosis.reality import reality
from training.diagnosis.shrink import estimate
from training.diagnosis.spikes import FALSE, spikes
from training.diagnosis.standards import Standard, judged, read
from training.diagnosis.warehouse import readiness
from training.labels import labels
from training.pipeline import matrices_of
from training.world import generate, shipped
from training.world.oracle import Oracle
from training.world.scenario import RETURN_REASONS

START = np.datetime64("2025-01-06", "D")  # a Monday


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(generate(tmp_path_factory.mktemp("small") / "shop", parcels=400, seed=1))


def whole(dataset: Dataset, **keep: pd.DataFrame | None) -> Dataset:
    """The dataset with some tables replaced, or left out."""
    tables = {n: t for n, t in {**dataset.tables, **keep}.items() if t is not None}
    return Dataset(dataset.settings, tables)


def only(dataset: Dataset, n: int) -> Dataset:
    """The first n parcels, and what belongs to them."""
    parcels = dataset.tables["parcels"].head(n)
    own = {
        name: dataset.tables[name][dataset.tables[name]["parcel_id"].isin(parcels["parcel_id"])]
        for name in ("events", "order_lines")
    }
    return whole(dataset, parcels=parcels, returns=None, **own)


def same(dataset: Dataset, **columns: str) -> Dataset:
    """The dataset with columns of parcels that have one value only."""
    parcels = dataset.tables["parcels"].copy()
    for name, value in columns.items():
        parcels[name] = pd.Series([value] * len(parcels), index=parcels.index, dtype=object)
    return whole(dataset, parcels=parcels)


def bare(dataset: Dataset) -> Dataset:
    """Who carries, and what was promised: nothing of packing, and nothing of what came of it."""
    parcels = dataset.tables["parcels"][["parcel_id", "order_id", "carrier", "service"]]
    return whole(dataset, parcels=parcels, events=None, returns=None)


LITTLE = {
    "as it is": lambda d: d,
    "no returns": lambda d: whole(d, returns=None),
    "no events": lambda d: whole(d, events=None, returns=None),
    "no parcels": lambda d: whole(d, parcels=None, events=None, returns=None),
    "no listings": lambda d: whole(d, listings=None),
    "one carrier": lambda d: same(d, carrier="alba", node="hamburg"),
    "three parcels": lambda d: only(d, 3),
    "nothing of packing, no events": bare,
}


@pytest.mark.parametrize("name", LITTLE)
def test_a_shop_with_little_gets_every_table_or_a_word_why_not(small: Dataset, name: str):
    if name == "no parcels":
        lines = small.tables["order_lines"].drop(columns="parcel_id")
        small = whole(small, order_lines=lines)
    found = diagnose(LITTLE[name](small))
    assert set(found.document["tables"]) == set(TABLES)
    for table, said in found.document["tables"].items():
        written = list(rows(table, found.tables[table])) if table in found.tables else []
        assert said["rows"] == len(written)
        assert bool(said["why"]) == (not written), table
    if name.endswith("no events"):  # nobody saw one delivered: that is not to be late
        assert found.document["late"]["parcels"] == 0 and "delivered" in found.document["late"]["why"]
        assert found.document["tables"]["excess"]["rows"] == 0
    assert not found.tables.get("corridors", pd.DataFrame({"verdict": []}))["verdict"].eq("worse").any() or name in (
        "as it is",
        "no returns",
        "no listings",
    )


def test_what_nobody_recorded_is_not_said_not_to_have_happened(small: Dataset):
    events, returns = small.tables["events"], small.tables["returns"].drop(columns=["reason", "inspected_reason"])
    orders = small.tables["orders"].drop(columns="promised_to")
    kept = events[~events["kind"].isin(["attempt_failed", "damaged"])]
    found = diagnose(whole(small, events=kept, returns=returns, orders=orders))
    parcels, said = found.tables["parcels"], found.document
    assert parcels[["late", "failed_attempt", "damaged"]].isna().all(axis=None)
    assert parcels["undelivered"].notna().any()
    assert said["corridors"]["damaged"]["why"].startswith("no event of kind damaged (")
    assert said["tables"]["packaging"]["why"] == said["corridors"]["damaged"]["why"]
    assert said["late"]["why"] == "no order has a promised_to: without a promise nothing is late"
    assert said["products"]["why"].endswith("returns states a reason: nothing tells which are for what the page says")
    assert said["unknown"] == ["promise"]
    carriers = said["tables"]["carriers"]["why"]
    assert "; damaged: no event" in carriers and carriers.startswith("late: no order has")
    nobody = diagnose(whole(small, parcels=small.tables["parcels"].drop(columns=["carrier", "service"])))
    assert nobody.document["tables"]["corridors"] == {"rows": 0, "why": "no parcel says which carrier took it"}
    unreturned = diagnose(whole(small, returns=None))
    assert unreturned.document["tables"]["lines"] == {"rows": 0, "why": "the dataset has no table returns"}


def test_a_standard_is_passed_failed_or_open(tmp_path: Path):
    file = tmp_path / "standards.toml"
    file.write_text("[undelivered]\nmost = 0.03\n[late]\nmost = 0.05\ncarriers = { b = 0.2 }\n")
    standards = read(file)
    assert standards == {"undelivered": Standard(0.03), "late": Standard(0.05, {"b": 0.2})}
    table = pd.DataFrame(
        [
            ("undelivered", "a", 1_000, 10),
            ("undelivered", "a", 1_000, 50),
            ("undelivered", "a", 100, 3),
            ("late", "b", 1_000, 100),
            ("damaged", "a", 1_000, 100),
        ],
        columns=["target", "carrier", "parcels", "observed"],
    )
    said = judged(table, standards)
    assert said["meets"].tolist() == ["pass", "fail", "cannot tell", "pass", ""]
    assert said["standard"].tolist()[:4] == [0.03, 0.03, 0.03, 0.2] and np.isnan(said["standard"].iloc[4])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[lat]\nmost = 0.1", "lat is no target of parcels; there are late"),
        ("[late]\nleast = 0.1", r"\[late\] has no `most`"),
        ("[late]\nmost = 5", "late.most is 5; it is a share above 0 and below 1"),
        ("[late]\nmost = 0.1\ncarriers = { a = 'x' }", "late.carriers.a is 'x'"),
        ("[late]\nmost = 0.1\nmean = 2", "late.mean means nothing here"),
        ("late =", "is no TOML"),
    ],
)
def test_what_is_wrong_in_the_standards_is_named(tmp_path: Path, text: str, what: str):
    file = tmp_path / "standards.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=what):
        read(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "none.toml")


def warehouse(bad: float, seed: int, nodes: int = 3) -> tuple[Parcels, dict[str, np.ndarray]]:
    """Parcels of some warehouses; n0's late shift misses the pickup `bad` times as often. Weeks differ for all."""
    r = np.random.default_rng(seed)
    n = 6_000
    day = r.integers(182, size=n)
    decided = (START + day).astype("datetime64[us]") + r.integers(7, 21, n) * np.timedelta64(1, "h")
    places = {
        "node": np.array([f"n{i}" for i in range(nodes)], dtype=object)[r.integers(nodes, size=n)],
        "shift": shifts(decided, "UTC"),
        "service_given": np.array(["std", "exp"], dtype=object)[r.integers(2, size=n)],
    }
    rate = 0.1 * np.exp(r.normal(0, 0.4, 26))[day // 7]
    rate = np.where((places["node"] == "n0") & (places["shift"] == "late"), bad * rate, rate)
    at = np.arange(n)
    parcels = Parcels(at, at, at.astype(object), at.astype(object), decided, mondays(decided, "UTC"), places)
    return parcels, {"missed_cutoff": (r.random(n) < rate).astype(float)}


def test_a_warehouse_is_told_by_shift_and_a_bad_week_for_all_is_nobodys():
    table, weeks, why = readiness(*warehouse(2.5, 0), confidence=0.9)
    assert why == ""
    assert table.loc[table["verdict"] == "worse", ["node", "shift"]].to_numpy().tolist() == [["n0", "late"]]
    assert (table["parcels"].sum(), weeks["parcels"].sum()) == (6_000, 6_000)
    assert table["observed"].sum() == weeks["observed"].sum()
    for row in table[table["verdict"] == "worse"].itertuples():  # the ratio of the rates that are shown
        assert row.why == f"{row.rate / row.elsewhere:.2f} times what the same shift elsewhere has"
    quiet = [readiness(*warehouse(1.0, seed), confidence=0.9)[0] for seed in range(10)]
    assert sum((t["verdict"] == "worse").sum() for t in quiet) <= 1
    alone, _, _ = readiness(*warehouse(2.5, 0, nodes=1), confidence=0.9)
    assert set(alone["verdict"]) == {"cannot tell"} and "one warehouse only" in alone["why"].iloc[0]


def test_what_only_one_warehouse_does_is_not_held_against_it():
    parcels, values = warehouse(1.0, 0, nodes=2)
    r = np.random.default_rng(1)
    bulky = (parcels.places["node"] == "n0") & (r.random(6_000) < 0.5)
    parcels.places["service_given"][bulky] = "bulky"
    values["missed_cutoff"][bulky] = r.random(int(bulky.sum())) < 0.6
    table, weeks, _ = readiness(parcels, values, confidence=0.9)
    assert "worse" not in set(table["verdict"])
    assert (table["parcels"].sum(), table["observed"].sum()) == (6_000, values["missed_cutoff"].sum())
    assert weeks.loc[weeks["node"] == "n0", "expected"].isna().all()  # half of it would be held against all of it


def series(n: int, rate: float, seed: int, jump: float = 1.0) -> pd.DataFrame:
    """Days of a year of n series of ten units each; series 0 fails `jump` times as often from day 200 on."""
    r = np.random.default_rng(seed)
    key, day = np.repeat(np.arange(n), 3_650), np.tile(np.repeat(np.arange(365), 10), n)
    level = np.exp(r.normal(0, 0.3, n))[key]  # what each is against the forecast is its own, and has to be learned
    p = np.minimum(rate * level * np.where((key == 0) & (day >= 200), jump, 1.0), 0.9)
    return spikes(
        "corridor",
        "late",
        key.astype(str).astype(object),
        START + day,
        (r.random(len(key)) < p).astype(float),
        np.full(len(key), rate),
    )


def test_departures_keep_to_the_false_alarms_they_state():
    found = [series(40, rate, seed) for seed in range(8) for rate in (0.02, 0.15)]
    assert sum(len(f) for f in found) / len(found) <= FALSE


def test_a_departure_is_seen_within_days_and_dated():
    for seed in range(5):
        found = series(20, 0.1, seed, jump=3.0)
        assert found["key"].iloc[0] == "0"
        assert found["alarm"].iloc[0] - (START + 200) <= np.timedelta64(14, "D")
        assert abs(found["began"].iloc[0] - (START + 200)) <= np.timedelta64(35, "D")
        assert found["observed"].iloc[0] > 1.5 * found["forecast"].iloc[0]


def test_shares_of_failures_add_up_and_lay_them_where_they_come_from():
    r = np.random.default_rng(0)
    n = 20_000
    label, quality = r.integers(5, size=n).astype(float), r.random(n)
    fails = (r.random(n) < 0.02 * (1 + 3 * (label >= 3))).astype(float)
    values = {"label_grade": label, "address_quality": quality, "documents_complete": np.ones(n)}
    parts = [
        by_legs(pd.DataFrame({"whose": ["ours"] * 30 + ["carrier"] * 60 + ["cannot tell"] * 10}), r, 0.9),
        by_model("undelivered", fails, values, np.full(100, 0.1), r, 0.9),
        by_owner(
            pd.DataFrame({"returned": [True, True, True, False], "owner": ["listing", "packing", None, None]}), r, 0.9
        ),
    ]
    for part, total in zip(parts, (100, fails.sum(), 3), strict=True):
        assert tuple(part["source"]) == SOURCES
        assert part["share"].sum() == pytest.approx(1) and part["failures"].sum() == pytest.approx(total)
        told = part[(part["source"] != "listing") | (part["target"] != "undelivered")]
        assert ((told["low"] <= told["share"]) & (told["share"] <= told["high"])).all()
    unread = parts[1].set_index("source").loc["listing"]
    assert unread["share"] == 0 and np.isnan(unread["low"]) and np.isnan(unread["high"]), "no feature tells of goods"
    late, undelivered, returned = (p.set_index("source")["share"] for p in parts)
    assert late[["upstream", "carrier", "cannot tell"]].tolist() == [0.3, 0.6, 0.1]
    assert undelivered["upstream"] > 0.3 and undelivered["customer"] < 0.1
    assert undelivered["carrier"] == pytest.approx(0.1)
    assert returned["listing"] == pytest.approx(1 / 3) and returned["cannot tell"] == pytest.approx(1 / 3)


def changed(rate: float, as_of: str) -> pd.DataFrame:
    """What is said of a change of 1 April, after which a tenth of the usual 400 lines comes back at this rate."""
    r = np.random.default_rng(0)
    day = np.datetime64("2025-01-01", "us") + np.arange(800) * np.timedelta64(6, "h")
    lines = pd.DataFrame({"sku": "a", "decided_at": day, "expected": 0.1})
    after = day >= np.datetime64("2025-04-01", "us")
    lines["counted"] = r.random(800) < np.where(after, rate, 0.3)
    frames = {
        "orders": pd.DataFrame({"order_id": ["o"], "ordered_at": [pd.Timestamp("2025-01-01", tz="UTC")]}),
        "changes": pd.DataFrame(
            {"sku": ["a"], "changed_at": [pd.Timestamp("2025-04-01", tz="UTC")], "what": ["photos"]}
        ),
    }
    facts = Facts.of(Dataset.from_frames(frames, Settings()), pd.Timestamp("2026-01-01", tz="UTC"))
    end = np.datetime64(as_of, "us")
    return changes(facts, lines[lines["decided_at"] < end], end, 0.9, r)[0]


@pytest.mark.parametrize(
    ("rate", "as_of", "verdict"),
    [
        (0.05, "2025-05-01", "too early"),
        (0.05, "2025-08-01", "better"),
        (0.3, "2025-08-01", "no difference yet"),
        (0.6, "2025-08-01", "worse"),
    ],
)
def test_a_change_is_judged_once_it_can_be(rate: float, as_of: str, verdict: str):
    said = changed(rate, as_of)
    assert said["verdict"].tolist() == [verdict]
    assert said["judged_from"].iloc[0] == np.datetime64("2025-06-05")
    assert said["before_lines"].iloc[0] == 360


def test_without_a_table_of_changes_that_is_said(small: Dataset):
    table, why = changes(Facts.of(small), pd.DataFrame(), np.datetime64("2026-01-01"), 0.9, np.random.default_rng(0))
    assert not len(table) and "no table `changes`" in why


def test_predictions_are_held_against_what_came_of_parcels_the_model_had_not_seen(trained):
    facts = Facts.of(Dataset.open(trained.dataset))
    units = {t: labels(facts, t) for t in ("damaged", "returned")}
    end = facts.snapshot.as_of
    matrices = matrices_of(facts, units, lambda _: None)
    table, why = reality(Bundle.load(trained.bundle), units, matrices, "Europe/Berlin", end, None, 0.9)
    holdout = pd.read_parquet(trained.run / "holdout.parquet").query("target == 'damaged'")
    own = table[table["target"] == "damaged"]
    assert why == "" and (own["units"].sum(), own["observed"].sum()) == (len(holdout), holdout["label"].sum())
    assert own["predicted"].sum() == pytest.approx(holdout["probability"].sum(), rel=1e-6)
    assert set(table["verdict"]) <= {"as predicted", "more", "fewer"}
    none, why = reality(None, units, matrices, "UTC", end, None, 0.9)
    assert not len(none) and "--bundle" in why


def sold(mine: float, others: float, elsewhere: float = 0.095) -> tuple[pd.DataFrame, np.ndarray]:
    """Ten categories of six products of two brands; how often those of the first come back, by brand."""
    r = np.random.default_rng(5)
    rows = []
    for category in range(10):
        lines = 90 if category == 0 else 400
        for product in range(6):
            rate = elsewhere if category else mine if product < 3 else others
            back = np.arange(2 * lines) < round(2 * lines * rate)
            rows.append(
                pd.DataFrame(
                    {
                        "sku": f"{category}-{product}",
                        "category": f"c{category}",
                        "brand": "ours" if product < 3 else "theirs",
                        "counted": back,
                        "returned": back,
                        "reason": np.where(back, np.where(np.arange(2 * lines) % 2, "wrong_size", "defect"), None),
                    }
                )
            )
    lines = pd.concat(rows, ignore_index=True)
    code = lines["category"].str[1:].astype(float)
    return lines, np.column_stack([r.normal(size=len(lines)), code, r.integers(50, size=len(lines))]).astype(np.float32)


def test_no_product_is_named_because_others_of_its_category_had_luck():
    found, _ = products(*sold(mine=0.13, others=0.05))
    assert not found["named"].any(), "all categories are alike: what is little of the others is luck"
    found, _ = products(*sold(mine=0.4, others=0.095))
    assert set(found.loc[found["named"], "sku"]) == {"0-0", "0-1", "0-2"}


def test_what_best_sellers_come_back_for_is_not_expected_of_whatever_weighs_as_much(monkeypatch: pytest.MonkeyPatch):
    r, rows = np.random.default_rng(3), []
    for category, brand in np.ndindex(5, 8):
        for product in range(5):
            many = int(30 * r.pareto(1.2)) + 5
            back = r.random(many) < 0.1 * r.lognormal(-0.18, 0.6)
            names = {"sku": f"{category}-{brand}-{product}", "category": f"c{category}", "brand": f"b{brand}"}
            rows.append(
                pd.DataFrame({**names, "counted": back, "returned": back, "weight": r.lognormal(0, 1)}, range(many))
            )
    lines = pd.concat(rows, ignore_index=True)
    lines["reason"] = np.where(lines["counted"], "defect", None)
    code = lines["category"].str[1:].astype(float)
    matrix = np.column_stack([lines["weight"], r.random(len(lines)), code, np.zeros(len(lines))]).astype(np.float32)

    def off() -> float:
        found, _ = products(lines, matrix)
        of = found.groupby(["category", "brand"])[["lines", "expected"]].sum()
        of = of[of["lines"] >= 100]
        return float(np.sqrt(np.mean(np.log(of["expected"] / (0.1 * of["lines"])) ** 2)))

    chosen = off()
    monkeypatch.setattr("training.diagnosis.products.TREES", (80,))
    assert chosen < 0.85 * off()
    assert chosen < 0.3


def test_the_oracle_of_listings_knows_what_is_planted_and_what_is_usual():
    oracle = Oracle(1_500, seed=2, scenario=shipped()["misleading_listings"])
    listings, lines = oracle.listings(references=2), oracle.lines()
    reasons = list(RETURN_REASONS)
    assert listings["line_id"].equals(lines["line_id"])
    assert np.allclose(listings[reasons].sum(axis=1), lines["returned"])
    planted = listings["planted"].to_numpy()
    own = ["wrong_size", "not_as_described", "defect"]
    ratio = listings[own].sum(axis=1) / listings[[f"usual:{r}" for r in own]].sum(axis=1)
    assert 0.005 < planted.mean() < 0.2
    assert ratio[planted].mean() > 1.5 * ratio[~planted].mean()
    sums = listings.loc[~planted, own].sum().sum() / listings.loc[~planted, [f"usual:{r}" for r in own]].sum().sum()
    assert sums == pytest.approx(1, abs=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.01, 0.5))
def test_what_is_named_is_the_surest_and_as_many_as_the_share_allows(chances: list[float], false: float):
    chance = np.array(chances)
    picked = named(chance, false)
    if picked.any() and not picked.all():
        assert chance[picked].min() >= chance[~picked].max()
    if picked.any():
        assert (1 - chance[picked]).mean() <= false + 1e-12
    # Independent of how it is done: no larger set of the surest ones would do.
    order = np.sort(chance)[::-1]
    possible = [k for k in range(1, len(order) + 1) if (1 - order[:k]).mean() <= false]
    assert picked.sum() == max(possible, default=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5))
@hsettings(max_examples=15, deadline=None)
def test_estimates_lie_in_their_intervals_and_sums_are_of_their_groups(seed: int, groups: int, families: int):
    r = np.random.default_rng(seed)
    due = r.gamma(1.0, 10.0, groups) + 0.01
    seen = r.poisson(due * r.gamma(4.0, 0.25, groups))
    family = r.integers(families, size=groups)
    said = estimate(seen, due, r, family=family, sums=family)
    table = said.table
    assert (table["low"] <= table["high"]).all() and (table["low"] > 0).all()
    assert table["chance_worst"].sum() == pytest.approx(1)
    assert said.sums.mean(axis=0).sum() == pytest.approx((table["ratio"] * due).sum())
    # Shrunk: no estimate is further out than what was seen and what is usual.
    whole = max(seen.sum(), 0.5) / due.sum()
    assert (table["ratio"] <= 1.5 * np.maximum(seen / due, whole).max() + 0.5).all()
