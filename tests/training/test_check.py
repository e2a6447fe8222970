"""The check of a dataset: every failure at once, with counts and rows, and what absence costs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from features.contracts import TABLES
from features.dataset import Dataset, DatasetError, Settings
from training.check import COST_OF_ABSENCE, Report, check, require

TOML = 'name = "shop"\ntimezone = "UTC"\nextracted_at = 2025-06-01T00:00:00Z\n'


def shop() -> dict[str, pd.DataFrame]:
    """Six tables of a small shop with nothing wrong: 8 orders, two lines each, one of which came back."""
    n = 8
    ids = [f"o{i}" for i in range(n)]
    ordered = pd.date_range("2025-03-01T10:00Z", periods=n, freq="D")
    day = pd.Timedelta(days=1)
    kinds = ["handed_over", "delivered"]
    parcels = np.repeat(np.arange(n), 2)
    outcome = [kinds[i % 2] for i in range(2 * n)]
    outcome[1], outcome[3], outcome[5] = "attempt_failed", "damaged", "lost"
    return {
        "orders": pd.DataFrame(
            {
                "order_id": ids,
                "ordered_at": ordered,
                "promised_from": ordered + 2 * day,
                "promised_to": ordered + 3 * day,
                "order_value": 20.0,
            }
        ),
        "order_lines": pd.DataFrame(
            {
                "line_id": [f"l{i}" for i in range(2 * n)],
                "order_id": [ids[i] for i in parcels],
                "parcel_id": [f"p{i}" for i in parcels],
                "sku": "s1",
                "quantity": 2.0,
            }
        ),
        "listings": pd.DataFrame(
            {"sku": ["s1", "s1", "s2"], "known_at": pd.to_datetime(["2025-01-01", None, None], utc=True), "rating": 4.0}
        ),
        "parcels": pd.DataFrame(
            {
                "parcel_id": [f"p{i}" for i in range(n)],
                "order_id": ids,
                "packed_at": ordered + pd.Timedelta(hours=3),
                "weight_g": 500.0,
                "label_grade": "A",
            }
        ),
        "events": pd.DataFrame(
            {
                "parcel_id": [f"p{i}" for i in parcels],
                "kind": outcome,
                "happened_at": [ordered[p] + (1 + 3 * (i % 2)) * day for i, p in enumerate(parcels)],
                "known_at": [ordered[p] + (1 + 3 * (i % 2)) * day for i, p in enumerate(parcels)],
            }
        ),
        "returns": pd.DataFrame(
            {
                "line_id": ["l14"],
                "requested_at": [ordered[7] + 9 * day],
                "inspected_at": [ordered[7] + 12 * day],
                "quantity": [1.0],
            }
        ),
    }


def decisions() -> pd.DataFrame:
    """Decisions about the shop's first three parcels, with nothing wrong."""
    decided = shop()["parcels"]["packed_at"].iloc[:3]
    return pd.DataFrame(
        {
            "decision_id": ["d0", "d1", "d2"],
            "parcel_id": ["p0", "p1", "p2"],
            "decided_at": decided,
            "action": ["add_fill", "package:box", None],
            "arm": ["act", "control", "none"],
            "propensity": [0.9, 0.9, 1.0],
            "done": ["add_fill", None, None],
            "known_at": pd.to_datetime([decided[0] + pd.Timedelta(hours=1), None, None], utc=True),
            "net_benefit": [1.2, 0.4, -0.1],
        }
    )


@pytest.fixture
def run(tmp_path):
    """Write the tables as CSV (so that anything can be written) and check them."""

    def run(tables: dict[str, pd.DataFrame], toml: str = TOML, **files: bytes) -> Report:
        (tmp_path / "dataset.toml").write_text(toml)
        for name, frame in tables.items():
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
        for name, content in files.items():
            (tmp_path / f"{name}.csv").write_bytes(content)
        return check(tmp_path)

    return run


def set_cells(frame: pd.DataFrame, column: str, values: dict[int, object]) -> None:
    changed = frame[column].astype(object)
    for row, value in values.items():
        changed[row] = value
    frame[column] = changed


def test_a_sound_shop_is_fit_to_train_on(run):
    report = run(shop())
    assert report.findings == ()
    assert report.ok
    assert report.rows == {
        "orders": 8,
        "order_lines": 16,
        "listings": 3,
        "parcels": 8,
        "events": 16,
        "returns": 1,
    }
    assert "fit to train on: 0 errors, 0 warnings" in report.render()


