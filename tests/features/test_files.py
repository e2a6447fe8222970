"""Artefacts on disk: whole or refused, whatever happened to a single byte of them, and replaced by their like only."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.files import MANIFEST, ArtefactError, digest_of, seal, verify, write_frame

META = {"as_of": "2024-05-01", "share": 1.5e-05, "words": "ß", "nested": {"on": True, "none": None, "list": [1, 2]}}


def make(to: Path, text: str = "one", meta: dict = META, kind: str = "thing", protocol: int = 3) -> Path:
    part = to.with_name(f".{to.name}.part")
    (part / "sub").mkdir(parents=True)
    (part / "a.txt").write_text(text)
    (part / "empty").touch()
    (part / "sub" / "b.bin").write_bytes(bytes(range(256)))
    seal(part, to, kind, protocol, meta)
    return to


def read(folder: Path) -> dict:
    return verify(folder, "thing", 3, "make thing")


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    return make(tmp_path / "artefact")


def test_what_was_sealed_is_read_back(artefact: Path) -> None:
    assert read(artefact) == META
    assert digest_of(artefact) == hashlib.sha256((artefact / MANIFEST).read_bytes()).hexdigest()


def test_the_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    digests = [
        digest_of(make(tmp_path / name, text, meta, protocol=protocol))
        for name, text, meta, protocol in [
            ("a", "one", META, 3),
            ("b", "one", dict(reversed(META.items())), 3),
            ("c", "two", META, 3),
            ("d", "one", META | {"share": 2}, 3),
            ("e", "one", META, 4),
        ]
    ]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_every_single_byte_of_the_manifest_counts(artefact: Path) -> None:
    path, chance = artefact / MANIFEST, random.Random(0)
    good = path.read_bytes()
    for i in range(len(good)):
        # White space for white space and e for E too: JSON would read the same, the digest would not be the same.
        others = {
            good[i] ^ (1 << chance.randrange(8)),
            chance.randrange(256),
            *(b"\t\n\r " if good[i] in b" \n" else b""),
        }
        others |= {ord("E")} if good[i] == ord("e") else set()
        for other in others - {good[i]}:
            path.write_bytes(good[:i] + bytes([other]) + good[i + 1 :])
            with pytest.raises(ArtefactError):
                read(artefact)
    path.write_bytes(good)
    assert read(artefact) == META


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-1],
        lambda b: b + b"\n",
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"[]",
        lambda b: b"\xff\xfe",
    ],
)
def test_a_manifest_that_is_cut_or_longer_is_refused(artefact: Path, change) -> None:
    path = artefact / MANIFEST
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        read(artefact)


def test_every_changed_byte_of_a_file_is_noticed(artefact: Path) -> None:
    chance = random.Random(0)
    for name in ("a.txt", "sub/b.bin"):
        path = artefact / name
        good = path.read_bytes()
        for i in chance.choices(range(len(good)), k=20):
            path.write_bytes(good[:i] + bytes([good[i] ^ (1 << chance.randrange(8))]) + good[i + 1 :])
            with pytest.raises(
                ArtefactError, match=f"{path.name}: checksum differs from the manifest: copy the thing again"
            ):
                read(artefact)
        path.write_bytes(good)
    (artefact / "empty").write_text("x")
    with pytest.raises(ArtefactError, match="empty: checksum differs"):
        read(artefact)


def test_a_missing_and_a_further_file_are_named(artefact: Path) -> None:
    (artefact / "sub" / "more").touch()
    with pytest.raises(ArtefactError, match=r"files differ from the manifest \(sub/more\)"):
        read(artefact)
    (artefact / "sub" / "more").unlink()
    (artefact / "a.txt").unlink()
    with pytest.raises(ArtefactError, match=r"files differ from the manifest \(a.txt\)"):
        read(artefact)


def test_two_files_that_changed_places_are_noticed(tmp_path: Path) -> None:
    artefact = make(tmp_path / "artefact")
    (artefact / "a.txt").rename(artefact / "c")
    (artefact / "empty").rename(artefact / "a.txt")
    (artefact / "c").rename(artefact / "empty")

    with pytest.raises(ArtefactError, match="checksum differs"):
        read(artefact)


def test_another_kind_and_another_protocol_say_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is a stone, where a thing is needed"):
        read(make(tmp_path / "stone", kind="stone"))
    with pytest.raises(
        ArtefactError, match="thing of protocol 2, this version reads 3: make a new one with `make thing`"
    ):
        read(make(tmp_path / "old", protocol=2))


def test_nothing_a_file_and_an_empty_folder_are_no_artefacts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "file", "empty"):
        with pytest.raises(
            ArtefactError, match=r"no thing here \(manifest.json is missing\): make one with `make thing`"
        ):
            read(tmp_path / name)


def test_an_older_one_is_replaced_whole(tmp_path: Path) -> None:
    to = make(tmp_path / "artefact")
    (to / "left over").touch()  # even one that is damaged

    make(to, "two")

    assert read(to) == META
    assert (to / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_what_an_interrupted_run_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    to = make(tmp_path / "artefact")
    shutil.copytree(to, tmp_path / ".artefact.old")

    make(to, "two")

    assert read(to) == META
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_a_half_written_folder_is_never_in_the_place_of_a_whole_one(tmp_path: Path, monkeypatch) -> None:
    to = make(tmp_path / "artefact")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("features.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        make(to, "two")

    assert (to / "a.txt").read_text() == "one"
    assert read(to) == META


@pytest.mark.parametrize("manifest", [None, b"{}", b'{"kind": "stone"}', b'{"name": "a web app"}', b"not json"])
def test_a_folder_that_is_something_else_is_never_replaced(tmp_path: Path, manifest: bytes | None) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "work").write_text("of a year")
    if manifest is not None:
        (to / MANIFEST).write_bytes(manifest)

    with pytest.raises(ArtefactError, match="is there already and is no thing: name another folder"):
        make(to)

    assert (to / "work").read_text() == "of a year"


def test_a_file_is_not_replaced_and_an_empty_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtefactError, match="is there already"):
        make(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert read(make(tmp_path / "empty")) == META


def test_keys_that_are_numbers_are_read_as_text(tmp_path: Path) -> None:
    assert read(make(tmp_path / "a", meta={"by": {10: "x", 9: "y"}})) == {"by": {"10": "x", "9": "y"}}


def test_what_is_no_number_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        make(tmp_path / "a", meta={"auc": float("nan")})
    assert not (tmp_path / "a").exists()


def test_a_manifest_is_plain_json_for_other_tools(artefact: Path) -> None:
    manifest = json.loads((artefact / MANIFEST).read_text())

    assert set(manifest) == {"kind", "protocol", "meta", "files", "seal"}
    assert manifest["files"]["sub/b.bin"] == hashlib.sha256(bytes(range(256))).hexdigest()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_frame_is_written_whole(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    to = tmp_path / "new folder" / f"frame.{ending}"

    write_frame(frame, to)
    write_frame(frame, to)

    back = pd.read_csv(to) if ending == "csv" else pd.read_parquet(to)
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert [p.name for p in to.parent.iterdir()] == [to.name]
    assert np.array_equal(back["a"], [1, 2])
