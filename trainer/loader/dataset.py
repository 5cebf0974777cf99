"""The mixture as a dataset: for torch's DataLoader and torchdata's StatefulDataLoader.

    dataset = MixtureDataset.from_config("run.yaml")
    for batch in DataLoader(dataset, batch_size=None, num_workers=4):
        loss = train_on(batch["input_ids"], batch["labels"])
        dataset.report(loss=loss, lr=lr)

With workers, each draws every N-th micro-batch. The training process alone polls, in `report`, and
announces a switch before any worker can have drawn its first sample; a worker that is asked for
more than was reported, and its prefetch, stops the loop with a clear error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from mixloop.contract import Phase
from mixloop.trainer.batches import end_of_text, tensors
from mixloop.trainer.config import Job, JobError, load_run, make_job, with_settings
from mixloop.trainer.run import Collectives

from .begin import find_place
from .incarnation import Change
from .loader import MixtureLoader
from .loader_state import LoaderState
from .saved_state import read_saved_state
from .worker import Worker
from .worker_coordinator import Office


class MixtureDataset(IterableDataset[dict[str, Any]]):
    """Micro-batches for a DataLoader with `batch_size=None`, drawn here or in its workers.

    Without workers it is a :class:`mixloop.trainer.MixtureLoader`, whose arguments it takes.
    With workers, call `report` after every optimizer step: it is the place that the run has
    reached, where switches are heard, and what `state_dict` tells. (A StatefulDataLoader asks the
    workers themselves, and is exact to the micro-batch.)

    Make it after `torch.distributed.init_process_group`; don't shuffle or shard it again.

    Args:
        prefetch_factor: the DataLoader's, 2 unless it was told otherwise.
        ahead: micro-batches that something around the DataLoader fetches before they are trained
            on (accelerate: 1).

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
        limits: Mapping[str, float] | None = None,
        key_file: str | Path | None = None,
        accumulation: int = 1,
        batch: int | str | None = None,
        batch_schedule: Sequence[Mapping[str, Any]] = (),
        poll_every: int = 20,
        status_every: int = 10,
        phases: Mapping[str, int | str] | None = None,
        **options: Any,
    ) -> None:
        job = make_job(
            dir, run, sources, budget, weights, seed, limits,
            sequence_length=sequence_length, micro_batch=micro_batch, accumulation=accumulation,
            batch=batch, batch_schedule=batch_schedule, poll_every=poll_every,
            status_every=status_every, phases=phases, key_file=key_file,
        )  # fmt: skip
        self._set_up(job, **options)

    @classmethod
    def from_job(cls, job: Job, **options: Any) -> Self:
        """A dataset for a job; options as for the loader, and this class's own.

        Raises:
            JobError: an option or source can't work.
        """
        own = {k: options.pop(k) for k in _OWN if k in options}
        dataset = cls.__new__(cls)
        dataset._set_up(with_settings(job, options), **own)
        return dataset

    @classmethod
    def from_config(cls, path: str | Path, **options: Any) -> Self:
        """A dataset for the `run.yaml` that the controller reads; options as for `from_job`.

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
        dtype: Literal["int64", "int32"] = "int64",
        documents: bool = False,
        rewind: bool = False,
        prefetch_factor: int = 2,
        ahead: int = 1,
    ) -> None:
        self.job = job
        self.names = tuple(job.sources)
        self.prefetch_factor = prefetch_factor
        self._dtype = dtype
        self._worker_state: LoaderState | None = None
        self._worker: Worker | None = None
        self._rounds = 0
        place = find_place(rank, world, peers)
        self.world = place.world
        self._office: Office | None = Office(job, place, on_change, rewind, prefetch_factor, ahead)
        self._loader_options = {
            "rank": place.rank, "world": place.world, "peers": place.peers,
            "on_change": self._office.changed, "dtype": dtype, "documents": documents,
            "rewind": rewind,
        }  # fmt: skip
        self._loader: MixtureLoader | None = None
        self._board = self._office.board
        self._eos = end_of_text(self._office.stores) if documents else None

    # --- a worker, or the process itself -------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        if info is None:
            if self._loader is None:
                self._loader = self._make_loader()
            return iter(self._loader)
        if self._worker is None:
            self._worker = Worker(self._board, self.job, self._dtype, info.id, info.num_workers)
        self._rounds += 1
        state, self._worker_state = self._worker_state, None
        self._worker.state = state
        key = f"{os.getppid()}-{info.seed - info.id}-{self._rounds}"
        eos = self._eos
        return (tensors(*drawn, eos) for drawn in self._worker.draw(key, state))

    def _make_loader(self) -> MixtureLoader:
        office = self._here()
        if office.running is not None:
            raise JobError(
                "MixtureDataset: iterated here while workers draw for it; keep to one of the two"
            )
        loader = MixtureLoader.from_job(self.job, pin_memory=False, **self._loader_options)
        if office.state is not None:
            loader.load_state_dict(office.state.to_json())
        return loader

    def __getstate__(self) -> dict[str, Any]:
        # to a worker that is spawned goes what it needs to draw, and nothing of the run's files
        gone = dict.fromkeys(("_office", "_loader", "_loader_options", "_worker"))
        return self.__dict__ | gone

    def _here(self) -> Office:
        if self._office is None or get_worker_info() is not None:
            raise JobError("MixtureDataset: only the training process may do that, not a worker")
        return self._office

    # --- the training process --------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps reported; without workers, handed out."""
        return self._loader.step if self._loader is not None else self._here().step

    @property
    def on_change(self) -> Callable[[Change], None] | None:
        """Called in the training process just before the first step of a new mixture."""
        return self._here().on_change

    @on_change.setter
    def on_change(self, call: Callable[[Change], None] | None) -> None:
        self._here().on_change = call

    @property
    def weights(self) -> dict[str, float]:
        """The mixture of the next step to be reported; without workers, of the last batch."""
        return dict(self._loader.weights if self._loader is not None else self._here().weights)

    @property
    def accumulation(self) -> int:
        """Micro-batches of the next step to be reported; without workers, as the loader has it."""
        return self._loader.accumulation if self._loader is not None else self._here().accumulation

    def drawn(self) -> dict[str, int]:
        """Samples of each source so far, over all ranks."""
        return dict(self._loader.drawn() if self._loader is not None else self._here().drawn())

    def __len__(self) -> int:
        """Micro-batches of the whole budget on this rank."""
        return self._here().micro_batches

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
        """Tell that an optimizer step is done, and how; on every rank, after every step.

        Collective every `poll_every` steps, when the ranks hear of a switch.

        Args:
            step, loss, lr, phase, grad_norm: as for :meth:`MixtureLoader.report`.
            losses: loss per sequence, any shape; with `source`, the batch's own, of that shape.
        """
        if hasattr(source, "cpu"):
            source = source.cpu()
        where = None if source is None else np.asarray(source).reshape(-1)
        if self._loader is None:
            self._here().report(step, loss, lr, phase, grad_norm, losses, where)
        elif (running := self._loader._running) is not None:
            running.report(True, step, loss, lr, phase, grad_norm, losses, where)

    def state_dict(self) -> dict[str, Any]:
        """The place reported; in a worker its own, before its next micro-batch."""
        if get_worker_info() is not None:
            state = self._worker.state if self._worker is not None else self._worker_state
            return {} if state is None else state.to_json()
        if self._loader is not None:
            return self._loader.state_dict()
        return self._here().now().to_json()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state: here before the DataLoader is iterated, or, by it, in a worker.

        Raises:
            JobError: it is no state, or one of another run.
        """
        state = None
        if state_dict:
            state = LoaderState.from_json(state_dict).of_run(self.job.run, self.job.dir)
        if get_worker_info() is not None:
            self._worker_state = state
        elif self._loader is not None and state is not None:
            self._loader.load_state_dict(state_dict)
        else:
            self._here().go_to(state)

    def saved(self, folder: str | Path, files: list[str] | None = None) -> bool:
        """Leave `mixloop.json` in a checkpoint's folder; see :meth:`MixtureLoader.saved`."""
        if self._loader is not None:
            return self._loader.saved(folder, files)
        running = self._here().running
        return running is not None and running.saved(folder, files or [], 0)

    def restore(self, folder: str | Path) -> None:
        """Go on from the `mixloop.json` in a checkpoint's folder.

        Raises:
            JobError: there is none, or it is not this run's.
        """
        self.load_state_dict(read_saved_state(Path(folder)))

    def close(self) -> None:
        """End the threads and tell the status where it ended."""
        if self._loader is not None:
            self._loader.close()
        self._here().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


_OWN = (
    "rank", "world", "peers", "on_change", "dtype", "documents", "rewind", "prefetch_factor",
    "ahead",
)  # fmt: skip
