"""What one would write without Doorstep: FastAPI, LightGBM's classifiers on a DataFrame, shap.TreeExplainer.

    PEER_MODELS=models.joblib uvicorn service:app

It is given an easier task: its request holds the finished features of a parcel and of its order lines, where Doorstep
computes them from the raw columns and the shop's history. Its models are the same trees; the explainers are made once.
"""

from __future__ import annotations

import os
from typing import Any

import joblib
import numpy as np
import pandas as pd
import shap
from fastapi import FastAPI
from pydantic import BaseModel

LOADED = joblib.load(os.environ["PEER_MODELS"])
# target -> (unit, names of its features, LGBMClassifier)
MODELS: dict[str, tuple[str, list[str], Any]] = LOADED["targets"]
# names of the reasons and of the features, LGBMClassifier; names of the features, an LGBMRegressor per quantile
REASONS: tuple[list[str], list[str], Any] | None = LOADED["reasons"]
WINDOW: tuple[list[str], list[Any]] | None = LOADED["window"]
WHY = shap.TreeExplainer(REASONS[2]) if REASONS else None
EXPLAINERS = {target: shap.TreeExplainer(model) for target, (_, _, model) in MODELS.items()}

app = FastAPI()


class Request(BaseModel):
    """Finished features."""

    parcel: dict[str, float | None]
    lines: list[dict[str, float | None]]


def explained(target: str, rows: list[dict[str, float | None]]) -> list[dict[str, Any]]:
    """Probability and contributions of each row."""
    _, names, model = MODELS[target]
    frame = pd.DataFrame(rows, columns=names, dtype=float)
    probabilities = model.predict_proba(frame)[:, 1]
    contributions = EXPLAINERS[target].shap_values(frame)
    return [
        {
            "probability": float(probability),
            "base": float(EXPLAINERS[target].expected_value),
            "drivers": [
                {"feature": name, "contribution": float(c)}
                for name, c in sorted(zip(names, row, strict=True), key=lambda pair: -abs(pair[1]))[:10]
            ],
        }
        for probability, row in zip(probabilities, contributions, strict=True)
    ]


def reasons(rows: list[dict[str, float | None]]) -> list[dict[str, Any]]:
    """Shares of the reasons of each row, and what drives the likeliest."""
    names, features, model = REASONS
    frame = pd.DataFrame(rows, columns=features, dtype=float)
    scores = np.exp(model.predict_proba(frame))  # trained with a loss of its own, it gives scores
    shares = scores / scores.sum(axis=1, keepdims=True)
    contributions = WHY.shap_values(frame)
    answers = []
    for share, parts in zip(shares, contributions, strict=True):
        k = int(share.argmax())
        drivers = sorted(zip(features, parts[:, k], strict=True), key=lambda pair: -abs(pair[1]))[:10]
        answers.append(
            {
                "reasons": dict(zip(names, share.tolist(), strict=True)),
                "reason": names[k],
                "drivers": [{"feature": name, "contribution": float(c)} for name, c in drivers],
            }
        )
    return answers


def window(row: dict[str, float | None]) -> list[float]:
    """Hours to the door: three quantiles."""
    features, models = WINDOW
    frame = pd.DataFrame([row], columns=features, dtype=float)
    return [float(np.exp(model.predict(frame)[0])) for model in models]


@app.get("/readyz")
def readyz() -> dict[str, str]:
    """The models are loaded."""
    return {"status": "ready"}


@app.post("/risk")
def risk(request: Request) -> dict[str, Any]:
    """The risks of one parcel."""
    answers: dict[str, Any] = {}
    for target, (unit, _, _) in MODELS.items():
        if unit == "parcel":
            answers[target] = explained(target, [request.parcel])[0]
        elif request.lines:
            answers[target] = explained(target, request.lines)
    if REASONS and request.lines:
        answers["reasons"] = reasons(request.lines)
    if WINDOW:
        answers["window"] = window(request.parcel)
    return answers
