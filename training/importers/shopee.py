"""A Shopee seller's order export (Indonesia) as a Doorstep dataset.

The export says what became of each order, but not when: it holds the time of the order and its final state. What
Doorstep needs beside that is assumed here, in one place, always to the later side, so that nothing counts as known
before it could have been known. The assumptions are part of the report; `docs/importers.md` gives the evidence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from features.dataset import Dataset, DatasetError, Extra, Problem, Settings

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

PUBLISHED_SHA256 = "288fd5a8417edf4170ce9ae5da801dc6680284aa761369d699b3ba8e9505caa1"
"""Checksum of the published file the assumptions below were measured on."""

SETTLE_DAYS = 28
"""In the published file every order older than this is in its final state; 14 days are too few for failures."""

RETURN_WINDOW_DAYS = 7
"""A same-day delivery of 29 November may be returned until 6 December."""

TIMEZONE = "Asia/Jakarta"

COLUMNS: dict[str, str] = {
    "order_id": "order_id",
    "ordered": "Waktu Pesanan Dibuat",
    "month": "source_file",
    "status": "Status Pesanan",
    "reason": "Alasan Pembatalan",
    "shipping": "Opsi Pengiriman",
    "payment": "Metode Pembayaran",
    "city": "Kota/Kabupaten",
    "province": "Provinsi",
    "categories": "product_categories",
    "category_count": "num_product_categories",
    "quantity": "total_qty",
    "weight": "total_weight_gr",
    "returned": "total_returned_qty",
    "discount": "Total Diskon",
}
"""What is read: our word for a column, and its name in the file. No other column is looked at."""

NUMBERS = ("category_count", "quantity", "weight", "returned", "discount")

FREIGHT_ESTIMATE = "Perkiraan Ongkos Kirim"
"""The only freight column that may be read, and only on request: it may have been adjusted after the fact."""

LEAKS: dict[str, str] = {
    "Total Pembayaran": "0 as soon as an order is cancelled",
    "Ongkos Kirim Dibayar oleh Pembeli": "0 for every parcel that failed or was lost",
    "Estimasi Potongan Biaya Pengiriman": "0 for every parcel that failed or was lost",
}
"""Columns that tell the outcome, and how. They are never read."""

ARRIVED, MOVING, CANCELLED = "arrived", "moving", "cancelled"

STATUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Selesai": (ARRIVED, ("delivered",)),
    "Sedang Dikirim": (MOVING, ("handed_over", "in_transit")),
    "Telah Dikirim": (MOVING, ("handed_over",)),
    "Batal": (CANCELLED, ()),
}
"""State of an order, what it amounts to, and the events it stands for. That an arrived parcel was handed over first is
certain, but nothing is known of when: no event is made up for it."""

MAY_RETURN = re.compile(
    r"^Pesanan diterima, namun Pembeli masih dapat mengajukan pengembalian hingga (\d{4}-\d{2}-\d{2})\.?$"
)
"""Received, but the buyer may still ask for a return until that day."""


@dataclass(frozen=True)
class Reason:
    """Why an order was cancelled.

    Attributes:
        code: what Doorstep calls it.
        events: the parcel's events it stands for; none where the order was cancelled before anything was shipped.
    """

    code: str
    events: tuple[str, ...] = ()


REASONS: dict[str, Reason] = {
    "Pengiriman gagal": Reason("delivery_failed", ("returned_to_sender",)),
    "Paket hilang di perjalanan": Reason("lost_in_transit", ("lost",)),
    "Penjual gagal mengirimkan pesanan tepat waktu": Reason("handed_over_too_late", ("handover_failed",)),
    "Penjual tidak mengatur pengiriman tepat waktu": Reason("shipping_not_arranged", ("handover_failed",)),
    "Produk habis": Reason("out_of_stock"),
    "Pesanan belum dibayar": Reason("not_paid"),
    "Proses pembayaran sulit": Reason("payment_difficult"),
    "Lainnya": Reason("other"),
    "Lainnya/ berubah pikiran": Reason("changed_mind"),
    "Tidak ingin membeli lagi": Reason("changed_mind"),
    "Menemukan yang lebih murah": Reason("found_cheaper"),
    "Ubah Pesanan yang Ada": Reason("order_changed"),
    "Perlu mengubah pesanan": Reason("order_changed"),
    "Perlu mengubah Voucher": Reason("voucher_changed"),
    "Need to change delivery address": Reason("address_changed"),
    "Perlu mengubah alamat pengiriman": Reason("address_changed"),
    "Penjual tidak responsif terhadap pertanyaan Pembeli": Reason("seller_silent"),
}
"""Reason of a cancellation, as it stands after `Alasan: `, up to its first full stop."""

PAYMENTS: dict[str, str] = {
    "COD (Bayar di Tempat)": "cod",
    "Saldo ShopeePay": "wallet",
    "Online Payment": "online",
    "SPayLater": "pay_later",
    "SeaBank Bayar Instan": "bank",
    "BCA OneKlik": "bank",
    "Kartu Kredit/Debit": "card",
    "Cicilan Kartu Kredit": "card_instalments",
    "Indomaret/i.Saku": "counter",
    "Alfamart/Alfamidi/Dan+Dan": "counter",
    "Mitra Shopee": "counter",
    "Pembayaran dibebaskan": "waived",
}

CARRIERS: tuple[tuple[str, str], ...] = (
    ("Agen SPX", "SPX"),
    ("SPX", "SPX"),
    ("JNE", "JNE"),
    ("J&T Cargo", "J&T Cargo"),  # a company and a network of its own, beside J&T Express
    ("J&T", "J&T"),
    ("GoSend", "GoSend"),
    ("GrabExpress", "GrabExpress"),
)
"""Beginning of a product's name, and whose product it is; the first that fits counts."""

