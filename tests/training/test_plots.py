from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from training.evaluate.plots import calibration_plot, shap_plot


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png), format="png")


def drawn(png: bytes) -> float:
    """Share of pixels that are not white."""
    return float((pixels(png)[..., :3].min(axis=2) < 0.98).mean())


def drivers(rows: int = 120) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.normal(size=(rows, 4)), columns=["slack_hours", "label_grade", "empty", "constant"])
    values["empty"], values["constant"] = np.nan, 1.0
    return rng.normal(size=(rows, 4)) * [3, 2, 1, 0.5], values.astype(np.float32)


@pytest.mark.parametrize(
    ("label", "probability"),
    [
        (np.arange(500) % 20 == 0, np.linspace(0.01, 0.12, 500)),
        (np.zeros(40, dtype=int), np.linspace(0, 1, 40)),
        ([1, 0], [0.3, 0.3]),
        ([], []),
    ],
    ids=["usual", "one class", "one bin", "no rows"],
)
def test_a_calibration_plot_is_drawn_for_any_holdout(label, probability) -> None:
    assert drawn(calibration_plot("late", label, probability, unit="parcel")) > 0.01


def test_that_the_data_are_simulated_is_in_the_picture() -> None:
    label, probability = np.arange(500) % 20 == 0, np.linspace(0.01, 0.12, 500)
    plain = pixels(calibration_plot("late", label, probability))
    marked = pixels(calibration_plot("late", label, probability, simulated=True))
    title = slice(0, 50)

    assert plain.shape == marked.shape
    assert (plain[title] != marked[title]).any()
    assert (plain[60:] == marked[60:]).all()


def test_a_summary_plot_takes_features_without_values_and_is_the_same_every_time() -> None:
    contributions, values = drivers()
    first = shap_plot("late", contributions, values, unit="parcel", simulated=True)

    assert drawn(first) > 0.01
    assert first == shap_plot("late", contributions, values, unit="parcel", simulated=True)


def test_pictures_leave_the_callers_figures_and_randomness_alone() -> None:
    import matplotlib.pyplot as plt

    np.random.seed(3)  # noqa: NPY002  the global state is what is checked
    before = np.random.get_state()[1].copy(), plt.get_fignums()  # noqa: NPY002
    shap_plot("late", *drivers())
    calibration_plot("late", [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])

    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert plt.get_fignums() == before[1]


def test_shapes_that_do_not_fit_are_named() -> None:
    contributions, values = drivers()
    with pytest.raises(ValueError, match=r"shape \(120, 3\) given for values of shape \(120, 4\)"):
        shap_plot("late", contributions[:, :3], values)
    with pytest.raises(ValueError, match="at least one row"):
        shap_plot("late", contributions[:0], values.iloc[:0])
