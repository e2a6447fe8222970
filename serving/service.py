"""The BentoML adapter: two endpoints around `serving.score.decide`, their guard, health, metrics and documentation.

Nothing is decided here. One process holds one bundle, one snapshot and one policy, each watched and swapped whole; a
request takes them once, when it is validated, and keeps them to the end.

Settings, all optional: `DOORSTEP_BUNDLE` and `DOORSTEP_SNAPSHOT` (a directory, or a store of published versions),
`DOORSTEP_POLICY` (a file), `DOORSTEP_DIAGNOSIS` (a directory), `DOORSTEP_LEDGER` (the URL of a database: decisions,
outcomes and overrides are recorded), `DOORSTEP_WAITING` (a file: parcels that are announced wait in it to be scanned)
and `DOORSTEP_WAITING_DAYS`, `DOORSTEP_MAX_BODY` (bytes), `DOORSTEP_WORKERS` (processes), `DOORSTEP_PREFIX` (what a
proxy that does not strip it puts before every path), `DOORSTEP_LANGUAGE` (of the pages).
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # before bentoml reads it: nothing phones home

import bentoml
from _bentoml_sdk.io_models import IORootModel
from _bentoml_sdk.service import Service
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from features.definitions import FEATURES
from features.feature import Feature
from features.matrix import catalogue
from features.snapshot import Snapshot
from serving.advice import ASKING, Asking, Capacity, new_id
from serving.bundle import Bundle
from serving.diagnosis import SUMMARY, shop_day
from serving.guard import MAX_BODY, SCOPE_KEY, App, Guard, Refused, later
from serving.ledger.schemas import DOCS, PATHS
from serving.ledger.schemas import read as read_report
from serving.pages import Site, Sources, Status, prepared
from serving.pages import routes as page_routes
from serving.pages.data import refused
from serving.pages.home import missing
from serving.pages.openapi import described
from serving.pages.shadow import KINDS, Reader, Shadow
from serving.pages.verdict import SCAN_DOCS, read_scan, shown, unknown, verdict
from serving.policy import Policy
from serving.rehearsal import rehearse
from serving.schemas import EXAMPLE, Answer, Invalid, Rules, openapi
from serving.score import decide, unknown_codes
from serving.store import STATES, Watcher
from serving.together import Together
from serving.waiting import DAYS, Waiting, WaitingError

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

    from serving.ledger import Recorder

ENDPOINTS: dict[str, str] = {
    "/v1/risk": "POST",
    "/v1/risk/batch": "POST",
    "/v1/parcels": "POST",
    "/v1/parcels/scan": "POST",
    "/v1/outcomes": "POST",
    "/v1/overrides": "POST",
    "/v1/changes": "POST",
    "/v1/withdrawals": "POST",
    "/docs.json": "GET",
    "/schema.json": "GET",
    "/livez": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
}
"""Everything the service answers; the pages' paths are added below."""

_RULES = Rules()

logger = logging.getLogger("doorstep.service")


@dataclass(frozen=True)
class Loaded:
    """What one request is answered with; never changed, only replaced."""

    bundle: Bundle | None
    snapshot: Snapshot | None
    rules: Rules
    policy: Policy | None = None


@dataclass(frozen=True)
class Work:
    """Validated requests and what they are to be answered with, and how they were asked."""

    requests: list[dict[str, Any]]
    loaded: Loaded
    asking: Asking = ASKING


