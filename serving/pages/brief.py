"""A team's week on one page: what to do first, what it is worth, and what came of last week's list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from markupsafe import Markup

from serving.diagnosis import PARCEL_TARGETS, Diagnosis, QueryError, Where, shop_day
from serving.pages.meeting import STYLE
from serving.pages.reading import around
from serving.pages.site import Site
from serving.pages.texts import Texts
from serving.pages.todo import TEAMS, Action, todo

ACTIONS = 5
"""Actions of a page."""
PAGE, TEXT = "brief.html", "brief.md"


@dataclass(frozen=True)
class Came:
    """What came of an action of last week's list.

    Attributes:
        what: the action, in words.
        result: a key of the catalogue's table `came`: gone, better, still, worse, new_judgement.
        before, after: ratios to the expected.
    """

    what: str
    result: str
    before: float | None
    after: float | None


def brief(
    diagnosis: Diagnosis, team: str, week: str, site: Site, previous: Diagnosis | None = None
) -> Mapping[str, bytes]:
    """The page as HTML and as Markdown, by file name.

    Args:
        diagnosis: the newest, as the week begins.
        team: one of `TEAMS`.
        week: ISO week such as 2025-W52.
        site: templates and texts.
        previous: last week's diagnosis, with which what came of its list is told.

    Raises:
        QueryError: the team or the week is none, or the diagnosis knows nothing of that week; says of which it does.
    """
    if team not in TEAMS:
        raise QueryError("team", "has no brief", team, ", ".join(TEAMS))
    monday = first_day(week)
    as_of = shop_day(diagnosis.document, "as_of", last=True)
    weeks = [str(w) for w in diagnosis.values("parcels", "week")]
    begun = iso_week(weeks[0]) if weeks else "any"
    allowed = f"{begun} to {iso_week(as_of)}, which {as_of} is in" if as_of else f"{begun} or later"
    if as_of and as_of < monday.isoformat():
        raise QueryError("week", "begins after what the diagnosis knows", week, allowed)
    if weeks and monday.isoformat() < weeks[0]:
        raise QueryError("week", "ends before the diagnosis begins", week, allowed)
    texts = site.texts
    actions = todo(diagnosis, team, texts, ACTIONS)
    # By outcome: which of them are old enough to judge differs, and some nobody records.
    judged_by = {
        target: {str(g["week"]): g for g in diagnosis.sums("parcels", [target], Where(known=(target,)), by=["week"])}
        for target in PARCEL_TARGETS
    }
    counts = [
        texts(
            "brief.count",
            target=texts.word("target", target),
            n=texts.number(own[monday.isoformat()][target]),
            parcels=texts.number(own[monday.isoformat()]["rows"]),
        )
        for target, own in judged_by.items()
        if monday.isoformat() in own
    ]
    judged = max((week for own in judged_by.values() for week in own), default=None)
    context: dict[str, Any] = {
        "team": team,
        "week": week,
        "monday": monday.isoformat(),
        "sunday": (monday + timedelta(days=6)).isoformat(),
        "begun": shop_day(diagnosis.document, "since") or next(iter(weeks), None),
        "actions": actions,
        "counts": ", ".join(counts),
        "judged": None if judged is None else iso_week(judged),
        "unjudged": _unjudged(diagnosis) if judged is None else "",
        "young": judged is None or judged < monday.isoformat(),
        "came": None if previous is None else came_of(previous, diagnosis, team, texts),
        "changes": diagnosis.rows("changes", sort="-changed_at", limit=ACTIONS) if team == "listing" else [],
        "style": Markup(STYLE),  # our own file
        **around(diagnosis, texts),
        "previous": None if previous is None else previous.document,
        "flat": flat,
    }
    return {
        PAGE: site.document("brief.html", **context).encode(),
        TEXT: site.document("brief.md", **context).encode(),
    }


def _unjudged(diagnosis: Diagnosis) -> str:
    """Why no outcome of any parcel can be judged, "" if nothing is said of it.

    Carriers may lack more than outcomes to be compared, such as their names: then the reason is that of late parcels.
    """
    late = (diagnosis.document.get("late") or {}).get("why") or ""
    compared = diagnosis.table("corridors").why
    return ((compared if late in compared else late) or diagnosis.table("parcels").why).rstrip(".")


def first_day(week: str) -> date:
    """The Monday of an ISO week. Raises QueryError."""
    try:
        year, _, number = week.partition("-W")
        if len(year) == 4 and len(number) == 2:
            return date.fromisocalendar(int(year), int(number), 1)
    except ValueError:
        pass
    raise QueryError("week", "is no ISO week", week, "a year and a week, such as 2025-W52")


def iso_week(day: str) -> str:
    """The ISO week of a date."""
    year, number, _ = date.fromisoformat(day).isocalendar()
    return f"{year}-W{number:02d}"


def came_of(previous: Diagnosis, now: Diagnosis, team: str, texts: Texts) -> list[Came]:
    """What came of the list that an earlier diagnosis gave a team."""
    current = {a.subject: a for a in todo(now, team, texts, 1000)}
    out = []
    for action in todo(previous, team, texts, ACTIONS):
        after = current.get(action.subject)
        out.append(Came(action.what, _result(action, after), action.ratio, None if after is None else after.ratio))
    return out


def _result(before: Action, after: Action | None) -> str:
    """Without a finding now it is not shown to be wrong any more; a change counts where the intervals are apart."""
    if after is None:
        return "gone"
    (_, low, high), (_, low_now, high_now) = before.interval, after.interval
    if None in (low, high, low_now, high_now):
        return "still"
    assert low is not None and high is not None and low_now is not None and high_now is not None
    return "better" if high_now < low else "worse" if low_now > high else "still"


def flat(text: object) -> str:
    """Text for Markdown, in one line, nothing of it read as a mark."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~&!" else c for c in line)
