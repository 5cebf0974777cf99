"""The trainer's room: file contracts, mixing order, token stores, the mixture for any loop.

Importing it loads nothing heavy; `contract` and `order` work without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixloop.trainer.dataset import MixtureDataset
    from mixloop.trainer.loader import MixtureLoader

__all__ = ["MixtureDataset", "MixtureLoader"]

_HOMES = {"MixtureDataset": "dataset", "MixtureLoader": "loader"}


def __getattr__(name: str) -> Any:
    """What adopters need, by its short name, loaded when asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
