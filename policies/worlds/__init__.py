"""Worlds: small models of how benchmarks answer to a mixture, to measure policies on.

A policy that is good only here is not good: worlds show what a policy does wrong, not that it is
right. ``protocol`` says what a world of one's own has to offer.
"""

from __future__ import annotations

from .families import Dilution, Exponential, Flat, Power
from .optimum import best_static
from .protocol import World, WorldSource, world_sources
from .registry import Setting, load_world, register_world, world_names
from .smollm2 import SmolLM2

__all__ = [
    "Dilution",
    "Exponential",
    "Flat",
    "Power",
    "Setting",
    "SmolLM2",
    "World",
    "WorldSource",
    "best_static",
    "load_world",
    "register_world",
    "world_names",
    "world_sources",
]