LEVELS: tuple[str, ...] = (
    "Hemat Kargo",
    "Kargo",
    "Reguler (Cashless)",
    "Instant",
    "Instant Prioritas",
    "Same Day",
    "Next Day",
)
"""Service levels a buyer chooses from. `(Versi Lama)`, the old version of one, is read as the level itself."""

PRODUCTS: dict[str, tuple[str, str]] = {
    # product in lower case: its name, and the level it is sold under (the usual one, where there are two)
    "spx hemat": ("SPX Hemat", "Hemat Kargo"),
    "spx standard": ("SPX Standard", "Reguler (Cashless)"),
    "spx instant": ("SPX Instant", "Instant"),
    "spx instant prioritas": ("SPX Instant Prioritas", "Instant Prioritas"),
    "spx sameday": ("SPX Sameday", "Same Day"),
    "agen spx express": ("Agen SPX Express", "Pick-up Point"),
    "spx express point": ("SPX Express Point", "Pick-up Point"),
    "jne reguler": ("JNE Reguler", "Reguler (Cashless)"),
    "jne trucking (jtr)": ("JNE Trucking (JTR)", "Kargo"),
    "jne yes": ("JNE YES", "Next Day"),
    "j&t express": ("J&T Express", "Reguler (Cashless)"),
    "j&t economy": ("J&T Economy", "Hemat Kargo"),
    "j&t cargo": ("J&T Cargo", "Kargo"),
    "gosend same day": ("GoSend Same Day", "Same Day"),
    "gosend instant": ("GoSend Instant", "Instant"),
    "gosend instant prioritas": ("GoSend Instant Prioritas", "Instant Prioritas"),
    "grabexpress instant": ("GrabExpress Instant", "Instant"),
    "grabexpress sameday": ("GrabExpress Sameday", "Same Day"),
}

SEVERAL = "several categories"
"""Category of an order's line that holds products of more than one."""

PLACES = {"Nanggroe Aceh Darussalam": "Aceh"}

_MONTHS = {m.lower(): i for i, m in enumerate(pd.date_range("2024-01-01", periods=12, freq="MS").strftime("%B"), 1)}
_LOCAL_TIME = r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?"
_EXAMPLES = 3
_DAY = pd.Timedelta(days=1)
_MOMENT = pd.Timedelta(seconds=1)

