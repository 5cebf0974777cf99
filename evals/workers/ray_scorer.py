"""A checkpoint's units of work spread over Ray actors; the scorecard is that of one process.

The worker is Ray's driver. It plans the units as `Scorer` does, hands each to whichever actor is
free, and puts the scores together; what a unit holds does not depend on the actors, so neither
does the result. An actor that dies or falls silent is replaced and its unit handed out again, up
to twice; then the unit's benchmark is missing with the reason. Settings, units and scores travel
as JSON. Actors on other machines read checkpoints from a file system they share.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixloop.evals import EvalSettings, Scorecard, training_state
from mixloop.evals.scoring import Progress, Scorer, UnitScore, WorkUnit, existing

from .launchers import LauncherError, launcher_problem
from .ray_actor import ScoringActor

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times a unit is handed out before its benchmark is given up; as many starts may fail in a row."""
# shared memory Ray sets up: our messages are small, and this is about the least it accepts
_STORE_BYTES = 100 * 2**20
# Ray puts sockets below the temporary folder, and their paths may not be longer than 107 bytes
_MAX_FOLDER_LENGTH = 36


@dataclass
class UnitQueue:
    """Which units are still to be scored, how often each was lost, and what came of the others."""

    waiting: deque[WorkUnit]
    scores: list[UnitScore] = field(default_factory=list)
    losses: Counter[WorkUnit] = field(default_factory=Counter)
    dropped: dict[str, str] = field(default_factory=dict)

    def take(self) -> WorkUnit | None:
        """The next unit to hand out."""
        return self.waiting.popleft() if self.waiting else None

    def lost(self, unit: WorkUnit, reason: str) -> None:
        """The unit came to nothing: it is the next again, or its benchmark is given up."""
        self.losses[unit] += 1
        self.waiting.appendleft(unit)
        if self.losses[unit] == ATTEMPTS:
            self.dropped[unit.benchmark] = f"{unit.benchmark}: {reason}, {ATTEMPTS} times"
        self._drop(self.dropped)

    def give_up(self, reason: str) -> None:
        """Nothing more can be scored."""
        self._drop({unit.benchmark: f"{unit.benchmark}: {reason}" for unit in self.waiting})

    def _drop(self, reasons: Mapping[str, str]) -> None:
        """A score over some units of a benchmark is none, so the others need not be tried."""
        dropped = [unit for unit in self.waiting if unit.benchmark in reasons]
        self.scores += [UnitScore(unit=unit, failed=reasons[unit.benchmark]) for unit in dropped]
        self.waiting = deque(unit for unit in self.waiting if unit not in dropped)


@dataclass
class _Task:
    """What an actor is at: a unit, or starting (None)."""

    actor: Any
    unit: WorkUnit | None
    deadline: float


