import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.schemas import Rules
from serving.waiting import Waiting, WaitingError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def request(parcel_id: str, **parcel: Any) -> dict[str, Any]:
    body = {
        "order": {"order_id": "o", "ordered_at": "2025-03-01T08:10:00+07:00"},
        "parcel": {"parcel_id": parcel_id, **parcel},
        "lines": [{"line_id": "l", "sku": "s"}],
    }
    return Rules().one(json.dumps(body).encode())[0]


def test_a_parcel_is_found_as_it_was_announced_last(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path / "waiting.db")
    assert waiting.find("P") is None
    assert waiting.announce([request("P", weight_g=1), request("Q")]) == 2
    assert waiting.announce([request("P", weight_g=2)]) == 2
    found = waiting.find("P")
    assert found is not None
    assert Rules().one(found) == [request("P", weight_g=2)]
    assert waiting.find("p") is None and waiting.find("") is None
    assert (tmp_path / "waiting.db").stat().st_mode & 0o077 == 0  # customers' ids are in it
    waiting.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=12))
def test_a_parcel_is_forgotten_so_many_days_after_it_was_last_announced(told: list[tuple[str, int]]) -> None:
    import tempfile

    now = [NOON]
    last: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        waiting = Waiting(Path(folder) / "w.db", days=14, clock=lambda: now[0])
        for parcel, day in sorted(told, key=lambda x: x[1]):
            now[0], last[parcel] = NOON + timedelta(days=day), day
            alive = {p for p, d in last.items() if day - d <= 14}
            assert waiting.announce([request(parcel)]) == len(alive)
        today = max((day for _, day in told), default=0)
        for parcel in "abc":
            assert (waiting.find(parcel) is not None) == (parcel in last and today - last[parcel] <= 14)
        waiting.close()


def test_what_is_too_old_is_gone_when_the_file_is_opened_and_spaces_are_no_part_of_a_code(
    tmp_path: Path,
) -> None:
    first = Waiting(tmp_path / "w.db", clock=lambda: NOON)
    first.announce([request(" P ")])
    assert first.find("P") is not None
    first.close()
    Waiting(tmp_path / "w.db", clock=lambda: NOON + timedelta(days=400)).close()
    with sqlite3.connect(tmp_path / "w.db") as file:
        assert file.execute("SELECT count(*) FROM waiting").fetchone() == (0,)


@given(st.floats(0.01, 40), st.floats(0, 80))
@settings(max_examples=20, deadline=None)
def test_a_parcel_that_waits_too_long_is_not_found_even_if_nothing_is_announced_after_it(
    days: float, later: float
) -> None:
    import tempfile

    now = [NOON]
    with tempfile.TemporaryDirectory() as folder:
        waiting = Waiting(Path(folder) / "w.db", days=days, clock=lambda: now[0])
        waiting.announce([request("P")])
        now[0] += timedelta(days=later)
        gone = timedelta(days=later) > timedelta(days=days)
        assert (waiting.find("P") is None) == gone
        if later > 1:  # it is not only hidden: what was announced of customers is no longer kept
            with closing(sqlite3.connect(Path(folder) / "w.db")) as file:
                assert file.execute("SELECT count(*) FROM waiting").fetchone() == (int(not gone),)
        waiting.close()


def test_a_scan_waits_for_nobody_to_forget_and_the_next_one_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.waiting.BUSY_SECONDS", 60.0)
    now = [NOON]
    waiting = Waiting(tmp_path / "w.db", days=14, clock=lambda: now[0])
    waiting.announce([request("P")])
    other = sqlite3.connect(tmp_path / "w.db", isolation_level=None, check_same_thread=False)

    def kept() -> int:
        return int(other.execute("SELECT count(*) FROM waiting").fetchone()[0])

    with ThreadPoolExecutor(1) as pool, closing(other), closing(waiting):
        now[0] += timedelta(days=15)
        other.execute("BEGIN IMMEDIATE")
        try:
            assert pool.submit(waiting.find, "P").result(timeout=20) is None
        finally:
            other.execute("ROLLBACK")
        assert kept() == 1
        now[0] += timedelta(seconds=1)
        assert waiting.find("P") is None and kept() == 0
        other.execute("BEGIN IMMEDIATE")  # an announcement does wait, as before
        done = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        done.start()
        assert waiting.announce([request("Q")]) == 1
        done.join()


def test_several_workers_share_the_file(tmp_path: Path) -> None:
    both = [Waiting(tmp_path / "w.db") for _ in range(2)]
    threads = [
        threading.Thread(target=lambda w=w, n=n: [w.announce([request(f"{n}-{i}")]) for i in range(20)])
        for n, w in enumerate(both)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(w.find(f"{n}-{i}") for w in both for n in range(2) for i in range(20))
    for w in both:
        w.close()


def test_what_is_no_such_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WaitingError, match="No such file or directory: DOORSTEP_WAITING names"):
        Waiting(tmp_path / "absent" / "w.db")
    (tmp_path / "text").write_text("no database, whatever its name says " * 100)
    with pytest.raises(WaitingError, match="file is not a database"):
        Waiting(tmp_path / "text")
    waiting = Waiting(tmp_path / "w.db")
    with sqlite3.connect(tmp_path / "w.db") as connection:
        connection.execute("DROP TABLE waiting")
    connection.close()
    with pytest.raises(WaitingError, match="no such table"):
        waiting.find("P")
    waiting.close()
