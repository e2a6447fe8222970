"""Reading a dataset: the same content from every format, and every problem at once in words that help."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.contracts import TABLES
from features.dataset import Dataset, DatasetError, Extra, Settings
from features.settings import parse_settings

TOML = 'name = "shop"\ntimezone = "Asia/Jakarta"\n'
ORDERS = "order_id,ordered_at\no1,2025-03-01T10:00:00Z\no2,2025-03-02T10:00:00Z\n"


def folder(path: Path, toml: str | None = TOML, **tables: str) -> Path:
    """A dataset folder of CSV files; `orders` is filled in if it is not given."""
    path.mkdir(parents=True, exist_ok=True)
    if toml is not None:
        (path / "dataset.toml").write_text(toml, encoding="utf-8")
    for name, text in {"orders": ORDERS, **tables}.items():
        (path / f"{name}.csv").write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        Dataset.open(path)
    return caught.value


def only(error: DatasetError):
    assert len(error.problems) == 1, str(error)
    return error.problems[0]


# --- types -----------------------------------------------------------------------------------------------------------


def test_a_minimal_shop_opens_with_the_types_of_the_contracts(tmp_path):
    parcels = (
        "parcel_id,order_id,packed_at,weight_g,documents_complete,carrier,colour\n"
        "007,o1,2025-03-01 20:00,12.5,yes, J&T ,red\n"
        "8,o2,,,,,\n"
    )
    dataset = Dataset.open(folder(tmp_path, parcels=parcels))
    frame = dataset.tables["parcels"]
    assert list(dataset.tables) == ["orders", "parcels"]
    assert list(frame.columns) == ["parcel_id", "order_id", "packed_at", "carrier", "weight_g", "documents_complete"]
    assert {c: str(t) for c, t in frame.dtypes.items()} == {
        "parcel_id": "object",
        "order_id": "object",
        "packed_at": "datetime64[us, UTC]",
        "carrier": "object",
        "weight_g": "float64",
        "documents_complete": "float64",
    }
    assert frame["parcel_id"].tolist() == ["007", "8"], "leading zeros are part of a key"
    assert frame["carrier"].tolist() == ["J&T", None], "blanks around a code do not count; an empty cell is None"
    assert frame["packed_at"].tolist() == [pd.Timestamp("2025-03-01T13:00:00Z"), pd.NaT], "naive: the zone of the shop"
    assert frame["weight_g"].isna().tolist() == [False, True]
    assert frame["documents_complete"].iloc[0] == 1.0


def test_equal_texts_share_one_object(tmp_path):
    kinds = "parcel_id,kind,happened_at\n" + "p1,delivered,2025-03-05T10:00:00Z\n" * 50
    column = Dataset.open(folder(tmp_path, events=kinds)).tables["events"]["kind"]
    assert len({id(v) for v in column}) == 1


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2025-03-01T10:00:00+07:00", "2025-03-01T03:00:00Z"),
        ("2025-03-01 10:00:00.123456+0700", "2025-03-01T03:00:00.123456Z"),
        ("2025-03-01T10:00Z", "2025-03-01T10:00:00Z"),
        ("2025-03-01T10:00:00.123456789Z", "2025-03-01T10:00:00.123456Z"),
        ("2025-03-01 10:00", "2025-03-01T03:00:00Z"),
        ("2025-03-01", "2025-02-28T17:00:00Z"),
    ],
)
@pytest.mark.parametrize("company", ["", "2025-01-01T00:00:00Z", "2025-01-01"])
def test_times_mean_the_same_whatever_stands_beside_them(tmp_path, text, utc, company):
    orders = f"order_id,ordered_at,promised_to\no1,2025-03-01,{text}\no2,2025-03-01,{company}\n"
    frame = Dataset.open(folder(tmp_path, orders=orders)).tables["orders"]
    assert frame["promised_to"].iloc[0] == pd.Timestamp(utc)


def test_an_hour_that_comes_twice_or_never_is_read_without_failing(tmp_path):
    orders = "order_id,ordered_at\na,2025-10-26 02:30\nb,2025-03-30 02:30\n"
    frame = Dataset.open(folder(tmp_path, 'timezone = "Europe/Berlin"\n', orders=orders)).tables["orders"]
    assert frame["ordered_at"].tolist() == [pd.Timestamp("2025-10-26T00:30Z"), pd.Timestamp("2025-03-30T01:00Z")]


def test_parquet_columns_of_other_types_go_through_the_same_conversions(tmp_path):
    folder(tmp_path)
    (tmp_path / "orders.csv").unlink()
    pd.DataFrame(
        {
            "order_id": [1.0, 2.0],
            "ordered_at": pd.to_datetime(["2025-03-01 10:00", "2025-03-02 10:00"]),
            "is_business": [1, 0],
            "promised_to": [dt.date(2025, 3, 5), None],
            "order_value": pd.array([7, None], dtype="Int64"),
            "channel": pd.Categorical(["web", None]),
            "customer_id": [10_000_000_000_000_001, 5],
        }
    ).to_parquet(tmp_path / "orders.parquet")
    frame = Dataset.open(tmp_path).tables["orders"]
    assert frame["order_id"].tolist() == ["1", "2"], "a spreadsheet's 1.0 is the key 1"
    assert frame["customer_id"].tolist() == ["10000000000000001", "5"]
    assert frame["ordered_at"].iloc[0] == pd.Timestamp("2025-03-01T03:00:00Z")
    assert frame["promised_to"].tolist() == [pd.Timestamp("2025-03-04T17:00:00Z"), pd.NaT]
    assert frame["is_business"].tolist() == [1.0, 0.0]
    assert frame["order_value"].iloc[0] == 7.0
    assert frame["channel"].tolist() == ["web", None]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_separators_and_a_byte_order_mark_of_spreadsheets_are_read(tmp_path, delimiter):
    folder(tmp_path)
    text = ORDERS.replace(",", delimiter)
    (tmp_path / "orders.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert Dataset.open(tmp_path).tables["orders"]["order_id"].tolist() == ["o1", "o2"]


def test_na_is_a_country_but_no_number(tmp_path):
    orders = "order_id,ordered_at,destination_country,order_value\no1,2025-03-01T10:00:00Z,NA,NA\n"
    frame = Dataset.open(folder(tmp_path, orders=orders)).tables["orders"]
    assert frame["destination_country"].tolist() == ["NA"]
    assert frame["order_value"].isna().all()


# --- dataset.toml ----------------------------------------------------------------------------------------------------


def test_codes_are_mapped_and_extra_columns_kept(tmp_path):
    toml = (
        TOML
        + """
