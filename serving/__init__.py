"""From a row to a decision: the bundle, its explanations and the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.bundle import Bundle as Bundle

__all__ = ["Bundle"]


def __getattr__(name: str) -> Any:
    """Import on first use, see `features`."""
    if name == "Bundle":
        from serving.bundle import Bundle

        return Bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