_FILE = (
    "an .xlsx file with one row per order, as published (docs/importers.md says where); an export straight from the "
)
_FILE += "Seller Centre has one row per product and other headings, and must be brought into that form first"


@dataclass(frozen=True)
class ImportReport:
    """What an import made of a file.

    Attributes:
        source: the file.
        sha256: its checksum.
        published: it is the published file the assumptions were measured on.
        rows: written rows per table.
        events: written events per kind.
        no_parcel: orders without a parcel, per reason (`not_understood` for states and reasons nobody knows).
        may_still_return: delivered orders whose return window was open; no return is not an answer yet.
        still_moving: orders on their way.
        month_only: orders of which only the month is known.
        extracted_at: when the export was taken, as derived from it (ISO 8601).
        settle_days, return_window_days, lost_after_days: the periods that were used.
        freight: the freight estimate was read.
        assumptions: what had to be assumed, one sentence each.
        warnings: what was not understood, one sentence each.
    """

    source: str
    sha256: str
    published: bool
    rows: dict[str, int]
    events: dict[str, int]
    no_parcel: dict[str, int]
    may_still_return: int
    still_moving: int
    month_only: int
    extracted_at: str
    settle_days: int
    return_window_days: int
    lost_after_days: int
    freight: bool
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return ", ".join(f"{k} {v:,}" for k, v in counts.items()) or "none"

        known = "the published file" if self.published else "not the published file (an export of your own: fine)"
        lines = [
            f"{self.source}: {known}, sha256 {self.sha256[:12]}...",
            f"written          {listed(self.rows)}",
            f"events           {listed(self.events)}",
            f"without parcel   {listed(self.no_parcel)}",
            f"not yet decided  still moving {self.still_moving:,}, may still be returned {self.may_still_return:,}",
            f"extracted        {self.extracted_at}",
            "assumed, because the file does not say:",
            *(f"  - {text}" for text in self.assumptions),
        ]
        if self.warnings:
            lines += ["warnings:", *(f"  - {text}" for text in self.warnings)]
        return "\n".join(lines)


def import_shopee(
    source: str | Path,
    out: str | Path,
    *,
    with_freight: bool = False,
    settle_days: int = SETTLE_DAYS,
    return_window_days: int = RETURN_WINDOW_DAYS,
    progress: Callable[[str], None] | None = None,
) -> ImportReport:
    """Read a Shopee order export and write it as a Doorstep dataset.

    Args:
        source: .xlsx with one row per order.
        out: folder to write to, made if need be.
        with_freight: also read the freight estimate, which may have been adjusted after the fact.
        settle_days: days after an order by which its outcome was surely known.
        return_window_days: days a buyer may take to ask for a return.
        progress: called with a sentence before each step.

    Raises:
        DatasetError: the file is not such an export, or holds values that cannot be read; or the folder holds tables
            that this would not replace. Everything that is wrong is listed, and nothing is written.
        ValueError: a period is not at least one day.
    """
    for name, days in (("settle_days", settle_days), ("return_window_days", return_window_days)):
        if days < 1:
            raise ValueError(f"{name}: given {days}, it must be a whole number of days, at least 1")
    say = progress or (lambda _: None)
    source = Path(source)
    say(f"reading {source.name}")
    raw = _read(source, freight=with_freight)
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    say(f"turning {len(raw):,} orders into tables")
    orders = _understand(raw, source)
    times = _times(orders, settle_days, return_window_days)
    # Where an order's day is not known, its outcome is known up to a month later than a settled order's would be.
    lost_after_days = settle_days + (32 if times.month_only.any() else 2)
    tables = _tables(orders, times, return_window_days, with_freight)
    settings = Settings(
        name="shopee-indonesia" if sha256 == PUBLISHED_SHA256 else "shopee",
        timezone=TIMEZONE,
        currency="IDR",
        return_window_days=return_window_days,
        lost_after_days=lost_after_days,
        extracted_at=times.extracted_at.tz_convert("UTC"),
        extra=(
            Extra("orders", "service_level", "code", "order"),
            Extra("order_lines", "category_count", "number", "order"),
            *((Extra("parcels", "freight_estimate", "number", "carrier"),) if with_freight else ()),
        ),
    )
    dataset = Dataset.from_frames(tables, settings)
    say(f"writing {out}")
    dataset.save(out)
    without = orders[orders["events"].str.len() == 0]
    return ImportReport(
        source=str(source),
        sha256=sha256,
        published=sha256 == PUBLISHED_SHA256,
        rows={name: len(frame) for name, frame in tables.items()},
        events=_counts(tables["events"]["kind"]),
        no_parcel=_counts(without["code"].fillna("not_understood")),
        may_still_return=int(orders["until"].notna().sum()),
        still_moving=int((orders["state"] == MOVING).sum()),
        month_only=int(times.month_only.sum()),
        extracted_at=times.extracted_at.isoformat(),
        settle_days=settle_days,
        return_window_days=return_window_days,
        lost_after_days=lost_after_days,
        freight=with_freight,
        assumptions=_assumptions(times, settle_days, return_window_days, lost_after_days, with_freight),
        warnings=(*orders.attrs["warnings"], *times.warnings),
    )