currency = "IDR"
return_window_days = 15
extracted_at = 2025-12-01T00:00:00+07:00

[codes.payment_method]
"COD (Bayar di Tempat)" = "cod"
"?" = ""

[codes.slot]
"m" = "morning"

[[extra]]
table = "orders"
column = "h1"
kind = "number"
owner = "order"

[[extra]]
table = "orders"
column = "slot"
kind = "code"
owner = "customer"
known_at = "slot_known_at"
"""
    )
    orders = (
        "order_id,ordered_at,payment_method,h1,slot,slot_known_at\n"
        "o1,2025-03-01T10:00:00Z,COD (Bayar di Tempat),0.5,m,2025-03-02\n"
        "o2,2025-03-01T10:00:00Z,?,,evening,\n"
    )
    dataset = Dataset.open(folder(tmp_path, toml, orders=orders))
    frame = dataset.tables["orders"]
    assert frame["payment_method"].tolist() == ["cod", None]
    assert frame["h1"].iloc[0] == 0.5
    assert frame["slot"].tolist() == ["morning", "evening"]
    assert frame["slot_known_at"].iloc[0] == pd.Timestamp("2025-03-01T17:00:00Z")
    assert dataset.settings == Settings(
        name="shop",
        timezone="Asia/Jakarta",
        currency="IDR",
        return_window_days=15,
        lost_after_days=30,
        extracted_at=pd.Timestamp("2025-11-30T17:00:00Z"),
        codes={"payment_method": {"COD (Bayar di Tempat)": "cod", "?": ""}, "slot": {"m": "morning"}},
        extra=(Extra("orders", "h1", "number", "order"), Extra("orders", "slot", "code", "customer", "slot_known_at")),
    )
    assert Settings.from_json(dataset.settings.to_json()) == dataset.settings
    dataset.save(tmp_path / "saved")
    assert Dataset.open(tmp_path / "saved").fingerprint == dataset.fingerprint


EXTRA = {"table": "orders", "column": "h1", "kind": "number", "owner": "order"}


@pytest.mark.parametrize(
    ("document", "place", "words"),
    [
        ({"time_zone": "UTC"}, "time_zone", "did you mean 'timezone'?"),
        ({"timezone": "Asia/Jakata"}, "timezone", "no zone is called 'Asia/Jakata'"),
        ({"timezone": 7}, "timezone", "given 7"),
        ({"name": 3}, "name", "given 3"),
        ({"return_window_days": 0}, "return_window_days", "given 0"),
        ({"lost_after_days": -3}, "lost_after_days", "given -3"),
        ({"lost_after_days": "30"}, "lost_after_days", "given '30'"),
        ({"lost_after_days": True}, "lost_after_days", "given True"),
        ({"extracted_at": "yesterday-ish"}, "extracted_at", "which is no moment"),
        ({"extracted_at": dt.datetime(2025, 1, 1)}, "extracted_at", "without a zone"),
        ({"codes": {"paymnt_method": {"a": "b"}}}, "codes.paymnt_method", "did you mean 'payment_method'?"),
        ({"codes": {"weight_g": {"a": "b"}}}, "codes.weight_g", "for columns of codes only"),
        ({"codes": {"kind": {"DLV": "deliverd"}}}, "codes.kind", "did you mean 'delivered'?"),
        ({"codes": {"carrier": {"a": "b", "b": "c"}}}, "codes.carrier", "write 'a' = 'c'"),
        ({"codes": {"carrier": {"a": 1}}}, "codes.carrier", "no text"),
        ({"codes": 5}, "codes", "given 5"),
        ({"extra": {"table": "orders"}}, "extra", "[[extra]] with the keys"),
        ({"extra": [{**EXTRA, "table": "order"}]}, "extra 1 (h1)", "did you mean 'orders'?"),
        ({"extra": [{**EXTRA, "table": "events"}]}, "extra 1 (h1)", "its rows are outcomes"),
        ({"extra": [{**EXTRA, "kind": "text"}]}, "extra 1 (h1)", "number, code, flag"),
        ({"extra": [{**EXTRA, "owner": "packin"}]}, "extra 1 (h1)", "did you mean 'packing'?"),
        ({"extra": [{**EXTRA, "colunm": "h1"}]}, "extra 1 (h1)", "unknown key 'colunm'"),
        ({"extra": [{"table": "orders"}]}, "extra 1", "column is missing"),
        ({"extra": [{**EXTRA, "column": "order_value"}]}, "extra 1 (order_value)", "is a column of orders anyway"),
        ({"extra": [EXTRA, EXTRA]}, "extra 2 (h1)", "declared twice"),
    ],
)
def test_each_mistake_in_dataset_toml_is_named_with_what_is_allowed(document, place, words):
    _, _, problems = parse_settings({"timezone": "UTC", **document} if "extracted_at" not in document else document)
    assert {(p.table, p.column) for p in problems} == {("dataset.toml", place)}
    assert any(words in str(p) for p in problems), [str(p) for p in problems]


def test_an_extra_column_that_is_not_in_the_table_is_named(tmp_path):
    extra = '\n[[extra]]\ntable = "orders"\ncolumn = "h1"\nkind = "number"\nowner = "order"\nknown_at = "order_value"\n'
    orders = "order_id,ordered_at,h_1,order_value\no1,2025-03-01T10:00:00Z,1,2\n"
    error = refused(folder(tmp_path, TOML + extra, orders=orders))
    assert [p.place for p in error.problems] == ["orders.h1", "orders.order_value"]
    assert "did you mean 'h_1'?" in str(error)
    assert "it is no column of times" in str(error)


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_no_folder(tmp_path):
    assert "no such folder" in str(refused(tmp_path / "nowhere"))
    file = tmp_path / "orders.csv"
    file.write_text(ORDERS)
    assert "is a file, not a folder" in str(refused(file))


def test_no_dataset_toml(tmp_path):
    problem = only(refused(folder(tmp_path, toml=None)))
    assert (problem.table, problem.what) == ("dataset.toml", "the file is missing")
    assert 'timezone = "Europe/Berlin"' in problem.todo


def test_a_dataset_toml_that_is_no_toml(tmp_path):
    assert "is no TOML" in only(refused(folder(tmp_path, "name = my shop\n"))).what


def test_no_orders(tmp_path):
    folder(tmp_path)
    (tmp_path / "orders.csv").rename(tmp_path / "order.csv")
    problem = only(refused(tmp_path))
    assert problem.table == "orders"
    assert "the folder holds order.csv" in problem.what


def test_a_table_in_both_formats(tmp_path):
    folder(tmp_path)
    pd.read_csv(tmp_path / "orders.csv").to_parquet(tmp_path / "orders.parquet")
    assert "orders.parquet and orders.csv" in only(refused(tmp_path)).what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("parcels.parquet", b"this is no parquet"),
        ("parcels.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("parcels.parquet", b""),
        ("parcels.csv", b""),
        ("parcels.csv", b"\n\n"),
        ("parcels.csv", b"PK\x03\x04" + bytes(range(256))),
        ("parcels.csv", "parcel_id,order_id\np1,Köln\n".encode("latin-1")),
        ("parcels.csv", "parcel_id,order_id\n".encode("utf-16")),
    ],
)
def test_a_file_that_is_no_table(tmp_path, name, content):
    folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    problem = only(refused(tmp_path))
    assert problem.table == "parcels"
    assert f"{name} is no table" in problem.what
    assert problem.todo


def test_a_truncated_parquet_file_is_no_table(tmp_path):
    folder(tmp_path)
    good = tmp_path / "good"
    pd.DataFrame({"parcel_id": ["p1"], "order_id": ["o1"]}).to_parquet(good)
    (tmp_path / "parcels.parquet").write_bytes(good.read_bytes()[:-20])
    assert "is no table" in only(refused(tmp_path)).what


def test_lines_of_another_length_are_counted_and_shown(tmp_path):
    orders = ORDERS + "o3,2025-03-03T10:00:00Z,Main Street 1, Springfield\no4\n"
    problem = only(refused(folder(tmp_path, orders=orders)))
    assert problem.count == 2
    assert problem.examples[0] == {"cells": 4, "line": "o3,2025-03-03T10:00:00Z,Main Street 1, Springfield"}
    assert "2 cells in each line" in problem.allowed


def test_a_missing_required_column_with_what_was_given_and_the_nearest(tmp_path):
    problem = only(refused(folder(tmp_path, orders=ORDERS.replace("ordered_at", "Order_At"))))
    assert problem.place == "orders.ordered_at"
    assert "given: order_id, Order_At" in problem.what
    assert problem.todo == "did you mean 'Order_At'?"


def test_a_column_that_is_there_twice(tmp_path):
    orders = "order_id,ordered_at,ordered_at\no1,2025-03-01T10:00:00Z,2025-03-01T10:00:00Z\n"
    assert "the column is there 2 times" in only(refused(folder(tmp_path, orders=orders))).what


def test_a_time_without_zone_names_both_remedies(tmp_path):
    orders = "order_id,ordered_at\no1,2025-03-01T10:00:00Z\no2,2025-03-02 10:00:00\n"
    problem = only(refused(folder(tmp_path, 'name = "shop"\n', orders=orders)))
    assert problem.place == "orders.ordered_at"
    assert problem.what == "a time without zone"
    assert problem.examples == ({"row": 2, "value": "2025-03-02 10:00:00"},)
    assert "write the zone into the times" in problem.todo
    assert 'timezone = "Asia/Jakarta"' in problem.todo


@pytest.mark.parametrize("text", ["31/12/2024", "20250301", "1740823200", "2025-13-01", "2025-02-30T10:00:00Z", "soon"])
def test_what_is_no_time(tmp_path, text):
    problem = only(refused(folder(tmp_path, orders=ORDERS + f"o3,{text}\n")))
    assert (problem.place, problem.what, problem.count) == ("orders.ordered_at", "no time", 1)
    assert problem.examples == ({"row": 3, "value": text},)
    assert "2025-03-01T14:30:00+07:00" in problem.allowed


@pytest.mark.parametrize("text", ['"1,5"', "12 g", "inf", "-Infinity", "0x10", "1_000", "--1", "1e999"])
def test_what_is_no_number(tmp_path, text):
    orders = f"order_id,ordered_at,order_value\no1,2025-03-01T10:00:00Z,{text}\no2,2025-03-01T10:00:00Z, 2.50 \n"
    problem = only(refused(folder(tmp_path, orders=orders)))
    assert (problem.place, problem.what, problem.count) == ("orders.order_value", "no number", 1)
    assert problem.examples == ({"row": 1, "value": text.strip('"')},)


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "0.5"])
def test_what_is_no_flag(tmp_path, text):
    orders = f"order_id,ordered_at,is_business\no1,2025-03-01T10:00:00Z,{text}\no2,2025-03-01T10:00:00Z,No\n"
    problem = only(refused(folder(tmp_path, orders=orders)))
    assert problem.what == "neither true nor false"
    assert problem.examples == ({"row": 1, "value": text},)


@pytest.mark.parametrize("column", ["order_id", "ordered_at", "order_value", "is_business"])
def test_a_parquet_column_of_lists_is_refused_in_words(tmp_path, column):
    folder(tmp_path)
    (tmp_path / "orders.csv").unlink()
    frame = pd.DataFrame(
        {"order_id": ["o1"], "ordered_at": ["2025-03-01"], "order_value": [1.0], "is_business": [True]}
    )
    frame[column] = pd.Series([["a", "b"]], dtype=object)
    frame.to_parquet(tmp_path / "orders.parquet")
    problem = only(refused(tmp_path))
    assert problem.place == f"orders.{column}"
    assert "holds list" in problem.what


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_empty_dataset(tmp_path, suffix):
    folder(tmp_path, orders="order_id,ordered_at\n")
    if suffix == "parquet":
        (tmp_path / "orders.csv").unlink()
        pd.DataFrame({"order_id": [], "ordered_at": []}).to_parquet(tmp_path / "orders.parquet")
    assert "the dataset is empty" in str(refused(tmp_path))


def test_every_problem_is_reported_at_once(tmp_path):
    path = folder(
        tmp_path,
        "name = 5\nlost_after_days = -1\ncolour = 1\n",
        orders="order_id,ordered_at,order_value\no1,2025-03-01,x\n",
        parcels="parcel_id\np1\n",
        events="",
    )
    error = refused(path)
    assert {p.place for p in error.problems} == {
        "dataset.toml.name",
        "dataset.toml.lost_after_days",
        "dataset.toml.colour",
        "orders.ordered_at",
        "orders.order_value",
        "parcels.order_id",
        "events",
    }
    assert "7 problems" in str(error)


# --- the same content from every format ------------------------------------------------------------------------------

TEXT = st.one_of(
    st.none(),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
        lambda s: s == s.strip() and s.strip("﻿") == s
    ),
    st.sampled_from(['a,b;c"d', "line\nbreak", "NA", "007", "1.0", "null"]),
)
MOMENT = st.one_of(
    st.none(),
    st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2090, 1, 1), timezones=st.just(dt.UTC)),
)
NUMBER = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**6), 10**6))
FLAG = st.one_of(st.none(), st.booleans())
VALUES = {"id": TEXT, "code": TEXT, "time": MOMENT, "number": NUMBER, "flag": FLAG}


@st.composite
def frames(draw):
    """Frames for any of the tables, with any of their columns: any values that could stand in a file."""
    names = draw(st.sets(st.sampled_from(list(TABLES)))) | {"orders"}
    result = {}
    for name in names:
        table = TABLES[name]
        n = draw(st.integers(1 if name == "orders" else 0, 5))
        optional = [c for c in table.columns if not c.required]
        chosen = draw(st.lists(st.sampled_from(optional), unique=True, max_size=4))
        columns = [c for c in table.columns if c.required or c in chosen]
        data = {}
        for c in columns:
            values = draw(st.lists(VALUES[c.kind], min_size=n, max_size=n))
            if c.kind == "time":
                data[c.name] = pd.Series(pd.to_datetime(values, utc=True)).dt.as_unit("us")
            elif c.kind == "number":
                data[c.name] = pd.Series([np.nan if v is None else float(v) for v in values], dtype=float)
            else:
                data[c.name] = pd.Series(values, dtype=object)
        result[name] = pd.DataFrame(data)
    return result


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=frames())
def test_csv_parquet_and_frames_give_one_dataset(tmp_path_factory, frames):
    root = tmp_path_factory.mktemp("formats")
    expected = Dataset.from_frames(frames, Settings(name="shop"))
    for ending in ("csv", "parquet"):
        path = root / ending
        path.mkdir()
        (path / "dataset.toml").write_text('timezone = "UTC"\n')
        for name, frame in frames.items():
            if ending == "csv":
                frame.to_csv(path / f"{name}.csv", index=False)
            else:
                frame.to_parquet(path / f"{name}.parquet")
        found = Dataset.open(path)
        assert set(found.tables) == set(expected.tables)
        for name, frame in expected.tables.items():
            pd.testing.assert_frame_equal(found.tables[name], frame)
        assert found.fingerprint == expected.fingerprint
    expected.save(root / "saved")
    again = Dataset.open(root / "saved")
    assert again.settings == expected.settings
    assert again.fingerprint == expected.fingerprint


def test_the_fingerprint_moves_with_any_value_and_any_setting_but_not_with_the_name(tmp_path):
    def fingerprint(**changes):
        orders = pd.DataFrame(
            {
                "order_id": ["ab", "c"],
                "ordered_at": pd.to_datetime(["2025-03-01", "2025-03-02"], utc=True),
                "channel": changes.get("channel", ["web", None]),
                "order_value": changes.get("order_value", [0.0, np.nan]),
            }
        )
        return Dataset.from_frames({"orders": orders}, changes.get("settings", Settings())).fingerprint

    base = fingerprint()
    assert base == fingerprint(settings=Settings(name="other")) == fingerprint(order_value=[-0.0, np.nan])
    assert base == fingerprint(channel=["web", ""])
    others = [
        fingerprint(channel=["we", "b"]),
        fingerprint(channel=[None, "web"]),
        fingerprint(order_value=[0.0, 0.0]),
        fingerprint(order_value=[1e-300, np.nan]),
        fingerprint(settings=Settings(lost_after_days=29)),
    ]
    assert len({base, *others}) == 6


# --- saving ----------------------------------------------------------------------------------------------------------


def test_frames_in_memory_are_refused_like_files():
    orders = pd.DataFrame({"order_id": ["o1"], "ordered_at": ["31/12/2024"]})
    with pytest.raises(DatasetError) as caught:
        Dataset.from_frames({"orders": orders, "order": orders, "parcels": orders.rename(columns={"order_id": "id"})})
    assert {p.place for p in caught.value.problems} == {
        "order",
        "orders.ordered_at",
        "parcels.parcel_id",
        "parcels.order_id",
    }
    mixed = pd.DataFrame({"order_id": pd.Series([1, "x"], dtype=object), "ordered_at": ["2025-03-01"] * 2})
    with pytest.raises(DatasetError, match="several types"):
        Dataset.from_frames({"orders": mixed})
    with pytest.raises(DatasetError, match="the table is missing"):
        Dataset.from_frames({})


def test_saving_over_tables_that_would_be_read_along_is_refused(tmp_path):
    dataset = Dataset.open(folder(tmp_path / "csv"))
    with pytest.raises(DatasetError, match=r"orders\.csv"):
        dataset.save(tmp_path / "csv")
    dataset.save(tmp_path / "new")
    dataset.save(tmp_path / "new")
    assert Dataset.open(tmp_path / "new").fingerprint == dataset.fingerprint


def test_a_save_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch):
    dataset = Dataset.open(folder(tmp_path / "csv"))
    target = tmp_path / "saved"
    dataset.save(target)
    before = {f.name: f.read_bytes() for f in target.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        dataset.save(target)
    assert {f.name: f.read_bytes() for f in target.iterdir()} == before, "nothing is half written, nothing is left over"


def test_odd_texts_survive_dataset_toml(tmp_path):
    odd = 'a"b\\c\td\x7fé😀 = [x]'
    said = Settings(name=odd, codes={"carrier": {odd: odd + "!"}})
    orders = pd.DataFrame({"order_id": ["1"], "ordered_at": ["2025-03-01"]})
    Dataset.from_frames({"orders": orders}, said).save(tmp_path)
    assert Dataset.open(tmp_path).settings == said
