"""A look at one value: it is the value the model gets, and its facts add up to its counts."""

import json

import numpy as np
import pandas as pd
import pytest
from oracles.asof import matrix
from oracles.dataset import START, shop

from features.dataset import Dataset
from features.matrix import catalogue
from features.snapshot import Facts
from training.evaluate.inspection import inspect

ALL = 10**9


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return shop(0)


@pytest.fixture(scope="module")
def expected(dataset: Dataset) -> dict[str, pd.DataFrame]:
    facts = Facts.of(dataset)
    every = list(catalogue(dataset.settings).values())
    return {unit: matrix(facts.rows, unit, every) for unit in ("parcel", "line")}


EVERY = sorted(catalogue(shop(0, 5).settings).values(), key=lambda f: f.name)
ASKED = [
    (f.name, unit)
    for f in EVERY[::6]
    for unit in ("parcel", "line")
    if unit == f.level or unit == "line" or f.aggregate
]


@pytest.mark.parametrize(("name", "unit"), ASKED)
def test_the_value_is_the_matrixs_and_the_facts_add_up_to_its_counts(
    dataset: Dataset, expected: dict[str, pd.DataFrame], name: str, unit: str
) -> None:
    frame = expected[unit]
    for unit_id in [i for i in frame.index if not i.startswith("order:")][-40::20]:
        seen = inspect(dataset, name, **{unit: unit_id}, most=ALL)

        np.testing.assert_equal(np.float32(seen.value), frame.loc[unit_id, name])
        assert seen.unit_id == unit_id
        for count in seen.counts:
            what = count.field.split(":")
            if what[1] in ("ordered", "packed"):
                continue
            column = "units" if what[0] == "n" else "positives"
            assert (count.facts[column].sum() if len(count.facts) else 0) == count.value, count
            assert (pd.to_datetime(count.facts["known"]) < pd.Timestamp(seen.decided_at).normalize()).all()


def test_the_inputs_of_a_parcel_are_of_its_own_lines(dataset: Dataset) -> None:
    lines = dataset.tables["order_lines"].dropna(subset=["parcel_id", "quantity"])
    orders = dataset.tables["parcels"].groupby("order_id")["parcel_id"].transform("size")
    second = dataset.tables["parcels"].loc[orders > 1, "parcel_id"]
    for parcel in second[second.isin(lines["parcel_id"])]:
        mine = lines.loc[lines["parcel_id"] == parcel]

        seen = inspect(dataset, "fill_share", parcel=parcel)

        sizes = dataset.tables["parcels"].set_index("parcel_id").loc[parcel]
        np.testing.assert_equal(
            seen.inputs["parcels.package_width_mm"],
            [None if np.isnan(sizes["package_width_mm"]) else sizes["package_width_mm"]],
        )
        assert set(mine["quantity"]) <= {q for q in seen.inputs["order_lines.quantity"] if q is not None}
        assert len(seen.inputs["order_lines.quantity"]) == len(seen.inputs["listings.height_mm"])


def test_the_latest_facts_are_listed_and_no_more_than_asked(dataset: Dataset) -> None:
    last = (
        dataset.tables["parcels"].sort_values("packed_at").dropna(subset=["packed_at", "carrier"])["parcel_id"].iloc[-1]
    )

    few, all_of_them = (inspect(dataset, "late_rate_carrier_service_90d", parcel=last, most=n) for n in (3, ALL))

    shop_wide = [c for c in all_of_them.counts if c.entity == "all (the whole shop)" and c.field == "n:late"]
    assert len(shop_wide[0].facts) > 3
    for short, long in zip(few.counts, all_of_them.counts, strict=True):
        assert (short.entity, short.field, short.window, short.value) == (
            long.entity,
            long.field,
            long.window,
            long.value,
        )
        pd.testing.assert_frame_equal(short.facts, long.facts.head(3))
        assert long.facts["known"].is_monotonic_decreasing


def test_what_nobody_knows_has_no_facts(dataset: Dataset) -> None:
    unknown = dataset.tables["parcels"].query("carrier.isna()")["parcel_id"].iloc[-1]

    seen = inspect(dataset, "late_rate_carrier_service_90d", parcel=unknown, most=ALL)

    of_carrier = [c for c in seen.counts if c.entity.startswith("carrier")]
    assert of_carrier
    assert all(c.value == 0 and c.facts.empty for c in of_carrier)


def test_as_of_an_earlier_moment_less_is_known(dataset: Dataset) -> None:
    last = dataset.tables["parcels"].sort_values("packed_at").dropna(subset=["packed_at"])["parcel_id"].iloc[-1]
    early = (
        (START + pd.Timedelta(days=20)).tz_convert("Europe/Berlin").tz_localize(None).isoformat()
    )  # on the shop's clock

    now, then = (inspect(dataset, "undelivered_rate_customer", parcel=last, as_of=t, most=ALL) for t in (None, early))

    whole = {c.entity: c for c in now.counts if c.field == "n:undelivered"}["all (the whole shop)"]
    part = {c.entity: c for c in then.counts if c.field == "n:undelivered"}["all (the whole shop)"]
    assert 0 < part.value < whole.value
    assert part.facts["known"].max() < "2024-04-10"


@pytest.mark.parametrize("name", ["label_grade", "returned_rate_sku", "node_load", "parcels.taped", "several_variants"])
def test_it_is_plain_data_for_json(dataset: Dataset, name: str) -> None:
    line = dataset.tables["order_lines"].dropna(subset=["parcel_id"])["line_id"].iloc[3]

    document = json.loads(json.dumps(inspect(dataset, name, line=line).to_dict(), allow_nan=False))

    assert document["feature"] == name
    assert document["unit_id"] == line
    assert document["decided_at"].endswith("Z")
    assert document["inputs"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "label_grad", "parcel": "p1.0"}, "no feature is called 'label_grad'; did you mean 'label_grade'?"),
        ({"name": "label_grade"}, "give one of a parcel and an order line"),
        ({"name": "label_grade", "parcel": "p1.0", "line": "l1.0"}, "give one of a parcel and an order line"),
        ({"name": "label_grade", "parcel": "nobody's"}, 'no parcel "nobody\'s" in the table parcels'),
        ({"name": "label_grade", "line": "none"}, "no line 'none' in the table order_lines"),
        (
            {"name": "returned_rate_brand", "parcel": "p2.0"},
            "describes order lines only: give --line instead of --parcel",
        ),
    ],
)
def test_what_cannot_be_looked_at_says_why(dataset: Dataset, asked: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        inspect(dataset, **asked)
    assert message in str(error.value)
