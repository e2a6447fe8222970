"""Takes the pictures of the pages that stand in the README and in the guides: a real browser before a real service.

    python docs/pages/run.py                       all of them, on a simulated shop that is made for it (minutes)
    python docs/pages/run.py pack-do --shop demo   some, on the shop that `make demo` left
    python docs/pages/run.py --scans 200           no pictures: milliseconds from Enter to the verdict painted

The shop is a folder with `shop` (a dataset) and, as `make demo` publishes them, `deploy/bundle` and `deploy/snapshot`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsers import TABLET, browser  # noqa: E402
from playwright.sync_api import Page  # noqa: E402
from services import Service, running  # noqa: E402

from features import Dataset  # noqa: E402
from training.announce import requests, send  # noqa: E402

HERE = Path(__file__).parent
LARGEST = 150_000
"""Bytes of a picture."""
DESK = {"width": 1280, "height": 900}


@dataclass(frozen=True)
class Shop:
    """What pictures are taken of: a running service, and its waiting parcels by what the station says of them."""

    service: Service
    codes: dict[str, str]


def _scanned(kind: str) -> Callable[[Page, Shop], None]:
    def act(page: Page, shop: Shop) -> None:
        page.keyboard.type(shop.codes[kind])
        page.keyboard.press("Enter")
        page.locator(f"#verdict[data-kind={kind}]").wait_for()

    return act


def _nothing(page: Page, shop: Shop) -> None:
    """The page as it opens."""


PICTURES: dict[str, tuple[str, dict[str, int], Callable[[Page, Shop], None]]] = {
    "pack-do": ("/pack", {"width": 1024, "height": 768}, _scanned("do")),
    "pack-tablet": ("/pack", TABLET, _scanned("do")),
    "overview": ("/", DESK, _nothing),
    "listings": ("/listings", DESK, _nothing),
    "carriers": ("/carriers", DESK, _nothing),
    "warehouse": ("/warehouse", DESK, _nothing),
}
"""Name of the file -> path, size of the window, what is done before the picture is taken."""


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures. Returns 1 if one is larger than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PICTURES)}")
    parser.add_argument("--shop", type=Path, help="folder with shop, deploy/bundle, deploy/snapshot [default: made]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the pictures")
    parser.add_argument(
        "--scans", type=int, default=0, help="measure so many scans instead, with and without a network"
    )
    given = parser.parse_args(arguments)
    if unknown := set(given.pictures) - set(PICTURES):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shop = (given.shop or _made(work)).resolve()
        if given.scans:
            return _timed(given.scans, shop, work)
        return _taken(given.pictures or list(PICTURES), shop, work, given.out)


def _run(*command: object) -> None:
    print(f"$ doorstep {' '.join(map(str, command))}", flush=True)
    subprocess.run([sys.executable, "-m", "training.cli", *map(str, command)], cwd=ROOT, check=True)


def _made(work: Path) -> Path:
    _run("world", work / "shop", "--parcels", 12_000, "--seed", 7)
    _run("train", work / "shop", "--out", work / "run", "--mlflow-uri", f"sqlite:///{work}/mlflow.db")
    _run("snapshot", work / "shop", "--out", work / "deploy" / "snapshot")
    (work / "deploy" / "bundle").symlink_to(work / "run" / "bundle")
    return work


def _settings(shop: Path, work: Path) -> dict[str, object]:
    _run("policy", "init", shop / "shop", "--out", work / "policy.toml")
    assert tomllib.loads((shop / "shop" / "dataset.toml").read_text())["simulated"], "pictures show no shop's own data"
    return {
        "DOORSTEP_BUNDLE": shop / "deploy" / "bundle",
        "DOORSTEP_SNAPSHOT": shop / "deploy" / "snapshot",
        "DOORSTEP_POLICY": work / "policy.toml",
        "DOORSTEP_LEDGER": f"sqlite:///{work}/ledger.db",
        "DOORSTEP_WAITING": work / "waiting.db",
    }


def _timed(scans: int, shop: Path, work: Path) -> int:
    """Scan one parcel after the other in the browser, with and without a network."""
    with running(work / "service", **_settings(shop, work)) as service, browser() as chromium:
        parcels = requests(Dataset.open(shop / "shop"), scans)
        for _ in send(service.url, parcels):
            pass
        page = chromium.new_page(viewport=TABLET)  # type: ignore[arg-type]
        page.goto(f"{service.url}/pack")
        for network in (True, False):
            page.context.set_offline(not network)
            took, silent = [], 0
            for parcel in parcels:
                page.evaluate("delete document.getElementById('station').dataset.painted")
                page.keyboard.type(parcel["parcel"]["parcel_id"])
                page.keyboard.press("Enter")
                page.locator("#station[data-painted]").wait_for()
                took.append(float(page.locator("#station").get_attribute("data-painted") or "nan"))
                silent += page.locator("#said").inner_text() == "No advice, pack as usual"
            took.sort()
            p50, p95, most = took[len(took) // 2], took[int(0.95 * len(took))], took[-1]
            print(
                f"{'with' if network else 'without'} a network: {scans} scans, Enter to painted: p50 {p50:.0f} ms, "
                f"p95 {p95:.0f} ms, longest {most:.0f} ms; no advice {silent} times",
                flush=True,
            )
    return 0


def _taken(names: list[str], shop: Path, work: Path, out: Path) -> int:
    env = _settings(shop, work) | {"DOORSTEP_STATION_MS": 5000}
    if any(not PICTURES[name][0].startswith("/pack") for name in names):
        _run("diagnose", shop / "shop", "--out", work / "diagnosis")
        env["DOORSTEP_DIAGNOSIS"] = work / "diagnosis"
    large = 0
    with running(work / "service", **env) as service, browser() as chromium:
        codes: dict[str, str] = {}
        parcels = requests(Dataset.open(shop / "shop"), 200)
        for sent in send(service.url, parcels):
            print(f"announced {sent} parcels", flush=True)
        for code in (p["parcel"]["parcel_id"] for p in parcels):
            said = service.http.post("/v1/parcels/scan", json={"code": code}).json()
            if len(said["reasons"]) == 3 or said["kind"] == "usual":  # a picture is to show all there can be
                codes.setdefault(said["kind"], code)
        for name in names:
            path, size, act = PICTURES[name]
            page = chromium.new_page(viewport=size, locale="en-GB", timezone_id="UTC")  # type: ignore[arg-type]
            page.goto(service.url + path)
            act(page, Shop(service, codes))
            file = out / f"{name}.png"
            page.screenshot(path=file, animations="disabled")
            page.close()
            weight = file.stat().st_size
            large += weight > LARGEST
            print(f"{file.name}: {weight:,} bytes{', more than it may have' if weight > LARGEST else ''}", flush=True)
    return int(large > 0)


if __name__ == "__main__":
    sys.exit(main())
