"""The Shopee importer: every state and reason, every assumption about time, and every way a file can be wrong."""

from __future__ import annotations

import doctest
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pandas as pd
import pytest

from features.dataset import Dataset, DatasetError
from training.check import check
from training.importers import import_shopee, shopee
from training.importers.shopee import split_service

HEADINGS = [
    "order_id",
    "total_qty",
    "total_weight_gr",
    "total_returned_qty",
    "Total Diskon",
    "product_categories",
    "num_product_categories",
    "Status Pesanan",
    "Alasan Pembatalan",
    "Opsi Pengiriman",
    "Metode Pembayaran",
    "Kota/Kabupaten",
    "Provinsi",
    "Ongkos Kirim Dibayar oleh Pembeli",
    "Estimasi Potongan Biaya Pengiriman",
    "Total Pembayaran",
    "Perkiraan Ongkos Kirim",
    "Waktu Pesanan Dibuat",
    "source_file",
]
ORDER: dict[str, Any] = {
    "total_qty": 2,
    "total_weight_gr": 700,
    "total_returned_qty": 0,
    "Total Diskon": 0,
    "product_categories": "Celengan",
    "num_product_categories": 1,
    "Status Pesanan": "Selesai",
    "Alasan Pembatalan": "",
    "Opsi Pengiriman": "Hemat Kargo-SPX Hemat",
    "Metode Pembayaran": "COD (Bayar di Tempat)",
    "Kota/Kabupaten": "KAB. BOGOR",
    "Provinsi": "JAWA BARAT",
    "Ongkos Kirim Dibayar oleh Pembeli": 0,
    "Estimasi Potongan Biaya Pengiriman": 14500,
    "Total Pembayaran": 38300,
    "Perkiraan Ongkos Kirim": 14500,
    "Waktu Pesanan Dibuat": "2025-03-03 08:15",
    "source_file": "MarchSales2025.xlsx",
}
LAST = {"Waktu Pesanan Dibuat": "2025-11-30 23:17", "source_file": "NovemberSales2025.xlsx"}
BUYER, SELLER, SYSTEM = (
    f"Dibatalkan {who}. Alasan: " for who in ("oleh Pembeli", "oleh Penjual", "secara otomatis oleh sistem")
)
MAY_RETURN = "Pesanan diterima, namun Pembeli masih dapat mengajukan pengembalian hingga {}."
FATES: list[tuple[str, str, set[str]]] = [
    ("Selesai", "", {"delivered"}),
    (MAY_RETURN.format("2025-12-08"), "", {"delivered"}),
    ("Sedang Dikirim", "", {"handed_over", "in_transit"}),
    ("Telah Dikirim", "", {"handed_over"}),
    ("Batal", SYSTEM + "Pengiriman gagal", {"returned_to_sender"}),
    (
        "Batal",
        SYSTEM + "Paket hilang di perjalanan. Kompensasi yang memenuhi syarat telah dikreditkan ke Saldo Penjual-mu.",
        {"lost"},
    ),
    ("Batal", SYSTEM + "Penjual gagal mengirimkan pesanan tepat waktu", {"handover_failed"}),
    ("Batal", SYSTEM + "Penjual tidak mengatur pengiriman tepat waktu", {"handover_failed"}),
    ("Batal", SYSTEM + "Pesanan belum dibayar", set()),
    ("Batal", SYSTEM + "Lainnya", set()),
    ("Batal", SELLER + "Produk habis", set()),
    *(
        ("Batal", BUYER + why, set())
        for why in (
            "Lainnya/ berubah pikiran",
            "Lainnya",
            "Ubah Pesanan yang Ada",
            "Need to change delivery address",
            "Perlu mengubah pesanan",
            "Perlu mengubah alamat pengiriman",
            "Perlu mengubah Voucher",
            "Proses pembayaran sulit",
            "Penjual tidak responsif terhadap pertanyaan Pembeli",
            "Tidak ingin membeli lagi",
            "Menemukan yang lebih murah",
        )
    ),
]
"""Status, reason, and the events the parcel must have; no events: there must be no parcel."""


