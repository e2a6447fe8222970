"""What every page is made with: its template, its words, its links and its headers."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serving.diagnosis import Diagnosis
from serving.pages.texts import Texts

if TYPE_CHECKING:
    from serving.pages.shadow import Shadow

HERE = Path(__file__).parent

NAVIGATION: tuple[tuple[str, str], ...] = (
    ("overview", "/"),
    ("pack", "/pack"),
    ("listings", "/listings"),
    ("carriers", "/carriers"),
    ("warehouse", "/warehouse"),
)
"""The pages of the header: name in the catalogue, path."""

HEADERS: dict[str, str] = {
    # Nothing inline and nothing from elsewhere: a name with markup in it that got through could still do nothing.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""Headers of every page."""


@dataclass(frozen=True)
class Status:
    """What the service answers with now, in words for people; None: it has none.

    `as_of` is the last day of which all is known, on the shop's clock. `policy_problem` is why the policy that is
    published was refused; an older one may still be in use.
    """

    bundle: str | None = None
    as_of: str | None = None
    policy: str | None = None
    policy_problem: str | None = None
    ledger: bool = False
    waiting: bool = False
    answer_ms: int = 250


@dataclass(frozen=True)
class Sources:
    """Where pages find what they show; asked anew for each page.

    Attributes:
        status: what is loaded.
        endpoints: path -> method of everything that is answered.
        diagnosis: the one that is served, None if there is none.
        diagnosis_problem: why the one that is published is not served, None if it is or none is.
        changes: of a product's listing, as recorded and not withdrawn, the latest first: `key`, `changed_at` and
            `what`; None if the ledger does not answer.
        shadow: of the packing station's shadow mode; None if there is none. Raises LedgerError.
    """

    status: Callable[[], Status] = Status
    endpoints: Mapping[str, str] = field(default_factory=dict)
    diagnosis: Callable[[], Diagnosis | None] = lambda: None
    diagnosis_problem: Callable[[], str | None] = lambda: None
    changes: Callable[[str], list[dict[str, Any]] | None] = lambda sku: []
    shadow: Callable[[], Shadow | None] = lambda: None


@dataclass(frozen=True)
class _File:
    name: str
    content: bytes
    digest: str
    kind: str


class Site:
    """Templates, texts and files, read once.

    Args:
        sources: where pages find what they show.
        language: a language of `texts/`, or the path of a catalogue of your own, see `Texts.load`.

    Attributes:
        files: URL path -> the static file there.

    Raises:
        serving.pages.texts.TextError: there is no such language, or it lacks texts.
    """

    def __init__(self, sources: Sources | None = None, language: str = "en") -> None:
        self.sources = sources or Sources()
        self.texts = Texts.load(language)
        self.files = {f"/static/{p.name}": _read(p) for p in sorted((HERE / "static").iterdir()) if p.is_file()}
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"t": self.texts, "word": self.texts.word, "texts": self.texts}
        self._environment.filters |= {
            "number": self.texts.number,
            "percent": self.texts.percent,
            "day": self.texts.day,
        }
        for name in self._environment.list_templates():  # read now, so that no reader waits for it
            self._environment.get_template(name)

    def shown(self, page: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """A page as a route's endpoint: it finds its site in the request."""

        def endpoint(request: Request) -> Response:
            request.state.site = self
            return page(request)

        return endpoint

    def render(self, request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
        """A page.

        Args:
            request: what was asked.
            template: a file of `templates/`.
            status: of the answer.
            context: what the template names; all of it is shown as text, never read as markup.
        """
        depth = _depth(request)

        def url(path: str, /, **query: Any) -> str:
            return link(depth, path, query)

        def static(name: str) -> str:
            return link(depth, f"/static/{name}", {"v": self.files[f"/static/{name}"].digest})

        paths = set(self.sources.endpoints)
        navigation = [(name, path) for name, path in NAVIGATION if path in paths]
        here = request.url.path
        text = self.document(template, url=url, static=static, navigation=navigation, here=here, **context)
        return HTMLResponse(text, status, HEADERS)

    def document(self, template: str, **context: Any) -> str:
        """A template filled in, such as one that stands alone; all of `context` is shown as text."""
        return self._environment.get_template(template).render(**context)

    def file(self, request: Request) -> Response:
        """A static file. One that is asked for by the digest of its content never changes: browsers may keep it."""
        found = self.files[request.scope["path"]]
        etag = f'"{found.digest}"'
        same = request.query_params.get("v") == found.digest
        headers = {"Cache-Control": "public, max-age=31536000, immutable" if same else "no-cache", "ETag": etag}
        if found.name.endswith("-worker.js"):
            headers["Service-Worker-Allowed"] = "../"  # it serves pages, which lie beside /static/ and not in it
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.kind, headers=headers)


def of(request: Request) -> Site:
    """The site a page belongs to."""
    site: Site = request.state.site
    return site


def link(depth: int, path: str, query: Mapping[str, Any]) -> str:
    """The one way to make a link: relative to the page, so that it holds behind whatever prefix a proxy puts in front.

    Args:
        depth: how many folders deep the page is that holds it.
        path: of the service, from its root.
        query: what is asked of it; None is left out, a list stands several times.
    """
    given = {k: v for k, v in query.items() if v is not None}
    asked = f"?{urlencode(given, doseq=True)}" if given else ""
    up = "../" * depth or "./"
    return f"{up}{quote(path.lstrip('/'))}{asked}"


def _depth(request: Request) -> int:
    # As the address is written: a slash within a name (%2F) makes a link's base no deeper.
    return max((request.scope.get("raw_path") or request.scope["path"].encode()).count(b"/") - 1, 0)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    kind = {".js": "text/javascript", ".svg": "image/svg+xml"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return _File(path.name, content, hashlib.sha256(content).hexdigest()[:16], f"{kind or 'application/octet-stream'}")
