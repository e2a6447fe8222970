"""Compiled trees: exact against the definition and against LightGBM, the same alone and in company, robust as files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.trees import ARRAYS, CompiledTrees, RawTogether
from tests.oracles.shapley import TINY, shapley
from training.models.compile import compile_booster, shapley_of_products

Floats = NDArray[Any]


def data(n: int = 3000, f: int = 12, seed: int = 0, missing: float = 0.15) -> tuple[Floats, Floats]:
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, f)).astype(np.float32)
    x[:, 0] = r.integers(0, 4, n)
    x[:, 1] = np.where(r.random(n) < 0.5, 0, r.normal(size=n))
    x[:, 2:] = np.where(r.random((n, f - 2)) < missing, np.nan, x[:, 2:])
    filled = np.nan_to_num(x)
    z = filled[:, 3] * 1.5 + filled[:, 4] * filled[:, 0] - (filled[:, 1] == 0) + np.isnan(x[:, 5]) - 1
    return x, (r.random(n) < 1 / (1 + np.exp(-z))).astype(np.float32)


def fit(
    x: Floats,
    y: Floats,
    trees: int = 40,
    categories: Any = "auto",
    init_model: lgb.Booster | None = None,
    **params: Any,
) -> lgb.Booster:
    settings = {
        "objective": "binary",
        "num_leaves": 31,
        "max_depth": 8,
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": 0,
        "learning_rate": 0.1,
    } | params
    rows = lgb.Dataset(x, y, params=settings, categorical_feature=categories, free_raw_data=False)
    return lgb.train(settings, rows, trees, init_model=init_model)


def predict(booster: lgb.Booster, rows: Floats, **how: Any) -> Floats:
    return np.asarray(booster.predict(rows, num_threads=1, **how))


def awkward(booster: lgb.Booster, x: Floats) -> Floats:
    """Rows made of every cut of the model, its two neighbours, zeros of all sizes, infinities and NaN."""
    cuts: dict[int, set[float]] = {}
    todo = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while todo:
        node = todo.pop()
        if "leaf_value" not in node:
            cuts.setdefault(node["split_feature"], set()).add(node["threshold"])
            todo += [node["left_child"], node["right_child"]]
    r = np.random.default_rng(1)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, TINY, -TINY, 5e-36, -5e-36, 1.1e-35, -1.1e-35, 5e-324, 1e300, -1e300]
    columns = []
    for j in range(x.shape[1]):
        values = np.array(
            special + [v for c in cuts.get(j, ()) for v in (c, np.nextafter(c, -1e9), np.nextafter(c, 1e9))]
        )
        columns.append(np.concatenate([values, r.choice(values, 1500 - len(values) % 1500)])[:1500])
    rows = np.stack([r.permutation(c) for c in columns], axis=1)
    return np.where(r.random(rows.shape) < 0.5, rows, r.permutation(x)[: len(rows)].astype(np.float64))


MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "missing handled as zero": {"use_missing": False},
    "zero as missing": {"zero_as_missing": True},
    "shallow": {"max_depth": 2},
    "stumps": {"num_leaves": 2},
    "many leaves": {"num_leaves": 64, "min_data_in_leaf": 5},
    "few bins, repeated cuts": {"max_bin": 4},
    "monotone": {"monotone_constraints": [0, 0, 0, 1] + [0] * 8, "monotone_constraints_method": "basic"},
    "bagged": {"bagging_fraction": 0.5, "bagging_freq": 1, "feature_fraction": 0.5},
    "dart": {"boosting": "dart"},
    "regression": {"objective": "regression"},
    "extra": {"extra_trees": True, "path_smooth": 1.0, "lambda_l2": 5.0},
}


@pytest.fixture(scope="module")
def rows() -> Floats:
    return data()[0]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def booster(request: pytest.FixtureRequest) -> lgb.Booster:
    return fit(*data(), **MODELS[request.param])


@pytest.fixture(scope="module")
def plain() -> lgb.Booster:
    return fit(*data())


@pytest.fixture(scope="module")
def compiled(plain: lgb.Booster) -> CompiledTrees:
    return compile_booster(plain)


class TestExactness:
    def test_contributions_and_base_are_those_of_lightgbm(self, booster: lgb.Booster, rows: Floats) -> None:
        compiled, x = compile_booster(booster), rows[:500]
        expected = predict(booster, x, pred_contrib=True)
        np.testing.assert_allclose(compiled.contributions(x), expected[:, :-1], rtol=0, atol=1e-12)
        assert abs(compiled.base - expected[0, -1]) < 1e-12

    def test_raw_scores_are_those_of_lightgbm_bit_for_bit(self, booster: lgb.Booster, rows: Floats) -> None:
        np.testing.assert_array_equal(compile_booster(booster).raw(rows), predict(booster, rows, raw_score=True))

    def test_cuts_zeros_infinities_and_missing_values_go_where_lightgbm_sends_them(
        self, booster: lgb.Booster, rows: Floats
    ) -> None:
        compiled, x = compile_booster(booster), awkward(booster, rows)
        np.testing.assert_array_equal(compiled.raw(x), predict(booster, x, raw_score=True))
        expected = predict(booster, x[:300], pred_contrib=True)[:, :-1]
        np.testing.assert_allclose(compiled.contributions(x[:300]), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("params", [{}, {"use_missing": False}, {"zero_as_missing": True}], ids=str)
    def test_contributions_are_shapley_values_by_definition(self, params: dict[str, Any]) -> None:
        x, y = data(f=7, missing=0.2)
        booster = fit(x, y, trees=6, num_leaves=20, min_data_in_leaf=5, max_bin=16, **params)
        compiled, model = compile_booster(booster), booster.dump_model()
        some = np.vstack([x[:12], awkward(booster, x)[:12]])
        for row, values in zip(some, compiled.contributions(some), strict=True):
            base, phi = shapley(model, row.tolist())
            np.testing.assert_allclose(values, phi, rtol=0, atol=1e-12)
            assert abs(compiled.base - base) < 1e-12

    def test_product_games_of_up_to_eight_players(self) -> None:
        r = np.random.default_rng(3)
        for k in range(1, 9):
            value, share = r.normal(size=5), r.random((5, k))
            got = shapley_of_products(value, share)
            satisfied = (np.arange(1 << k)[:, None] >> np.arange(k)) & 1
            whole = value[:, None] * satisfied.all(axis=1)
            np.testing.assert_allclose(got.sum(axis=2), whole - (value * share.prod(axis=1))[:, None], atol=1e-14)
            # two players' values differ as the game does: exchanging players exchanges values
            swapped = shapley_of_products(value, share[:, ::-1])
            mirror = (satisfied[:, ::-1] << np.arange(k)).sum(axis=1)
            np.testing.assert_allclose(swapped[:, mirror], got[:, :, ::-1], atol=1e-15)

    def test_they_add_up_to_the_raw_score(self, booster: lgb.Booster, rows: Floats) -> None:
        compiled = compile_booster(booster)
        total = compiled.base + compiled.contributions(rows[:300]).sum(axis=1)
        np.testing.assert_allclose(total, compiled.raw(rows[:300]), rtol=0, atol=1e-12)

    def test_a_tree_that_is_a_single_leaf(self, rows: Floats) -> None:
        x, y = data()
        stump = fit(x, y, trees=3, min_data_in_leaf=len(x))
        mixed = fit(x, y, trees=5, init_model=stump)
        single = ["leaf_value" in tree["tree_structure"] for tree in mixed.dump_model()["tree_info"]]
        assert any(single) and not all(single)
        for booster in (stump, mixed):
            compiled = compile_booster(booster)
            np.testing.assert_array_equal(compiled.raw(rows), predict(booster, rows, raw_score=True))
            expected = predict(booster, rows[:50], pred_contrib=True)
            np.testing.assert_allclose(compiled.contributions(rows[:50]), expected[:, :-1], rtol=0, atol=1e-12)
            assert compiled.base == pytest.approx(expected[0, -1], abs=1e-12)

    def test_the_best_iteration_is_taken_where_training_stopped_early(self, rows: Floats) -> None:
        booster = fit(*data())
        booster.best_iteration = 7
        compiled = compile_booster(booster)
        np.testing.assert_array_equal(compiled.raw(rows), predict(booster, rows, raw_score=True, num_iteration=7))


class TestCompany:
    @pytest.mark.parametrize("n", [1, 2, 199, 200, 1000])
    def test_a_row_is_the_same_alone_and_among_others(self, compiled: CompiledTrees, rows: Floats, n: int) -> None:
        some = [0, n // 2, n - 1]
        for method in (compiled.contributions, compiled.raw):
            together = method(rows[:n])
            assert together.shape[0] == n
            for i in some:
                np.testing.assert_array_equal(together[i], method(rows[i : i + 1])[0])

    def test_more_rows_than_are_worked_on_at_a_time(self, compiled: CompiledTrees, rows: Floats) -> None:
        x = np.tile(rows, (4, 1))
        np.testing.assert_array_equal(compiled.contributions(x), np.tile(compiled.contributions(rows), (4, 1)))
        np.testing.assert_array_equal(compiled.raw(x), np.tile(compiled.raw(rows), 4))

    def test_float32_and_float64_rows_are_the_same(self, compiled: CompiledTrees, rows: Floats) -> None:
        x = rows[:5]
        np.testing.assert_array_equal(
            compiled.contributions(x), compiled.contributions(np.asfortranarray(x, dtype=float))
        )

    def test_no_rows(self, compiled: CompiledTrees) -> None:
        assert compiled.contributions(np.empty((0, 12))).shape == (0, 12)
        assert compiled.raw(np.empty((0, 12))).shape == (0,)

    @pytest.mark.parametrize("shape", [(12,), (3, 11), (1, 3, 12)], ids=str)
    def test_rows_of_another_shape_are_refused(self, compiled: CompiledTrees, shape: tuple[int, ...]) -> None:
        for method in (compiled.contributions, compiled.raw):
            with pytest.raises(ValueError, match=r"needs \(n, 12\)"):
                method(np.zeros(shape))


class TestTogether:
    def test_each_model_says_what_it_says_alone_bit_for_bit(self, booster: lgb.Booster, rows: Floats) -> None:
        x, y = data(seed=5)
        others = [fit(x, y, 10), fit(x, y, 5, zero_as_missing=True, max_bin=9), fit(x, np.ones(len(x)), 2)]
        models = [compile_booster(b) for b in (others[0], booster, *others[1:])]
        joined = RawTogether(models)
        for some in (awkward(booster, rows)[:150], rows[:50]):
            alone = np.stack([m.raw(some) for m in models], axis=1)
            assert np.array_equal(np.stack([joined.raw(some[i : i + 1]) for i in range(len(some))]), alone)

    def test_models_of_other_features_are_refused(self, compiled: CompiledTrees) -> None:
        x, y = data(f=13)
        with pytest.raises(ValueError, match=r"models of \[12, 13\] features cannot be joined"):
            RawTogether([compiled, compile_booster(fit(x, y, 2))])


class TestRefusals:
    @pytest.mark.parametrize(
        ("params", "todo"),
        [
            ({"objective": "multiclass", "num_class": 2}, "train one binary model per class"),
            ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "train with boosting=gbdt"),
            ({"max_depth": 12, "num_leaves": 64, "min_data_in_leaf": 2}, "train with max_depth=8"),
            ({"linear_tree": True}, "train with linear_tree=false"),
            ({"categories": [0]}, "train without categorical_feature"),
        ],
        ids=["multiclass", "random forest", "too deep", "linear", "categorical"],
    )
    def test_what_cannot_be_exact_is_refused_with_what_to_do(self, params: dict[str, Any], todo: str) -> None:
        x, y = data()
        x = np.nan_to_num(x) if "linear_tree" in params else x
        with pytest.raises(ValueError, match=todo):
            compile_booster(fit(x, y, trees=20, **params))


class TestFiles:
    @pytest.mark.parametrize("mmap", [True, False])
    def test_what_was_saved_is_loaded(self, compiled: CompiledTrees, rows: Floats, tmp_path: Path, mmap: bool) -> None:
        compiled.save(tmp_path / "deep" / "model")
        loaded = CompiledTrees.load(tmp_path / "deep" / "model", mmap=mmap)
        assert (loaded.n_features, loaded.base, loaded.nbytes) == (compiled.n_features, compiled.base, compiled.nbytes)
        np.testing.assert_array_equal(loaded.contributions(rows[:300]), compiled.contributions(rows[:300]))
        np.testing.assert_array_equal(loaded.raw(rows[:3]), compiled.raw(rows[:3]))

    def test_the_files_are_plain_numpy_and_the_same_each_time(
        self, plain: lgb.Booster, compiled: CompiledTrees, tmp_path: Path
    ) -> None:
        compiled.save(tmp_path / "a")
        compile_booster(plain).save(tmp_path / "b")
        assert {p.name for p in (tmp_path / "a").iterdir()} == {f"{name}.npy" for name in ARRAYS}
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
            np.load(path, allow_pickle=False)

    def test_a_missing_file_is_named(self, compiled: CompiledTrees, tmp_path: Path) -> None:
        compiled.save(tmp_path)
        (tmp_path / "table.npy").unlink()
        with pytest.raises(ValueError, match=r"table\.npy: cannot be read \(No such file"):
            CompiledTrees.load(tmp_path)

    def test_another_protocol_is_refused(self, compiled: CompiledTrees, tmp_path: Path) -> None:
        compiled.save(tmp_path)
        np.save(tmp_path / "size.npy", np.array([99, 12]))
        with pytest.raises(ValueError, match="protocol 99; this version reads 1: compile the model again"):
            CompiledTrees.load(tmp_path)

    @pytest.mark.parametrize("name", ARRAYS)
    def test_an_array_of_another_type_is_refused(self, compiled: CompiledTrees, tmp_path: Path, name: str) -> None:
        compiled.save(tmp_path)
        for other in (np.array([{}], dtype=object), np.array(["1"]), np.zeros(3, np.complex128), np.zeros((1, 1, 1))):
            np.save(tmp_path / f"{name}.npy", other, allow_pickle=True)
            with pytest.raises(ValueError, match=f"holds no compiled trees: {name}"):
                CompiledTrees.load(tmp_path)

    @pytest.mark.parametrize(
        ("name", "spoil"),
        [
            ("slot", -1),
            ("slot", 5 * 12),
            ("feature", 12),
            ("feature", -1),
            ("order", 0),
            ("order", 10**6),
            ("bits", 9),
            ("bits", 0),
            ("cut", np.nan),
            ("cut", 1e308),
            ("cut_feature", 12),
            ("cut_feature", -1),
            ("base", np.inf),
            ("leaf", np.nan),
            ("table", -np.inf),
        ],
    )
    def test_an_array_that_points_out_of_range_is_refused(
        self, compiled: CompiledTrees, tmp_path: Path, name: str, spoil: float
    ) -> None:
        compiled.save(tmp_path)
        array = np.load(tmp_path / f"{name}.npy")
        array.flat[0] = spoil
        if name == "order":
            array.flat[1] = spoil
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=rf"{name}[:,]"):
            CompiledTrees.load(tmp_path)

    def test_corrupted_files_are_refused_or_answer_within_range(self, rows: Floats, tmp_path: Path) -> None:
        compiled = compile_booster(fit(*data(), trees=3, num_leaves=12))
        compiled.save(tmp_path)
        r = np.random.default_rng(0)
        names = sorted(ARRAYS)
        refused = 0
        for trial in range(24 * len(names)):
            path = tmp_path / f"{names[trial % len(names)]}.npy"
            good = path.read_bytes()
            content = bytearray(good)
            match trial // len(names) % 4:
                case 0:  # flip bits of the header
                    content[r.integers(0, 128)] ^= 1 << r.integers(0, 8)
                case 1:  # and of the numbers
                    for at in r.integers(128, len(content), 4):
                        content[at] ^= 1 << r.integers(0, 8)
                case 2:
                    del content[r.integers(0, len(content)) :]
                case 3:
                    at = r.integers(0, len(content))
                    content[at : at + 8] = r.bytes(8)
            path.write_bytes(content)
            try:
                loaded = CompiledTrees.load(tmp_path, mmap=trial % 2 == 0)
            except ValueError as error:
                assert "holds no compiled trees" in str(error)
                refused += 1
            else:
                if loaded.n_features == 12:
                    with np.errstate(all="ignore"):  # a number may have become huge; only a checksum can tell
                        assert loaded.contributions(rows[:2]).shape == (2, 12)
                        assert loaded.raw(rows[:250]).shape == (250,)
            path.write_bytes(good)
        assert refused > 150

    def test_serving_needs_no_lightgbm(self, compiled: CompiledTrees, rows: Floats, tmp_path: Path) -> None:
        compiled.save(tmp_path)
        code = (
            "import sys, json, numpy as np; sys.modules['lightgbm'] = None\n"
            "from serving.trees import CompiledTrees\n"
            f"c = CompiledTrees.load({str(tmp_path)!r})\n"
            "print(json.dumps(c.contributions(np.zeros((1, 12))).tolist()))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        np.testing.assert_array_equal(json.loads(run.stdout), compiled.contributions(np.zeros((1, 12))))