# (table, column), rows and what is put there, then words of the finding, what its first example shows, its severity
BROKEN = [
    (
        "orders",
        "order_id",
        {3: "o1", 5: "o1"},
        "the key is there more than once",
        {"row": 4, "first_in_row": 2},
        "error",
    ),
    ("order_lines", "line_id", {1: "l0"}, "the key is there more than once", {"row": 2, "line_id": "l0"}, "error"),
    ("parcels", "parcel_id", {2: "p1"}, "the key is there more than once", {"row": 3, "parcel_id": "p1"}, "error"),
    ("listings", "sku", {2: "s1"}, "the key is there more than once", {"row": 3, "first_in_row": 2}, "error"),
    ("orders", "ordered_at", {0: None}, "is empty, but every row needs it", {"row": 1, "order_id": "o0"}, "error"),
    ("order_lines", "sku", {4: "", 5: None}, "is empty, but every row needs it", {"row": 5, "sku": None}, "error"),
    ("order_lines", "order_id", {9: "o99"}, "names no row of orders", {"row": 10, "order_id": "o99"}, "error"),
    ("order_lines", "parcel_id", {9: "p99"}, "names no row of parcels", {"line_id": "l9", "parcel_id": "p99"}, "error"),
    (
        "order_lines",
        "parcel_id",
        {9: "p0"},
        "the parcel belongs to another order",
        {"row": 10, "order_id": "o4", "parcel_id": "p0", "order_of_parcel": "o0"},
        "error",
    ),
    ("parcels", "order_id", {7: "nobody's"}, "names no row of orders", {"parcel_id": "p7"}, "error"),
    ("events", "parcel_id", {7: "p-7"}, "names no row of parcels", {"row": 8, "parcel_id": "p-7"}, "error"),
    ("returns", "line_id", {0: "l99"}, "names no row of order_lines", {"row": 1, "line_id": "l99"}, "error"),
    (
        "events",
        "happened_at",
        {15: "2025-03-01T00:00:00Z"},
        "is before orders.ordered_at of its order",
        {"row": 16, "parcel_id": "p7", "kind": "delivered", "orders.ordered_at": "2025-03-08T10:00:00+00:00"},
        "error",
    ),
    ("parcels", "packed_at", {0: "2025-02-28"}, "is before orders.ordered_at of its order", {"row": 1}, "error"),
    ("orders", "promised_to", {0: "2025-03-01"}, "is before orders.ordered_at", {"row": 1}, "error"),
    ("orders", "promised_to", {0: "2025-03-02"}, "is before orders.promised_from", {"row": 1}, "warning"),
    ("events", "known_at", {0: "2025-03-01T11:00Z"}, "is before events.happened_at", {"row": 1}, "error"),
    ("returns", "requested_at", {0: "2025-03-08"}, "is before orders.ordered_at of its order", {"row": 1}, "error"),
    ("returns", "inspected_at", {0: "2025-03-09"}, "is before returns.requested_at", {"row": 1}, "warning"),
    (
        "events",
        "kind",
        {2: "deliverd", 9: "deliverd"},
        "unknown kind of event 'deliverd'",
        {"row": 3, "parcel_id": "p1", "kind": "deliverd", "happened_at": "2025-03-03T10:00:00+00:00"},
        "error",
    ),
    ("parcels", "label_grade", {0: "AA"}, "unknown code 'AA'", {"parcel_id": "p0", "label_grade": "AA"}, "error"),
    ("parcels", "weight_g", {6: -3}, "is negative", {"row": 7, "parcel_id": "p6", "weight_g": -3.0}, "error"),
    ("parcels", "weight_g", {6: 1e12}, "is above 5,000,000 g", {"row": 7, "weight_g": 1e12}, "error"),
    ("order_lines", "quantity", {0: -1}, "is negative", {"row": 1, "quantity": -1.0}, "error"),
    ("listings", "rating", {0: 5.1}, "is above 5 stars", {"row": 1, "sku": "s1", "rating": 5.1}, "error"),
    ("returns", "quantity", {0: 3}, "more pieces came back", {"quantity": 3.0, "order_lines.quantity": 2.0}, "warning"),
    ("orders", "promised_from", {0: "1970-01-01"}, "looks like a placeholder", {"row": 1}, "warning"),
    ("events", "happened_at", {14: "2025-07-01"}, "is after the extract was taken", {"row": 15}, "warning"),
    ("orders", "order_value", {0: "12 EUR"}, "no number", {"row": 1, "value": "12 EUR"}, "error"),
    ("orders", "ordered_at", {0: "1.3.2025"}, "no time", {"row": 1, "value": "1.3.2025"}, "error"),
]


