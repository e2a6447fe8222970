"""What was known, and when: tables, history and features. The only code that training and serving both run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.dataset import Dataset as Dataset

__all__ = ["Dataset"]


def __getattr__(name: str) -> Any:
    """Import on first use: pandas takes a second that `doorstep --help` does not have."""
    if name == "Dataset":
        from features.dataset import Dataset

        return Dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
