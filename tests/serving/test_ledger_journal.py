"""The journal: what was acknowledged is read again, what is torn is not, whatever happens to the file."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.ledger.journal import DAMAGED, SUFFIX, Disk, Journal, frame, frames, undelivered

PAYLOADS = st.lists(st.binary(max_size=40), max_size=8)


def read(data: bytes) -> list[bytes]:
    return [payload for payload, _ in frames(data)]


@given(PAYLOADS)
def test_what_is_framed_is_read_again(payloads: list[bytes]) -> None:
    data = b"".join(map(frame, payloads))
    assert read(data) == payloads
    assert [end for _, end in frames(data)] == [
        len(b"".join(map(frame, payloads[: i + 1]))) for i in range(len(payloads))
    ]


@given(PAYLOADS, st.data())
def test_a_file_cut_anywhere_reads_as_the_entries_before_the_cut(payloads: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame, payloads))
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len(b"".join(map(frame, payloads[:i]))) for i in range(1, len(payloads) + 1)]
    assert read(whole[:cut]) == payloads[: sum(end <= cut for end in ends)]
    assert read(whole[:cut] + bytes(100)) == payloads[: sum(end <= cut for end in ends)], "a hole of zeros is no entry"


@given(PAYLOADS.filter(len), st.data())
def test_a_changed_byte_ends_the_reading_at_its_entry(payloads: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(frame, payloads)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    before = [end for _, end in frames(b"".join(map(frame, payloads))) if end <= at]
    assert read(bytes(whole)) == payloads[: len(before)]


def drained(journal: Journal, most: int = 3) -> list[bytes]:
    out = []
    while batch := journal.read(most):
        assert len(batch) <= most
        out += batch
        journal.delivered()
    return out


def die(journal: Journal) -> None:
    """What kill -9 leaves: the files as they are, their locks free."""
    for segment in [*journal._old, journal._current]:
        if segment is not None:
            os.close(segment.file)


ENTRIES = [b"%d" % i for i in range(20)]


def test_entries_come_out_in_order_once_and_the_file_is_given_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(ENTRIES[:2])
    assert journal.read(5) == journal.read(5) == ENTRIES[:2], "until it is delivered it is read again"
    journal.delivered()
    journal.append(ENTRIES[2:9])
    assert journal.waiting == sum(len(frame(e)) for e in ENTRIES[2:9])
    assert drained(journal) == ENTRIES[2:9]
    assert journal.waiting == 0 and journal.read(5) == []
    (file,) = (tmp_path / "j").iterdir()
    assert file.stat().st_size == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    journal.close()
    assert list((tmp_path / "j").iterdir()) == []


def test_a_file_that_is_never_quite_empty_is_left_for_a_new_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment=64)
    out = []
    for i in range(0, 200, 2):
        journal.append([b"entry %d" % i, b"entry %d" % (i + 1)])
        if i:
            out += journal.read(2)
            journal.delivered()
    assert len(list(tmp_path.iterdir())) <= 2
    assert out + drained(journal) == [b"entry %d" % i for i in range(200)]
    journal.close()


def test_a_dead_workers_entries_are_taken_over_and_a_living_ones_are_not(tmp_path: Path) -> None:
    dead, living, new = (Journal(tmp_path) for _ in range(3))
    dead.append(ENTRIES[:4])
    living.append(ENTRIES[4:6])
    dead.read(2)
    dead.delivered()  # said to the journal only: a delivery twice does no harm, one that is lost would
    die(dead)
    assert new.adopt() == 1
    new.append(ENTRIES[6:8])
    assert drained(new) == ENTRIES[:4] + ENTRIES[6:8], "the older first"
    assert new.adopt() == 0
    assert drained(living) == ENTRIES[4:6]
    new.close()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_start_at_once_one_takes_over(tmp_path: Path) -> None:
    dead, *both = (Journal(tmp_path) for _ in range(3))
    dead.append(ENTRIES)
    die(dead)
    assert sorted(j.adopt() for j in both) == [0, 1]
    assert sorted(len(drained(j)) for j in both) == [0, len(ENTRIES)]
    for journal in both:
        journal.close()


def test_what_is_no_entry_is_kept_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dead, new = Journal(tmp_path), Journal(tmp_path)
    dead.append(ENTRIES[:3])
    die(dead)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + frame(b"torn")[:-1])
    new.adopt()
    assert drained(new) == ENTRIES[:3]
    assert [f.name for f in tmp_path.iterdir()] == [file.name + DAMAGED]
    assert "11 bytes after 27 are no whole entry" in caplog.text
    new.close()


def test_every_entry_of_every_worker_can_be_looked_through(tmp_path: Path) -> None:
    journals = [Journal(tmp_path) for _ in range(2)]
    for journal, entry in zip(journals, ENTRIES, strict=False):
        journal.append([entry])
    assert sorted(undelivered(tmp_path)) == ENTRIES[:2]
    assert list(undelivered(tmp_path / "nowhere")) == []
    for journal in journals:
        drained(journal)
        journal.close()


class Failing(Disk):
    """Fails as told: with what it has written so far left behind."""

    def __init__(self) -> None:
        self.write_after: int | None = None
        self.fail: set[str] = set()

    def create(self, path: Path) -> int:
        if "create" in self.fail:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path)

    def write(self, file: int, data: bytes, at: int) -> None:
        if self.write_after is not None:
            super().write(file, data[: self.write_after], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(file, data, at)

    def sync(self, file: int) -> None:
        if "sync" in self.fail:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(file)

    def truncate(self, file: int, size: int) -> None:
        if "truncate" in self.fail:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(file, size)

    def sync_folder(self, folder: Path) -> None:
        if "sync_folder" in self.fail:
            raise OSError(errno.EIO, "Input/output error")
        super().sync_folder(folder)


@pytest.mark.parametrize("after", [0, 3, 9, 12])
@pytest.mark.parametrize("truncates", [True, False])
def test_a_full_disk_refuses_a_batch_whole_and_what_came_before_and_after_is_read(
    tmp_path: Path, after: int, truncates: bool
) -> None:
    disk = Failing()
    journal = Journal(tmp_path, disk=disk)
    journal.append(ENTRIES[:2])
    disk.write_after = after
    disk.fail = set() if truncates else {"truncate"}
    with pytest.raises(OSError, match="No space left"):
        journal.append(ENTRIES[2:4])
    disk.write_after, disk.fail = None, set()
    journal.append(ENTRIES[4:6])
    assert drained(journal) == ENTRIES[:2] + ENTRIES[4:6]
    journal.close()


@pytest.mark.parametrize("fails", ["sync", "create", "sync_folder"])
def test_what_could_not_be_made_durable_is_not_acknowledged(tmp_path: Path, fails: str) -> None:
    disk = Failing()
    journal = Journal(tmp_path / "j", disk=disk)
    disk.fail = {fails}
    with pytest.raises(OSError):
        journal.append(ENTRIES[:2])
    disk.fail = set()
    journal.append(ENTRIES[2:4])
    assert drained(journal) == ENTRIES[2:4]
    journal.close()


STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4)),
    st.tuples(st.just("deliver"), st.integers(1, 5)),
    st.tuples(st.just("kill"), st.integers(0, 12)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25), segment=st.sampled_from([16, 60, 10_000]))
def test_whenever_the_process_is_killed_nothing_acknowledged_is_lost_or_out_of_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], segment: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, segment=segment)
    number, delivered = 0, []
    for what, n in steps:
        if what == "append":
            journal.append([b"%d" % (number + i) for i in range(n)])
            number += n
        elif what == "deliver":
            delivered += journal.read(n)
            journal.delivered()
        else:  # in the middle of a write, too
            current = journal._current
            if current is not None:
                os.pwrite(current.file, frame(b"never acknowledged")[:n], current.end)
            die(journal)
            journal = Journal(folder, segment=segment)
            journal.adopt()
    delivered += drained(journal)
    journal.close()
    once = list(dict.fromkeys(map(int, delivered)))
    assert once == list(range(number))
    assert [f.suffix for f in folder.iterdir() if f.suffix == SUFFIX] == []