def split_service(option: str) -> tuple[str | None, str | None, str | None]:
    """The service level, the carrier and the carrier's product in one text of `Opsi Pengiriman`.

    >>> split_service("Reguler (Cashless)-SPX Standard")
    ('Reguler (Cashless)', 'SPX', 'SPX Standard')
    >>> split_service("GoSend Instant (Versi Lama)")
    ('Instant', 'GoSend', 'GoSend Instant')
    >>> split_service("Hemat Kargo")
    ('Hemat Kargo', None, None)
    """
    text = _plain(option.replace("(Versi Lama)", " "))
    if not text:
        return None, None, None
    head, dash, tail = text.partition("-")
    level = next((name for name in LEVELS if name.lower() == head.strip().lower()), None)
    if level is not None and not dash:
        return level, None, None
    product = _plain(tail) if level is not None or _carrier(tail.strip()) else text
    name, usual = PRODUCTS.get(product.lower(), (product, None))
    return level or usual, _carrier(product), name


def _carrier(product: str) -> str | None:
    return next((carrier for start, carrier in CARRIERS if product.lower().startswith(start.lower())), None)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _place(text: str) -> str:
    """`KAB. BOGOR` as `Kab. Bogor`; what is in brackets is another name of the same place."""
    text = _plain(re.sub(r"\(.*?\)", " ", text))
    words = re.sub(r"[^\W\d_]+", lambda w: w[0] if w[0] in ("DKI", "DI") else w[0].capitalize(), text)
    return PLACES.get(words, words)


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(k): int(v) for k, v in values.value_counts().items()}


def _read(source: Path, *, freight: bool) -> pd.DataFrame:
    """The wanted columns of the file, under our names, as text and numbers."""
    wanted = {**COLUMNS, **({"freight_estimate": FREIGHT_ESTIMATE} if freight else {})}

    def fail(what: str, column: str = "", todo: str = "", allowed: str = _FILE) -> DatasetError:
        return DatasetError([Problem(source.name, column, what, allowed=allowed, todo=todo)], source)

    if not source.is_file():
        raise fail("is a folder" if source.is_dir() else "there is no such file", todo="name the export file")
    if source.suffix.lower() != ".xlsx":
        raise fail(f"ends in {source.suffix or 'nothing'!r}", todo="save it as .xlsx")
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        book = CalamineWorkbook.from_path(source)
        sheets = [(name, _rows(book.get_sheet_by_name(name))) for name in book.sheet_names]
    except CalamineError as error:
        raise fail(f"is no workbook: {error}", todo="download it again, or save it as .xlsx again") from error
    headings = {name: [_plain(str(cell)) for cell in rows[0]] for name, rows in sheets if rows}
    if not headings:
        raise fail("holds no rows", todo="export at least one order")
    best = max(headings, key=lambda name: len(set(wanted.values()) & set(headings[name])))
    heading = headings[best]
    missing = [name for name in wanted.values() if name not in heading]
    twice = [name for name in wanted.values() if heading.count(name) > 1]
    if missing or twice:
        given = ", ".join(h for h in heading if h) or "nothing"
        problems = [
            Problem(source.name, n, f"the column is missing in sheet {best!r}; its headings: {given}") for n in missing
        ] + [Problem(source.name, n, f"the column is there {heading.count(n)} times") for n in twice]
        problems.append(Problem(source.name, "", "is not the export this importer reads", allowed=_FILE))
        raise DatasetError(problems, source)
    rows = [row for row in dict(sheets)[best][1:] if any(cell not in ("", None) for cell in row)]
    if not rows:
        raise fail("holds headings but no orders", todo="export at least one order")
    frame = pd.DataFrame({k: pd.Series([r[heading.index(n)] for r in rows], dtype=object) for k, n in wanted.items()})
    problems = []
    for name in (*NUMBERS, *(("freight_estimate",) if freight else ())):
        numbers = pd.to_numeric(frame[name].map(lambda v: None if v in ("", None) else v), errors="coerce")
        bad = numbers.isna() & ~frame[name].isin(["", None])
        if bad.any():
            problems.append(_values(source, wanted[name], "no number", frame[name], bad, "plain numbers"))
        frame[name] = numbers.astype(float)
    for name in frame.columns.difference([*NUMBERS, "freight_estimate"]):
        frame[name] = frame[name].map(_text)
    if problems:
        raise DatasetError(problems, source)
    return frame


