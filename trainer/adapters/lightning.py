"""The mixture inside Lightning.

    data = MixtureDataModule("run.yaml")
    trainer = Trainer(accumulate_grad_batches=4, callbacks=[MixtureCheckpoint("out")])
    trainer.fit(module, datamodule=data)

Lightning gets its batches from the loader and nothing shuffles, shards or skips them again. Every
optimizer step is reported to the run's files, the place in the data is part of Lightning's own
checkpoints, and a resume goes on at the exact sample.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureLoader, check_workers

from .steady_steps import steady_steps

_FOLDER = re.compile(r"checkpoint-\d+")


class MixtureDataModule(LightningDataModule):  # type: ignore[misc]  # no types where it is missing
    """What `fit` takes as `datamodule`; its batches are a `MixtureLoader`'s dictionaries.

    One epoch is the whole budget, after which training stops.

    Args:
        mixture: a loader or dataset; or the path of a `run.yaml`, for which a loader is made once
            the ranks have been joined.
        num_workers: none draw; anything but 0 is refused.
        options: with a path: of the loader.

    Raises:
        JobError: worker processes were asked for.
    """

    def __init__(
        self, mixture: MixtureLoader | str | Path, *, num_workers: int = 0, **options: Any
    ) -> None:
        super().__init__()
        check_workers("MixtureDataModule: num_workers", num_workers)
        self._given = mixture
        self._options = options
        self._mixture: MixtureLoader | None = None
        self._state: Mapping[str, Any] | None = None

    @property
    def mixture(self) -> MixtureLoader:
        """The loader or dataset.

        Raises:
            JobError: it is yet to be made: Lightning has not called `setup`.
        """
        if self._mixture is None:
            raise JobError("MixtureDataModule: its mixture is made in setup, which fit calls")
        return self._mixture

    def setup(self, stage: str) -> None:
        """Open the sources; have the steps reported.

        Raises:
            JobError: an option or source can't work, or Lightning's steps would not be the run's.
        """
        if stage != "fit":
            return
        self._mixture = self._mixture or self._open()
        if self._state is not None:
            self._mixture.load_state_dict(self._state)
            self._state = None
        trainer = self.trainer
        if trainer is not None:
            check_trainer(trainer, self._mixture)
            if not any(isinstance(callback, MixtureCallback) for callback in trainer.callbacks):
                # before Lightning's checkpoint callbacks, so that a step is told when it is saved
                trainer.callbacks.insert(0, MixtureCallback(self))

    def _open(self) -> MixtureLoader:
        if isinstance(self._given, str | Path):
            return MixtureLoader.from_config(self._given, **self._options)
        if self._options:
            names = ", ".join(self._options)
            raise JobError(f"MixtureDataModule: {names}: give them to the loader itself")
        return self._given

    def train_dataloader(self) -> Any:
        """This rank's micro-batches."""
        return _Batches(self.mixture)

    def teardown(self, stage: str) -> None:
        """The last status, and the end of the threads."""
        if stage == "fit" and self._mixture is not None:
            self._mixture.close()

    def on_exception(self, exception: BaseException) -> None:
        """The threads end with the training."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, for Lightning's checkpoint."""
        return {} if self._mixture is None else self._mixture.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's place.

        Raises:
            JobError: it is of another run.
        """
        if self._mixture is None:
            self._state = state_dict
        else:
            self._mixture.load_state_dict(state_dict)


class MixtureCallback(Callback):  # type: ignore[misc]
    """Reports every optimizer step, stops at the budget; a `MixtureDataModule` adds it by itself.

    A `training_step` that returns `{"loss": ..., "losses": ...}`, the latter a loss per sequence
    [rows], has losses per source reported too.
    """

    def __init__(self, data: MixtureDataModule) -> None:
        self._data = data
        self._losses: list[torch.Tensor] = []
        self._lr: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse to train when Lightning and the loader stand at different steps."""
        mixture = self._data.mixture
        check_ranks(trainer, mixture)
        if trainer.global_step != mixture.step:
            raise JobError(
                f"Lightning begins at step {trainer.global_step}, the loader at {mixture.step}: "
                "resume both from one checkpoint, fit(..., ckpt_path=...)"
            )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Keep the rate this step is made with; a scheduler sets the next one's right after."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a micro-batch's loss; after the step's last one, tell."""
        mixture = self._data.mixture
        accumulation, steps = _steps(mixture)
        outputs = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        if isinstance(outputs.get("loss"), torch.Tensor):
            self._losses.append(outputs["loss"].detach())
        losses = outputs.get("losses")
        losses = losses.detach() if isinstance(losses, torch.Tensor) else None
        if (batch_idx + 1) % accumulation:
            if losses is not None:
                mixture.report(losses=losses)
            return
        # Lightning has divided each by accumulate_grad_batches
        loss = torch.stack(self._losses).sum() if self._losses else None
        self._losses = []
        mixture.report(step=trainer.global_step, loss=loss, lr=self._lr, losses=losses)
        if mixture.step >= steps:
            trainer.should_stop = True


