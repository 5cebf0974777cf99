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

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from mixloop.common.log import say
from mixloop.contract import BatchSchedule, Phase
from mixloop.trainer.batches import end_of_text, native
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
from mixloop.trainer.run import Collectives
from mixloop.trainer.sources import open_stores

from .begin import BeginOptions, begin_in_loop, find_place, find_rank
from .incarnation import Change, LoopIncarnation
from .loader_state import LoaderState
from .refusals import DRAWN_HERE, WorkersError, check_drawing_process
from .run_tokenizer import RunTokenizer
from .saved_state import read_saved_state


@dataclass(frozen=True)
class _Options:
    """The constructor's arguments that are no part of a job."""

    rank: int | None = None
    world: int | None = None
    peers: Collectives | None = None
    on_change: Callable[[Change], None] | None = None
    pin_memory: bool | None = None
    dtype: str = "int64"
    documents: bool = False
    rewind: bool = False
    from_scratch: bool = False


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
        poll_every: steps between two at which the ranks hear of a new order.
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
        from_scratch: where no state is loaded, begin again at step 0 a run that has gone on and
            saved its place, on the schedule as it was recorded; for a loop that found no checkpoint
            of its own. A new run needs no such word, nor one that ended before it saved anything.

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
        from_scratch: bool = False,
    ) -> None:
        job = make_job(
            dir, run, sources, budget, weights, seed, limits,
            sequence_length=sequence_length, micro_batch=micro_batch, accumulation=accumulation,
            batch=batch, batch_schedule=batch_schedule, prefetch=prefetch, poll_every=poll_every,
            status_every=status_every, phases=phases, key_file=key_file,
        )  # fmt: skip
        options = _Options(
            rank, world, peers, on_change, pin_memory, dtype, documents, rewind, from_scratch
        )
        self._set_up(job, options)

    @classmethod
    def from_job(cls, job: Job, **options: Any) -> Self:
        """A loader for a job; options are the constructor's, from `rank` on, and override the job.

        Raises:
            JobError: an option or source can't work.
        """
        names = [field.name for field in fields(_Options)]
        chosen = {name: options.pop(name) for name in names if name in options}
        loader = cls.__new__(cls)
        loader._set_up(with_settings(job, options), _Options(**chosen))
        return loader

    @classmethod
    def from_config(cls, path: str | Path, **options: Any) -> Self:
        """A loader for the `run.yaml` that the controller reads; options as for `from_job`.

        Raises:
            JobError: the file or an option is wrong; one line says what.
        """
        return cls.from_job(load_run(path), **options)

    def _set_up(self, job: Job, options: _Options) -> None:
        if options.dtype not in ("int64", "int32", "native"):
            raise JobError(f"dtype: {options.dtype!r} is none of int64, int32, native")
        self.job = job
        self.names = tuple(job.sources)
        self.stores = open_stores(job)
        self.rewind = options.rewind
        self.from_scratch = options.from_scratch
        self.on_change = options.on_change
        self._place = (options.rank, options.world, options.peers)
        self._pin_memory = options.pin_memory
        self._dtype = native(self.stores) if options.dtype == "native" else options.dtype
        self._tokenizer = RunTokenizer(job, self.stores)
        self._eos_id = end_of_text(self.stores) if options.documents else None
        sizes = {n: store.samples(job.sequence_length) for n, store in self.stores.items()}
        self._start = start_weights(job.sources, sizes)
        self._state: LoaderState | None = None
        self._incarnation: LoopIncarnation | None = None
        self._spent = False

    def __reduce__(self) -> NoReturn:
        who = f"{type(self).__name__}: it can't go to another process"
        raise WorkersError(f"{who}: {DRAWN_HERE}; set num_workers=0")

    # --- what a model is built by -----------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Token ids that a model must know: those of the sources' tokenizer.

        Raises:
            JobError: no source tells, and run.yaml names no tokenizer.
        """
        return self._tokenizer.vocab_size

    @property
    def eos_token_id(self) -> int:
        """The token that ends a document in every source.

        Raises:
            JobError: a source names none, or two name different ones.
        """
        return self._tokenizer.eos_token_id

    # --- where it stands ------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps whose micro-batches have all been handed out."""
        if self._incarnation is not None:
            return self._incarnation.position.step
        return self._state.step if self._state else 0

    @property
    def sample(self) -> int:
        """Samples of those steps, over all ranks."""
        if self._incarnation is not None:
            return self._incarnation.position.sample
        return self._state.sample if self._state else 0

    @property
    def tokens(self) -> int:
        """Tokens of those samples."""
        return self.sample * self.job.sequence_length

    @property
    def world(self) -> int:
        """How many share out the data."""
        return find_rank(*self._place)[1]

    @property
    def step_samples(self) -> int:
        """Samples of the step at `sample`, over all ranks."""
        return self._batch_schedule.at(self.sample)

    @property
    def _batch_schedule(self) -> BatchSchedule:
        """The samples of every step; before the first micro-batch as the job has them."""
        if self._incarnation is not None:
            return self._incarnation.live.batch_schedule
        return batch_schedule_of(self.job.settings, self.world)

    @property
    def accumulation(self) -> int:
        """Micro-batches, on each rank, of the step that the last one handed out is of."""
        if self._incarnation is not None:
            return self._incarnation.accumulation
        return self.step_samples // (self.job.settings.micro_batch * self.world)

    @property
    def step_ends(self) -> bool:
        """Whether the micro-batch handed out last is the last of its step."""
        return self._incarnation is not None and self._incarnation.step_ends

    @property
    def weights(self) -> dict[str, float]:
        """The mixture being handed out; before the first micro-batch the configured one."""
        return dict(self._start) if self._incarnation is None else self._incarnation.weights

    def drawn(self) -> dict[str, int]:
        """Samples of each source so far, over all ranks, the step being handed out included."""
        if self._incarnation is None:
            return dict.fromkeys(self.names, 0)
        return self._incarnation.drawn()

    def epochs(self) -> dict[str, float]:
        """Passes over each source so far."""
        if self._incarnation is None:
            return dict.fromkeys(self.names, 0.0)
        return self._incarnation.epochs()

    def __len__(self) -> int:
        """Micro-batches of the whole budget on this rank."""
        return micro_batches(self._batch_schedule, self.job, self.world)

    # --- batches ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        check_drawing_process(type(self).__name__)
        return self

    def __next__(self) -> dict[str, Any]:
        if self._incarnation is None and not self._spent:
            self._begin()
        batch = None if self._incarnation is None else self._incarnation.draw()
        if batch is None:
            raise StopIteration
        return batch

    def _begin(self) -> None:
        """Begin an incarnation where the state says, or from the start. Collective."""
        import torch

        check_drawing_process(type(self).__name__)
        available = torch.cuda.is_available()
        if self._pin_memory and not available:
            raise JobError("pin_memory: there is no CUDA device to pin memory for; leave it out")
        pinned = available if self._pin_memory is None else self._pin_memory
        place = find_place(*self._place)
        self._place = (place.rank, place.world, place.peers)
        asked = BeginOptions(self.rewind, self.from_scratch)
        begun = begin_in_loop(self.job, self.stores, place, self._state, asked)
        self.rewind = self.from_scratch = False  # what was recorded further on is dropped once
        if begun is None:
            self._spent = True
        else:
            self._incarnation = LoopIncarnation(
                begun, place, self.stores, self._dtype, pinned, self._eos_id, self._changed
            )

    def _changed(self, change: Change) -> None:
        if self.on_change is not None:
            self.on_change(change)

    def _end(self, publish: bool, *, in_order: bool = False) -> None:
        if self._incarnation is not None:
            self._incarnation.close(publish, in_order=in_order)
        self._incarnation, self._spent = None, False

    def close(self) -> None:
        """End the threads; the last status is written. A later batch goes on from here."""
        state = self._now()
        # in a `finally` or at the end of a `with` block: what is on its way through it
        self._end(publish=True, in_order=sys.exception() is None)
        self._state = state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- states and reports ----------------------------------------------------------------

    def _now(self) -> LoaderState | None:
        return self._state if self._incarnation is None else self._incarnation.state()

    def state_dict(self) -> dict[str, Any]:
        """The place after the micro-batch handed out last: small, JSON, the same on every rank."""
        if self._incarnation is not None:
            self._incarnation.give_out()
        state = self._now() or LoaderState.beginning(self.job, self.step_samples)
        return state.to_json()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; on every rank, with the same one.

        Raises:
            JobError: it is no state, or one of another run.
        """
        state = LoaderState.from_json(state_dict).of_run(self.job.run, self.job.dir)
        self._end(publish=False)
        # a state from before the first micro-batch says nothing of where to go on
        self._state = state if state.sample or state.micro else None

    def mark_checkpoint(self, folder: str | Path, files: Sequence[str] = ()) -> bool:
        """Leave `mixloop.json` in a checkpoint's folder, for the controller and for `restore`.

        Call it on every rank once the checkpoint is complete; rank 0 writes, in its own time.
        Where safetensors lie without a tokenizer, it puts the run's beside them.

        Args:
            files: names in the folder whose sizes and hashes to record.

        Returns:
            Whether it was written; False on other ranks. A disk that fails costs the file alone.
        """
        if self._incarnation is not None:
            return self._incarnation.mark_checkpoint(Path(folder), files)
        if find_rank(*self._place)[0] == 0:
            say(
                f"{folder}: not marked: no batch was handed out yet, or the loader is closed",
                "mixloop",
            )
        return False

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the sources' tokenizer, its files as they are, into a folder; on rank 0.

        Raises:
            JobError: no source carries one, or it can't be read or written.
        """
        if find_rank(*self._place)[0] == 0:
            self._tokenizer.save(Path(folder))

    saved = mark_checkpoint  # an earlier name, for one release

    def restore(self, folder: str | Path) -> None:
        """Go on from the `mixloop.json` in a checkpoint's folder.

        Raises:
            JobError: there is none, or it is not this run's.
        """
        self.load_state_dict(read_saved_state(Path(folder)))

    def report(
        self,
        step: int | None = None,
        loss: Any = None,
        lr: float | None = None,
        phase: Phase | None = None,
        grad_norm: Any = None,
        losses: Any = None,
        source: Any = None,
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
            losses: loss per sequence, for the loss per source (of rank 0's own sequences).
            source: the batch's own, of the shape of `losses`; None: that of the micro-batch handed
                out last, `losses` being of shape [rows].
        """
        if self._incarnation is not None:
            self._incarnation.report(step, loss, lr, phase, grad_norm, losses, source)
