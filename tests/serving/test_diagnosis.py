"""The reader of a diagnosis, against the rows it was written from."""

import json
import sqlite3
from pathlib import Path

import diagnoses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.diagnosis import TABLES, Diagnosis, DiagnosisError, QueryError, ReplacedError, Where

SHOP = diagnoses.shop()


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return Diagnosis.open(diagnoses.write(tmp_path_factory.mktemp("diagnosis")))


def test_every_row_comes_back_as_it_was_written(read):
    for name, table in TABLES.items():
        assert read.rows(name) == [{c: row.get(c) for c in table.columns} for row in SHOP[name]]
        assert read.table(name).rows == read.total(name) == len(SHOP[name])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), limit=st.integers(0, 700), offset=st.integers(0, 700))
def test_filter_sort_page_and_sum_are_those_of_plain_python(read, data, limit, offset):
    rows = SHOP["parcels"]
    columns = data.draw(st.sets(st.sampled_from(["carrier", "region", "node", "late", "leg", "whose"]), max_size=3))
    equal = {c: data.draw(st.sampled_from([r[c] for r in rows[:40]])) for c in sorted(columns)}
    begin, end = data.draw(
        st.sampled_from([(None, None), ("2026-08-20", None), ("2026-08-10", "2026-09-01T12:00:00Z")])
    )
    where = Where(equal, begin=begin, end=end)
    kept = [
        r
        for r in rows
        if all(r[c] == v for c, v in equal.items())
        and (begin is None or r["decided_at"] >= begin)
        and (end is None or r["decided_at"] < end)
    ]
    assert read.total("parcels", where) == len(kept)
    sort = data.draw(st.sampled_from(["", "carrier", "-address_quality", "leg", "-leg"]))
    if sort:
        name, down = sort.removeprefix("-"), sort.startswith("-")
        there = sorted((r for r in kept if r[name] is not None), key=lambda r: r[name], reverse=down)
        if down:  # what is equal stays in the order in which it was written
            there = sorted((r for r in kept if r[name] is not None), key=lambda r: kept.index(r))
            there = sorted(there, key=lambda r: r[name], reverse=True)
        kept = there + [r for r in kept if r[name] is None]
    expected = [r["parcel_id"] for r in kept]
    page = read.rows("parcels", where, sort=sort or (), limit=limit, offset=offset)
    assert [r["parcel_id"] for r in page] == expected[offset : offset + limit]
    streamed = [row[0] for chunk in read.stream("parcels", where, sort=sort or (), size=7) for row in chunk]
    assert streamed == expected
    by = read.sums("parcels", ["late"], where, by=["node"])
    assert sum(g["rows"] for g in by) == len(kept)
    assert sum(g["late"] for g in by) == sum(r["late"] or 0 for r in kept)
    [whole] = read.sums("parcels", ["late", "hours_late"], where, nothing=None)
    for name in ("late", "hours_late"):
        there = [r[name] for r in kept if r[name] is not None]
        assert whole[name] == (pytest.approx(sum(there)) if there else None)


def test_text_from_an_address_is_read_in_the_type_of_its_column(read):
    assert read.where("parcels", {"late": "true", "carrier": "1"}).equal == {"late": 1, "carrier": "1"}
    assert read.where("parcels", {"leg": None}).equal == {"leg": None}
    assert read.total("parcels", read.where("parcels", {"carrier": diagnoses.MARKUP})) > 0
    injection = read.where("parcels", {"carrier": "x' OR 1=1 --"})
    assert read.total("parcels", injection) == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.rows("sqlite_master"),
        lambda d: d.rows("parcels", sort="late; DROP TABLE parcels"),
        lambda d: d.total("parcels", Where({'late" OR 1=1 --': 1})),
        lambda d: d.sums("parcels", ["count(*)"]),
        lambda d: d.where("parcels", {"late": "very"}),
        lambda d: d.where("parcels", {"late": "nan"}),
        lambda d: d.where("parcels", {"colour": "red"}),
        lambda d: d.values("parcels", "rowid"),
        lambda d: d.total("carriers", Where(begin="2026-01-01")),
    ],
)
def test_what_is_no_table_column_or_value_is_refused_with_what_is(read, ask):
    with pytest.raises(QueryError, match="allowed: "):
        ask(read)


def test_tables_and_indexes_are_those_of_the_contract(read):
    connection = sqlite3.connect(read.directory / "diagnosis.sqlite")
    indexed = connection.execute(
        "SELECT tbl_name, count(*) FROM sqlite_master WHERE type = 'index' GROUP BY 1"
    ).fetchall()
    connection.close()
    assert dict(indexed) == {name: len(table.index) for name, table in TABLES.items()}


def test_an_empty_diagnosis_says_why_in_every_table(tmp_path):
    read = Diagnosis.open(diagnoses.empty(tmp_path))
    for name, table in read.tables.items():
        assert (table.rows, table.why) == (0, diagnoses.NO_DATA)
        assert read.rows(name) == read.sums(name, []) == []


def test_what_is_no_diagnosis_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DiagnosisError, match=r"has no diagnosis.json.*doorstep diagnose"):
        Diagnosis.open(tmp_path)
    there = diagnoses.empty(tmp_path / "there")
    document = json.loads((there / "diagnosis.json").read_text())
    (there / "diagnosis.json").write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(DiagnosisError, match="format 2"):
        Diagnosis.open(there)
    (there / "diagnosis.json").write_text("{")
    with pytest.raises(DiagnosisError, match="expected JSON"):
        Diagnosis.open(there)
    there = diagnoses.empty(tmp_path / "damaged")
    Path(there / "diagnosis.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(DiagnosisError, match="cannot be read"):
        Diagnosis.open(there)


def test_a_diagnosis_that_was_replaced_is_not_mixed_with_its_successor(tmp_path):
    read = Diagnosis.open(diagnoses.write(tmp_path / "d"))
    slow = read.stream("parcels", size=10)
    first = next(slow)
    (tmp_path / "d").rename(tmp_path / "old")
    diagnoses.empty(tmp_path / "d")
    assert len(first) + sum(map(len, slow)) == len(SHOP["parcels"])
    read.close()
    with pytest.raises(ReplacedError):
        read.rows("parcels")
