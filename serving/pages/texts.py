"""Every word the pages say, by key, in one file a language.

A catalogue is a TOML file of tables of texts. A text may name what is filled in: `"{n} parcels"`. Texts hold no markup:
what is filled in, and the whole, is shown as text.
"""

from __future__ import annotations

import string
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "texts"
SHIPPED = "en"
"""The language that has every text."""


class TextError(ValueError):
    """A catalogue cannot be used; says which, and what it lacks."""


class Texts:
    """The texts of one language; called with a key it gives the text.

    Args:
        texts: key, with its tables and dots (`pack.title`), -> text.

    Attributes:
        all: the texts by key.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        self.all = texts

    @classmethod
    def load(cls, language: str = SHIPPED) -> Texts:
        """A shipped language by its name, or any by the path of its `.toml` file.

        Raises:
            TextError: there is none, it is no TOML of texts, it lacks texts or what they fill in differs.
        """
        path = Path(language) if language.endswith(".toml") else HERE / f"{language}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in HERE.glob("*.toml")))
            raise TextError(f"DOORSTEP_LANGUAGE is {language!r}; allowed: {known}, or the path of a .toml file")
        try:
            found = _flat(tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise TextError(f"{path} is no catalogue of texts: {error}") from None
        if path != HERE / f"{SHIPPED}.toml":
            whole = cls.load().all
            lacks = sorted(whole.keys() - found.keys())
            if lacks:
                raise TextError(f"{path} lacks {len(lacks)} texts: {', '.join(lacks[:20])}")
            differ = sorted(k for k in whole if _names(whole[k]) != _names(found[k]))
            if differ:
                raise TextError(f"{path} fills in other names than {SHIPPED}.toml: {', '.join(differ[:20])}")
        return cls(found)

    def __call__(self, key: str, /, **given: Any) -> str:
        """The text of a key, filled in. Raises KeyError where there is none."""
        text = self.all[key]
        return text.format_map(given) if given else text

    def word(self, table: str, code: object) -> str:
        """What a code of a table is called (`team`, `carrier`), or the code itself: shops have codes of their own."""
        return self.all.get(f"{table}.{code}", str(code).replace("_", " "))

    def under(self, table: str) -> dict[str, str]:
        """The texts of a table by what follows its name, such as those a script needs."""
        return {k.removeprefix(f"{table}."): v for k, v in self.all.items() if k.startswith(f"{table}.")}

    # Figures, as the language writes them.

    def number(self, value: float | None, digits: int = 0) -> str:
        """A number with so many digits behind the point; a dash where there is none."""
        return "–" if value is None or value != value else self.written(f"{value:,.{digits}f}")

    def written(self, number: str) -> str:
        """A number that is written with a comma for thousands and a point, as the language writes it."""
        signs = {",": self.all["format.thousands"], ".": self.all["format.decimal"], "-": "−"}
        return "".join(signs.get(c, c) for c in number)

    def percent(self, value: float | None, digits: int = 1) -> str:
        """A share as percent."""
        return "–" if value is None or value != value else f"{self.number(100 * value, digits)} %"

    def day(self, value: str | datetime | None) -> str:
        """A moment's day, from ISO text or a datetime."""
        if not value:
            return "–"
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.strftime(self.all["format.day"])


def _flat(content: dict[str, Any], table: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in content.items():
        key = f"{table}{name}"
        if isinstance(value, dict):
            out |= _flat(value, f"{key}.")
        elif isinstance(value, str):
            out[key] = value
        else:
            raise TypeError(f"{key} must be text in quotes; given: {value!r}")
    return out


def _names(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