def _rows(sheet: CalamineSheet) -> list[list[Any]]:
    return sheet.to_python(skip_empty_area=True)


def _text(cell: Any) -> str:
    """A cell as text: whole numbers without `.0`, times in ISO 8601, nothing for an empty cell."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return "" if cell is None else _plain(str(cell))


def _values(source: Path, column: str, what: str, given: pd.Series, bad: pd.Series, allowed: str) -> Problem:
    examples = tuple({"row": int(i) + 1, "value": str(given.loc[i])} for i in bad.index[bad][:_EXAMPLES])
    return Problem(source.name, column, what, int(bad.sum()), examples, allowed)


def _understand(raw: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Add what each order's texts mean: state, events, code, until, month, carrier, service, level, payment, places."""
    orders = raw.copy()
    problems: list[Problem] = []
    warnings: list[str] = []
    plain = orders["ordered"].where(orders["ordered"].str.fullmatch(_LOCAL_TIME))
    local = pd.to_datetime(plain, format="ISO8601", errors="coerce")
    bad = local.isna() & (orders["ordered"] != "")
    if bad.any():
        problems.append(
            _values(source, COLUMNS["ordered"], "no time", orders["ordered"], bad, "times like 2025-03-01 14:30")
        )
    orders["local"] = local
    orders["first"] = pd.to_datetime(orders["month"].map(_month))
    bad = local.isna() & orders["first"].isna() & (orders["ordered"] == "")
    if bad.any():
        what = f"neither a time in {COLUMNS['ordered']} nor a month in the file's name"
        allowed = "names like MarchSales2025.xlsx"
        problems.append(_values(source, COLUMNS["month"], what, orders["month"], bad, allowed))
    bad = orders["order_id"] == ""
    if bad.any():
        problems.append(_values(source, "order_id", "an order without a key", orders["order_id"], bad, "a key"))
    bad = orders["order_id"].duplicated(keep=False) & ~bad
    if bad.any():
        problems.append(
            _values(source, "order_id", "the key is there twice", orders["order_id"], bad, "one row per order")
        )

    until = orders["status"].str.extract(MAY_RETURN)[0]
    orders["until"] = pd.to_datetime(until, format="%Y-%m-%d", errors="coerce")
    status = orders["status"].where(orders["until"].isna(), "Selesai")
    orders["state"] = status.map(lambda s: STATUSES[s][0] if s in STATUSES else None)
    reason = orders["reason"].str.partition("Alasan:")[2].str.partition(".")[0].str.strip()
    reason = reason.where(reason != "", orders["reason"])
    cancelled = orders["state"] == CANCELLED
    orders["code"] = reason.map(lambda r: REASONS[r].code if r in REASONS else None).where(cancelled)
    orders["events"] = [
        REASONS[r].events if s == "Batal" and r in REASONS else STATUSES[s][1] if s in STATUSES else ()
        for s, r in zip(status, reason, strict=True)
    ]
    strange = orders["state"].isna()
    kept = "the orders are kept, without parcel and outcome"
    warnings += _strangers("status", orders["status"][strange], kept)
    warnings += _strangers("reason of cancellation", orders["reason"][cancelled & orders["code"].isna()], kept)
    if strange.mean() > 0.5:
        seen = ", ".join(repr(v) for v in orders["status"][strange].unique()[:_EXAMPLES])
        known = ", ".join([*STATUSES, "Pesanan diterima, namun ... hingga DATE"])
        what = f"most states are not known: {seen}"
        todo = "export it from the Indonesian Seller Centre, in Indonesian"
        problems.append(Problem(source.name, COLUMNS["status"], what, int(strange.sum()), (), known, todo))
    if problems:
        raise DatasetError(problems, source)

    known_options = {text: split_service(text) for text in orders["shipping"].unique()}
    for i, name in enumerate(("level", "carrier", "service")):
        orders[name] = orders["shipping"].map({text: parts[i] for text, parts in known_options.items()})
    strange = orders["service"].notna() & ~orders["service"].isin([name for name, _ in PRODUCTS.values()])
    warnings += _strangers("shipping option", orders["shipping"][strange], "read as far as it could be")
    warnings += _strangers(
        "payment", orders["payment"][~orders["payment"].isin(PAYMENTS) & (orders["payment"] != "")], "kept as it is"
    )
    orders["paid"] = orders["payment"].map(lambda p: PAYMENTS.get(p, p) or None)
    for name in ("city", "province"):
        orders[name] = orders[name].map({text: _place(text) or None for text in orders[name].unique()})
    back = (orders["returned"] > 0) & (orders["state"] != ARRIVED)
    if back.any():
        n = int(back.sum())
        warnings.append(f"{n:,} orders have returned pieces but were never received; no return is written for them")
    orders.attrs["warnings"] = tuple(warnings)
    return orders