class MixtureCheckpoint(ModelCheckpoint):  # type: ignore[misc]
    """Lightning's checkpoints, each in a folder of its own with what the controller reads.

    `dirpath/checkpoint-N` gets `lightning.ckpt`, to resume from; what `export` writes, to be
    scored; and last of all `mixloop.json`. The controller finds them with
    `checkpoints: {layout: hf-trainer, dir: <dirpath>}`.

    Args:
        dirpath: where the folders go.
        export: writes config.json and safetensors into a folder, on rank 0 alone, from the
            LightningModule; say `lambda module, folder: module.model.save_pretrained(folder)`.
            None: nothing that the controller could score. A model sharded over ranks needs an
            export of its own.
        options: `ModelCheckpoint`'s; `every_n_train_steps` say. All checkpoints are kept unless
            `save_top_k` says otherwise.
    """

    def __init__(
        self,
        dirpath: str | Path,
        *,
        export: Callable[[Any, Path], Any] | None = None,
        **options: Any,
    ) -> None:
        name = {"filename": "checkpoint-{step}/lightning", "auto_insert_metric_name": False}
        super().__init__(str(dirpath), **({"save_top_k": -1} | options | name))
        self._export = export

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        folder = Path(filepath).parent
        data = trainer.datamodule
        if not _FOLDER.fullmatch(folder.name) or not isinstance(data, MixtureDataModule):
            return
        if self._export is not None and trainer.is_global_zero:
            self._export(trainer.lightning_module, folder)
        data.mixture.mark_checkpoint(folder)

    def _remove_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        folder = Path(filepath).parent
        if _FOLDER.fullmatch(folder.name) and trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)


class _Batches:
    """What Lightning asks of a dataloader, and no more: it puts samplers into torch's own.

    With a length it fetches nothing ahead, so that the place saved is the place trained.
    """

    def __init__(self, mixture: MixtureLoader) -> None:
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._mixture)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module's holds it. Lightning asks if the batches can be resumed."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to do."""


def check_trainer(trainer: Any, mixture: MixtureLoader) -> None:
    """That a step of Lightning is a step of the loader.

    Raises:
        JobError: naming the argument of `Trainer`, its value and the one that fits.
    """
    accumulation, steps = _steps(mixture)
    accumulated = trainer.accumulate_grad_batches
    if accumulated != accumulation:
        raise JobError(
            f"Trainer(accumulate_grad_batches={accumulated}): make it {accumulation}, as the run's "
            "steps"
        )
    if trainer.overfit_batches:
        raise JobError(
            f"Trainer(overfit_batches={trainer.overfit_batches}): the mixture never repeats its "
            "batches; leave it out"
        )
    if trainer.max_steps > steps:
        raise JobError(
            f"Trainer(max_steps={trainer.max_steps}): the budget is spent after {steps} steps; "
            "leave it out, or raise the run's budget"
        )


def check_ranks(trainer: Any, mixture: MixtureLoader) -> None:
    """That the loader shares the data out as Lightning has joined the processes.

    Raises:
        JobError: it doesn't.
    """
    if trainer.world_size != mixture.world:
        raise JobError(
            f"Lightning has {trainer.world_size} processes, the mixture is shared among "
            f"{mixture.world}: give MixtureDataModule the path of run.yaml (it makes the mixture "
            "once the processes have been joined), and use a data-parallel strategy"
        )


def _steps(mixture: MixtureLoader) -> tuple[int, int]:
    return steady_steps(mixture, "Lightning")
