"""Orders into ``mixture.json``, and into the journal what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mixloop.contract import LONGEST_TEXT, Order, write_order
from mixloop.controller.core import (
    NOTHING,
    CheckpointRow,
    DecisionRecord,
    OrderRecord,
    RunState,
    left_by,
    stages,
)
from mixloop.controller.journal import queries, records
from mixloop.policies.mixture import total_variation

from .mixture_file import MixtureFile
from .takeover import OwnedRun


@dataclass
class Publishing:
    """The one writer of the shared state file."""

    run: OwnedRun
    mixture_file: MixtureFile

    def publish(self, state: RunState) -> None:
        """The order that the journal has, under this controller's fence."""
        assert state.asked is not None
        row = queries.order(self.run.journal, state.asked)
        assert row is not None
        order = Order(
            run=self.run.config.run.id,
            fence=self.run.journal.fence or 0,
            generation=row.generation,
            weights=row.weights,
            then=tuple(stages(self.mixture_file.plan_of(row))),
            decision=row.decision,
            policy=row.policy[:LONGEST_TEXT],  # an older version's journal may hold any text
            reason=row.reason[:LONGEST_TEXT],
            issued_at=row.issued_at,
            uid=self.mixture_file.uid,
        )
        if state.foreign_order:
            self.run.journal.event(
                "stranger", found=state.foreign_order, replaced_by=order.generation
            )
            self.run.say(f"mixture.json held {state.foreign_order}, not ours; replaced")
        if row.published_at is None:
            self.run.journal.verify()  # what it rests on is as it was left, every row
        self.run.journal.assert_fence()
        write_order(self.run.paths.mixture, order, self.run.key)
        records.published(self.run.journal, order.generation)
        if row.published_at is None:
            self.run.say(f"published generation {order.generation} ({order.decision})")

    def restore(self, state: RunState) -> None:
        """A file we did not write: put what was asked for back, above whatever it started."""
        status = state.status
        tokens = status.tokens if status is not None else 0
        asked, plan = self.mixture_file.asked_mixture(tokens)
        fence, _ = self.mixture_file.accepted.proven(status)
        if fence >= (self.run.journal.fence or 0):
            self.run.journal.raise_fence(fence)
        before = dict(status.in_force.weights) if status is not None else asked
        generation = self.mixture_file.next_generation(status)
        reason = (
            f"found {state.foreign_order}, which this controller did not write; "
            f"the mixture it asked for was published again as generation {generation}"
        )
        changed = total_variation(before, asked) > NOTHING
        decision = DecisionRecord(
            verdict="intervene" if changed else "hold",
            reason=reason,
            weights_before=before,
            weights_proposed=asked,
            weights_after=asked,
            plan=plan,
            against_generation=status.in_force.generation if status is not None else 0,
            evidence={"restored": state.foreign_order},
            order=OrderRecord(generation, "controller"),
            asked_by="controller",
            policy="controller",
            step=status.step if status is not None else 0,
            tokens=tokens,
        )
        records.decision(self.run.journal, decision, scores={}, started_ms=records.now_ms())
        self.run.say(reason)

    def acknowledge(self, state: RunState) -> None:
        """The trainer consumes samples under these orders."""
        for applied in state.newly_applied:
            tokens = applied.sample * self.run.config.trainer.sequence_length
            before = self._weights_before(applied.generation)
            begins = self._receipt_from(applied.generation, tokens, state)
            records.applied(self.run.journal, applied, tokens, before, begins)
            self.run.say(f"generation {applied.generation} in force at step {applied.step}")

    def _weights_before(self, generation: int) -> Mapping[str, float]:
        """The mixture that was in force when this order came into force."""
        row = queries.order_before(self.run.journal, generation)
        return row.weights if row is not None else self.run.initial

    def _receipt_from(self, generation: int, tokens: int, state: RunState) -> CheckpointRow | None:
        """The last checkpoint to be scored before an order came into force, if a receipt waits.

        None where that of its decision is the last.
        """
        journal, order = self.run.journal, queries.order(self.run.journal, generation)
        waits = [
            row
            for row in queries.open_experiments(journal)
            if row.receipt and order is not None and row.decision == order.decision
        ]
        if not waits:
            return None
        steps = [
            row.step
            for row in queries.checkpoint_states(journal, after=waits[0].step)
            if row.tokens <= tokens
            and (row.state in ("running", "scored") or row.step in state.waiting)
            and left_by(state.rewinds, row.sample, row.incarnation) is None
        ]
        return queries.checkpoint(journal, steps[-1]) if steps else None

    def note_rejection(self, state: RunState) -> None:
        """The trainer refused orders."""
        records.rejected(self.run.journal, state.newly_rejected)
        for generation, reason in state.newly_rejected.items():
            self.run.say(f"the trainer refused generation {generation}: {reason}")
