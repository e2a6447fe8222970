import asyncio
import copy
import datetime as dt
import gzip
import json
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from features.contracts import TABLES
from features.dataset import Dataset
from features.vocabulary import GENERIC_BASE_RATES, TARGETS, TEAMS
from serving.bundle import Bundle
from serving.schemas import EXAMPLE, MAX_PARCELS, Answer, Problem, Rules
from serving.score import answer
from serving.store import publish
from training.policy import draft

JSON = {"content-type": "application/json"}
SMALL: dict[str, Any] = {
    "order": {"order_id": "o", "ordered_at": "2025-03-01T08:10:00Z"},
    "parcel": {"parcel_id": "p"},
    "lines": [{"line_id": "l", "sku": "s"}],
}


def with_(path: str, value: Any) -> dict[str, Any]:
    """The small request with one field set: `parcel.weight_g`, `lines.0.sku`."""
    request: Any = copy.deepcopy(SMALL)
    *way, last = path.split(".")
    at = request
    for step in way:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    at[last] = value
    return request  # type: ignore[no-any-return]


def without(path: str) -> dict[str, Any]:
    """The small request without one field."""
    request: Any = copy.deepcopy(SMALL)
    *way, last = path.split(".")
    at = request
    for step in way:
        at = at[int(step)] if step.isdigit() else at[step]
    del at[last]
    return request  # type: ignore[no-any-return]


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal, checked against its type."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    document: dict[str, Any] = response.json()
    TypeAdapter(Problem).validate_python(document)
    assert document["status"] == status
    assert document["type"].startswith("urn:problem-type:doorstep:")
    return document


