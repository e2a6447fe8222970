"""What the return reason codes of known systems are read as: whole, allowed, sourced, and agreeing with each other."""

import re
import tomllib
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from features.vocabulary import RETURN_REASONS

ROOT = Path(__file__).resolve().parents[2]
REASONS = set(RETURN_REASONS)
SYSTEMS = tomllib.loads(files("features").joinpath("reason_codes.toml").read_text(encoding="utf-8"))
DISAGREE = {"does_not_fit"}
"""Codes read for no system, because systems mean different things by them."""


def meanings() -> dict[str, set[str]]:
    """What each code, as it is compared, is read as in all systems that use it."""
    found: dict[str, set[str]] = defaultdict(set)
    for system in SYSTEMS.values():
        for code, reason in system["codes"].items():
            found[code.strip().casefold()].add(reason)
    return found


def test_the_systems_shops_export_from_are_there() -> None:
    marketplaces = {
        "allegro",
        "amazon",
        "ebay",
        "kaufland",
        "mercado_libre",
        "otto",
        "shopee",
        "tiktok_shop",
        "walmart",
    }
    shops = {"adobe_commerce", "opencart", "oracle_commerce", "shopify", "shopify_library", "spree"}
    assert marketplaces | shops <= set(SYSTEMS)
    assert len(SYSTEMS) >= 19
    assert sum(len(system["codes"]) for system in SYSTEMS.values()) >= 880


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_says_what_it_is_and_where_its_codes_are_from(name: str) -> None:
    system = SYSTEMS[name]
    assert set(system) == {"words", "source", "codes"}
    assert re.fullmatch(r"[a-z_]+", name) and system["words"].strip() and system["codes"]
    assert re.fullmatch(r"https://[^/\s]+/\S*", system["source"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_code_is_read_as_one_of_the_reasons_or_as_none(name: str) -> None:
    codes = SYSTEMS[name]["codes"]
    assert set(codes.values()) <= REASONS | {""}
    assert all(code == code.strip() and code for code in codes)


def test_every_reason_is_reached_in_more_than_one_system() -> None:
    systems_of = {reason: {n for n, s in SYSTEMS.items() if reason in s["codes"].values()} for reason in REASONS}
    assert all(len(found) > 1 for found in systems_of.values()), systems_of


def test_systems_agree_on_a_code_they_share_but_for_those_known_not_to() -> None:
    assert {code for code, reasons in meanings().items() if len(reasons) > 1} == DISAGREE


def test_a_code_named_like_a_reason_means_that_reason() -> None:
    found = meanings()
    assert {reason: found[reason] for reason in REASONS & set(found)} == {r: {r} for r in REASONS & set(found)}


def test_codes_that_say_nothing_are_read_as_no_reason() -> None:
    found = meanings()
    for code in ("OTHER", "UNKNOWN", "NONE", "NO_REASON", "NO_REASON_GIVEN", "Other", "ETC", "notSpecified"):
        assert found[code.casefold()] == {""}, code


def test_no_code_is_so_short_that_it_could_be_anybodys() -> None:
    assert not [code for code in meanings() if code.isdecimal() or len(code) < 3]


def test_amazons_codes_mean_the_same_with_and_without_their_prefix() -> None:
    """Amazon's sellers who ship themselves get `CR-` in front of the codes of its own warehouses."""
    amazon = SYSTEMS["amazon"]["codes"]
    for code, reason in amazon.items():
        assert amazon.get(code.removeprefix("CR-"), reason) == reason


def test_the_lines_to_copy_are_lines_dataset_toml_takes() -> None:
    """The page gives ready lines for systems whose codes are too short to be recognised."""
    text = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
    blocks = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)]
    assert len(blocks) >= 3
    lines = [block["codes"]["reason"] for block in blocks if "codes" in block]
    own = {reason for block in blocks for reason in block.get("reasons", {})}
    assert {value for mapping in lines for value in mapping.values()} <= REASONS | own | {""}
    assert sum(len(mapping) for mapping in lines) > 50
