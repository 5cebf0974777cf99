"""``mixture.json`` as it lies there, and what the journal has asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.types import Json
from mixloop.contract import LARGEST_ORDER, AcceptedOrders, Status, is_signed
from mixloop.controller.config import RunConfig
from mixloop.controller.core import FileState, OrderRow, Plan, remaining, stages
from mixloop.controller.journal import Journal, queries

from .takeover import OwnedRun, first_mixture


class MixtureFile:
    """Reads the shared state file and the journal's orders.

    Attributes:
        accepted: What the trainer has accepted, as far as its files prove it.
    """

    def __init__(self, run: OwnedRun) -> None:
        self._run = run
        self._journal = run.journal
        self.accepted = AcceptedOrders(run.paths, run.config.run.id, run.key)

    # -- the file ----------------------------------------------------------------------------

    def look(self, status: Status | None, newest: OrderRow | None) -> tuple[FileState, str]:
        """The file beside the newest order, and what there is that this journal never published.

        That is, in the file or followed by the trainer; empty for nothing.
        """
        if self._run.key is None:
            if followed := self._followed(status):
                return FileState.FOREIGN, followed
        elif newest is None or not self._may_sign(newest, status):
            # the trainer goes on as it is until the next decision
            return FileState.CURRENT, ""
        state, foreign = self._held(newest)
        if state is FileState.FOREIGN and newest is not None:
            state = FileState.STALE  # the trainer did not take it: ours, as it was, replaces it
        return state, foreign

    def _may_sign(self, newest: OrderRow, status: Status | None) -> bool:
        """Whether an order of the journal is ours, and still what the run shall do.

        Of a journal that was lost or is an older copy, what it has was signed before, and may have
        been withdrawn since. Of one into which others wrote, an order up to then is ours if it is
        the signed one that the trainer follows.
        """
        if newest.generation < self.accepted.proven(status)[1]:
            return False
        return newest.generation > queries.orders_since(self._journal) or self._is_signed(newest)

    def _is_signed(self, row: OrderRow) -> bool:
        order = self.accepted.followed()
        if order is None or order.generation != row.generation:
            return False
        same = (dict(order.weights), order.decision) == (dict(row.weights), row.decision)
        return same and order.then == tuple(stages(self.plan_of(row)))

    def _followed(self, status: Status | None) -> str:
        """An order that the trainer follows and this journal never published."""
        if status is None or self._is_ours(status.accepted.fence, status.accepted.generation):
            return ""
        fence, generation = self.accepted.proven(status)
        if self._is_ours(fence, generation):
            return ""
        return f"an order of generation {generation} under fence {fence}"

    def _is_ours(self, fence: int, generation: int) -> bool:
        """Whether this journal has given both numbers out."""
        ours = generation <= queries.highest_generation(self._journal)
        return ours and fence <= (self._journal.fence or 0)

    def _held(self, newest: OrderRow | None) -> tuple[FileState, str]:
        try:
            data = read_regular(self._run.paths.mixture, LARGEST_ORDER).data
        except (FileNotFoundError, NotRegularError):  # a link, a pipe: replaced by the rename
            return FileState.ABSENT, ""
        except OSError:  # unreadable now: no news
            return FileState.CURRENT, ""
        return self._compare(data, newest)

    def _compare(self, data: bytes, newest: OrderRow | None) -> tuple[FileState, str]:
        try:
            order = json.loads(data)
            generation, fence = int(order["generation"]), int(order["fence"])
            weights, decision = order["weights"], order["decision"]
            if not 0 <= generation < 2**63:
                raise ValueError("no generation")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return FileState.FOREIGN, f"{len(data)} bytes that are no order"
        row = queries.order(self._journal, generation)
        if row is None or row.weights != weights or row.decision != decision:
            return FileState.FOREIGN, f"an order of generation {generation}"
        ours = newest is not None and newest.generation == generation
        recorded = newest is not None and newest.published_fence == self._journal.fence
        signed = self._run.key is None or self._is_for_this_run(order)
        current = ours and recorded and signed and fence == self._journal.fence
        return (FileState.CURRENT if current else FileState.STALE), ""

    def _is_for_this_run(self, order: Json) -> bool:
        """Whether the trainer will find its own uid, and our key's signature."""
        key = self._run.key
        return key is not None and order.get("uid", "") == self.uid and is_signed(key, order)

    @property
    def uid(self) -> str:
        """What tells the run from others of its id: signed orders name it."""
        return self.accepted.uid() if self._run.key is not None else ""

    # -- orders ------------------------------------------------------------------------------

    def next_generation(self, status: Status | None) -> int:
        """Above every generation of this journal, and all that the trainer may have accepted."""
        known = (self._journal.fence or 0, queries.highest_generation(self._journal))
        return self.accepted.above(status, known)[1] + 1

    def asked_mixture(self, tokens: int) -> tuple[dict[str, float], Plan]:
        """The mixture last asked for and what is left of its plan; before any order the first."""
        newest = queries.newest_order(self._journal)
        if newest is None:
            return by_sources(self._run.initial, self._run.config), ()
        if newest.generation <= queries.orders_since(self._journal) and not self._is_signed(newest):
            followed = first_mixture(
                self._run.paths, None, self._run.initial, self._run.config.run.id, self._run.key
            )
            return by_sources(followed, self._run.config), ()
        asked, left = remaining(newest.weights, self.plan_of(newest), tokens)
        plan = tuple((until, by_sources(weights, self._run.config)) for until, weights in left)
        return by_sources(asked, self._run.config), plan

    def plan_of(self, order: OrderRow) -> Plan:
        """What is left of an order's plan when run.yaml no longer has all of its sources.

        The stretches up to the first that draws from one that is gone.
        """
        kept = takewhile(lambda stretch: self._has_sources(stretch[1]), order.plan)
        return tuple(kept)

    def _has_sources(self, weights: Mapping[str, float]) -> bool:
        return all(name in self._run.config.sources for name, share in weights.items() if share)


def is_forced(journal: Journal) -> bool:
    """Whether the newest order is one that a person forced past the hard guards."""
    order = queries.newest_order(journal)
    decision = queries.decision(journal, order.decision) if order is not None else None
    return decision is not None and decision.evidence.get("forced") is True


def pinned_shares(journal: Journal, config: RunConfig) -> dict[str, float]:
    """Shares that operators hold fixed, of sources that the run still has."""
    return {name: share for name, share in queries.pins(journal).items() if name in config.sources}


def by_sources(weights: Mapping[str, float], config: RunConfig) -> dict[str, float]:
    """A mixture by run.yaml's sources; one that was retired has no share in it."""
    return {name: weights.get(name, 0.0) for name in config.sources}
