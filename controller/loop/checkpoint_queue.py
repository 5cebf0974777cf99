"""The run's checkpoints: which are new, which wait for their score, which are passed over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mixloop.common.json_records import Problem
from mixloop.contract import Manifest
from mixloop.controller.config import layout_of
from mixloop.controller.core import CheckpointRow, CheckpointState, Rewind, left_by
from mixloop.controller.journal import queries

from .takeover import OwnedRun

NEXT = 2**62  # above every step
BACKLOG = 2  # checkpoints that may wait before evaluation counts as behind


class CheckpointQueue:
    """Reads folder and journal. What it keeps only spares it reading the same things again.

    Attributes:
        problems: The manifests that could not be read at the last :meth:`unrecorded`.
    """

    def __init__(self, run: OwnedRun) -> None:
        self._layout = layout_of(run.config, run.paths.checkpoints)
        self._journal = run.journal
        self._evals = run.config.evals
        self.problems: dict[Path, Problem] = {}
        self._rewinds: tuple[Rewind, ...] | None = None
        self._recorded: set[int] = set()  # steps in the folder that are in the journal
        # step and tokens of the last checkpoint up to which none will ever be due again
        self._settled: tuple[int, int] | None = None
        self._recorded_names: frozenset[str] = frozenset()
        self._read_names: frozenset[str] = frozenset()  # whole or not, at the last reading

    @property
    def folder(self) -> Path:
        """Where the checkpoints are looked for."""
        return self._layout.folder

    def _heed(self, rewinds: tuple[Rewind, ...]) -> None:
        """A step of a branch that the trainer has left may come again."""
        if rewinds != self._rewinds:
            self._rewinds, self._settled = rewinds, None
            rows = queries.checkpoint_states(self._journal)
            self._recorded = {row.step for row in rows if _on_branch(row, rewinds)}

    def unrecorded(self, rewinds: tuple[Rewind, ...]) -> dict[Path, Manifest]:
        """Whole checkpoints that the journal does not have, by folder, oldest first."""
        self._heed(rewinds)
        self.problems = {}
        self._read_names = self._marked()
        folders = self._folders()
        if not folders:
            return {}
        self._recorded.intersection_update(step for step, _ in folders)
        new: dict[Path, Manifest] = {}
        for step, name in folders:
            if step in self._recorded:
                continue
            manifest = self._manifest(name)
            if manifest is not None and self._is_new(manifest, rewinds):
                new[self._layout.folder / name] = manifest
        done = (name for step, name in folders if step in self._recorded)
        self._recorded_names = frozenset(done)
        return new

    def _folders(self) -> list[tuple[int, str]]:
        """Steps and names of folders called as checkpoints are, in order."""
        try:
            names = [entry.name for entry in self._layout.folder.iterdir()]
        except OSError:
            return []
        steps = ((self._layout.step(name), name) for name in names)
        return sorted((step, name) for step, name in steps if step is not None)

    def news(self) -> bool:
        """Whether a checkpoint has got its manifest since :meth:`unrecorded`. Reads no file."""
        return not self._marked() <= self._read_names

    def _marked(self) -> frozenset[str]:
        """Names in the folder that are not known to be recorded and have a manifest."""
        try:
            names = {entry.name for entry in self._layout.folder.iterdir()}
        except OSError:
            return frozenset()
        new = names - self._recorded_names
        return frozenset(name for name in new if self._layout.file(name).exists())

    def incomplete(self) -> dict[int, str]:
        """Steps of folders called as checkpoints are, and what they lack of a whole one."""
        lacks = ((step, self._layout.lack(name)) for step, name in self._folders())
        return {step: lack for step, lack in lacks if lack}

    def _manifest(self, name: str) -> Manifest | None:
        result = self._layout.find(name)
        if result.problem is not None:
            self.problems[self._layout.file(name)] = result.problem
        return result.value

    def _is_new(self, manifest: Manifest, rewinds: tuple[Rewind, ...]) -> bool:
        row = queries.checkpoint(self._journal, manifest.step)
        # a step is repeated by a resume, which makes the same checkpoint, or after a rewind
        if row is not None and _on_branch(row, rewinds):
            self._recorded.add(manifest.step)
            return False
        if row is not None and left_by(rewinds, manifest.sample, manifest.incarnation) is not None:
            return False  # the folder may yet be replaced by one of the branch that goes on
        if self._settled is not None and manifest.step <= self._settled[0]:
            self._settled = None  # older than what is settled: all is looked through again
        return True

    def waiting(self, rewinds: tuple[Rewind, ...], training_ended: bool) -> tuple[int, ...]:
        """Steps that are still to be scored, in order.

        One every ``evals.every`` tokens, and the last of a training that has ended.
        """
        self._heed(rewinds)
        step, tokens = self._settled or (-1, None)
        rows = queries.checkpoint_states(self._journal, after=step)
        rows = [row for row in rows if _on_branch(row, rewinds)]
        every = self._evals.every or 0
        waiting: list[int] = []
        for row in rows:
            last = training_ended and row is rows[-1]
            far_enough = tokens is None or row.tokens - tokens >= every
            if not (row.state is not None or far_enough or last):
                continue
            tokens = row.tokens
            if row.state in (None, "running"):
                waiting.append(row.step)
            elif not waiting:
                self._settled = (row.step, tokens)
        return tuple(waiting)

    def before(self, step: int, rewinds: tuple[Rewind, ...]) -> tuple[CheckpointRow, ...]:
        """The checkpoints before a step whose weights are averaged with its own, newest first.

        On its branch: what the trainer has left counts for nothing.
        """
        wanted = self._evals.average - 1
        found: list[CheckpointRow] = []
        while len(found) < wanted:
            rows = queries.checkpoints_before(self._journal, step, wanted)
            if not rows:
                break
            step = rows[-1].step
            found += [row for row in rows if _on_branch(row, rewinds)]
        return tuple(found[:wanted])

    def in_use(self, rewinds: tuple[Rewind, ...], training_ended: bool) -> frozenset[int]:
        """Steps that are to be scored, and those that go into their mean or the next one's."""
        waiting = self.waiting(rewinds, training_ended)
        before = [row.step for step in (*waiting, NEXT) for row in self.before(step, rewinds)]
        return frozenset((*waiting, *before))

    def abandoned(self, rewinds: tuple[Rewind, ...]) -> dict[int, str]:
        """Checkpoints of a branch the trainer has left, recorded only after it had."""
        if not rewinds:
            return {}
        rows = queries.checkpoints_in(self._journal, None)
        left = {row.step: left_by(rewinds, row.sample, row.incarnation) for row in rows}
        return {step: f"abandoned: {rewind}" for step, rewind in left.items() if rewind is not None}

    def behind(self, waiting: tuple[int, ...]) -> dict[int, str]:
        """What is passed over so that the newest is scored next; a short queue is no backlog.

        What was begun is finished all the same.
        """
        if self._evals.backlog == "all" or len(waiting) <= BACKLOG:
            return {}
        begun = queries.checkpoints_in(self._journal, "running")
        passed = set(waiting[:-1]) - {row.step for row in begun}
        why = (
            f"evaluation is behind: {len(waiting)} checkpoints waited, and the newest "
            f"(step {waiting[-1]}) is scored next"
        )
        return dict.fromkeys(sorted(passed), why)

    def to_decide(self) -> int | None:
        """The newest scored checkpoint, unless it or a newer one was decided on.

        It is decided on once more when an experiment has ended that was not known then.
        """
        scored = queries.newest_scored_step(self._journal)
        decided = queries.newest_decided_step(self._journal)
        if scored is None or decided is None or scored > decided:
            return scored
        known = queries.experiments_known_at(self._journal, scored)
        news = queries.experiment_news(self._journal, known)
        return scored if news and scored == decided else None


def _on_branch(row: CheckpointRow | CheckpointState, rewinds: Iterable[Rewind]) -> bool:
    return left_by(rewinds, row.sample, row.incarnation) is None