class Live:
    """The bundle, the snapshot, the policy, the diagnosis and the ledger of this process.

    Attributes:
        loaded: what is used now; replaced whole, in one assignment.
        capacity: what the processes of this machine have recommended.
        recorder: records decisions and reports; None if no ledger is kept.
        waiting: the parcels that wait to be packed; None if none are kept.
    """

    def __init__(self) -> None:
        self.bundle = Watcher(
            os.environ.get("DOORSTEP_BUNDLE") or None, self._load_bundle, name="bundle", on_change=self._swap
        )
        self.snapshot = Watcher(
            os.environ.get("DOORSTEP_SNAPSHOT") or None, self._load_snapshot, name="snapshot", on_change=self._swap
        )
        self.policy = Watcher(
            os.environ.get("DOORSTEP_POLICY") or None, self._load_policy, name="policy", on_change=self._swap
        )
        self.diagnosis = Watcher(
            os.environ.get("DOORSTEP_DIAGNOSIS") or None,
            prepared,
            name="diagnosis",
            on_change=lambda: self.on_swap(self.loaded),
            manifest=SUMMARY,
        )
        self.capacity = Capacity()
        self.loaded = Loaded(None, None, _RULES)
        self.on_swap: Callable[[Loaded], None] = lambda loaded: None
        self.recorder: Recorder | None = None
        self.waiting: Waiting | None = None

    def start(self) -> None:
        """Load what is configured, then keep looking for new versions."""
        for watcher in (self.snapshot, self.bundle, self.policy, self.diagnosis):
            watcher.check()
            watcher.start()
        if os.environ.get("DOORSTEP_LEDGER"):
            from serving.ledger import Recorder

            self.recorder = Recorder.from_environment()
        if file := os.environ.get("DOORSTEP_CAPACITY"):
            self.capacity = Capacity(Path(file))
        elif self.recorder is not None:
            self.capacity = Capacity(self.recorder.paths.journal / "capacity.sqlite")
        if os.environ.get("DOORSTEP_WAITING"):
            days = float(os.environ.get("DOORSTEP_WAITING_DAYS") or DAYS)
            self.waiting = Waiting(os.environ["DOORSTEP_WAITING"], days)

    def stop(self) -> None:
        """Stop looking, and deliver what was recorded."""
        for watcher in (self.snapshot, self.bundle, self.policy, self.diagnosis):
            watcher.stop()
        if self.recorder is not None:
            self.recorder.close()
        self.capacity.close()
        if self.waiting is not None:
            self.waiting.close()

    def _load_bundle(self, directory: Path) -> Bundle:
        """A bundle that has answered once: one that cannot is refused here, and no request pays for a first time."""
        bundle = Bundle.load(directory)
        self._rehearse(bundle, self.snapshot.value)
        return bundle

    def _load_snapshot(self, directory: Path) -> Snapshot:
        """A snapshot that was answered from once, likewise."""
        snapshot = Snapshot.load(directory)
        self._rehearse(self.bundle.value, snapshot)
        return snapshot

    def _load_policy(self, file: Path) -> Policy:
        """A policy that has advised once, likewise."""
        policy = Policy.load(file)
        rehearse(self.bundle.value, self.snapshot.value, policy)
        return policy

    def _rehearse(self, bundle: Bundle | None, snapshot: Snapshot | None) -> None:
        """With the policy in use. What answers without it is not refused for its fault: see `_decide`."""
        policy = self.policy.value
        try:
            rehearse(bundle, snapshot, policy)
        except Exception:
            if policy is None:
                raise
            rehearse(bundle, snapshot, None)
            logger.exception("the policy in use fails with what is taken up now: answers may have no advice")

    def _swap(self) -> None:
        bundle, snapshot = self.bundle.value, self.snapshot.value
        known = [x.settings.extra for x in (bundle, snapshot) if x is not None]
        extra = tuple(dict.fromkeys(e for extras in known for e in extras))
        closed = bool(known) or self.bundle.problem is None
        now = self.loaded.rules
        rules = now if (now.extra, now.closed) == (extra, closed) else Rules(extra, closed=closed)
        self.loaded = Loaded(bundle, snapshot, rules, self.policy.value)
        self.on_swap(self.loaded)
        freeze()

    def accept(self, path: str, body: bytes) -> Any:
        """Validate the body of a POST, against what is loaded now. Raises Invalid."""
        if path in PATHS:
            return read_report(path, body, datetime.now(UTC))
        if path == "/v1/parcels/scan":
            return read_scan(body)
        loaded = self.loaded
        read = loaded.rules.one if path == "/v1/risk" else loaded.rules.many
        return Work(read(body), loaded)


@functools.cache
def live() -> Live:
    """The state of this process, made when it is first needed and not at import."""
    return Live()


