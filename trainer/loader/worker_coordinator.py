"""The training process's side of DataLoader workers: begins incarnations, answers, reports."""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixloop.common.log import say
from mixloop.contract import BatchSchedule, Phase, RunPaths, Segment, Stages, read_schedule
from mixloop.trainer.config import Job, JobError, batch_schedule_of, micro_batches, start_weights
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.sources import open_stores

from .begin import RankPlace, begin_in_loop
from .incarnation import Change, LoopIncarnation
from .loader_state import LoaderState
from .loop_metrics import Reports
from .saved_state import finish_status
from .worker import Assignment, joined
from .worker_channel import Board


class Office:
    """What a dataset keeps in the training process while workers draw for it.

    A thread attends to the workers' requests; the training thread reports.
    """

    def __init__(
        self,
        job: Job,
        place: RankPlace,
        on_change: Callable[[Change], None] | None,
        rewind: bool,
        prefetch_factor: int,
        ahead: int,
    ) -> None:
        self._job = job
        self._place = place
        self.on_change = on_change
        self._rewind = rewind
        self._outstanding = (prefetch_factor, ahead)
        length = job.sequence_length
        self.stores = open_stores(job)
        sizes = {name: store.samples(length) for name, store in self.stores.items()}
        self._start = start_weights(job.sources, sizes)
        self._sizes: Mapping[str, Sequence[tuple[int, int]]] = {}
        self._stages: Stages = ()
        self._reports = Reports(job, tuple(job.sources), None)
        self.board = Board.make(len(job.sources))
        self.state: LoaderState | None = None
        self.running: LoopIncarnation | None = None
        self._order: MixtureOrder | None = None
        self._window = 0
        self._micro = 0
        self._segments: list[Segment] = []
        self._waiting: dict[str, dict[int, Mapping[str, Any]]] = {}
        self._lock = threading.Lock()
        # the thread must not keep the dataset alive, nor outlive it
        self._end = weakref.finalize(self, _close_board, self.board, os.getpid())
        listener = self.board.listen()
        threading.Thread(
            target=_attend, args=(weakref.ref(self), listener), name="mixloop-office", daemon=True
        ).start()

    @property
    def _quanta(self) -> BatchSchedule:
        """The samples of every step; before the first micro-batch as the job has them."""
        if self.running is not None:
            return self.running.steering.batch_schedule
        return batch_schedule_of(self._job.settings, self._place.world)

    @property
    def _each(self) -> int:
        """Samples of a micro-batch over all ranks."""
        return self._job.settings.micro_batch * self._place.world

    @property
    def accumulation(self) -> int:
        """Micro-batches of the next step to be reported."""
        return self._quanta.at(self.now().sample) // self._each

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the whole budget on this rank."""
        return micro_batches(self._quanta, self._job, self._place.world)

    @property
    def step(self) -> int:
        """Steps reported."""
        return self.now().step

    @property
    def weights(self) -> Mapping[str, float]:
        """The mixture of the next step."""
        return self._start if self.running is None else self.running.weights

    def drawn(self) -> Mapping[str, int]:
        """Samples of each source in the steps reported, over all ranks."""
        if self._order is None or self.running is None:
            return dict.fromkeys(self._job.sources, 0)
        return self._order.drawn(self.running.position.sample)

    def changed(self, change: Change) -> None:
        """Pass a change on to whoever wants to know."""
        if self.on_change is not None:
            self.on_change(change)

    def now(self) -> LoaderState:
        """The place reported."""
        if self.running is not None:
            return self.running.state()
        job = self._job
        fresh = LoaderState(
            job.run, 0, 0, 0, 0, self._quanta.at(0), job.sequence_length, job.seed, 0, ((0, 0),)
        )
        return self.state or fresh

    def go_to(self, state: LoaderState | None) -> None:
        """The next round of workers begins anew, here."""
        with self._lock:
            self._stop(last_word=False)
            self.state = state if state is not None and (state.sample or state.micro) else None

    def close(self) -> None:
        """End everything; what was to be written is."""
        with self._lock:
            self._stop(last_word=True)
        self._end()

    def _stop(self, last_word: bool) -> None:
        if self.running is not None:
            self.state = self.running.state()
            self.running.close(last_word)
        self.running = self._order = None

    # --- the thread that attends to workers ----------------------------------------------------

    def attend(self, line: bytes) -> None:
        """One worker's request; once its whole round has come, they are answered."""
        request = json.loads(line)
        round_ = self._waiting.setdefault(request["key"], {})
        round_[request["worker"]] = request
        if len(round_) < request["workers"]:
            return
        del self._waiting[request["key"]]
        try:
            with self._lock:
                answer, places = self._assign(round_)
        except Exception as error:
            text = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
            answer, places = self._refusal(text), {}
        for number, one in round_.items():
            own = replace(answer, at=places.get(number, answer.at + number * answer.each))
            self.board.answer(one["nonce"], own)

    def _assign(
        self, round_: Mapping[int, Mapping[str, Any]]
    ) -> tuple[Assignment, Mapping[int, int]]:
        """What a round of workers has in common, and which micro-batch some begin with."""
        states = {number: one["state"] for number, one in round_.items()}
        found = joined(states, self._each, self._recorded)
        factor, ahead = self._outstanding
        fewest = min(size for _, size in self._quanta.stages) // self._each
        window = math.ceil((factor * len(round_) + ahead) / fewest) + 1
        if found is not None:
            self._stop(last_word=False)
            self.state = found[0]
        elif window > self._window:
            self._stop(last_word=False)  # more workers than the switches' lead was made for
        self._window = max(window, self._window)
        if self.running is None and not self._begin():
            return self._refusal(""), {}
        return self._answer(), {} if found is None else found[1]

    def _recorded(self, sample: int) -> BatchSchedule:
        """The samples of every step of the run so far; of one not begun, from `sample` on."""
        stages = read_schedule(RunPaths(self._job.dir).schedule).batch_stages
        return (
            BatchSchedule(stages)
            if stages
            else batch_schedule_of(self._job.settings, self._place.world, sample)
        )

    def _begin(self) -> bool:
        """Begin an incarnation; False when the budget is spent. Collective."""
        settings = self._job.settings.model_copy(update={"prefetch": self._window})
        job = self._job.model_copy(update={"settings": settings})
        begun = begin_in_loop(job, self.stores, self._place, self.state, self._rewind)
        self._rewind = False
        if begun is None:
            if self._place.peers.rank == 0:
                finish_status(job)
            return False
        self._micro = begun.micro
        self._segments = list(begun.start.segments)
        self._sizes, self._stages = begun.start.sizes, begun.start.batch_schedule.stages
        self._order = begun.start.order(job.seed)
        self.running = LoopIncarnation(begun, self._place, self._reports, self.drawn, self.changed)
        self.state = None
        if begun.micro:
            begun.steering.begins(begun.plan.sample + 1)  # was told before its first micro-batch
        self.running.tell()
        if begun.steering.lead is not None:
            begun.steering.lead.side.poll()  # the first look need not wait for a poll step
        self.board.report(begun.plan.step)
        return True

    def _answer(self) -> Assignment:
        running = self.running
        if running is None:
            return self._refusal("")
        micro, self._micro = self._micro, 0
        return Assignment(
            at=running.position.sample + micro * self._each,
            each=self._each,
            rank=self._place.rank,
            segments=tuple(self._segments),
            sizes=self._sizes,
            stages=self._stages,
            announced=self.board.announced,
            window=self._window,
            state=running.state(),
        )

    def _refusal(self, trouble: str) -> Assignment:
        """No batches: trouble, or (empty) a spent budget."""
        end = self._job.budget  # a sample beyond any budget
        return Assignment(end, self._each, 0, (), {}, (), 0, 1, self.now(), trouble)

    # --- the training thread -------------------------------------------------------------------

    def report(
        self,
        step: int | None,
        loss: Any,
        lr: float | None,
        phase: Phase | None,
        grad_norm: Any,
        losses: Any,
        source: Any,
    ) -> None:
        """A step is done. Collective at poll steps."""
        with self._lock:
            running = self.running
            if running is None or running.steering.spent:
                return
            running.advance()
            self._micro = 0
            # before the heartbeat between steps, which at the end would be the last word
            running.report(True, step, loss, lr, phase, grad_norm, losses, source)
            heard = running.between_steps()
            if heard is not None:
                self._segments.append(heard)
                if self._order is not None:
                    self._order = self._order.with_weights(heard.sample, heard.weights)
                self.board.announce(running.steering.ahead[-1])
            self.board.report(running.position.step)  # after the news, which it lets workers pass
            running.tell()


def _attend(office: weakref.ref[Office], listener: int) -> None:
    """Read workers' requests until the office is gone."""
    pending = b""
    try:
        while True:
            pending += os.read(listener, 65536)
            here = office()
            if here is None or here.board.closed:
                return
            *lines, pending = pending.split(b"\n")
            for line in lines:
                if line:
                    try:
                        here.attend(line)
                    except Exception as error:
                        if not here.board.closed:
                            say(f"a worker can't be answered: {error}", "mixloop")
                        here.board.abandon()  # it would wait for ever
            del here
    finally:
        os.close(listener)


def _close_board(board: Board, owner: int) -> None:
    """Only in the process that made it: a forked worker ends without touching it."""
    if os.getpid() == owner:
        board.close()
