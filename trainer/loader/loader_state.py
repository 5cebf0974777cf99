"""What a loop's checkpoint keeps of the mixture: a small dictionary, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mixloop.contract import Manifest, OrderInForce, Schedule
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.run import forked_from

STATE_SCHEMA = "mixloop/loader/1"


@dataclass(frozen=True)
class LoaderState:
    """A place in the order.

    `step` optimizer steps are done and `sample` is the first sample of the next; `micro` of its
    micro-batches, `begun` samples over all ranks, are consumed already. `switches` are (sample,
    generation) of the one in force and of those announced beyond it: all that is needed to know
    which recorded ones never came into force.
    """

    run: str
    step: int
    sample: int
    micro: int
    begun: int
    quantum: int
    sequence_length: int
    seed: int
    incarnation: int
    switches: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """What `schedule.jsonl` calls it as a parent."""
        return f"step-{self.step:08d}"

    @staticmethod
    def beginning(job: Job, quantum: int) -> LoaderState:
        """The place before the first micro-batch; the first step has `quantum` samples."""
        length = job.sequence_length
        return LoaderState(job.run, 0, 0, 0, 0, quantum, length, job.seed, 0, ((0, 0),))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        body = asdict(self) | {"switches": [list(pair) for pair in self.switches]}
        return {"schema": STATE_SCHEMA, **body}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> LoaderState:
        """The state that `to_json` gave.

        Raises:
            JobError: it is not one.
        """
        schema = value.get("schema") if isinstance(value, Mapping) else None
        if schema != STATE_SCHEMA:
            raise JobError(f"loader state: schema {schema!r} is not {STATE_SCHEMA!r}")
        try:
            pairs = tuple(
                (int(sample), int(generation)) for sample, generation in value["switches"]
            )
            names = {field.name for field in fields(LoaderState)} - {"run", "switches"}
            numbers = {name: int(value[name]) for name in names}
            return LoaderState(run=str(value["run"]), switches=pairs, **numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise JobError(f"loader state: damaged ({error!r})") from error

    def of_run(self, run: str, folder: Path) -> LoaderState:
        """The same for the run in a folder, which is this state's run or was forked from it.

        Raises:
            JobError: it is another run's.
        """
        if self.run == run:
            return self
        forked = forked_from(folder)
        if forked is None:
            raise JobError(f"loader state: of run {self.run!r}, not {run!r}")
        parent, sample = forked
        if (self.run, self.sample, self.begun) != (parent, sample, 0):
            raise JobError(
                f"loader state: of run {self.run!r} at sample {self.sample + self.begun}, but "
                f"{run!r} was forked from {parent!r} at sample {sample}; load that state"
            )
        return replace(self, run=run)

    def as_checkpoint(self) -> tuple[Path, Manifest]:
        """The state as the checkpoint that a plan goes on from."""
        force = OrderInForce(0, self._in_force[1], self._in_force[0], 0, {})
        manifest = Manifest(
            run=self.run,
            step=self.step,
            sample=self.sample,
            tokens=self.sample * self.sequence_length,
            phase=None,
            in_force=force,
            sources={},
            incarnation=self.incarnation,
            sequence_length=self.sequence_length,
            quantum=self.quantum,
            files={},
        )
        return Path(self.name), manifest

    @property
    def _in_force(self) -> tuple[int, int]:
        """(sample, generation) of the last switch whose first sample is consumed, or 0's."""
        return max((s for s in self.switches if s[0] < max(1, self.sample)), default=(0, 0))

    def valid_segments(self, schedule: Schedule) -> frozenset[tuple[int, int]]:
        """(sample, generation) of the recorded segments that were in this state's order.

        One switch is pending at a time, so a segment that begins after the one in force and before
        this state's sample is one that never came into force.
        """
        since = self._in_force[0]
        return frozenset(
            (line.sample, line.generation)
            for line in schedule.segments
            if not since < line.sample < self.sample
        )

    def micro_at(self, rows: int, world: int) -> int:
        """Micro-batches of the step that are consumed, at this many rows and ranks.

        Raises:
            JobError: the state lies inside a micro-batch of that layout.
        """
        whole, rest = divmod(self.begun, rows * world)
        if rest:
            raise JobError(
                f"loader state: {self.begun} samples of step {self.step} are consumed, which is no "
                f"multiple of a micro-batch over all ranks ({rows} x {world}); resume on the "
                "layout it was saved on, or from a state saved between steps"
            )
        return whole