def freeze() -> None:
    """Put what lives long out of the garbage collector's sight.

    A full collection over an imported pandas and a loaded bundle takes tens of milliseconds, and would fall into
    requests. What is replaced later is still freed, by its reference counts.
    """
    gc.collect()
    gc.freeze()


class Metrics:
    """Our own Prometheus metrics, beside BentoML's.

    prometheus_client decides when it is imported whether several processes share their figures, from
    `PROMETHEUS_MULTIPROC_DIR`, which the server sets after this module is imported. So it is imported here, late.
    """

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge

        predictions = Counter("doorstep_predictions_total", "Probabilities served", ["target", "bundle"])
        # Finding a labelled counter costs more than counting: keep the few there are.
        self.predictions: Callable[[str, str], Counter] = functools.lru_cache(256)(predictions.labels)
        self.degraded: Counter = Counter("doorstep_degraded_total", "Answers given from base rates only")
        self.unknown: Counter = Counter("doorstep_unknown_code_total", "Codes in requests that the history never saw")
        self.recorded: Counter = Counter("doorstep_recorded_total", "Decisions recorded, durably, before the answer")
        self.unrecorded: Counter = Counter("doorstep_not_recorded_total", "Decisions answered but not recorded")
        self.refused: Counter = Counter("doorstep_refused_total", "Requests answered with an error", ["status"])
        self.info: Gauge = Gauge(
            "doorstep_bundle_info", "1 for what is served now", ["bundle", "as_of"], multiprocess_mode="livemax"
        )
        self.states: Gauge = Gauge(
            "doorstep_published",
            "1 for the state of what is published where: loaded, refused or absent",
            ["what", "state"],
            multiprocess_mode="livemax",
        )
        advice = Counter("doorstep_advice_total", "Decisions about parcels", ["action", "arm"])
        self.advice: Callable[[str, str], Counter] = functools.lru_cache(256)(advice.labels)
        self._shown: Gauge | None = None

    def swapped(self, loaded: Loaded) -> None:
        """Say which bundle and snapshot are served now, and what of all that is published was refused."""
        state = live()
        for what, watcher in (
            ("bundle", state.bundle),
            ("snapshot", state.snapshot),
            ("policy", state.policy),
            ("diagnosis", state.diagnosis),
        ):
            for known in STATES:
                self.states.labels(what, known).set(known == watcher.state)
        if self._shown is not None:
            self._shown.set(0)
        bundle = "none" if loaded.bundle is None else loaded.bundle.name
        as_of = "none" if loaded.snapshot is None else f"{loaded.snapshot.as_of}Z"
        self._shown = self.info.labels(bundle, as_of)
        self._shown.set(1)

    def answered(self, work: Work, answers: list[dict[str, Any]], decisions: list[dict[str, Any]]) -> None:
        """Count what was served."""
        served: dict[tuple[str, str], int] = {}
        for a in answers:
            bundle = a["bundle"] or "none"
            for target in a["risks"]:
                served[target, bundle] = served.get((target, bundle), 0) + 1
            if a["returns"]:
                served["returned", bundle] = served.get(("returned", bundle), 0) + len(a["returns"])
            if a["degraded"]:
                self.degraded.inc()
        for (target, bundle), n in served.items():
            self.predictions(target, bundle).inc(n)
        for decision in decisions:
            self.advice(decision["action"] or "none", decision["arm"]).inc()
        if work.loaded.snapshot is not None:
            unknown = sum(len(unknown_codes(work.loaded.snapshot, r)) for r in work.requests)
            if unknown:
                self.unknown.inc(unknown)

    def refuse(self, status: int) -> None:
        """Count an answer of 400 or above."""
        self.refused.labels(str(status)).inc()


@functools.cache
def metrics() -> Metrics:
    """The metrics of this process; made after the server has said where they are shared."""
    return Metrics()


def _answer(work: Work) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    answers, decisions = _decide(work)
    metrics().answered(work, answers, decisions)
    return answers, decisions