def write_xlsx(path: Path, rows: list[list[Any]]) -> Path:
    """The least a spreadsheet program would accept: one sheet, texts inline."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    spreadsheet = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
        f'ContentType="{spreadsheet}.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{spreadsheet}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return path


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """Writes an export; each order is given by what differs from an ordinary one."""

    def write(*orders: dict[str, Any], headings: list[str] | None = None, name: str = "export.xlsx") -> Path:
        headings = headings or HEADINGS
        full = [{"order_id": f"ORD_{i}", **ORDER, **order} for i, order in enumerate(orders)]
        return write_xlsx(tmp_path / name, [headings, *([order.get(h, "") for h in headings] for order in full)])

    return write


@pytest.fixture
def imported(export: Callable[..., Path], tmp_path: Path) -> Callable[..., Dataset]:
    """Imports orders and opens the written dataset."""

    def run(*orders: dict[str, Any], **options: Any) -> Dataset:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        import_shopee(export(*orders), out, **options)
        return Dataset.open(out)

    return run


def local(times: pd.Series) -> list[str]:
    """Times on the shop's clock."""
    return times.dt.tz_convert("Asia/Jakarta").dt.strftime("%Y-%m-%d %H:%M:%S").tolist()


def problems_of(call: Callable[[], Any]) -> str:
    with pytest.raises(DatasetError) as raised:
        call()
    return str(raised.value)


def test_every_state_and_reason_becomes_what_it_means(imported: Callable[..., Dataset]) -> None:
    data = imported(*({"Status Pesanan": status, "Alasan Pembatalan": why, **LAST} for status, why, _ in FATES))
    events = data.tables["events"].groupby("parcel_id")["kind"].agg(set)
    expected = {f"ORD_{i}": kinds for i, (_, _, kinds) in enumerate(FATES) if kinds}
    assert events.to_dict() == expected
    assert set(data.tables["parcels"]["parcel_id"]) == set(expected)
    assert len(data.tables["orders"]) == len(data.tables["order_lines"]) == len(FATES)
    lines = data.tables["order_lines"].set_index("line_id")["parcel_id"].dropna()
    assert lines.to_dict() == {key: key for key in expected}


def test_nothing_in_a_complete_export_is_unknown(export: Callable[..., Path], tmp_path: Path) -> None:
    orders = [{"Status Pesanan": status, "Alasan Pembatalan": why, **LAST} for status, why, _ in FATES]
    report = import_shopee(export(*orders), tmp_path / "out")
    assert report.warnings == ()
    assert check(tmp_path / "out").errors == ()
    assert sum(report.no_parcel.values()) == sum(not kinds for *_, kinds in FATES)
    assert (report.still_moving, report.may_still_return) == (2, 1)
    assert not report.published
    assert "not the published file" in str(report)


def test_an_outcome_is_dated_after_it_was_surely_known(imported: Callable[..., Dataset]) -> None:
    data = imported(
        {}, {"Status Pesanan": "Batal", "Alasan Pembatalan": SYSTEM + "Pengiriman gagal"}, LAST, settle_days=20
    )
    events = data.tables["events"]
    assert local(events["known_at"])[:2] == ["2025-03-23 08:15:00"] * 2
    assert (events["happened_at"] == events["known_at"]).all()


def test_nothing_is_known_later_than_the_export_was_taken(imported: Callable[..., Dataset]) -> None:
    data = imported({}, LAST, {**LAST, "total_returned_qty": 1})
    assert data.settings.extracted_at == pd.Timestamp("2025-12-01", tz="Asia/Jakarta")
    for table, column in (("events", "known_at"), ("returns", "known_at"), ("orders", "ordered_at")):
        assert (data.tables[table][column] < data.settings.extracted_at).all()


def test_a_window_that_is_still_open_closes_when_the_file_says(imported: Callable[..., Dataset]) -> None:
    data = imported(LAST, *({**LAST, "Status Pesanan": MAY_RETURN.format(f"2025-12-{d:02}")} for d in (8, 11)))
    events = data.tables["events"].set_index("parcel_id")
    closes = events["happened_at"] + pd.Timedelta(days=data.settings.return_window_days)
    assert local(closes)[1:] == ["2025-12-08 23:59:59", "2025-12-11 23:59:59"]
    assert data.settings.extracted_at == pd.Timestamp("2025-12-05", tz="Asia/Jakarta")
    assert (closes[1:] > data.settings.extracted_at).all(), "no return so far is no answer"