def _month(name: str) -> pd.Timestamp | None:
    found = re.match(r"(?i)([a-z]+)sales(\d{4})", name)
    month = _MONTHS.get(found[1].lower()) if found else None
    return pd.Timestamp(int(found[2]), month, 1) if found and month else None


def _strangers(what: str, values: pd.Series, consequence: str) -> Iterable[str]:
    if len(values):
        listed = ", ".join(f"{k!r} ({v:,})" for k, v in values.value_counts().items())
        yield f"unknown {what}, {consequence}: {listed}"


@dataclass(frozen=True)
class _Times:
    """What is assumed about time; all in the shop's zone, one value per order.

    Attributes:
        ordered: when the order was placed, the start of its month if no more is known.
        settled: when its outcome was known at the latest.
        month_only: only the month is known.
        extracted_at: when the export was taken.
        warnings: what does not fit together.
    """

    ordered: pd.Series
    settled: pd.Series
    month_only: pd.Series
    extracted_at: pd.Timestamp
    warnings: tuple[str, ...]


def _times(orders: pd.DataFrame, settle_days: int, return_window_days: int) -> _Times:
    month_only = orders["local"].isna()
    ordered = orders["local"].fillna(orders["first"])
    month_ends = orders["first"] + pd.offsets.MonthBegin(1)
    latest = orders["local"].fillna(month_ends - _MOMENT)
    # The window is open to the end of its last day, so the parcel arrived by the end of a day, a window earlier.
    closes = orders["until"] + _DAY - _MOMENT
    arrived = closes - return_window_days * _DAY
    arrived = arrived.where(closes.isna() | (arrived >= latest), latest)
    proven = pd.concat([latest, arrived]).max()
    extracted = proven.normalize() + _DAY
    warnings: list[str] = []
    if closes.notna().any() and closes.min() < extracted - _DAY:
        warnings.append(
            f"a return window that closed on {closes.min():%Y-%m-%d} is said to be open, but the file reaches to "
            f"{proven:%Y-%m-%d}: it may be put together from exports of several days"
        )
    settled = _not_after(orders["local"].fillna(month_ends) + settle_days * _DAY, extracted - _MOMENT)
    settled = arrived.fillna(settled.where(orders["state"] != MOVING, extracted - _MOMENT))

    def zoned(values: pd.Series) -> pd.Series:
        return values.dt.tz_localize(TIMEZONE)

    return _Times(zoned(ordered), zoned(settled), month_only, extracted.tz_localize(TIMEZONE), tuple(warnings))