def _decide(work: Work) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers and what was decided; the bench is answered whatever happens, and told what it got."""
    loaded, capacity = work.loaded, live().capacity
    try:
        return decide(loaded.bundle, loaded.snapshot, loaded.policy, work.requests, capacity, work.asking)
    except Exception:
        if len(work.requests) > 1:  # only the parcel that fails pays for it
            parts = [_decide(replace(work, requests=[r])) for r in work.requests]
            return [a for answers, _ in parts for a in answers], [d for _, decisions in parts for d in decisions]
        logger.exception("a valid request failed: answered with less")
    model = "the model failed on this request: these are base rates; the service's log says more"
    advice = "the policy failed on this request: there is no advice; the service's log says more"
    for bundle, policy, said in ((loaded.bundle, None, advice), (None, loaded.policy, model), (None, None, model)):
        if policy is None and loaded.policy is None and bundle is not None:
            continue  # that is what has failed
        try:
            answers, decisions = decide(bundle, loaded.snapshot, policy, work.requests, capacity, work.asking)
        except Exception:
            logger.exception("and failed again: answered with less")
            continue
        for a in answers:
            a["warnings"].append(said)
        return answers, decisions
    raise RuntimeError("not even base rates can be answered")


def _recorded(answers: list[dict[str, Any]], decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers, once what was decided with them is durable; all of it at once. The bench is answered in any case."""
    problem = _record(decisions)
    if problem is not None:
        lost = {d["parcel_id"] for d in decisions}
        for a in answers:
            if a["parcel_id"] in lost:
                a["warnings"].append(f"this decision is not recorded: {problem}")
    return answers


def _record(decisions: list[dict[str, Any]]) -> str | None:
    """Record decisions where a ledger is kept; why they are not recorded, or None."""
    recorder = live().recorder
    if recorder is None or not decisions:
        return None
    from serving.ledger import RecordError

    try:
        recorder.record(decisions)
    except RecordError as error:
        metrics().unrecorded.inc(len(decisions))
        return str(error)
    metrics().recorded.inc(len(decisions))
    return None


_reporting = threading.BoundedSemaphore(8)
"""Reports that wait for the database at once: the bench must not be refused because a slow database holds them all."""


