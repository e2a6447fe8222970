"""The artefact of a diagnosis: one command, one database, every table there, and sums that add up."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from features.files import ArtefactError
from serving.diagnosis import DATABASE, FORMAT, SUMMARY, TABLES, shop_day
from training.cli import main
from training.diagnosis.artefact import rows, write
from training.world import generate


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a diagnosis, as any reader would have it."""
    db = sqlite3.connect(f"file:{folder / DATABASE}?mode=ro&immutable=1", uri=True)
    try:
        return {name: pd.read_sql_query(f'SELECT * FROM "{name}"', db) for name in TABLES}
    finally:
        db.close()


@pytest.fixture(scope="module")
def diagnosed(world_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the diagnosis of the small world, and what the command said."""
    out = tmp_path_factory.mktemp("diagnosed") / "diagnosis"
    done = CliRunner().invoke(main, ["diagnose", str(world_dataset), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out, done.stdout


def test_every_table_is_there_and_an_empty_one_says_why(diagnosed: tuple[Path, str]):
    said, tables = json.loads((diagnosed[0] / SUMMARY).read_text()), read(diagnosed[0])
    assert said["format"] == FORMAT and said["simulated"] and "SIMULATED" in diagnosed[1]
    assert f"what was known on {shop_day(said, 'as_of', last=True)}" in diagnosed[1].splitlines()[0]
    assert list(said["tables"]) == list(TABLES)
    for name, table in tables.items():
        assert list(table.columns) == list(TABLES[name].columns)
        assert said["tables"][name]["rows"] == len(table)
        assert bool(said["tables"][name]["why"]) == (not len(table)), name


def test_sums_add_up(diagnosed: tuple[Path, str]):
    said, t = json.loads((diagnosed[0] / SUMMARY).read_text()), read(diagnosed[0])
    parcels, lines, products = t["parcels"], t["lines"], t["products"]
    late = parcels[parcels["late"] == 1]
    assert late["whose"].notna().all() and parcels["whose"].notna().sum() == len(late)
    assert late["whose"].value_counts().to_dict() == {k: v for k, v in said["late"]["whose"].items() if v}
    came_back = lines[lines["returned"] == 1]
    assert ((came_back["counted"] == 1) ^ came_back["aside"].notna()).all()
    assert not lines.loc[lines["returned"] == 0, ["counted"]].to_numpy().any()
    assert (products["observed"] + products["aside"] == products["returns"]).all()
    assert (products["returns"].sum(), products["observed"].sum()) == (len(came_back), came_back["counted"].sum())
    assert products["expected"].sum() == pytest.approx(lines["expected"].sum())
    for target, told in said["corridors"].items():
        own = t["corridors"][t["corridors"]["target"] == target]
        assert (own["parcels"].sum(), own["observed"].sum()) == (told["parcels"], told["failures"])
        for _, row in own.head(20).iterrows():  # every number is a link to the rows it is made of
            same = (parcels[["carrier", "service", "region"]] == row[["carrier", "service", "region"]]).all(axis=1)
            behind = parcels[same & parcels[target].notna()]
            assert (len(behind), behind[target].sum()) == (row["parcels"], row["observed"])
            if row["others"]:
                assert behind[f"expected_{target}"].sum() == pytest.approx(row["expected"], nan_ok=True)


def test_late_parcels_of_a_carrier_are_split_and_add_up(diagnosed: tuple[Path, str]):
    t = read(diagnosed[0])
    carriers, corridors = t["carriers"], t["corridors"]
    late = carriers[carriers["target"] == "late"]
    assert (late[["ours", "theirs", "untold"]].sum(axis=1) == late["observed"]).all()
    assert carriers.loc[carriers["target"] != "late", "ours"].isna().all()
    keys = ["target", "carrier", "service"]
    sums = corridors.groupby(keys)[["parcels", "observed", "expected"]].sum()
    pd.testing.assert_frame_equal(
        carriers.set_index(keys)[["parcels", "observed", "expected"]].sort_index(), sums.sort_index()
    )


def test_figures_of_warehouses_and_packages_are_made_of_the_parcels_beside_them(diagnosed: tuple[Path, str]):
    t = read(diagnosed[0])
    parcels, readiness, packaging = t["parcels"], t["readiness"], t["packaging"]
    column = {"documents_missing": "documents_complete"}
    assert set(readiness["measure"]) == {"missed_cutoff", "backlog_hours", "label_poor", "documents_missing"}
    for _, row in readiness.iterrows():
        same = (parcels[["node", "shift"]] == row[["node", "shift"]]).all(axis=1)
        behind = parcels.loc[same, column.get(row["measure"], row["measure"])].dropna()
        observed = (1 - behind if row["measure"] in column else behind).sum()
        assert len(behind) == row["parcels"] and abs(observed - row["observed"]) < 1, dict(row)  # hours are told whole
    assert len(packaging)
    for _, row in packaging.head(50).iterrows():
        same = (parcels[["sku", "package_type"]] == row[["sku", "package_type"]]).all(axis=1)
        behind = parcels.loc[same, "damaged"].dropna()
        assert (len(behind), behind.sum()) == (row["parcels"], row["damaged"])
    several = t["lines"].groupby("parcel_id")["sku"].nunique().reindex(parcels["parcel_id"]).to_numpy() > 1
    assert parcels.loc[several, "sku"].isna().all()


def test_verdicts_are_three_and_intervals_hold_their_ratio(diagnosed: tuple[Path, str]):
    corridors = read(diagnosed[0])["corridors"]
    assert set(corridors["verdict"]) <= {"worse", "as expected", "cannot tell"}
    told = corridors.dropna(subset=["ratio"])
    assert ((told["low"] <= told["ratio"]) & (told["ratio"] <= told["high"])).all()
    assert (corridors["why"].notna() & (corridors["why"] != "")).all()


def test_advice_answers_what_the_product_comes_back_for(diagnosed: tuple[Path, str]):
    products = read(diagnosed[0])["products"]
    answers = {
        "wrong_size": {"has_size_guide": "add_size_guide", None: "check_sizes"},
        "not_as_described": {
            "photo_count": "add_photos",
            "description_length": "write_more",
            None: "check_photos_and_text",
        },
        "defect": {None: "check_quality"},
    }
    told = products[products["driver"].notna() | products["advice"].notna()]
    assert len(told) > 20
    for _, p in told.iterrows():
        driver = p["driver"] if isinstance(p["driver"], str) else None
        assert driver in answers[p["reason"]]
        assert p["advice"] == answers[p["reason"]][driver] or not p["named"]


def test_the_same_data_give_the_same_tables(tmp_path: Path):
    shop = generate(tmp_path / "shop", parcels=1_500, seed=3)
    for name in ("once", "again"):
        done = CliRunner().invoke(main, ["diagnose", str(shop), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    for name in (DATABASE, SUMMARY):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_cannot_be_done_is_said_before_anything_is_lost(world_dataset: Path, tmp_path: Path):
    late = CliRunner().invoke(
        main, ["diagnose", str(world_dataset), "--out", str(tmp_path / "x"), "--since", "2030-01-01"]
    )
    assert late.exit_code == 2 and "nothing was decided in between" in late.stderr
    assert not (tmp_path / "x").exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="holds no diagnosis: name another folder"):
        write({}, {}, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_values_are_stored_as_the_contract_says(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "sku": ["a", ""],
            "changed_at": [pd.Timestamp("2026-03-02T01:02:03"), pd.NaT],
            "before_lines": [3.0, float("nan")],
            "before_ratio": [float("inf"), 1.5],
            "judged_from": [pd.Timestamp("2026-04-01"), pd.NaT],
        }
    )
    first, second = rows("changes", frame)
    names = list(TABLES["changes"].columns)
    assert dict(zip(names, first, strict=True)) == dict.fromkeys(names) | {
        "sku": "a",
        "changed_at": "2026-03-02T01:02:03Z",
        "before_lines": 3,
        "judged_from": "2026-04-01",
    }
    assert dict(zip(names, second, strict=True)) == dict.fromkeys(names) | {"before_ratio": 1.5}
    with pytest.raises(KeyError, match="no column wrong"):
        list(rows("changes", pd.DataFrame({"wrong": [1]})))
    write({}, {"n": 1}, tmp_path / "d")
    write({"changes": frame}, {"n": 2}, tmp_path / "d")
    assert [p.name for p in sorted((tmp_path / "d").iterdir())] == [SUMMARY, DATABASE]
    assert len(read(tmp_path / "d")["changes"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