class TestBadInput:
    """Every refusal names the place, what was given and what is allowed."""

    @pytest.mark.parametrize(
        ("request_", "field", "given", "allowed"),
        [
            (with_("parcel.weight_g", -5), "parcel.weight_g", -5, "a number from 0 to 5,000,000 (g)"),
            (with_("parcel.weight_g", 1e9), "parcel.weight_g", 1e9, "a number from 0 to 5,000,000 (g)"),
            (with_("parcel.weight_g", "820"), "parcel.weight_g", "820", "a number from 0 to 5,000,000 (g)"),
            (with_("parcel.weight_g", True), "parcel.weight_g", True, "a number from 0"),
            (with_("parcel.weight_g", [1]), "parcel.weight_g", "a list of 1", "a number from 0"),
            (with_("order.order_value", 1e300), "order.order_value", 1e300, "to 1,000,000,000,000 (currency)"),
            (with_("order.order_value", 10**400), "order.order_value", "an integer beyond 1e12", "a number from"),
            (with_("parcel.void_fill_ratio", 1.2), "parcel.void_fill_ratio", 1.2, "a number from 0 to 1"),
            (with_("parcel.documents_complete", 1), "parcel.documents_complete", 1, "true or false"),
            (with_("parcel.documents_complete", "yes"), "parcel.documents_complete", "yes", "true or false"),
            (with_("parcel.carrier", 7), "parcel.carrier", 7, "text of at most 200 characters"),
            (with_("parcel.carrier", "x" * 201), "parcel.carrier", "x" * 80 + "... (201 characters)", "200 characters"),
            (with_("parcel.parcel_id", 7), "parcel.parcel_id", 7, "text of 1 to 200 characters, in quotes"),
            (with_("parcel.parcel_id", ""), "parcel.parcel_id", "", "text of 1 to 200 characters"),
            (without("parcel.parcel_id"), "parcel.parcel_id", None, "text of 1 to 200 characters"),
            (without("order.ordered_at"), "order.ordered_at", None, "ISO 8601 with a zone"),
            (without("order"), "order", None, "an object of order_id, ordered_at"),
            (without("parcel"), "parcel", None, "an object of parcel_id"),
            (without("lines.0.sku"), "lines[0].sku", None, "text of 1 to 200 characters"),
            (with_("order", []), "order", "a list of 0", "an object of order_id"),
            (with_("lines", {"line_id": "l"}), "lines", "an object of 1 fields", "a list of at most 1,000"),
            (with_("lines", [7]), "lines[0]", 7, "an object of line_id"),
            (with_("lines", SMALL["lines"] * 2), "lines[1].line_id", "l", "each line_id once"),
            (with_("lines.0.order_id", "other"), "lines[0].order_id", "other", "o, or nothing"),
            (with_("listings", [{"sku": "s"}, {"sku": "s"}]), "listings[1].sku", "s", "each sku and known_at once"),
            (with_("order.ordered_at", "2025-03-01T08:10:00"), "order.ordered_at", "2025-03-01T08:10:00", "a zone"),
            (with_("order.ordered_at", "yesterday"), "order.ordered_at", "yesterday", "such as 2025-03-01T10:15"),
            (with_("order.ordered_at", "2025-02-30T00:00Z"), "order.ordered_at", "2025-02-30T00:00Z", "ISO 8601"),
            (with_("order.ordered_at", 1740816600), "order.ordered_at", 1740816600, "ISO 8601"),
            (with_("order.ordered_at", "9999-12-31T23:59-14:00"), "order.ordered_at", None, "from 1970 to 2200"),
            (with_("parcel.packed_at", "2025-02-28T00:00Z"), "parcel.packed_at", None, "2025-03-01T08:10:00+00:00 or"),
            (with_("parcel.wieght_g", 5), "parcel.wieght_g", 5, "did you mean weight_g? known are parcel_id"),
            (with_("order.carrier", "JNE"), "order.carrier", "JNE", "it belongs in parcel. known are order_id"),
            (with_("parcels", []), "parcels", "a list of 0", "did you mean parcel? known are order, parcel, lines"),
            ([], "body", "a list of 0", "a list of parcels goes to /v1/risk/batch"),
            ("text", "body", "text", "an object of order, parcel, lines, listings"),
            (7, "body", 7, "an object of order, parcel, lines, listings"),
        ],
    )
    def test_a_field_that_is_wrong(self, bare: Any, request_: Any, field: str, given: Any, allowed: str) -> None:
        document = problem(bare.http.post("/v1/risk", json=request_), 400)
        fault = document["errors"][0]
        assert fault["field"] == field
        assert given is None or fault["given"] == given
        assert allowed in fault["allowed"]
        assert field in document["detail"]
        # the same parcel in a batch is refused for the same reason, and its place is named
        if isinstance(request_, dict):
            document = problem(bare.http.post("/v1/risk/batch", json=[SMALL, request_]), 400)
            assert document["errors"][0] == {**fault, "field": f"[1].{field}"}

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"", "EOF while parsing"),
            (b"{", "EOF while parsing"),
            (b"order=1&parcel=2", "expected value at line 1 column 1"),
            (b"\xff\xfe{}", "expected value"),
            (b'{"order": "\xc3\x28"}', "invalid unicode code point"),
            (b'{"order": "\\ud800"}', "is not JSON"),
            (b"[" * 100_000, "recursion limit"),
            (b'{"a":' * 100_000, "recursion limit"),
            (b'{"order": 1,}', "trailing comma"),
            (pickle.dumps({"order": 1}), "is not JSON"),
        ],
        ids=["empty", "cut", "form", "utf16", "not utf8", "surrogate", "deep list", "deep object", "comma", "pickle"],
    )
    def test_a_body_that_is_not_json(self, bare: Any, body: bytes, says: str) -> None:
        document = problem(bare.http.post("/v1/risk", content=body, headers=JSON), 400)
        assert says in document["detail"]
        assert document["errors"][0]["field"] == "body"
        assert len(json.dumps(document)) < 1_000

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_a_number_that_is_not_finite(self, bare: Any, number: str) -> None:
        body = json.dumps(SMALL).replace('"p"}', f'"p", "weight_g": {number}}}')
        document = problem(bare.http.post("/v1/risk", content=body, headers=JSON), 400)
        fault = document["errors"][0]
        assert (fault["field"], fault["message"]) == ("parcel.weight_g", "is not finite")
        assert fault["given"] == number.replace("1e999", "Infinity")

    def test_all_faults_of_a_request_at_once(self, bare: Any) -> None:
        wrong = with_("parcel.weight_g", -5)
        wrong["order"]["order_value"] = "much"
        wrong["lines"][0]["quantity"] = -1
        fields = [e["field"] for e in problem(bare.http.post("/v1/risk", json=wrong), 400)["errors"]]
        assert fields == ["order.order_value", "parcel.weight_g", "lines[0].quantity"]

    def test_a_flood_of_faults_is_answered_briefly(self, bare: Any) -> None:
        unknown = with_("parcel", {f"column_{i}": i for i in range(50_000)})
        document = problem(bare.http.post("/v1/risk", json=unknown), 400)
        assert len(document["errors"]) == 20
        assert document["detail"].endswith("(and more)")
        rows = [{"order": {}, "parcel": {}, "lines": [{}] * 600}] * 900
        document = problem(bare.http.post("/v1/risk/batch", json=rows), 400)
        assert len(document["errors"]) == 20

    def test_ten_thousand_parcels(self, bare: Any) -> None:
        document = problem(bare.http.post("/v1/risk/batch", json=[SMALL] * 10_000), 400)
        assert document["errors"][0]["given"] == "a list of 10,000"
        assert f"at most {MAX_PARCELS:,} parcels" in document["detail"]

    @pytest.mark.parametrize("path", ["/v1/risk", "/v1/risk/batch"])
    def test_ten_megabytes(self, bare: Any, path: str) -> None:
        body = b" " * 10_000_000
        document = problem(bare.http.post(path, content=body, headers=JSON), 413)
        assert document["detail"] == "A body may have 2,000,000 bytes; given: 10,000,000 bytes"
        # without a stated length it is counted as it comes, and the connection ends
        with httpx.Client(base_url=bare.url, trust_env=False) as http:
            try:
                chunks = (body[:100_000] for _ in range(100))
                problem(http.post(path, content=chunks, headers=JSON), 413)
            except httpx.WriteError:
                pass  # it hung up while we were still sending

    @pytest.mark.parametrize(
        "kind",
        [
            None,
            "text/plain",
            "application/vnd.bentoml+pickle",
            "application/octet-stream",
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin-1",
        ],
    )
    def test_only_json_is_read(self, bare: Any, kind: str | None) -> None:
        headers = {} if kind is None else {"content-type": kind}
        for path in ("/v1/risk", "/v1/risk/batch"):
            document = problem(bare.http.post(path, content=pickle.dumps(SMALL), headers=headers), 415)
            assert f"given: {kind or 'nothing'}" in document["detail"]

    def test_json_may_say_that_it_is_utf8(self, bare: Any) -> None:
        headers = {"content-type": "Application/JSON; charset=UTF-8"}
        assert bare.http.post("/v1/risk", content=json.dumps(SMALL), headers=headers).status_code == 200

    def test_compressed_bodies_are_not_read(self, bare: Any) -> None:
        headers = {**JSON, "content-encoding": "gzip"}
        problem(bare.http.post("/v1/risk", content=gzip.compress(b" " * 10**8), headers=headers), 415)

    def test_paths_and_methods_that_are_not_there(self, bare: Any) -> None:
        assert "POST /v1/risk" in problem(bare.http.post("/v1/risks", json=SMALL), 404)["detail"]
        problem(bare.http.get("/static_content/index.js"), 404)
        response = bare.http.get("/v1/risk")
        assert "takes POST; given: GET" in problem(response, 405)["detail"]
        assert response.headers["allow"] == "POST"
        assert bare.http.post("/readyz", json={}).headers["allow"] == "GET, HEAD"
        assert not [name for name in bare.metrics() if "/v1/risks" in name]  # no label per invented path

    def test_refusals_leave_no_traceback_in_the_log(self, bare: Any) -> None:
        problem(bare.http.post("/v1/risk", json={}), 400)
        assert "Traceback" not in bare.log

    def test_a_slow_body_is_given_up(self, bare: Any) -> None:
        with socket.create_connection(("127.0.0.1", bare.port), timeout=30) as s:
            s.sendall(
                b"POST /v1/risk HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            answered = s.makefile("rb").read()
        assert answered.startswith(b"HTTP/1.1 408 ")
        assert b"1 bytes did" in answered

    def test_slow_headers_are_given_up(self, bare: Any) -> None:
        with socket.create_connection(("127.0.0.1", bare.port), timeout=30) as s:
            s.sendall(b"POST /v1/risk HTTP/1.1\r\nHost:")
            assert s.recv(100) == b""


class TestRequests:
    """What is accepted beyond the plain case."""

    def test_null_and_empty_text_are_a_column_that_is_not_known(self, loaded: Any) -> None:
        plain = loaded.http.post("/v1/risk", json=SMALL).json()
        empty = with_("parcel.carrier", "")
        empty["parcel"]["weight_g"] = None
        empty["order"]["customer_id"] = ""
        assert loaded.http.post("/v1/risk", json=empty).json() == plain
        assert "parcels.weight_g" in plain["missing"]

    def test_unknown_codes_are_answered_with_a_warning(self, loaded: Any) -> None:
        before = loaded.metrics()["doorstep_unknown_code_total"]
        response = loaded.http.post("/v1/risk", json=with_("parcel.carrier", "Pigeon Post"))
        assert response.status_code == 200
        assert any("parcels.carrier" in w and "Pigeon Post" in w for w in response.json()["warnings"])
        assert loaded.metrics()["doorstep_unknown_code_total"] == before + 1

    def test_zones_are_honoured(self, loaded: Any) -> None:
        utc, jakarta = (
            with_("parcel.packed_at", "2025-03-01T09:00:00Z"),
            with_("parcel.packed_at", "2025-03-01T16:00:00+07:00"),
        )
        assert loaded.http.post("/v1/risk", json=utc).json() == loaded.http.post("/v1/risk", json=jakarta).json()

    def test_a_parcel_without_lines_has_no_returns(self, loaded: Any) -> None:
        assert loaded.http.post("/v1/risk", json=without("lines")).json()["returns"] == []

    def test_a_batch_is_answered_in_order_and_as_one_by_one(self, loaded: Any) -> None:
        requests = [with_("parcel.parcel_id", str(i)) for i in range(5)] + [EXAMPLE]
        for i, r in enumerate(requests[:5]):
            r["parcel"]["weight_g"] = 100.0 * i
        batch = loaded.http.post("/v1/risk/batch", json=requests).json()
        alone = [loaded.http.post("/v1/risk", json=r).json() for r in requests]
        assert near(batch, alone)
        probabilities = [[r["probability"] for r in (*a["risks"].values(), *a["returns"])] for a in batch]
        assert probabilities == [[r["probability"] for r in (*a["risks"].values(), *a["returns"])] for a in alone]
        assert loaded.http.post("/v1/risk/batch", json=[]).json() == []

    def test_the_largest_batch(self, loaded: Any) -> None:
        requests = [with_("parcel.parcel_id", str(i)) for i in range(MAX_PARCELS)]
        answers = loaded.http.post("/v1/risk/batch", json=requests).json()
        assert [a["parcel_id"] for a in answers] == [str(i) for i in range(MAX_PARCELS)]

    def test_http_gives_what_the_library_gives_to_the_last_bit(self, loaded: Any, trained: Any) -> None:
        from features.snapshot import Snapshot

        bundle, snapshot = Bundle.load(trained.bundle), Snapshot.load(trained.snapshot)
        wanted = answer(bundle, snapshot, Rules(bundle.settings.extra).one(json.dumps(EXAMPLE).encode()))
        assert loaded.http.post("/v1/risk", json=EXAMPLE).json() == json.loads(json.dumps(wanted[0]))

    def test_answers_add_up(self, loaded: Any) -> None:
        body = loaded.http.post("/v1/risk", json=EXAMPLE).json()
        TypeAdapter(Answer).validate_python(body)
        assert not body["degraded"]
        assert body["bundle"]
        assert body["as_of"]
        for risk in [*body["risks"].values(), *body["returns"]]:
            for shares in (risk["teams"].values(), [d["points"] for d in risk["drivers"]]):
                assert abs(risk["base"] + math.fsum(shares) - risk["probability"]) < 1e-9
            assert set(risk["teams"]) == set(TEAMS)


class TestDegraded:
    """The bench is answered whatever is missing."""

    def test_without_a_bundle_base_rates_are_answered_and_said_so(self, bare: Any) -> None:
        before = bare.metrics()["doorstep_degraded_total"]
        body = bare.http.post("/v1/risk", json=EXAMPLE).json()
        TypeAdapter(Answer).validate_python(body)
        assert (body["degraded"], body["bundle"], body["as_of"]) == (True, None, None)
        assert "base rates" in body["warnings"][0]
        parcel = {n: p for n, p in GENERIC_BASE_RATES.items() if TARGETS[n].unit == "parcel"}
        assert {n: r["probability"] for n, r in body["risks"].items()} == parcel
        assert bare.metrics()["doorstep_degraded_total"] == before + 1
        assert bare.http.get("/readyz").status_code == 200

    def test_with_only_a_snapshot_the_shops_own_rates_are_answered(
        self, run_service: Callable[..., Any], trained: Any
    ) -> None:
        with run_service(DOORSTEP_SNAPSHOT=trained.snapshot) as service:
            body = service.http.post("/v1/risk", json=EXAMPLE).json()
        assert body["degraded"]
        assert body["as_of"]
        assert "own mature history" in body["warnings"][0]

    def test_a_bundle_that_is_broken_from_the_start(
        self, run_service: Callable[..., Any], trained: Any, tmp_path: Path
    ) -> None:
        broken = tmp_path / "bundle"
        shutil.copytree(trained.bundle, broken)
        next((broken / "models").iterdir()).write_text("cut off")
        with run_service(DOORSTEP_BUNDLE=broken) as service:
            assert service.http.post("/v1/risk", json=SMALL).json()["degraded"]
            assert "checksum differs from the manifest" in service.log
            assert "answering without one" in service.log
            # the shop's extra columns cannot be known now, and the bench must be answered: they are let through
            assert service.http.post("/v1/risk", json=with_("parcel.own_column", 7)).status_code == 200
            problem(service.http.post("/v1/risk", json=with_("parcel.weight_g", -1)), 400)

    def test_a_store_that_is_filled_later(self, run_service: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
        store = tmp_path / "not-yet"
        with run_service(DOORSTEP_BUNDLE=store, DOORSTEP_SNAPSHOT=trained.snapshot) as service:
            assert service.http.post("/v1/risk", json=SMALL).json()["degraded"]
            assert f"no bundle is published at {store}, answering without one" in service.log
            problem(service.http.post("/v1/risk", json=with_("parcel.own_column", 7)), 400)
            publish(trained.bundle, store, info={})
            until(lambda: not service.http.post("/v1/risk", json=SMALL).json()["degraded"])


class TestSwap:
    """New versions are taken up whole, while the service answers."""

    def test_a_second_bundle_under_load_without_a_failed_request(
        self, run_service: Callable[..., Any], trained: Any, tmp_path: Path
    ) -> None:
        store = tmp_path / "store"
        second = tmp_path / "second"
        renamed(trained.bundle, second)
        publish(trained.bundle, store, info={"version": "1"})
        names = [Bundle.load(d).name for d in (trained.bundle, second)]
        assert names[0] != names[1]
        with run_service(DOORSTEP_BUNDLE=store, DOORSTEP_SNAPSHOT=trained.snapshot) as service:
            seen: list[tuple[int, str]] = []
            stop = threading.Event()

            def hammer() -> None:
                with httpx.Client(base_url=service.url, timeout=30, trust_env=False) as http:
                    while not stop.is_set():
                        response = http.post("/v1/risk", json=EXAMPLE)
                        seen.append((response.status_code, response.json()["bundle"]))

            threads = [threading.Thread(target=hammer) for _ in range(3)]
            for t in threads:
                t.start()
            try:
                for source, name in ((second, names[1]), (trained.bundle, names[0]), (second, names[1])):
                    publish(source, store, info={})
                    until(lambda name=name: seen and seen[-1][1] == name)  # type: ignore[misc]
            finally:
                stop.set()
                for t in threads:
                    t.join()
            assert {status for status, _ in seen} == {200}
            assert {bundle for _, bundle in seen} == set(names)
            samples = service.metrics()
            shown = {n: v for n, v in samples.items() if n.startswith("doorstep_bundle_info")}
            assert [n for n, v in shown.items() if v == 1] == [n for n in shown if f'bundle="{names[1]}"' in n]
            counted = sum(v for n, v in samples.items() if n.startswith("doorstep_predictions") and '"late"' in n)
            assert counted == len(seen)

    def test_a_broken_bundle_is_refused_and_the_old_one_stays(
        self, run_service: Callable[..., Any], trained: Any, tmp_path: Path
    ) -> None:
        store, broken = tmp_path / "store", tmp_path / "broken"
        publish(trained.bundle, store, info={})
        shutil.copytree(trained.bundle, broken)
        next(p for p in sorted((broken / "trees").rglob("*")) if p.is_file()).write_bytes(b"no trees")
        with run_service(DOORSTEP_BUNDLE=store, DOORSTEP_SNAPSHOT=trained.snapshot) as service:
            before = service.http.post("/v1/risk", json=EXAMPLE).json()
            publish(broken, store, info={})
            until(lambda: "was refused" in service.log)
            time.sleep(2.5)  # two more looks
            assert service.http.post("/v1/risk", json=EXAMPLE).json() == before
            assert service.log.count("was refused") == 1
            assert "the last good one stays in use" in service.log


class TestConventions:
    """What people expect of a service."""

    def test_a_request_id_is_echoed(self, bare: Any) -> None:
        for path, status in (("/v1/risk", 200), ("/nothing", 404), ("/livez", 200)):
            call = bare.http.post if path == "/v1/risk" else bare.http.get
            more = {"json": SMALL} if path == "/v1/risk" else {}
            response = call(path, headers={"X-Request-ID": "order-7:a.b_c"}, **more)
            assert (response.status_code, response.headers["x-request-id"]) == (status, "order-7:a.b_c")

    @pytest.mark.parametrize("bad", ["", "x" * 129, "two words", "<script>", "naïve".encode("latin-1")])
    def test_a_request_id_that_could_do_harm_is_replaced(self, bare: Any, bad: Any) -> None:
        first = bare.http.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"]
        second = bare.http.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(first) == len(second) == 32
        assert first != second

    def test_metrics(self, loaded: Any) -> None:
        for _ in range(2):
            body = loaded.http.post("/v1/risk", json=EXAMPLE).json()
        samples = loaded.metrics()
        for target in [*body["risks"], "returned"]:
            assert samples[f'doorstep_predictions_total{{bundle="{body["bundle"]}",target="{target}"}}'] >= 2
        assert samples["doorstep_degraded_total"] == 0
        assert "doorstep_unknown_code_total" in samples
        assert samples[f'doorstep_bundle_info{{as_of="{body["as_of"]}",bundle="{body["bundle"]}"}}'] == 1
        assert any(n.startswith("bentoml_service_request_duration_seconds_bucket") for n in samples)
        loaded.http.post("/v1/risk", json={})
        assert loaded.metrics()['doorstep_refused_total{status="400"}'] >= 1

    @pytest.mark.parametrize("path", ["/v1/risk", "/v1/risk/batch"])
    def test_the_documented_examples_are_valid_and_answered(self, loaded: Any, path: str) -> None:
        document = loaded.http.get("/docs.json").json()
        operation = document["paths"][path]["post"]
        given = operation["requestBody"]["content"]["application/json"]
        answered = operation["responses"]["200"]["content"]["application/json"]
        refused = operation["responses"]["400"]["content"]["application/problem+json"]
        for part in (given, answered, refused):
            assert not list(violations(part["example"], part["schema"], document))
        response = loaded.http.post(path, json=given["example"])
        assert response.status_code == 200
        assert response.json() == answered["example"]

    def test_the_documentation_has_every_column_of_the_contracts(self, bare: Any) -> None:
        schemas = bare.http.get("/docs.json").json()["components"]["schemas"]
        for table in ("orders", "parcels", "order_lines", "listings"):
            assert set(schemas[table]["properties"]) == set(TABLES[table].names)
            for column in TABLES[table].columns:
                assert column.help.split(";")[0] in schemas[table]["properties"][column.name].get(
                    "description", ""
                ) or (column.name == "order_id")

    @pytest.mark.parametrize(
        "request_",
        [
            with_("parcel.weight_g", "heavy"),
            with_("parcel.weight_g", -1),
            with_("parcel.other", 1),
            without("order.ordered_at"),
            with_("order.ordered_at", "2025-03-01T08:10:00"),
            with_("parcel.parcel_id", ""),
            with_("lines", [{}]),
        ],
    )
    def test_what_the_documentation_forbids_is_refused(self, bare: Any, request_: Any) -> None:
        document = bare.http.get("/docs.json").json()
        schema = document["paths"]["/v1/risk"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert list(violations(request_, schema, document))
        assert not list(violations(SMALL, schema, document))
        problem(bare.http.post("/v1/risk", json=request_), 400)

    @pytest.mark.parametrize("path", ["/", "/docs.json"])
    def test_pages_fetch_nothing_from_elsewhere(self, bare: Any, path: str) -> None:
        text = bare.http.get(path).text
        assert "http://" not in text
        assert "https://" not in text
        assert "bentoml" not in text.lower()
        if path == "/":
            links: list[str] = []
            parser = HTMLParser()
            named = ("src", "href", "action")
            parser.handle_starttag = (  # type: ignore[method-assign]
                lambda tag, attrs: links.extend(value or "" for name, value in attrs if name in named)
            )
            parser.feed(text)
            assert links and all(link.startswith(("./", "#")) for link in links)

    def test_health(self, bare: Any) -> None:
        for path in ("/livez", "/readyz", "/healthz"):
            assert bare.http.get(path).status_code == 200
        assert bare.http.head("/readyz").status_code == 200

    def test_nothing_was_asked_of_another_machine(self, bare: Any, loaded: Any) -> None:
        for service in (bare, loaded):
            service.http.post("/v1/risk", json=EXAMPLE)
            assert not service.outside.exists()

    def test_a_worker_imports_no_training_library(self, trained: Any, tmp_path: Path) -> None:
        code = """
import json, sys
import serving.server
from serving.schemas import EXAMPLE
from serving.score import answer
from serving.service import Doorstep, live
Doorstep()
work = live().accept("/v1/risk", json.dumps(EXAMPLE).encode())
assert not answer(work.loaded.bundle, work.loaded.snapshot, work.requests)[0]["degraded"]
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""
        env = {**os.environ, "DOORSTEP_BUNDLE": str(trained.bundle), "DOORSTEP_SNAPSHOT": str(trained.snapshot)}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        heavy = {"mlflow", "sklearn", "shap", "lightgbm", "pandera", "scipy", "matplotlib", "fastapi", "training"}
        assert not heavy & set(json.loads(ran.stdout))

    def test_one_port_is_open(self, bare: Any) -> None:
        listening = []
        sockets = {
            Path(f).readlink().name
            for f in Path(f"/proc/{bare.process.pid}/fd").iterdir()
            if str(Path(f).readlink()).startswith("socket")
        }
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(int(fields[1].split(":")[1], 16))
        assert listening == [bare.port]

    def test_several_workers_share_the_port_and_the_figures(self, run_service: Callable[..., Any]) -> None:
        with run_service(WORKERS=2) as service:
            for _ in range(20):
                with httpx.Client(base_url=service.url, trust_env=False) as http:
                    assert http.post("/v1/risk", json=SMALL).status_code == 200
            assert service.metrics()["doorstep_degraded_total"] == 20

    def test_many_at_once_are_all_answered(self, bare: Any) -> None:
        async def ask() -> list[int]:
            async with httpx.AsyncClient(base_url=bare.url, trust_env=False, timeout=30) as http:
                return [
                    r.status_code for r in await asyncio.gather(*(http.post("/v1/risk", json=SMALL) for _ in range(60)))
                ]

        assert set(asyncio.run(ask())) == {200}

    def test_at_once_or_alone_the_answer_is_the_same(self, loaded: Any) -> None:
        bodies = [with_("order.order_value", 10.0 + i) | {"parcel": {"parcel_id": str(i)}} for i in range(24)]
        bodies[5]["listings"] = [{"sku": "s", "known_at": "2025-01-01T00:00:00Z", "fragility": 4}]  # its own, nobody's

        async def ask() -> list[dict[str, Any]]:
            async with httpx.AsyncClient(base_url=loaded.url, trust_env=False, timeout=30) as http:
                return [r.json() for r in await asyncio.gather(*(http.post("/v1/risk", json=b) for b in bodies))]

        assert asyncio.run(ask()) == [loaded.http.post("/v1/risk", json=b).json() for b in bodies]

    def test_only_the_parcel_the_model_fails_on_gets_base_rates(self, trained: Any) -> None:
        code = """
import asyncio, json, sys
import serving.service as service
from serving.schemas import EXAMPLE
real = service.decide
def decide(bundle, snapshot, policy, requests, *rest):
    if bundle is not None and any(r["parcel"]["parcel_id"] == "bad" for r in requests):
        raise RuntimeError("cannot")
    return real(bundle, snapshot, policy, requests, *rest)
service.decide = decide
service.Doorstep()
def body(name):
    return json.dumps(EXAMPLE | {"parcel": EXAMPLE["parcel"] | {"parcel_id": name}}).encode()
accept = service.live().accept
async def main():
    works = [accept("/v1/risk", body(n)) for n in ("one", "bad", "two")]
    return await asyncio.gather(*(service._together.ask(w) for w in works))
print(json.dumps([[a["parcel_id"], a["degraded"]] for a in asyncio.run(main())]))
many = accept("/v1/risk/batch", b"[" + body("one") + b"," + body("bad") + b"]")
print(json.dumps([a["degraded"] for a in service._answer(many)[0]]))
"""
        env = {**os.environ, "DOORSTEP_BUNDLE": str(trained.bundle), "DOORSTEP_SNAPSHOT": str(trained.snapshot)}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        joined, batch = map(json.loads, ran.stdout.splitlines()[-2:])
        assert joined == [["one", False], ["bad", True], ["two", False]]
        assert batch == [False, True]

    def test_no_snapshot_or_bundle_is_refused_for_a_fault_of_the_policy(self, trained: Any, tmp_path: Path) -> None:
        code = """
import json, os
import serving.score as score
from serving.service import Live
def fail(*_):
    raise RuntimeError("cannot")
def states(*order):
    live = Live()
    live.policy.check()
    weigh, score.weigh = score.weigh, fail
    for name in order:
        getattr(live, name).check()
    os.utime(os.environ["DOORSTEP_POLICY"], (1, 1))
    live.policy.check()
    os.utime(os.environ["DOORSTEP_POLICY"])
    score.weigh = weigh
    return [w.state for w in (live.bundle, live.snapshot, live.policy)] + [live.policy.value is not None]
def both():
    return [states("bundle", "snapshot"), states("snapshot", "bundle")]
of_policy = both()
score.Scoring = fail
print(json.dumps([of_policy, both()]))
"""
        policy = tmp_path / "policy.toml"
        policy.write_text(draft(Dataset.open(trained.dataset)), encoding="utf-8")
        env = {
            **os.environ,
            "DOORSTEP_BUNDLE": str(trained.bundle),
            "DOORSTEP_SNAPSHOT": str(trained.snapshot),
            "DOORSTEP_POLICY": str(policy),
        }
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        of_policy, of_model = json.loads(ran.stdout.splitlines()[-1])
        assert of_policy == [["loaded", "loaded", "refused", True]] * 2
        assert "the policy in use fails with what is taken up now" in ran.stderr
        assert [states[:2] for states in of_model] == [["loaded", "refused"], ["refused", "loaded"]]


def violations(value: Any, schema: dict[str, Any], document: dict[str, Any], at: str = "") -> Iterator[str]:
    """Where `value` is not what a JSON schema of the document asks for: the keywords we use, by their definition."""
    if "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        yield from violations(value, found, document, at)
        return
    if "anyOf" in schema and all(list(violations(value, s, document, at)) for s in schema["anyOf"]):
        yield f"{at}: none of anyOf"
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    if kind in ("number", "integer"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{at}: no number"
        elif not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
            yield f"{at}: out of bounds"
    elif kind is not None and not isinstance(value, types[kind]):
        yield f"{at}: no {kind}"
    elif kind == "string":
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            yield f"{at}: length"
        if schema.get("format") == "date-time" and not re.fullmatch(r"[-0-9]{10}T[0-9:.]+(Z|[-+][0-9:]{5})", value):
            yield f"{at}: no date-time"
    elif kind == "array":
        if len(value) > schema.get("maxItems", math.inf):
            yield f"{at}: too long"
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), document, f"{at}[{i}]")
    elif kind == "object":
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            if name in properties:
                yield from violations(item, properties[name], document, f"{at}.{name}")
            elif more is False:
                yield f"{at}.{name}: not allowed"
            elif isinstance(more, dict):
                yield from violations(item, more, document, f"{at}.{name}")


def near(a: Any, b: Any) -> bool:
    """The same, but for the last digit of a sum."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(near(x, y) for x, y in zip(a, b, strict=True))
    return math.isclose(a, b, rel_tol=0, abs_tol=1e-12) if isinstance(a, float) else bool(a == b)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def renamed(source: Path, to: Path) -> None:
    """The same bundle with another digest: saved once more, with another note about its training."""
    bundle = Bundle.load(source)
    texts = {name: (Path(source) / "models" / f"{name}.txt").read_text() for name in bundle.targets}
    note = {**bundle.meta, "note": dt.date(2025, 1, 1).isoformat()}
    Bundle.save(to, bundle.settings, bundle.targets, texts, note)
