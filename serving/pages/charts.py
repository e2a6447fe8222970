"""Figures as SVG, drawn at the server: no script, no colour that words do not say as well."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

LEAST, MOST = 0.25, 8.0
"""Ends of the axis of ratios, which is logarithmic; what lies beyond ends in an arrow."""


def ratio(value: float | None, low: float | None, high: float | None, says: str, *, width: int = 168) -> Markup:
    """An interval of a ratio against 1, which is what comparable ones had.

    Args:
        value, low, high: the ratio and its interval; None: there is none, and only the axis is drawn.
        says: all of it in words, for who does not see it.
        width: of the figure, px.
    """
    height, middle = 24, 12

    def x(r: float) -> float:
        share = math.log(min(max(r, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
        return round(6 + share * (width - 12), 1)

    one = x(1.0)
    drawn = [
        f'<line class="axis" x1="6" x2="{width - 6}" y1="{middle}" y2="{middle}"/>',
        f'<line class="mark" x1="{one}" x2="{one}" y1="2" y2="{height - 2}"/>',
    ]
    if value is not None and low is not None and high is not None:
        tone = "bad" if low > 1 else "good" if high < 1 else "unsure"
        a, b = x(low), x(high)
        drawn.append(
            f'<rect class="span {tone}" x="{a}" y="{middle - 5}" width="{max(b - a, 2):.1f}" height="10" rx="5"/>'
        )
        if high > MOST:
            drawn.append(f'<path class="dot {tone}" d="M{width - 8} {middle - 6}l7 6l-7 6z"/>')
        drawn.append(f'<circle class="dot {tone}" cx="{x(value)}" cy="{middle}" r="4.5"/>')
    return _svg("interval", width, height, says, drawn)


def share(
    value: float, low: float, high: float, mark: float | None, top: float, says: str, *, width: int = 168
) -> Markup:
    """An interval of a share on an axis from 0 to `top`, with a mark where comparable ones are."""
    height, middle = 24, 12

    def x(s: float) -> float:
        return round(6 + min(max(s, 0.0), top) / (top or 1.0) * (width - 12), 1)

    tone = "unsure" if mark is None else "bad" if low > mark else "good" if high < mark else "unsure"
    drawn = [f'<line class="axis" x1="6" x2="{width - 6}" y1="{middle}" y2="{middle}"/>']
    if mark is not None:
        drawn.append(f'<line class="mark" x1="{x(mark)}" x2="{x(mark)}" y1="2" y2="{height - 2}"/>')
    a, b = x(low), x(high)
    drawn += [
        f'<rect class="span {tone}" x="{a}" y="{middle - 5}" width="{max(b - a, 2):.1f}" height="10" rx="5"/>',
        f'<circle class="dot {tone}" cx="{x(value)}" cy="{middle}" r="4.5"/>',
    ]
    return _svg("interval", width, height, says, drawn)


def split(parts: Sequence[tuple[str, float]], says: str) -> Markup:
    """One bar in parts that add up to its whole.

    Args:
        parts: name of each part's colour, and how much it is.
        says: all of it in words.
    """
    whole = sum(n for _, n in parts) or 1.0
    width, height, x = 720.0, 26, 0.0
    drawn = []
    for tone, n in parts:
        if n > 0:
            wide = n / whole * width
            box = f'x="{x:.1f}" y="0" width="{max(wide - 2, 1):.1f}" height="{height}"'
            drawn.append(f'<rect class="part {escape(tone)}" {box}/>')
            x += wide
    return _svg("split", int(width), height, says, drawn, stretch=True)


def series(
    labels: Sequence[str],
    observed: Sequence[float | None],
    expected: Sequence[float | None],
    title: str,
    says: str,
    *,
    top_says: str,
    mark: int | None = None,
) -> Markup:
    """A course in time: what was observed as a line with dots, what was expected as a dashed one.

    Args:
        labels: of the points, in order of time; the first and the last are shown.
        observed, expected: shares; None where there is none.
        title: what it is.
        says: what it shows, in words.
        top_says: the value at the top of the axis, as text.
        mark: the point from which something changed.
    """
    width, height, left, right, above, below = 720, 220, 56, 12, 14, 28
    top = max([v for v in (*observed, *expected) if v is not None], default=0.0) or 1.0
    step = (width - left - right) / max(len(labels) - 1, 1)

    def at(i: int, v: float) -> str:
        return f"{left + i * step:.1f} {above + (1 - v / top) * (height - above - below):.1f}"

    floor = height - below
    drawn = [
        f'<line class="axis" x1="{left}" x2="{width - right}" y1="{floor}" y2="{floor}"/>',
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{above}" y2="{above}"/>',
        f'<text x="{left - 8}" y="{above + 4}" text-anchor="end">{escape(top_says)}</text>',
        f'<text x="{left - 8}" y="{floor + 4}" text-anchor="end">0</text>',
    ]
    if labels:
        drawn.append(f'<text x="{left}" y="{height - 8}">{escape(labels[0])}</text>')
        drawn.append(f'<text x="{width - right}" y="{height - 8}" text-anchor="end">{escape(labels[-1])}</text>')
    if mark is not None:
        x = left + mark * step
        drawn.append(f'<line class="since" x1="{x:.1f}" x2="{x:.1f}" y1="{above}" y2="{floor}"/>')
        drawn.append(f'<text class="since" x="{x + 5:.1f}" y="{above + 12}">{escape(labels[mark])}</text>')
    for css, values in (("expected", expected), ("observed", observed)):
        path, pen = "", "M"
        for i, v in enumerate(values):
            if v is None:
                pen = "M"
                continue
            path += f"{pen}{at(i, v)}"
            pen = "L"
        if path:
            drawn.append(f'<path class="line {css}" d="{path}"/>')
    for i, v in enumerate(observed):
        if v is not None and len(labels) <= 120:
            across, down = at(i, v).split()
            drawn.append(f'<circle class="point" cx="{across}" cy="{down}" r="3"/>')
    return _svg("series", width, height, title, drawn, says)


def _svg(
    css: str, width: int, height: int, title: str, drawn: Sequence[str], says: str = "", *, stretch: bool = False
) -> Markup:
    """The pieces as one figure; text in them is escaped already."""
    described = f"<desc>{escape(says)}</desc>" if says else ""
    fit = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(
        f'<svg class="{css}" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}"{fit}>'
        f"<title>{escape(title)}</title>{described}{''.join(drawn)}</svg>"
    )
