"""From history to a bundle: labels, splits, models, evaluation and the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.pipeline import train as train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import on first use, see `features`."""
    if name == "train":
        from training.pipeline import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