def _refusing(work: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """An endpoint that answers with what `work` gives, as JSON, or with the problem it raises. Works in a thread."""

    def endpoint(request: Request) -> Response:
        try:
            return Response(to_json(work(request)), media_type="application/json")
        except Refused as refusal:
            return refused(refusal)

    return endpoint


def _report(request: Request) -> dict[str, Any]:
    """Record a report. The database may take its time."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refused(403, "Reports are not taken from pages of other sites.")
    recorder = live().recorder
    if recorder is None:
        raise Refused(404, "This service keeps no ledger; DOORSTEP_LEDGER names the database of one.")
    if not _reporting.acquire(blocking=False):
        busy = "Other reports are waiting for the ledger's database; this one is not recorded, try again"
        raise Refused(503, busy, headers=later())
    try:
        return recorder.report(request.url.path, request.scope[SCOPE_KEY])
    finally:
        _reporting.release()


def _announce(request: Request) -> dict[str, Any]:
    """Keep parcels until they are scanned."""
    requests, waiting = request.scope[SCOPE_KEY].requests, live().waiting
    if waiting is None:
        raise Refused(404, "This service keeps no waiting parcels; DOORSTEP_WAITING names the file for them.")
    try:
        return {"announced": len(requests), "waiting": waiting.announce(requests)}
    except WaitingError as error:
        logger.error("parcels are not kept: %s", error)
        raise Refused(503, "The parcels cannot be kept now; announce them again", headers=later()) from None


def _scan(request: Request) -> dict[str, Any]:
    """What to say of a parcel at the bench: it is decided now, and recorded. That none waits is an answer too."""
    asked, now = request.scope[SCOPE_KEY], datetime.now(UTC)
    code = asked["code"].strip()
    waiting, loaded = live().waiting, live().loaded
    try:
        found = None if waiting is None else waiting.find(code)
        requests = None if found is None else loaded.rules.one(found)
    except WaitingError as error:
        logger.error("a parcel cannot be looked up: %s", error)
        raise Refused(503, "Parcels cannot be looked up now", headers=later()) from None
    except Invalid as error:
        detail = f"The parcel was announced before the shop's settings changed, announce it again: {error.detail}"
        raise Refused(409, detail) from None
    if requests is None:
        said = {"parcel_id": code, "decision_id": None, **asdict(unknown(_site.texts))}
        return {**said, "recorded": False, "now": now}
    policy = loaded.policy
    asking = Asking(
        lambda: asked.get("decision_id") or new_id(),
        shown(policy, _zone(loaded), now),
        0.0 if policy is None else policy.station_least_benefit,
        rules_first=True,
    )
    answers, decisions = _answer(Work(requests, loaded, asking))
    problem = _record(decisions)
    advice = answers[0]["advice"]
    return {
        "parcel_id": answers[0]["parcel_id"],
        "decision_id": None if advice is None else advice["decision_id"],
        **asdict(verdict(answers[0], _site.texts, shown=asking.shown, features=_features(loaded))),
        "recorded": bool(decisions) and live().recorder is not None and problem is None,
        "now": now,
    }


def _features(loaded: Loaded) -> Mapping[str, Feature]:
    """What drivers of answers are of, by name."""
    return FEATURES if loaded.bundle is None else catalogue(loaded.bundle.settings)


def _zone(loaded: Loaded) -> str:
    """The shop's clock."""
    return "UTC" if loaded.snapshot is None else loaded.snapshot.settings.timezone


def _json(content: Any) -> Any:
    """A finished response, so that BentoML does not validate and copy the answer once more."""
    return Response(to_json(content), media_type="application/json")


def _changes(sku: str) -> list[dict[str, Any]] | None:
    """The recorded changes of a listing that count, for the pages; None if the ledger does not answer."""
    recorder = live().recorder
    if recorder is None:
        return []
    from serving.ledger import LedgerError
    from serving.ledger.reports import standing

    try:
        return standing(recorder.database.changes(sku))
    except LedgerError as error:
        logger.error("changes of a listing cannot be read: %s", error)
        return None


def _status() -> Status:
    """What is loaded, for the pages."""
    loaded = live().loaded
    known = {} if loaded.snapshot is None else {"as_of": f"{loaded.snapshot.as_of}Z", "timezone": _zone(loaded)}
    return Status(
        bundle=None if loaded.bundle is None else loaded.bundle.name,
        as_of=shop_day(known, "as_of", last=True),
        policy=None if loaded.policy is None else loaded.policy.digest,
        policy_problem=live().policy.problem,
        ledger=live().recorder is not None,
        waiting=live().waiting is not None,
        answer_ms=int(os.environ.get("DOORSTEP_STATION_MS") or Status.answer_ms),
    )


@functools.cache
def _withheld() -> Reader:
    """Reads what the station did not show; the ledger's connection is found when it is needed."""

    def records(after: int) -> Iterator[Any]:
        recorder = live().recorder
        return iter(()) if recorder is None else recorder.database.records(after, KINDS)

    return Reader(records)


def _shadow() -> Shadow | None:
    """The packing station's shadow mode, for its page. Raises LedgerError."""
    loaded = live().loaded
    policy = loaded.policy
    if policy is None or policy.shadow_until is None or live().recorder is None:
        return None
    settings = None if loaded.snapshot is None else loaded.snapshot.settings
    return Shadow(
        policy.shadow_until,
        shown(policy, _zone(loaded), datetime.now(UTC)),
        _withheld().read(),
        policy.currency,
        settings is not None and settings.simulated,
    )


def _docs(request: Request) -> Response:
    loaded = live().loaded
    example = loaded.rules.one(to_json(EXAMPLE))
    answers, _ = decide(loaded.bundle, loaded.snapshot, loaded.policy, example)
    content = openapi(loaded.rules, version=_version(), answers=answers, reports=DOCS | SCAN_DOCS)
    paths, schemas = described("#/components/schemas/Problem")
    content["paths"] |= paths
    content["components"]["schemas"] |= schemas
    return Response(to_json(content), media_type="application/json")


def _version() -> str:
    if _service.bento is not None:
        return str(_service.bento.tag.version)
    try:
        return version("doorstep")
    except PackageNotFoundError:
        return "unknown"


def _join(works: list[Work]) -> list[dict[str, Any]]:
    """Answer requests of one parcel each together: those that were checked against the same bundle and policy."""
    out: dict[int, dict[str, Any]] = {}
    decided: list[dict[str, Any]] = []
    for loaded in {id(w.loaded): w.loaded for w in works}.values():
        mine = [i for i, w in enumerate(works) if w.loaded is loaded]
        answers, decisions = _answer(Work([works[i].requests[0] for i in mine], loaded))
        out |= zip(mine, answers, strict=True)
        decided += decisions
    return _recorded([out[i] for i in range(len(works))], decided)


_together: Together[Work, dict[str, Any]] = Together(_join)
_site = Site(
    Sources(
        _status,
        ENDPOINTS,
        diagnosis=lambda: live().diagnosis.value,
        diagnosis_problem=lambda: live().diagnosis.problem,
        changes=lambda sku: _changes(sku),
        shadow=lambda: _shadow(),
    ),
    language=os.environ.get("DOORSTEP_LANGUAGE") or "en",
)
_pages = page_routes(_site)
ENDPOINTS |= {route.path: "GET" for route in _pages}
_mounted = Starlette(
    routes=[
        *_pages,
        Route("/docs.json", _docs),
        *(Route(path, _refusing(_report), methods=["POST"]) for path in PATHS),
        Route("/v1/parcels", _refusing(_announce), methods=["POST"]),
        Route("/v1/parcels/scan", _refusing(_scan), methods=["POST"]),
    ]
)
_missing = Starlette(routes=[Route("/{path:path}", _site.shown(missing))])


class _Validated:
    """Input of an endpoint: what the guard made of the body, instead of reading it a second time."""

    __root_input__ = True

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Work:
        work: Work = request.scope[SCOPE_KEY]
        return work


_one: Any = IORootModel[_RULES.request]
_many: Any = IORootModel[_RULES.requests]


class RiskInput(_Validated, _one):
    """One parcel, as `serving.schemas` describes it."""


class RiskBatchInput(_Validated, _many):
    """A list of parcels."""


class GuardedService(Service[Any]):
    """A BentoML service whose application stands behind `serving.guard.Guard`, however it is started."""

    def to_asgi(self, is_main: bool = True) -> App:
        """The ASGI application."""
        return Guard(
            super().to_asgi(is_main=is_main),
            endpoints=ENDPOINTS,
            accept=live().accept,
            on_refusal=lambda status: metrics().refuse(status),
            max_body=int(os.environ.get("DOORSTEP_MAX_BODY", MAX_BODY)),
            prefix=os.environ.get("DOORSTEP_PREFIX", ""),
            missing=_missing,
        )


@bentoml.asgi_app(_mounted)
@bentoml.service(
    service_class=GuardedService,
    workers=int(os.environ.get("DOORSTEP_WORKERS", "1")),
    # BentoML keeps a timer, and with it the whole context of the request, this many seconds after each answer.
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    # Spans that nobody collects cost 0.3 ms a request; in BENTOML_CONFIG `excluded_urls: ""` brings them back.
    tracing={"excluded_urls": "v1/risk,v1/parcels,static"},
    envs=[{"name": "BENTOML_DO_NOT_TRACK", "value": "true"}],
)
class Doorstep:
    """Risk that a parcel fails at the door or comes back, why, whose lever it is, and what is worth doing."""

    def __init__(self) -> None:
        state = live()
        state.on_swap = metrics().swapped
        state.start()
        metrics().swapped(state.loaded)
        freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop watching for new versions."""
        live().stop()

    @bentoml.api(route="/v1/risk", input_spec=RiskInput)
    async def risk(self, work: Any, /) -> Answer:
        """The risks of one parcel, each with its drivers by owner team."""
        return _json(await _together.ask(work))

    @bentoml.api(route="/v1/risk/batch", input_spec=RiskBatchInput)
    def risk_batch(self, work: Any, /) -> list[Answer]:
        """The risks of up to a thousand parcels, in order."""
        return _json(_recorded(*_answer(work)))


def asgi() -> App:
    """The guarded application, for an ASGI server."""
    app: App = _service.to_asgi()
    return app


_service: Any = Doorstep  # what the decorators made of the class
