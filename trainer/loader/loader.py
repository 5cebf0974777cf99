"""The mixture for a training loop that is not ours.

    loader = MixtureLoader.from_config("run.yaml")
    for batch in loader:
        loss = train_on(batch["input_ids"], batch["labels"])
        loader.report(loss=loss, lr=lr)

Every rank draws its own part of one global order, ahead of time, into memory that is used again.
New weights come into force at an exact sample that is on disk before, on all ranks at the same
step; nothing that goes wrong in the run's files reaches the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mixloop.contract import BatchSchedule, Phase
from mixloop.trainer.batches import (
    Batch,
    BatchBuffers,
    BatchLayout,
    RankBatches,
    end_of_text,
    native,
    rows_ahead,
    tensors,
)
from mixloop.trainer.config import (
    Job,
    JobError,
    LimitSettings,
    batch_schedule_of,
    load_run,
    make_job,
    micro_batches,
    start_weights,
    with_settings,
)
from mixloop.trainer.mixing import SourceVersions, passes
from mixloop.trainer.run import Collectives
from mixloop.trainer.sources import open_stores

from .begin import (
    BegunIncarnation,
    RankPlace,
    begin_in_loop,
    find_place,
    find_rank,
    leader_and_world,
)
from .incarnation import Change, LoopIncarnation
from .loader_state import LoaderState
from .loop_metrics import Reports
from .saved_state import finish_status, read_saved_state


class MixtureLoader:
    """Micro-batches of one rank: an iterable, a context manager, and stateful as torch has it.

    A micro-batch is a dictionary of tensors: `input_ids` [rows, L], `labels` (the same tensor) and
    `source` [rows], the index of each row's source; with `documents` also `document_ids` and
    `position_ids` [rows, L]. `accumulation` micro-batches are one step (`step_ends` says after
    which), and the mixture changes only between steps. Iteration ends when the budget is spent; a
    second loop goes on where the first was left.

    The run's files are first touched, and the ranks first talk, when the first micro-batch is
    asked for: load a state before that. Loading one later begins anew from there.

    Args:
        dir: the run folder.
        run: the run's name, as in `mixture.json`.
        sources: where each source lies, by name: a path, or a mapping of a source's options.
        budget: tokens of the whole run; may have a unit (`11T`).
        weights: shares at the start (generation 0), summing to 1; a source not named waits at 0.
            None: by size.
        seed: keys the data order.
        sequence_length: L, tokens of a sample.
        micro_batch: rows of a micro-batch on one rank.
        accumulation: micro-batches of an optimizer step.
        batch: in place of `accumulation`, samples of a step over all ranks, or tokens of it
            (`"4194304 tokens"`): the same on any number of ranks.
        batch_schedule: a step's size from given tokens on: `[{"from": "1T", "batch": 2048}]`, or
            with `accumulation`.
        rank, world: this process's part of the data; default: from `torch.distributed`.
        peers: how the ranks hear of a switch; default: gloo, on a group of its own.
        prefetch: steps drawn ahead in a thread, half of them together.
        poll_every: steps between looks at `mixture.json`.
        status_every: steps between writes of `status.json`.
        limits: bounds on any order, whoever wrote it: `floor`, `cap`, `max_change`.
        key_file: the key that orders must be signed with; default: the file that the environment
            variable MIXLOOP_KEY_FILE names, else orders need no signature.
        phases: token count at which each learning-rate phase begins, for a loop that doesn't
            report it: `{"warmup": 0, "stable": "2B", "decay": "10T"}`.
        on_change: called on every rank just before the first micro-batch of a new mixture.
        pin_memory: page-locked batches; default: if there is a CUDA device.
        dtype: of `input_ids`: int64, int32, or native, which is the sources' own (uint16, say, to
            be widened on the device: the fastest).
        documents: also give document and position ids, for attention within documents.
        rewind: drop the mixtures recorded beyond the state that is resumed from; needed when a
            step takes another number of samples than was recorded.

    Raises:
        JobError: an option or source can't work; one line says what and the mend.
    """

    def __init__(
        self,
        dir: str | Path,  # noqa: A002 - the name it has in run.yaml
        *,
        run: str,
        sources: Mapping[str, Any],
        budget: int | str,
        sequence_length: int,
        micro_batch: int,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        accumulation: int = 1,
        batch: int | str | None = None,
        batch_schedule: Sequence[Mapping[str, Any]] = (),
        rank: int | None = None,
        world: int | None = None,
        peers: Collectives | None = None,
        prefetch: int = 8,
        poll_every: int = 20,
        status_every: int = 10,
        limits: Mapping[str, float] | LimitSettings | None = None,
        key_file: str | Path | None = None,
        phases: Mapping[str, int | str] | None = None,
        on_change: Callable[[Change], None] | None = None,
        pin_memory: bool | None = None,
        dtype: Literal["int64", "int32", "native"] = "int64",
        documents: bool = False,
        rewind: bool = False,
    ) -> None:
        job = make_job(
            dir, run, sources, budget, weights, seed, limits,
            sequence_length=sequence_length, micro_batch=micro_batch, accumulation=accumulation,
            batch=batch, batch_schedule=batch_schedule, prefetch=prefetch, poll_every=poll_every,
            status_every=status_every, phases=phases, key_file=key_file,
        )  # fmt: skip
        self._set_up(
            job, rank=rank, world=world, peers=peers, on_change=on_change, pin_memory=pin_memory,
            dtype=dtype, documents=documents, rewind=rewind,
        )  # fmt: skip

    @classmethod
    def from_job(cls, job: Job, **options: Any) -> Self:
        """A loader for a job; options are the constructor's, from `rank` on, and override the job.

        Raises:
            JobError: an option or source can't work.
        """
        own = {k: options.pop(k) for k in _OWN if k in options}
        loader = cls.__new__(cls)
        loader._set_up(with_settings(job, options), **own)
        return loader

    @classmethod
    def from_config(cls, path: str | Path, **options: Any) -> Self:
        """A loader for the `run.yaml` that the controller reads; options as for `from_job`.

        Raises:
            JobError: the file or an option is wrong; one line says what.
        """
        return cls.from_job(load_run(path), **options)

    def _set_up(
        self,
        job: Job,
        *,
        rank: int | None = None,
        world: int | None = None,
        peers: Collectives | None = None,
        on_change: Callable[[Change], None] | None = None,
        pin_memory: bool | None = None,
        dtype: str = "int64",
        documents: bool = False,
        rewind: bool = False,
    ) -> None:
        if dtype not in ("int64", "int32", "native"):
            raise JobError(f"dtype: {dtype!r} is none of int64, int32, native")
        self.job = job
        self.rewind = rewind
        self.on_change = on_change
        self._asked = (rank, world, peers)
        self._place: RankPlace | None = None
        self._pin = pin_memory
        self._dtype = dtype
        self.stores = open_stores(job)
        self.names = tuple(job.sources)
        self._eos = end_of_text(self.stores) if documents else None
        length = job.sequence_length
        self.sizes = {name: store.samples(length) for name, store in self.stores.items()}
        self._start = start_weights(job.sources, self.sizes)
        self._eras: Mapping[str, SourceVersions] = {}
        self._reports = Reports(job, self.names, None)
        self._state: LoaderState | None = None
        self._running: LoopIncarnation | None = None
        self._feed: RankBatches | None = None
        self._batch: Batch | None = None
        self._micro = self._micros = 0
        self._rows: npt.NDArray[np.int64] | None = None
        self._spent = False

    # --- where it stands ------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps whose micro-batches have all been handed out."""
        if self._running is not None:
            return self._running.position.step
        return self._state.step if self._state else 0

    @property
    def sample(self) -> int:
        """Samples of those steps, over all ranks."""
        if self._running is not None:
            return self._running.position.sample
        return self._state.sample if self._state else 0

    @property
    def tokens(self) -> int:
        """Tokens of those samples."""
        return self.sample * self.job.sequence_length

    @property
    def rank(self) -> int:
        """This process's number among those that share out the data."""
        return find_rank(*self._asked)[0]

    @property
    def world(self) -> int:
        """How many share out the data."""
        return find_rank(*self._asked)[1]

    @property
    def leads(self) -> bool:
        """Whether this process has the run's files."""
        return leader_and_world(self._asked[2])[0] == 0

    @property
    def quantum(self) -> int:
        """Samples of the step at `sample`, over all ranks."""
        return self._quanta.at(self.sample)

    @property
    def _quanta(self) -> BatchSchedule:
        """The samples of every step; before the first micro-batch as the job has them."""
        if self._running is not None:
            return self._running.steering.batch_schedule
        return batch_schedule_of(self.job.settings, self.world)

    @property
    def accumulation(self) -> int:
        """Micro-batches, on each rank, of the step that the last one handed out is of."""
        return self._micros or self.quantum // (self.job.settings.micro_batch * self.world)

    @property
    def step_ends(self) -> bool:
        """Whether the micro-batch handed out last is the last of its step."""
        return self._running is not None and self._batch is None

    @property
    def weights(self) -> dict[str, float]:
        """The mixture being handed out; before the first micro-batch the configured one."""
        return dict(self._start) if self._running is None else self._running.weights

    def drawn(self) -> dict[str, int]:
        """Samples of each source so far, over all ranks, the step being handed out included."""
        return self._feed.drawn() if self._feed is not None else dict.fromkeys(self.names, 0)

    def _ledger(self) -> dict[str, int]:
        """Samples of each source up to `sample`: what the files tell beside it."""
        drawn = self.drawn()
        if self._batch is None:
            return drawn
        handed_out = zip(drawn, self._batch.counts.tolist(), strict=True)
        return {name: drawn[name] - count for name, count in handed_out}

    def epochs(self) -> dict[str, float]:
        """Passes over each source so far."""
        if not self._eras:
            return dict.fromkeys(self.names, 0.0)
        return {name: passes(self._eras[name], count) for name, count in self.drawn().items()}

    def __len__(self) -> int:
        """Micro-batches of the whole budget on this rank."""
        return micro_batches(self._quanta, self.job, self.world)

    # --- batches ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._running is None and not self._spent:
            self._begin()
        running, feed = self._running, self._feed
        if running is None or feed is None:
            raise StopIteration
        if self._batch is None:
            if running.steering.spent:
                self.report()
                raise StopIteration
            heard = running.between_steps()
            if heard is not None:
                feed.switch(heard)
            running.tell()
            self._batch = feed.batch(running.position.sample)
        batch, micro = self._batch, self._micro
        self._micros = len(batch.ids)
        self._micro += 1
        if self._micro == len(batch.ids):
            self._batch, self._micro = None, 0
            running.advance()
        self._rows = batch.source[micro]
        rows = None if batch.tensor is None else batch.tensor[micro]
        return tensors(batch.ids[micro], batch.source[micro], self._eos, rows)

    # --- beginning and ending ----------------------------------------------------------------

    def _begin(self) -> None:
        """Begin an incarnation where the state says, or from the start. Collective."""
        _refuse_workers()
        self._pin = self._pinned()
        place = self._place = self._place or find_place(*self._asked)
        begun = begin_in_loop(self.job, self.stores, place, self._state, self.rewind)
        self.rewind = False  # what was recorded further on is dropped once
        if begun is None:
            self._spent = True
            if place.peers.rank == 0:
                finish_status(self.job)
            return
        self._take(begun, place)

    def _take(self, begun: BegunIncarnation, place: RankPlace) -> None:
        settings, length = self.job.settings, self.job.sequence_length
        layout = BatchLayout(
            settings.micro_batch, settings.accumulation, place.rank, place.world, length
        )
        order, quanta = begun.start.order(self.job.seed), begun.start.batch_schedule
        self._eras = order.versions
        most = quanta.since(begun.plan.sample).largest // (settings.micro_batch * place.world)
        rows = rows_ahead(settings.prefetch, settings.micro_batch, most)
        kind = native(self.stores) if self._dtype == "native" else self._dtype
        slabs = BatchBuffers((rows, length), kind, 8, bool(self._pin))
        self._feed = RankBatches(
            self.stores, order, layout, settings.prefetch, begun.plan.sample, slabs, quanta
        )
        self._micro = begun.micro
        if begun.micro:
            self._batch = self._feed.batch(begun.plan.sample)
            begun.steering.begins(begun.plan.sample + 1)  # was told before its first micro-batch
        self._running = LoopIncarnation(begun, place, self._reports, self._ledger, self._changed)

    def _changed(self, change: Change) -> None:
        if self.on_change is not None:
            self.on_change(change)

    def _pinned(self) -> bool:
        import torch

        there = torch.cuda.is_available()
        if self._pin and not there:
            raise JobError("pin_memory: there is no CUDA device to pin memory for; leave it out")
        return there if self._pin is None else self._pin

    def _end(self, last_word: bool = False) -> None:
        if self._feed is not None:
            self._feed.close()
        if self._running is not None:
            self._running.close(last_word)
        self._feed = self._running = self._batch = None
        self._micro, self._spent = 0, False

    def close(self) -> None:
        """End the threads; the last status is written. A later batch goes on from here."""
        state = self._now()
        self._end(last_word=True)
        self._state = state

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- state -----------------------------------------------------------------------------------

    def _now(self) -> LoaderState | None:
        return self._state if self._running is None else self._running.state(self._micro)

    def state_dict(self) -> dict[str, Any]:
        """The place after the micro-batch handed out last: small, JSON, the same on every rank."""
        state = self._now()
        if state is None:
            job = self.job
            state = LoaderState(
                job.run, 0, 0, 0, 0, self.quantum, job.sequence_length, job.seed, 0, ((0, 0),)
            )
        return state.to_json()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; on every rank, with the same one.

        Raises:
            JobError: it is no state, or one of another run.
        """
        state = LoaderState.from_json(state_dict).of_run(self.job.run, self.job.dir)
        self._end()
        # a state from before the first micro-batch says nothing of where to go on
        self._state = state if state.sample or state.micro else None

    def saved(self, folder: str | Path, files: list[str] | None = None) -> bool:
        """Leave `mixloop.json` in a checkpoint's folder, for the controller and for `restore`.

        Call it on every rank once the checkpoint is complete; rank 0 writes, in its own time.

        Args:
            files: names in the folder whose sizes and hashes to record.

        Returns:
            Whether it was written; False on other ranks. A disk that fails costs the file alone.
        """
        return self._running is not None and self._running.saved(folder, files or [], self._micro)

    def restore(self, folder: str | Path) -> None:
        """Go on from the `mixloop.json` in a checkpoint's folder.

        Raises:
            JobError: there is none, or it is not this run's.
        """
        self.load_state_dict(read_saved_state(Path(folder)))

    # --- reports ---------------------------------------------------------------------------------

    def report(
        self,
        step: int | None = None,
        loss: Any = None,
        lr: float | None = None,
        phase: Phase | None = None,
        grad_norm: Any = None,
        losses: Any = None,
    ) -> None:
        """Tell how training goes, after a step or a micro-batch; never waits, never fails the loop.

        Rank 0 has `status.json` written every `status_every` steps; other ranks may call it or
        not. Tensors are read only then, so nothing waits for the device in between.

        Args:
            step: the loop's own count of steps done; told when it is not the loader's.
            loss: of the step; a number or tensor.
            lr: learning rate of the step.
            phase: of the learning rate; None: from `phases`, by tokens.
            grad_norm: of the step; a number or tensor.
            losses: loss per sequence of the micro-batch handed out last, shape [rows], for the
                loss per source (of rank 0's own sequences).
        """
        if self._running is not None:
            whole, source = self._micro == 0, self._rows
            self._running.report(whole, step, loss, lr, phase, grad_norm, losses, source)


_OWN = ("rank", "world", "peers", "on_change", "pin_memory", "dtype", "documents", "rewind")


def _refuse_workers() -> None:
    """A loader inside a DataLoader's worker would begin a run of its own in each."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        raise JobError(
            "MixtureLoader: inside a DataLoader worker; use mixloop.trainer.MixtureDataset"
        )