def _not_after(times: pd.Series, last: pd.Timestamp) -> pd.Series:
    return times.where(times <= last, last)


def _tables(orders: pd.DataFrame, times: _Times, return_window_days: int, freight: bool) -> dict[str, pd.DataFrame]:
    """The six tables. One order is one parcel and one line: the export does not tell its products apart."""
    keys = orders["order_id"]
    shipped = orders["events"].str.len() > 0
    several = orders["category_count"] > 1
    sku = orders["categories"].where(orders["categories"] != "", "unknown")
    listings = pd.DataFrame({"sku": sku, "category": sku.where(~several, SEVERAL)}).drop_duplicates("sku")
    happened = pd.DataFrame(
        {"parcel_id": keys, "kind": orders["events"], "happened_at": times.settled, "reason": orders["code"]}
    )[shipped]
    events = happened.explode("kind")
    events["known_at"] = events["happened_at"]
    # The last day of the window, but for an outcome near the end of the file not later than the file itself.
    requested = _not_after(times.settled + (return_window_days - 1) * _DAY, times.extracted_at - _MOMENT)
    came_back = (orders["returned"] > 0) & (orders["state"] == ARRIVED)
    return {
        "orders": pd.DataFrame(
            {
                "order_id": keys,
                "ordered_at": times.ordered,
                "channel": "shopee",
                "payment_method": orders["paid"],
                "destination_country": "ID",
                "destination_region": orders["province"],
                "destination_city": orders["city"],
                "service_level": orders["level"],
            }
        ),
        "order_lines": pd.DataFrame(
            {
                "line_id": keys,
                "order_id": keys,
                "parcel_id": keys.where(shipped),
                "sku": sku,
                "quantity": orders["quantity"],
                "discount": orders["discount"],
                "category_count": orders["category_count"],
            }
        ),
        "listings": listings.sort_values("sku").reset_index(drop=True),
        "parcels": pd.DataFrame(
            {
                "parcel_id": keys,
                "order_id": keys,
                "carrier": orders["carrier"],
                "service": orders["service"],
                "weight_g": orders["weight"],
                **({"freight_estimate": orders["freight_estimate"]} if freight else {}),
            }
        )[shipped].reset_index(drop=True),
        "events": events[["parcel_id", "kind", "happened_at", "known_at", "reason"]].reset_index(drop=True),
        "returns": pd.DataFrame(
            {"line_id": keys, "requested_at": requested, "known_at": requested, "quantity": orders["returned"]}
        )[came_back].reset_index(drop=True),
    }


def _assumptions(times: _Times, settle: int, window: int, lost_after: int, freight: bool) -> tuple[str, ...]:
    said = [
        f"an outcome happened, and was known, {settle} days after the order, and never later than the export",
        f"the return window is {window} days; where the file says until when a return is possible, the parcel arrived "
        "that long before",
        f"a return was asked for on the last day of its window; a parcel counts as lost after {lost_after} days",
        f"the export was taken when the day of the last order or arrival in it had passed: {times.extracted_at}",
        "one order is one parcel and one line, named after the order's categories",
        f"never read, because they tell the outcome: {', '.join(LEAKS)}",
    ]
    if times.month_only.any():
        said.append(
            f"{int(times.month_only.sum()):,} orders have a month but no day: decided at its first moment, outcome "
            f"known {settle} days after its end; their hour (0), weekday and the number of orders a day mean nothing"
        )
    if freight:
        said.append(f"{FREIGHT_ESTIMATE} was read: it may have been adjusted after the fact")
    return tuple(said)