@pytest.mark.parametrize(
    ("table", "column", "cells", "words", "example", "severity"), BROKEN, ids=[f"{b[0]}.{b[1]} {b[3]}" for b in BROKEN]
)
def test_one_failure_gives_its_finding_with_place_count_and_rows(run, table, column, cells, words, example, severity):
    tables = shop()
    set_cells(tables[table], column, cells)
    report = run(tables)
    hits = [f for f in report.findings if (f.table, f.column) == (table, column) and words in f.what]
    assert len(hits) == 1, report.render()
    (finding,) = hits
    assert finding.severity == severity
    assert finding.count == len(cells)
    assert len(finding.examples) == min(len(cells), 3)
    assert example.items() <= finding.examples[0].items()
    assert finding.todo
    assert report.ok == (severity == "warning" and not report.errors)
    assert str(finding) in report.render()


def test_nothing_is_found_twice(run):
    tables = shop()
    set_cells(tables["orders"], "ordered_at", {0: "1.3.2025", 1: None})
    found = {f.what: f for f in run(tables).findings}
    assert {w: f.count for w, f in found.items()} == {"no time": 1, "is empty, but every row needs it": 1}
    assert found["is empty, but every row needs it"].examples[0]["row"] == 2


def test_unknown_kinds_come_with_what_is_allowed_and_how_to_map_them(run):
    tables = shop()
    set_cells(tables["events"], "kind", {1: "deliverd", 2: "DLV", 3: "POD", 4: "X1"})
    (finding,) = (f for f in run(tables).findings if "unknown" in f.what)
    assert finding.what == "unknown kind of event 'deliverd', 'DLV', 'POD' and 1 more"
    assert "handed_over" in finding.allowed
    assert finding.todo == "did you mean 'delivered'? map it in dataset.toml under [codes.kind]"


def test_a_repeated_event_is_worth_a_look(run):
    tables = shop()
    tables["events"] = pd.concat([tables["events"], tables["events"].iloc[[3, 3]]])
    (finding,) = run(tables).findings
    assert (finding.severity, finding.count) == ("warning", 2)
    assert [e["row"] for e in finding.examples] == [17, 18]


def test_only_three_rows_are_shown_of_many(run):
    tables = shop()
    tables["parcels"]["weight_g"] = -1.0
    (finding,) = run(tables).findings
    assert (finding.count, [e["row"] for e in finding.examples]) == (8, [1, 2, 3])


def test_what_cannot_be_read_and_what_does_not_fit_are_in_one_report(run):
    tables = shop()
    set_cells(tables["orders"], "ordered_at", {0: "soon"})
    set_cells(tables["parcels"], "weight_g", {1: -1})
    set_cells(tables["events"], "parcel_id", {2: "p99"})
    tables["orders"] = tables["orders"].rename(columns={"order_value": "ordervalue"})
    tables["returns"] = tables["returns"].rename(columns={"requested_at": "request"})
    report = run(tables, TOML + "lost_after_day = 3\n", listings=b"\x00\x01\xff")
    assert [(f.severity, f.place) for f in report.findings] == [
        ("error", "dataset.toml.lost_after_day"),
        ("error", "orders.ordered_at"),
        ("error", "listings"),
        ("error", "parcels.weight_g"),
        ("error", "events.parcel_id"),
        ("error", "returns.requested_at"),
        ("warning", "orders.ordervalue"),
        ("warning", "returns.request"),
    ]
    text = report.render()
    assert "did you mean 'order_value'?" in text
    assert "NOT fit to train on: 6 errors, 2 warnings" in text
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] is False


def test_times_without_zone_do_not_hide_other_findings(run):
    tables = shop()
    tables["orders"]["ordered_at"] = tables["orders"]["ordered_at"].dt.tz_localize(None)
    set_cells(tables["parcels"], "packed_at", {0: "2025-01-01T00:00Z"})
    found = {f.place: f for f in run(tables, "").findings}
    assert found["orders.ordered_at"].what == "a time without zone"
    assert "is before orders.ordered_at" in found["parcels.packed_at"].what


def test_files_and_columns_without_meaning_are_named(run):
    tables = shop()
    tables["parcels"]["wieght_g"] = 1.0
    tables["parcels"] = tables["parcels"].drop(columns="weight_g")
    tables["events"]["courier"] = "x"
    report = run(tables, parcel=b"a\n1\n")
    assert report.ok
    found = {f.place: f for f in report.findings}
    assert set(found) == {"parcel.csv", "parcels.wieght_g", "events.courier"}
    assert found["parcel.csv"].todo == "did you mean 'parcels.csv'?"
    assert found["parcels.wieght_g"].todo.startswith("did you mean 'weight_g'?")
    assert "[[extra]]" in found["parcels.wieght_g"].todo
    assert "[[extra]]" not in found["events.courier"].todo, "an outcome's column may not become a feature"