def test_a_window_that_would_have_begun_before_the_order_closes_later_not_earlier(
    imported: Callable[..., Dataset],
) -> None:
    data = imported({**LAST, "Status Pesanan": MAY_RETURN.format("2025-12-02")})
    assert local(data.tables["events"]["happened_at"]) == ["2025-11-30 23:17:00"]


def test_a_window_that_closed_before_the_file_ends_is_reported(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export(LAST, {"Status Pesanan": MAY_RETURN.format("2025-03-20")})
    (warning,) = import_shopee(source, tmp_path / "out").warnings
    assert "2025-03-20" in warning
    assert "2025-11-30" in warning


def test_of_a_month_without_days_nothing_is_known_too_early(imported: Callable[..., Dataset]) -> None:
    undated = {"Waktu Pesanan Dibuat": "", "source_file": "JulySales2025.xlsx"}
    data = imported(undated, {**undated, "total_returned_qty": 1}, LAST)
    orders, events = data.tables["orders"], data.tables["events"]
    assert local(orders["ordered_at"])[:2] == ["2025-07-01 00:00:00"] * 2
    assert local(events["known_at"])[:2] == ["2025-08-29 00:00:00"] * 2
    assert local(data.tables["returns"]["known_at"]) == ["2025-09-04 00:00:00"]
    age = (events["known_at"] - orders["ordered_at"])[:2]
    assert (age < pd.Timedelta(days=data.settings.lost_after_days)).all(), "else they would count as lost meanwhile"


def test_where_all_days_are_known_labels_mature_sooner(imported: Callable[..., Dataset]) -> None:
    undated = {"Waktu Pesanan Dibuat": "", "source_file": "JulySales2025.xlsx"}
    assert imported({}, LAST).settings.lost_after_days == 30
    assert imported({}, undated, LAST).settings.lost_after_days == 60


def test_returned_pieces_become_a_return_within_the_window(imported: Callable[..., Dataset]) -> None:
    data = imported({"total_returned_qty": 2}, {}, LAST)
    (row,) = data.tables["returns"].to_dict("records")
    assert (row["line_id"], row["quantity"]) == ("ORD_0", 2)
    delivered = data.tables["events"].set_index("parcel_id").loc["ORD_0", "happened_at"]
    assert delivered < row["requested_at"] < delivered + pd.Timedelta(days=data.settings.return_window_days)


def test_returned_pieces_of_an_order_never_received_are_reported(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export({"total_returned_qty": 1, "Status Pesanan": "Sedang Dikirim"}, LAST)
    report = import_shopee(source, tmp_path / "out")
    assert "never received" in report.warnings[0]
    assert report.rows["returns"] == 0


@pytest.mark.parametrize(
    "option, level, carrier, product",
    [
        ("Reguler (Cashless)-SPX Standard", "Reguler (Cashless)", "SPX", "SPX Standard"),
        ("SPX Standard", "Reguler (Cashless)", "SPX", "SPX Standard"),
        ("Hemat Kargo-J&T Cargo", "Hemat Kargo", "J&T Cargo", "J&T Cargo"),
        ("Kargo-J&T Cargo", "Kargo", "J&T Cargo", "J&T Cargo"),
        ("Hemat Kargo-J&T Economy", "Hemat Kargo", "J&T", "J&T Economy"),
        ("Kargo-JNE Trucking (JTR)", "Kargo", "JNE", "JNE Trucking (JTR)"),
        ("Instant (Versi Lama)-GrabExpress Instant (Versi Lama)", "Instant", "GrabExpress", "GrabExpress Instant"),
        ("Gosend Instant", "Instant", "GoSend", "GoSend Instant"),
        ("Agen SPX Express", "Pick-up Point", "SPX", "Agen SPX Express"),
        ("Same Day", "Same Day", None, None),
        ("Hemat Kargo", "Hemat Kargo", None, None),
        ("", None, None, None),
        ("Reguler (Cashless)-SiCepat REG", "Reguler (Cashless)", None, "SiCepat REG"),
        ("Antar-Jemput", None, None, "Antar-Jemput"),
    ],
)
def test_one_text_is_a_level_a_carrier_and_a_product(
    option: str, level: str | None, carrier: str | None, product: str | None
) -> None:
    assert split_service(option) == (level, carrier, product)


def test_doctests_hold() -> None:
    assert doctest.testmod(shopee).failed == 0


def test_places_and_payments_are_cleaned(imported: Callable[..., Dataset]) -> None:
    data = imported(
        {},
        {"Kota/Kabupaten": "KOTA SURAKARTA (SOLO)", "Provinsi": "DI YOGYAKARTA", "Metode Pembayaran": "SPayLater"},
        {"Provinsi": "NANGGROE ACEH DARUSSALAM (NAD)", "Metode Pembayaran": "SeaBank Bayar Instan"},
    )
    orders = data.tables["orders"]
    assert orders["destination_city"].tolist() == ["Kab. Bogor", "Kota Surakarta", "Kab. Bogor"]
    assert orders["destination_region"].tolist() == ["Jawa Barat", "DI Yogyakarta", "Aceh"]
    assert orders["payment_method"].tolist() == ["cod", "pay_later", "bank"]
    assert set(orders["destination_country"]) == {"ID"}


def test_several_categories_stay_one_line(imported: Callable[..., Dataset]) -> None:
    data = imported({"product_categories": "Celengan, Other", "num_product_categories": 2}, {})
    assert data.tables["order_lines"]["sku"].tolist() == ["Celengan, Other", "Celengan"]
    assert data.tables["order_lines"]["category_count"].tolist() == [2, 1]
    listings = data.tables["listings"].set_index("sku")["category"]
    assert listings.to_dict() == {"Celengan": "Celengan", "Celengan, Other": "several categories"}


def test_columns_that_tell_the_outcome_change_nothing(imported: Callable[..., Dataset]) -> None:
    leaks = dict.fromkeys(shopee.LEAKS, 99)
    plain = imported({}, LAST)
    assert imported({**leaks, "Perkiraan Ongkos Kirim": 1}, LAST).fingerprint == plain.fingerprint
    with_freight = imported({}, LAST, with_freight=True)
    assert imported(leaks, LAST, with_freight=True).fingerprint == with_freight.fingerprint
    assert with_freight.fingerprint != plain.fingerprint


def test_freight_is_read_on_request_only_and_has_an_owner(imported: Callable[..., Dataset]) -> None:
    assert "freight_estimate" not in imported({}, LAST).tables["parcels"]
    data = imported({}, LAST, with_freight=True)
    assert data.tables["parcels"]["freight_estimate"].tolist() == [14500, 14500]
    assert {e.column: e.owner for e in data.settings.extra}["freight_estimate"] == "carrier"


def test_leaking_and_private_columns_are_not_even_needed(export: Callable[..., Path], tmp_path: Path) -> None:
    headings = [h for h in HEADINGS if h not in (*shopee.LEAKS, shopee.FREIGHT_ESTIMATE)]
    source = export({"Nama Penerima": "Budi"}, headings=[*headings, "Nama Penerima"])
    import_shopee(source, tmp_path / "out")
    for table in Dataset.open(tmp_path / "out").tables.values():
        assert not (table == "Budi").any().any()


def test_the_same_export_gives_the_same_dataset(imported: Callable[..., Dataset]) -> None:
    assert imported({}, LAST).fingerprint == imported({}, LAST).fingerprint


def test_importing_again_into_the_same_folder_replaces_it(export: Callable[..., Path], tmp_path: Path) -> None:
    import_shopee(export({}, {"total_returned_qty": 1}), tmp_path / "out")
    import_shopee(export({}), tmp_path / "out")
    data = Dataset.open(tmp_path / "out")
    assert (len(data.tables["orders"]), len(data.tables["returns"])) == (1, 0)


def test_progress_is_told(export: Callable[..., Path], tmp_path: Path) -> None:
    said: list[str] = []
    import_shopee(export({}), tmp_path / "out", progress=said.append)
    assert len(said) == 3


def test_what_nobody_knows_is_named_counted_and_gets_no_outcome(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export(
        {},
        {},
        {},
        {},
        {"Status Pesanan": "Hilang Arah"},
        {"Status Pesanan": "Hilang Arah"},
        {"Status Pesanan": "Batal", "Alasan Pembatalan": BUYER + "Kiamat"},
        {"Metode Pembayaran": "Barter", "Opsi Pengiriman": "Kargo-Merpati Pos"},
    )
    report = import_shopee(source, tmp_path / "out")
    text = "\n".join(report.warnings)
    for stranger in ("'Hilang Arah' (2)", f"'{BUYER}Kiamat' (1)", "'Barter' (1)", "'Kargo-Merpati Pos' (1)"):
        assert stranger in text
    assert report.no_parcel == {"not_understood": 3}
    assert set(Dataset.open(tmp_path / "out").tables["parcels"]["parcel_id"]) == {f"ORD_{i}" for i in (0, 1, 2, 3, 7)}


def test_an_export_in_another_language_is_refused(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export({"Status Pesanan": "Completed"}, {"Status Pesanan": "Cancelled"}, {})
    said = problems_of(lambda: import_shopee(source, tmp_path / "out"))
    assert "'Completed'" in said
    assert "Selesai" in said
    assert "in Indonesian" in said
    assert not (tmp_path / "out").exists()


def test_all_missing_columns_are_named_at_once(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export({}, headings=["No. Pesanan", "Status Pesanan", "Provinsi"])
    said = problems_of(lambda: import_shopee(source, tmp_path / "out"))
    for column in set(shopee.COLUMNS.values()) - {"Status Pesanan", "Provinsi"}:
        assert column in said
    assert "one row per order" in said
    assert "No. Pesanan" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", list(shopee.COLUMNS.values()))
def test_a_missing_column_is_named(export: Callable[..., Path], tmp_path: Path, column: str) -> None:
    source = export({}, headings=[h for h in HEADINGS if h != column])
    assert f"{column}: the column is missing" in problems_of(lambda: import_shopee(source, tmp_path / "out"))


def test_freight_that_is_not_there_is_named(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export({}, headings=[h for h in HEADINGS if h != "Perkiraan Ongkos Kirim"])
    said = problems_of(lambda: import_shopee(source, tmp_path / "out", with_freight=True))
    assert "Perkiraan Ongkos Kirim" in said


@pytest.mark.parametrize(
    "order, said",
    [
        ({"total_weight_gr": "berat"}, "total_weight_gr: no number"),
        ({"Waktu Pesanan Dibuat": "kemarin"}, "Waktu Pesanan Dibuat: no time"),
        ({"Waktu Pesanan Dibuat": "2025-13-45 08:00"}, "Waktu Pesanan Dibuat: no time"),
        ({"Waktu Pesanan Dibuat": "", "source_file": "export.xlsx"}, "source_file: neither a time"),
        ({"order_id": ""}, "order_id: an order without a key"),
        ({"order_id": "ORD_1"}, "order_id: the key is there twice"),
    ],
)
def test_an_unreadable_value_is_shown_with_its_row(
    export: Callable[..., Path], tmp_path: Path, order: dict[str, Any], said: str
) -> None:
    source = export(order, {}, {})
    message = problems_of(lambda: import_shopee(source, tmp_path / "out"))
    assert said in message
    assert "row 1" in message
    assert "allowed" in message
    assert not (tmp_path / "out").exists()


def test_several_mistakes_are_told_together(export: Callable[..., Path], tmp_path: Path) -> None:
    source = export({"order_id": "", "Waktu Pesanan Dibuat": "kemarin"}, {})
    assert "2 problems" in problems_of(lambda: import_shopee(source, tmp_path / "out"))


@pytest.mark.parametrize("content", [b"", b"order_id,total_qty\n1,2\n", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_workbook_is_refused(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "export.xlsx"
    source.write_bytes(content)
    said = problems_of(lambda: import_shopee(source, tmp_path / "out"))
    assert "is no workbook" in said
    assert "one row per order" in said


def test_another_kind_of_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text("order_id\n1\n")
    for name, why in (("export.csv", "'.csv'"), ("nowhere.xlsx", "no such file"), ("", "is a folder")):
        said = problems_of(lambda name=name: import_shopee(tmp_path / name, tmp_path / "out"))  # type: ignore[misc]
        assert why in said


def test_an_export_without_orders_is_refused(export: Callable[..., Path], tmp_path: Path) -> None:
    assert "no orders" in problems_of(lambda: import_shopee(export(), tmp_path / "out"))
    assert "no rows" in problems_of(lambda: import_shopee(write_xlsx(tmp_path / "e.xlsx", []), tmp_path / "out"))


@pytest.mark.parametrize("period", ["settle_days", "return_window_days"])
def test_a_period_must_be_a_period(export: Callable[..., Path], tmp_path: Path, period: str) -> None:
    with pytest.raises(ValueError, match=f"{period}: given 0"):
        import_shopee(export({}), tmp_path / "out", **{period: 0})


# --- the published file ---

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "shopee_indonesia" / "all_months_clean.xlsx"
needs_published = [
    pytest.mark.shared_data,
    pytest.mark.skipif(
        not PUBLISHED.exists(),
        reason="the published Shopee export is not beside the project (docs/importers.md says where to get it)",
    ),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[shopee.ImportReport, Dataset]:
    out = tmp_path_factory.mktemp("shopee")
    report = import_shopee(PUBLISHED, out)
    return report, Dataset.open(out)


class TestPublished:
    """Figures counted on the file by hand, not by the importer."""

    pytestmark = needs_published

    def test_counts(self, published: tuple[shopee.ImportReport, Dataset]) -> None:
        report, data = published
        assert report.published
        assert report.warnings == ()
        assert len(data.tables["orders"]) == len(data.tables["order_lines"]) == 20_848
        kinds = data.tables["events"].groupby("kind")["parcel_id"].nunique().to_dict()
        assert kinds["returned_to_sender"] == 255
        assert kinds["lost"] == 22
        assert kinds["handover_failed"] == 176
        assert kinds["delivered"] == 17_768 + 161
        assert kinds["handed_over"] == 59 + 30
        assert len(data.tables["parcels"]) - 176 == 18_295
        assert len(data.tables["returns"]) == 157
        assert (report.still_moving, report.may_still_return, report.month_only) == (89, 161, 1_214 + 766)

    def test_cash_on_delivery_fails_more_often(self, published: tuple[shopee.ImportReport, Dataset]) -> None:
        _, data = published
        last = data.tables["events"].query("kind in ['delivered', 'lost', 'returned_to_sender']")
        failed = last.set_index("parcel_id")["kind"] != "delivered"
        cod = data.tables["orders"].set_index("order_id")["payment_method"].reindex(failed.index) == "cod"
        assert failed[cod].mean() == pytest.approx(0.026, abs=0.001)
        assert failed[~cod].mean() < 0.003

    def test_every_carrier_is_known(self, published: tuple[shopee.ImportReport, Dataset]) -> None:
        parcels = published[1].tables["parcels"]
        assert set(parcels["carrier"]) == {"SPX", "JNE", "J&T", "J&T Cargo", "GoSend", "GrabExpress"}
        assert parcels["service"].notna().all()
        assert not parcels["service"].str.contains("Versi Lama").any()

    def test_an_order_is_older_than_its_outcome(self, published: tuple[shopee.ImportReport, Dataset]) -> None:
        data = published[1]
        ordered = data.tables["orders"].set_index("order_id")["ordered_at"]
        for table, key in (("events", "parcel_id"), ("returns", "line_id")):
            known = data.tables[table]["known_at"]
            assert (known > ordered.reindex(data.tables[table][key]).to_numpy()).all()
            assert (known < data.settings.extracted_at).all()

    def test_seven_days_of_window_fit_every_open_window(self, published: tuple[shopee.ImportReport, Dataset]) -> None:
        data = published[1]
        windows = pd.Timedelta(days=data.settings.return_window_days)
        closes = data.tables["events"].query("kind == 'delivered'")["happened_at"] + windows
        open_at_the_end = local(closes[closes > data.settings.extracted_at + pd.Timedelta(hours=23)])
        days = pd.Series([c[:10] for c in open_at_the_end if c.endswith("23:59:59")]).value_counts()
        given = {"05": 25, "06": 34, "07": 34, "08": 38, "09": 22, "10": 6, "11": 2}
        for day, orders in given.items():
            # Finished orders that are dated at the very end of the file have a window that ends with the 11th, too.
            assert days[f"2025-12-{day}"] >= orders
