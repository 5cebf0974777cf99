"""Branches and merges of a world: what a short experiment from its present state would show.

A branch is a copy of the state that goes on for a few tokens on a mixture of its own. It sees the
present slope of every law and nothing of what comes later. What is off about it is in units of
``spread``, how much branches on single sources differ, or of ``scale``, how much they differ and
gain by themselves, so that no world is easier to experiment in because its losses are larger.
Everything is drawn from the seed and from where the run is, so that the same question has the same
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mixloop.policies.mixture import Array

PARTS = ("whole", "first", "second")


@dataclass(frozen=True)
class BranchErrors:
    """How branches and merges err.

    Attributes:
        zoom: how many times its tokens a branch shows whose learning rate goes to zero.
        paired: standard error of a score beside another branch's, in an evaluation's noise: the
            items are the same. This is what the world states.
        windows: noise of the few windows of a branch of ``length`` units, in ``scale``; it falls
            with the square root of the length. Not stated.
        length: see ``windows``, in units of data.
        bend: error of a linear merge one source away from the present mixture, in ``spread``. It
            grows with the square of the distance and stays the same for the whole run.
        blind: what a short horizon likes or dislikes of a source by mistake, in ``spread``.
    """

    zoom: float = 3.0
    paired: float = 0.25
    windows: float = 0.4
    length: float = 0.05
    bend: float = 0.2
    blind: float = 0.15


class Branchable(Protocol):
    """What a world must have to be experimented in."""

    k: int
    m: int
    unit: int
    sigma: float
    time: float
    state: Any
    shares: Array
    wobble: Array

    @property
    def origin(self) -> tuple[int, ...]:
        """What everything random in this world is drawn from."""
        ...

    def step(self, state: Any, shares: Array, part: float, time: float) -> Any:
        """The state after ``part`` units at ``shares``, begun at ``time`` units."""
        ...

    def losses_at(self, state: Any) -> Array:
        """Losses (…, m) of a state."""
        ...


class Branches:
    """What branches of one length show from the present state of a world.

    Args:
        world: as it is now; it is only read.
        tokens: of each branch.
        to_zero: whether the learning rate goes to zero over them.
        errors: how branches and merges err.
    """

    def __init__(self, world: Branchable, tokens: int, to_zero: bool, errors: BranchErrors) -> None:
        self.world, self.errors = world, errors
        self.length = tokens / world.unit
        self.seen = self.length * (errors.zoom if to_zero else 1.0)
        self.place = (*world.origin, round(world.time * world.unit), tokens, int(to_zero))

    def branch(self, shares: Array) -> Array:
        """Losses (m,) after a branch on ``shares`` (k,): its windows are its own."""
        own = self._drawing(4, *np.round(shares * 1e6).astype(int)).normal(size=self.world.m)
        away = self._away(shares)
        apart = np.abs(away).sum() / 2
        noise = self._windows(self.length) * (0.1 + np.sqrt(apart)) * own
        items = self._drawing(5, *np.round(shares * 1e6).astype(int)).normal(size=self.world.m)
        values = self._seen(shares, self.seen) + self.scale * noise + self.stderr * items
        return np.asarray(values)

    def merge(self, shares: Array, part: str) -> Array:
        """Losses (m,) of the merge of one-source experts, at ``shares`` (k,); smooth in them.

        ``first`` and ``second`` are of the halves of the experts' data: half the length each, and
        windows of their own, whose mean are the whole's.
        """
        halves = PARTS.index(part)
        share = 0.5 if halves else 1.0
        away = self._away(shares)
        noise = np.mean(self._halves if not halves else self._halves[halves - 1 : halves], axis=0)
        noise = self._windows(self.length / 2) * (away @ noise)
        curve = np.einsum("bij,i,j->b", self._curves, away, away) * self.errors.bend
        values = self._seen(shares, self.seen * share)
        off = self.scale * noise + self.spread * curve
        return np.asarray(values + share * (off + self._items(away)))

    @cached_property
    def stderr(self) -> float:
        """The standard error that is stated."""
        return self.errors.paired * self.world.sigma

    @cached_property
    def spread(self) -> Array:
        """(m,): how much branches on one source differ from one on the present mixture."""
        single = self._ahead(np.eye(self.world.k), self.seen)
        apart = single - self._ahead(self.world.shares, self.seen)
        return np.asarray(np.sqrt((apart**2).mean(axis=0)))

    @cached_property
    def scale(self) -> Array:
        """(m,): how much branches on one source differ, and gain by themselves."""
        gain = self._ahead(self.world.shares, self.seen) - self.world.losses_at(self.world.state)
        return np.hypot(self.spread, gain)

    def _ahead(self, shares: Array, units: float) -> Array:
        world = self.world
        losses: Array = world.losses_at(world.step(world.state, shares, units, world.time))
        return losses

    def _seen(self, shares: Array, units: float) -> Array:
        """The losses ahead, with the run's present wobble and what a short horizon mistakes."""
        liked = self._fixed(3).normal(size=(self.world.k, self.world.m)) * self.errors.blind
        mistaken = self.spread * (units / self.seen) * (self._away(shares) @ liked)
        return np.asarray(self._ahead(shares, units) + self.world.wobble + mistaken)

    def _windows(self, length: float) -> float:
        return self.errors.windows * float(np.sqrt(self.errors.length / max(length, 1e-9)))

    def _away(self, shares: Array) -> Array:
        return np.asarray(shares - self.world.shares)

    def _items(self, away: Array) -> Array:
        """What the items alone make of the experts: the same for every part."""
        drawn = self._drawing(2).normal(size=(self.world.k, self.world.m))
        return np.asarray(self.stderr * (away @ drawn))

    @cached_property
    def _halves(self) -> Array:
        return self._drawing(1).normal(size=(2, self.world.k, self.world.m))

    @cached_property
    def _curves(self) -> Array:
        k = self.world.k
        drawn = self._fixed(6).normal(size=(self.world.m, k, k))
        return np.asarray((drawn + drawn.transpose(0, 2, 1)) / 2)

    def _fixed(self, *stream: int) -> np.random.Generator:
        """The same for the whole run."""
        return np.random.default_rng([*self.world.origin, *stream])

    def _drawing(self, *stream: int) -> np.random.Generator:
        """The same for this state and length."""
        return np.random.default_rng([*self.place, *map(int, stream)])