def test_what_is_absent_is_reported_with_what_it_costs(run):
    tables = shop()
    tables["orders"] = tables["orders"].drop(columns=["promised_to", "promised_from"])
    tables["orders"]["channel"] = None
    del tables["returns"]
    report = run(tables)
    assert report.ok
    absent = {(a.table, a.column): a for a in report.absent}
    assert absent["orders", "promised_to"].cost == "late cannot be trained"
    assert absent["orders", "channel"].empty
    assert absent["returns", ""].cost == "returned cannot be trained"
    assert ("returns", "reason") not in absent, "the whole table says it all"
    assert report.present["orders"] == ("order_id", "ordered_at", "order_value")
    assert "orders: promised_to: late cannot be trained" in report.render()


def test_decisions_are_checked_like_any_table(run):
    assert run(shop() | {"decisions": decisions()}).ok
    bad = decisions()
    bad.loc[0, "arm"], bad.loc[1, "propensity"], bad.loc[2, "decision_id"] = "treated", 1.5, "d1"
    errors = {(f.table, f.column, f.what) for f in run(shop() | {"decisions": bad}).errors}
    assert errors == {
        ("decisions", "arm", "unknown code 'treated'"),
        ("decisions", "propensity", "is above 1 share"),
        ("decisions", "decision_id", "the key is there more than once"),
    }


def test_a_decision_about_a_parcel_of_another_day_is_a_warning_only(run):
    tables = shop() | {"decisions": decisions()}
    tables["decisions"]["parcel_id"] = ["p0", "p98", "p99"]
    tables["decisions"].loc[0, "known_at"] -= pd.Timedelta(days=1)
    report = run(tables)
    assert report.ok
    found = {(f.column, f.what, f.count) for f in report.findings if f.table == "decisions"}
    assert found == {("parcel_id", "names no row of parcels", 2), ("known_at", "is before decisions.decided_at", 1)}


def test_every_optional_table_and_column_has_a_cost():
    tables = {name for name in TABLES if name != "orders"}
    columns = {f"{t.name}.{c.name}" for t in TABLES.values() for c in t.columns if not c.required}
    assert set(COST_OF_ABSENCE) == tables | columns


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("attempt_failed", "the only class of failed_attempt is negative"),
        ("damaged", "the only class of damaged is negative"),
        ("lost", "no event is lost or refused or returned_to_sender"),
        ("delivered", "no parcel is ever delivered"),
    ],
)
def test_a_target_that_can_have_one_class_only_is_announced(run, gone, words):
    tables = shop()
    kind = tables["events"]["kind"]
    tables["events"]["kind"] = kind.where(kind != gone, "in_transit")
    report = run(tables)
    assert report.ok
    assert [f for f in report.findings if words in f.what], report.render()


def test_no_late_parcel_and_no_returns_are_announced(run):
    tables = shop()
    tables["orders"]["promised_to"] += pd.Timedelta(days=30)
    tables["events"] = pd.concat(
        [tables["events"], tables["events"].iloc[[1, 3, 5]].assign(kind="delivered")], ignore_index=True
    )
    tables["returns"] = tables["returns"].iloc[:0]
    whats = [f.what for f in run(tables).findings]
    assert any("the only class of late is negative" in w for w in whats)
    assert any("the only class of returned is negative" in w for w in whats)


def test_an_empty_dataset_is_refused(run):
    tables = {"orders": shop()["orders"].iloc[:0]}
    report = run(tables)
    assert not report.ok
    assert "the dataset is empty" in report.render()


def test_a_folder_that_is_not_there_gives_a_report(tmp_path):
    report = check(tmp_path / "nowhere")
    assert not report.ok
    assert "no such folder" in report.render()


def test_a_minimal_shop_is_fit(run):
    report = run({"orders": shop()["orders"][["order_id", "ordered_at"]]}, 'timezone = "UTC"\n')
    assert report.ok
    assert {a.table for a in report.absent if not a.column} == set(TABLES) - {"orders"}


def test_progress_is_told_in_words(tmp_path):
    said: list[str] = []
    Dataset.from_frames(shop()).save(tmp_path)
    check(tmp_path, progress=said.append)
    assert said[0] == "reading the tables"
    assert "checking events" in said


def test_training_refuses_with_the_words_of_the_check(tmp_path):
    tables = shop()
    require(Dataset.from_frames(tables, Settings(name="shop")))
    set_cells(tables["order_lines"], "order_id", {9: "o99"})
    tables["parcels"].loc[6, "weight_g"] = -3.0
    broken = Dataset.from_frames(tables, Settings(name="shop"))
    broken.save(tmp_path)
    with pytest.raises(DatasetError) as caught:
        require(broken)
    report = check(tmp_path)
    assert [str(p) for p in caught.value.problems] == [str(f) for f in report.errors]
    assert "order_lines.order_id: names no row of orders" in str(caught.value)
