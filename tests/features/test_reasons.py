"""Return reasons as shops write them: read where they mean something, counted where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from features.reasons import NOT_STATED, known_codes, owners, read
from features.settings import DatasetError, Settings
from features.vocabulary import RETURN_REASONS, TEAMS


def names(codes, settings=Settings()):  # noqa: B008 (frozen)
    found, unknown = read(np.array(codes, dtype=object), settings)
    every = [*owners(settings), None]
    return [every[i] for i in found], unknown


def test_doorsteps_own_reasons_and_those_of_known_systems_are_read():
    assert names(["wrong_size", "SIZE_TOO_SMALL", " size_too_large ", None])[0] == ["wrong_size"] * 3 + [None]
    assert all(reason in {*RETURN_REASONS, ""} for reason in known_codes().values())


def test_a_code_that_says_nothing_is_not_stated_and_not_unknown():
    silent = next(code for code, reason in known_codes().items() if reason == "")
    assert names([silent]) == ([None], {})


def test_unknown_codes_are_counted_and_read_as_not_stated():
    found, unknown = names(["R01", "wrong_size", "R02", "R01"])
    assert found == [None, "wrong_size", None, None]
    assert unknown == {"R01": 2, "R02": 1}


def test_what_systems_do_not_agree_on_is_not_guessed():
    assert "does_not_fit" not in known_codes()
    assert names(["DOES_NOT_FIT"]) == ([None], {"DOES_NOT_FIT": 1})


def test_a_shop_declares_reasons_of_its_own_and_whose_they_are():
    own = Settings(reasons={"R01": "listing", "damaged": "carrier"})
    assert names(["R01", "damaged"], own)[0] == ["R01", "damaged"]
    assert owners(own)["R01"] == "listing"
    assert owners(own)["damaged"] == "carrier"
    assert set(owners(own).values()) <= set(TEAMS)
    assert list(owners(own))[: len(RETURN_REASONS)] == list(RETURN_REASONS), "numbers of known reasons do not move"


def test_settings_with_reasons_survive_toml_and_json():
    import tomllib

    from features.settings import parse_settings

    own = Settings(reasons={'odd "one"': "packing"}, inspections_right=0.9)
    again, _, problems = parse_settings(tomllib.loads(own.to_toml()))
    assert not problems
    assert (again.reasons, again.inspections_right) == (own.reasons, 0.9)
    assert Settings.from_json(own.to_json()) == own


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"reasons": {"itchy": ""}}, "reasons.itchy: is owned by nobody"),
        ({"reasons": {"itchy": "listings"}}, "did you mean 'listing'?"),
        ({"reasons": {" ": "listing"}}, "a reason without a name"),
        ({"reasons": ["itchy"]}, "[reasons] with lines like"),
        ({"inspections_right": 0.5}, "inspections_right: given 0.5"),
        ({"inspections_right": True}, "inspections_right: given True"),
        ({"inspections_right": 94}, "above 0.5"),
    ],
)
def test_what_is_wrong_with_reasons_is_said(document, told):
    with pytest.raises(DatasetError) as caught:
        Settings.from_json(document)
    assert told in str(caught.value)


def test_a_column_without_any_reason():
    found, unknown = read(np.array([None, None], dtype=object), Settings())
    assert (found == NOT_STATED).all()
    assert unknown == {}