class Experimentable:
    """A world's ``branch`` and ``merge``, from the laws it already has."""

    branch_errors = BranchErrors()
    _branches: dict[tuple[float, int, bool], Branches]

    def branch(
        self: Any, weights: Mapping[str, float], tokens: int, schedule: str = "to zero"
    ) -> dict[str, tuple[float, float]]:
        """The scores of a branch from here, and the standard error of each beside another's."""
        branches = _of(self, tokens, schedule == "to zero")
        return _scores(self, branches, branches.branch(_shares(self, weights)))

    def merge(
        self: Any, weights: Mapping[str, float], tokens: int, part: str = "whole"
    ) -> dict[str, tuple[float, float]]:
        """The scores of the linear merge of one-source experts of ``tokens`` at ``weights``.

        ``part``: of experts trained on all their data, or on its first or second half.
        """
        branches = _of(self, tokens, True)
        return _scores(self, branches, branches.merge(_shares(self, weights), part))


def _of(world: Any, tokens: int, to_zero: bool) -> Branches:
    """The branches of the present state; those of the last few questions are kept."""
    key = (world.time, tokens, to_zero)
    kept: dict[Any, Branches] = world.__dict__.setdefault("_branches", {})
    if key not in kept:
        kept.clear()
        kept[key] = Branches(world, tokens, to_zero, world.branch_errors)
    return kept[key]


def _shares(world: Any, weights: Mapping[str, float]) -> Array:
    return np.array([weights.get(name, 0.0) for name in world.sources])


def _scores(world: Any, branches: Branches, losses: Array) -> dict[str, tuple[float, float]]:
    return {
        name: (float(loss), branches.stderr)
        for name, loss in zip(world.benchmarks, losses, strict=True)
    }
