import json
import logging
import os
import threading
from pathlib import Path

import pytest

from serving.store import KEPT, StoreError, Watcher, publish, resolve


def version(root: Path, name: str, content: str) -> Path:
    """A finished directory of the kind that is published: a manifest and a file below it."""
    directory = root / name
    (directory / "trees").mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps({"name": name}))
    (directory / "trees" / "late.txt").write_text(content)
    return directory


def read(directory: Path) -> str:
    """A loader: what a bundle is to the watcher."""
    content = (directory / "trees" / "late.txt").read_text()
    if content == "broken":
        raise ValueError("checksum differs")
    return content


def test_a_published_version_is_found_by_way_of_its_store(tmp_path: Path) -> None:
    published = publish(version(tmp_path, "a", "one"), tmp_path / "store", info={"version": "1"})
    assert resolve(tmp_path / "store") == published
    assert read(published) == "one"
    pointer = json.loads((tmp_path / "store" / "current").read_text())
    assert pointer["version"] == "1"
    assert pointer["directory"] == published.name
    assert pointer["digest"].startswith(published.name)


def test_a_directory_with_a_manifest_stands_for_itself(tmp_path: Path) -> None:
    directory = version(tmp_path, "a", "one")
    assert resolve(directory) == directory


def test_publishing_an_older_version_again_rolls_back_without_a_copy(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = publish(version(tmp_path, "a", "one"), store, info={})
    made = (first / "manifest.json").stat().st_ino
    second = publish(version(tmp_path, "b", "two"), store, info={})
    assert resolve(store) == second != first
    assert publish(tmp_path / "a", store, info={}) == first
    assert resolve(store) == first
    assert (first / "manifest.json").stat().st_ino == made


def test_a_version_damaged_in_the_store_is_repaired_when_published_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    published = publish(version(tmp_path, "a", "one"), store, info={})
    (published / "trees" / "late.txt").write_text("cut off")
    assert publish(tmp_path / "a", store, info={}) == published
    assert read(published) == "one"


def test_the_last_versions_are_kept_and_the_current_one_always(tmp_path: Path) -> None:
    store = tmp_path / "store"
    published = [publish(version(tmp_path, str(i), str(i)), store, info={}) for i in range(KEPT + 3)]
    publish(tmp_path / "5", store, info={})  # an older one becomes current: it counts as the newest
    last = publish(version(tmp_path, "new", "new"), store, info={})
    there = {p for p in store.iterdir() if p.is_dir()}
    assert len(there) == KEPT
    assert {last, published[5], published[-1]} <= there
    assert not list(store.glob(".new-*"))


def test_publishing_at_once_from_many_threads_leaves_whole_versions(tmp_path: Path) -> None:
    store = tmp_path / "store"
    sources = [version(tmp_path, f"v{i}", str(i)) for i in range(4)]
    threads = [threading.Thread(target=publish, args=(s, store), kwargs={"info": {}}) for s in sources]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(read(p) for p in store.iterdir() if p.is_dir()) == ["0", "1", "2", "3"]
    assert read(resolve(store)) in {"0", "1", "2", "3"}


def test_what_has_no_manifest_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StoreError, match="it has no manifest"):
        publish(tmp_path / "a", tmp_path / "store", info={})
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("pointer", "says"),
    [
        (None, "found a directory"),
        ("{", "expected JSON with `directory`"),
        ("[]", "expected JSON with `directory`"),
        ("{}", "KeyError"),
        ('{"directory": "../../etc"}', "must name a directory beside it"),
        ('{"directory": ".."}', "must name a directory beside it"),
        ('{"directory": "gone"}', "has no manifest.json; publish a version again"),
    ],
)
def test_a_store_that_cannot_be_read_says_why(tmp_path: Path, pointer: str | None, says: str) -> None:
    if pointer is not None:
        (tmp_path / "current").write_text(pointer)
    with pytest.raises(StoreError, match=says):
        resolve(tmp_path)


def test_nothing_at_the_path_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found nothing"):
        resolve(tmp_path / "none")


def test_a_watcher_takes_up_what_is_published(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish(version(tmp_path, "a", "one"), store, info={})
    taken: list[str | None] = []
    watcher = Watcher(store, read, name="bundle", on_change=lambda: taken.append(watcher.value))
    assert watcher.check()
    assert not watcher.check()
    publish(version(tmp_path, "b", "two"), store, info={})
    assert watcher.check()
    publish(tmp_path / "a", store, info={})
    assert watcher.check()
    assert taken == ["one", "two", "one"]


def test_a_broken_version_is_refused_once_and_the_last_good_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    publish(version(tmp_path, "a", "one"), store, info={})
    watcher = Watcher(store, read, name="bundle")
    watcher.check()
    publish(version(tmp_path, "b", "broken"), store, info={})
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert not watcher.check()
    assert watcher.value == "one"
    assert watcher.problem == "ValueError: checksum differs"
    assert [r.getMessage() for r in caplog.records] == [
        f"bundle at {store} was refused, the last good one stays in use. ValueError: checksum differs"
    ]
    publish(version(tmp_path, "c", "three"), store, info={})
    assert watcher.check()
    assert (watcher.value, watcher.problem) == ("three", None)


def test_a_fault_that_passes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [OSError("disk"), None]

    def load(directory: Path) -> str:
        fault = faults.pop(0)
        if fault is not None:
            raise fault
        return read(directory)

    watcher = Watcher(version(tmp_path, "a", "one"), load, name="bundle")
    assert not watcher.check()
    assert not watcher.check()  # not at every look
    monkeypatch.setattr("serving.store.RETRY_SECONDS", 0.0)
    assert watcher.check()
    assert watcher.value == "one"


def test_a_watcher_of_nothing_waits_until_something_is_there(tmp_path: Path) -> None:
    assert not Watcher(None, read, name="bundle").check()
    watcher = Watcher(tmp_path / "store", read, name="bundle")
    assert not watcher.check()
    assert (watcher.value, watcher.problem) == (None, None)
    publish(version(tmp_path, "a", "one"), tmp_path / "store", info={})
    assert watcher.check()


def test_a_directory_replaced_in_place_is_taken_up(tmp_path: Path) -> None:
    directory = version(tmp_path, "a", "one")
    watcher = Watcher(directory, read, name="bundle")
    watcher.check()
    os.replace(directory, tmp_path / "old")
    version(tmp_path, "a", "two")
    assert watcher.check()
    assert watcher.value == "two"


def test_the_thread_takes_up_a_version_by_itself(tmp_path: Path) -> None:
    store = tmp_path / "store"
    changed = threading.Event()
    watcher = Watcher(store, read, name="bundle", on_change=changed.set)
    watcher.start(interval=0.01)
    publish(version(tmp_path, "a", "one"), store, info={})
    assert changed.wait(10)
    watcher.stop()
    assert watcher.value == "one"