class RayScorer:
    """Scores checkpoints as `Scorer` does, on `workers` Ray actors.

    `workers` may be changed between checkpoints.

    Raises:
        LauncherError: Ray can't be used.
    """

    def __init__(self, settings: EvalSettings) -> None:
        problem = launcher_problem("ray")
        if problem is not None:
            raise LauncherError(problem)
        self.settings = settings
        self.workers = settings.workers
        self._ours = _start_ray(settings)
        import ray

        self._ray = ray
        self._scorer = Scorer(settings)
        self._idle: list[Any] = []
        self._tasks: dict[Any, _Task] = {}
        self._failed_starts = 0
        self._reason = ""

    @property
    def ready(self) -> list[Any]:
        """The actors that wait for work."""
        return list(self._idle)

    def close(self) -> None:
        """Ends the actors, and Ray where it was started here."""
        self._dismiss([*self._idle, *(task.actor for task in self._tasks.values())])
        if self._ours:
            self._ray.shutdown()
        self._scorer.close()

    def release(self) -> None:
        """Nothing is held here: an actor keeps its model until it gets another checkpoint."""

    def score(
        self,
        checkpoint: Path,
        progress: Progress = lambda name, state: None,
        earlier: Sequence[Path] = (),
    ) -> Scorecard:
        """The scorecard of one checkpoint, as :meth:`Scorer.score` has it."""
        folders = (checkpoint, *existing(earlier))
        began = time.monotonic()
        progress("checkpoint", "planning")
        state = training_state(checkpoint)
        units = self._scorer.units()
        queue = UnitQueue(deque(units))
        self._failed_starts = 0
        self._dismiss(self._idle[self.workers :])
        # actors keep a model by this name: the folder may hold another by the next time
        name = f"{checkpoint}|{time.time_ns()}"
        while queue.waiting or any(task.unit for task in self._tasks.values()):
            self._staff(len(units))
            self._hand_out(queue, folders, name, progress)
            if not self._tasks:
                queue.give_up(f"no Ray worker can be started: {self._reason}")
                break
            self._collect(queue)
        seconds = time.monotonic() - began
        return self._scorer.assemble_card(checkpoint, state, queue.scores, seconds, folders[1:])

    def samples(self, card: Scorecard, path: Path) -> None:
        """Has the actor that was free last write the samples; it has the model.

        Raises:
            OSError: they can't be written.
        """
        if not (self.settings.samples and self._idle):
            return
        # the items stay here: a sample's file says nothing of them
        call = self._idle[-1].samples.remote(
            card.model_copy(update={"benchmarks": {}}).to_json(), str(path)
        )
        try:
            self._ray.get(call, timeout=self._limit)
        except self._ray.exceptions.RayError as error:
            self._dismiss(self._idle[-1:])
            raise OSError(_line(error)) from error

    @property
    def _limit(self) -> float:
        """Seconds an actor may be silent."""
        return self.settings.unit_timeout or self.settings.timeout / 4

    def _staff(self, units: int) -> None:
        """Starts actors up to the number wanted; none after too many failed to start."""
        if self._failed_starts >= ATTEMPTS:
            return
        # threads decide how sums are ordered, and an actor has the processors it asked for
        settings = self.settings.pinned(self._scorer.data_kinds())
        settings = settings.model_copy(update={"threads": settings.threads or 1})
        actors = self._ray.remote(ScoringActor).options(
            num_cpus=settings.worker_cpus, num_gpus=settings.worker_gpus
        )
        while len(self._idle) + len(self._tasks) < min(self.workers, units):
            actor: Any = actors.remote(settings.model_dump_json())
            self._await(actor.ready.remote(), actor, None)

    def _hand_out(
        self, queue: UnitQueue, folders: Sequence[Path], name: str, progress: Progress
    ) -> None:
        checkpoint, *earlier = map(str, folders)
        while self._idle and (unit := queue.take()) is not None:
            actor = self._idle.pop()
            progress(unit.benchmark, f"running{unit.which()}")
            call = actor.score.remote(name, checkpoint, unit.model_dump_json(), earlier)
            self._await(call, actor, unit)

    def _await(self, call: Any, actor: Any, unit: WorkUnit | None) -> None:
        self._tasks[call] = _Task(actor, unit, time.monotonic() + self._limit)

    def _collect(self, queue: UnitQueue) -> None:
        """Waits for one task to end, or to be overdue."""
        first = min(task.deadline for task in self._tasks.values())
        self._ray.wait(list(self._tasks), timeout=max(0.0, first - time.monotonic()))
        ended, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for call in ended:
            self._ended(call, self._tasks.pop(call), queue)
        now = time.monotonic()
        for call in [call for call, task in self._tasks.items() if task.deadline <= now]:
            reason = f"its worker was silent for {self._limit:g} s"
            self._lost(self._tasks.pop(call), reason, queue)

    def _ended(self, call: Any, task: _Task, queue: UnitQueue) -> None:
        try:
            answer = self._ray.get(call)
            if task.unit is not None:
                queue.scores.append(UnitScore.model_validate_json(answer))
        except (self._ray.exceptions.RayError, ValueError) as error:
            self._lost(task, f"its worker failed: {_line(error)}", queue)
            return
        self._failed_starts = 0
        self._idle.append(task.actor)

    def _lost(self, task: _Task, reason: str, queue: UnitQueue) -> None:
        self._dismiss([task.actor])
        log.warning("%s: %s", task.unit or "a start", reason)
        if task.unit is None:
            self._failed_starts += 1
            self._reason = reason
        else:
            queue.lost(task.unit, reason)

    def _dismiss(self, actors: list[Any]) -> None:
        for actor in actors:
            self._ray.kill(actor)
        self._idle = [actor for actor in self._idle if actor not in actors]


def _start_ray(settings: EvalSettings) -> bool:
    """Connects to Ray, or starts one here, quietly; whether it is ours to shut down.

    Raises:
        LauncherError: there is none at the address, or none can be started; one line.
    """
    # asked for before Ray is imported: nothing of a run is told to anyone
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": settings.ray_address}
    if settings.ray_address is None:
        folder = Path(tempfile.gettempdir())
        if len(str(folder)) > _MAX_FOLDER_LENGTH:
            folder = Path("/tmp")
        options = {
            "address": "local",
            "num_cpus": max(1, math.ceil(settings.workers * settings.worker_cpus)),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": str(folder / "ray"),
        }
    try:
        ray.init(logging_level=logging.ERROR, **options)
    # a cluster that isn't there fails in whatever way Ray's version fails
    except Exception as error:
        where = settings.ray_address or "one of this machine's own"
        raise LauncherError(f"launcher: ray: {where} can't be used: {_line(error)}") from error
    if settings.ray_address is None:
        _must_offer(settings.worker_gpus)
    return True


def _must_offer(gpus: float) -> None:
    """An actor that no machine can hold would wait for one for ever."""
    import ray

    there = ray.cluster_resources().get("GPU", 0.0)
    if there < gpus:
        ray.shutdown()
        raise LauncherError(f"evals.worker_gpus: {gpus:g}, but this machine has {there:g} GPUs")


def _line(error: Exception) -> str:
    lines = [line for text in str(error).splitlines() if (line := text.strip())]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
