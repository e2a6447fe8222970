"""A shop as the service would have it loaded, with levers that are known, to be advised."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import tomli_w

from features.dataset import Dataset
from features.rows import Rows
from features.snapshot import Snapshot
from serving.actions import weigh
from serving.bundle import Bundle
from serving.carriers import CarrierLever
from serving.levers import Lever
from serving.policy import Policy
from serving.score import Scoring, _tables
from training.policy import draft

ASKED = 40


@dataclass
class Shop:
    """What a service would have loaded, and requests of its newest parcels."""

    bundle: Bundle
    snapshot: Snapshot
    document: dict[str, Any]
    requests: list[dict[str, Any]]

    def policy(self, change: Callable[[dict[str, Any]], None] = lambda d: None) -> Policy:
        """The shop's policy, with something changed."""
        document = copy.deepcopy(self.document)
        change(document)
        return Policy.parse(tomli_w.dumps(document))

    def options(self, policy: Policy, requests: list[dict[str, Any]]) -> Any:
        rows = Rows(_tables(requests, self.snapshot), self.snapshot)
        scoring = Scoring(self.bundle, rows)
        return weigh(self.bundle, policy, rows, {t: e.probability for t, e in scoring.targets()}), rows


def lever(target: str, column: str, **terms: float) -> Lever:
    names = tuple({"one": "1"}.get(t, t) for t in terms)
    k = len(names)
    covariance = tuple(tuple(0.01 * (i == j) for j in range(k)) for i in range(k))
    return Lever(target, column, names, tuple(terms.values()), covariance, (0.0,) * k, 1000, 100)


LEVERS = (
    lever("damaged", "protection_level", one=-0.2, fragility=-0.15),
    lever("returned", "protection_level", one=-0.02, fragility=-0.01),
    lever("damaged", "void_fill_ratio", one=-0.5),
    lever("late", "label_grade", one=0.1),
    lever("undelivered", "label_grade", one=0.2),
    lever("late", "documents_complete", one=-0.7),
    lever("failed_attempt", "address_quality", one=-1.5),
)


def carriers(target: str, error: float = 0.0, **effects: float) -> CarrierLever:
    """The same everywhere; of the services of the simulated carriers those that several have."""
    pairs = tuple((c, s) for c in effects for s in ("economy", "standard"))
    covariance = tuple(tuple(error**2 * (i == j) for j in range(len(pairs))) for i in range(len(pairs)))
    kinds, values = tuple(s for _, s in pairs), tuple(effects[c] for c, _ in pairs)
    return CarrierLever(target, pairs, kinds, (), (values,), (covariance,), 1000, 100)


CARRIERS = {"failed_attempt": carriers("failed_attempt", alba=-0.3, borea=0.0, corvus=0.4, dorado=0.1)}


def open_shop(trained: Any) -> Shop:
    """The trained world of the tests, with a policy as drafted, but for what makes its parts differ."""
    dataset = Dataset.open(trained.dataset)
    bundle = Bundle.load(trained.bundle)
    bundle.levers = LEVERS  # known ones, whatever a small shop could estimate
    bundle.carriers = CARRIERS
    document = tomllib.loads(draft(dataset))
    document["tiers"][0]["from"] = 20.0  # some parcels have none
    document["weights"] |= {"speed": 1.3, "reliability": 0.9, "cost": 1.1, "co2e": 0.2}
    for name, tariff in document["carriers"]["alba"].items():
        tariff["base_price"] += {"economy": -0.5, "standard": 0.1, "express": 2.0}[name]
        tariff["co2e_g_per_kg_km"] = 0.1
    document["packages"]["foam_box"] |= {"length_mm": 420.0, "width_mm": 320.0, "height_mm": 310.0}
    del document["packages"]["foam_box"]["volume_factor"]
    return Shop(bundle, Snapshot.load(trained.snapshot), document, requests_of(dataset, ASKED))


def requests_of(dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """Requests for the newest parcels."""
    tables = {k: dataset.tables[k] for k in ("orders", "parcels", "order_lines")}

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for k, v in row.items():
            if v is None or v != v:
                continue
            flag = k in ("is_business", "documents_complete")
            out[k] = v.to_pydatetime() if isinstance(v, pd.Timestamp) else bool(v) if flag else v
        return out

    newest = tables["parcels"].sort_values("packed_at").tail(n)
    orders = tables["orders"][tables["orders"]["order_id"].isin(newest["order_id"])]
    order = {r["order_id"]: plain(r) for r in orders.to_dict("records")}
    lines: dict[str, list[Any]] = {}
    of = tables["order_lines"][tables["order_lines"]["parcel_id"].isin(newest["parcel_id"])]
    for r in of.to_dict("records"):
        lines.setdefault(r["parcel_id"], []).append(plain(r))
    return [
        {"order": order[r["order_id"]], "parcel": plain(r), "lines": lines[r["parcel_id"]], "listings": []}
        for r in newest.to_dict("records")
    ]
