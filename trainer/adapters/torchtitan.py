"""The mixture inside torchtitan (its 0.3 interfaces).

    def llama3_on_a_mixture() -> Trainer.Config:      # in a config_registry module
        return with_mixture(llama3_8b(), "/runs/smol-1/run.yaml")

torchtitan takes its components from the configuration it is given, so nothing of it is patched:
the dataloader deals the run's order, the metrics tell the run's files what torchtitan logs, and
the checkpoint manager leaves `mixloop.json` in each `step-N`. The place in the data is part of
torchtitan's own checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.checkpoint import MODEL, TRAIN_STATE, AsyncMode, CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import MetricsProcessor

from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureLoader, check_workers

from .steady_steps import steady_steps

_TO_SCORE = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json")


class MixtureDataLoader(BaseDataLoader):  # type: ignore[misc]  # torchtitan may not be installed
    """`({"input": ids [rows, L], "positions": [rows, L]}, labels [rows, L])`, rank by rank.

    A row is one window of the run; its labels are its tokens shifted by one, and the last one,
    which would be of the next window, is not trained on. Processes of one data-parallel rank
    (tensor, context or pipeline parallelism) get the same rows.

    Raises:
        JobError: the run can't work, or its rows are not torchtitan's.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):  # type: ignore[misc]
        """What torchtitan's command line may set, as `--dataloader.run`."""

        run: str = "run.yaml"
        """The run.yaml that the controller reads."""

        documents: bool = False
        """Positions begin anew with each document, which attention with masks keeps apart."""

        rewind: bool = False
        """Drop the mixtures recorded beyond the checkpoint that is resumed from."""

        from_scratch: bool = False
        """Begin again at step 0 a run that has a checkpoint to go on from, if none is loaded."""

    def __init__(
        self,
        config: Any,
        *,
        dp_world_size: int,
        dp_rank: int,
        seq_len: int,
        local_batch_size: int,
        **_: Any,
    ) -> None:
        self.loader = MixtureLoader.from_config(
            config.run, rank=dp_rank, world=dp_world_size, documents=config.documents,
            rewind=config.rewind, from_scratch=config.from_scratch,
        )  # fmt: skip
        job = self.loader.job
        for key, value, name, right in (
            ("training.seq_len", seq_len, "sequence_length", job.sequence_length),
            ("training.local_batch_size", local_batch_size, "micro_batch",
             job.settings.micro_batch),
        ):  # fmt: skip
            if value != right:
                raise JobError(
                    f"torchtitan's {key} is {value}: make it {right}, as trainer.{name} in "
                    f"{config.run} (with pipeline parallelism parallelism."
                    "pipeline_parallel_microbatch_size takes the place of the batch size)"
                )
        self._plain = torch.arange(seq_len).expand(local_batch_size, seq_len)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for batch in self.loader:
            ids = batch["input_ids"]
            labels = ids.roll(-1, 1)
            labels[:, -1] = IGNORE_INDEX
            yield {"input": ids, "positions": batch.get("position_ids", self._plain)}, labels

    def state_dict(self) -> dict[str, Any]:
        """The place, the same on every rank; one entry, whose length may change."""
        return {"mixloop": json.dumps(self.loader.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a place, at another data-parallel degree too if a step takes as many samples.

        Raises:
            JobError: it is of another run, or of another dataloader.
        """
        if not state_dict:
            return
        if "mixloop" not in state_dict:
            raise JobError(
                "torchtitan's checkpoint is of another dataloader; to begin the mixture with its "
                "model, set checkpoint.exclude_from_loading to [dataloader]"
            )
        self.loader.load_state_dict(json.loads(state_dict["mixloop"]))


class MixtureMetrics(MetricsProcessor):  # type: ignore[misc]
    """Tells the run's files what torchtitan logs, when it does (`metrics.log_freq`)."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):  # type: ignore[misc]
        """As torchtitan's."""

    mixture: MixtureDataLoader | None = None

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Log, and report loss, rate and gradient norm."""
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)
        if self.mixture is None:
            return
        rates = [v for k, v in (extra_metrics or {}).items() if k.startswith("lr/")]
        # the rank that has the run's files is of a pipeline's first stage, which knows no loss
        loss = None if self.parallel_dims.pp_enabled else global_avg_loss
        self.mixture.loader.report(
            step=step, loss=loss, lr=rates[0] if rates else None, grad_norm=grad_norm
        )

    def close(self) -> None:
        """The last status, and the end of the loader's threads."""
        if self.mixture is not None:
            self.mixture.loader.close()
        super().close()


class MixtureCheckpoints(CheckpointManager):  # type: ignore[misc]
    """torchtitan's checkpoints with `mixloop.json` in them; checks its steps before training."""

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):  # type: ignore[misc]
        """As torchtitan's, and whether to export."""

        export: bool = False
        """Write the model as Hugging Face safetensors into every checkpoint, with config.json and
        tokenizer of hf_assets_path: what `checkpoints: {layout: torchtitan}` scores."""

    def __init__(self, config: Any, *, dataloader: Any, states: dict[str, Any], **kwargs: Any):
        trainer = states[TRAIN_STATE]
        check_trainer(trainer, dataloader)
        if isinstance(trainer.metrics_processor, MixtureMetrics):
            trainer.metrics_processor.mixture = dataloader
        self._mixture: MixtureDataLoader = dataloader
        self._assets: str = trainer.config.hf_assets_path
        self._export: bool = config.export
        if config.enable and config.export and kwargs.get("sd_adapter") is None:
            raise JobError("checkpoint.export: torchtitan has no state_dict_adapter of this model")
        if config.enable and config.export and not (Path(self._assets) / "config.json").is_file():
            raise JobError(
                f"checkpoint.export: no config.json in hf_assets_path, {self._assets}; put the "
                "model's Hugging Face configuration there, or leave export off"
            )
        super().__init__(config, dataloader=dataloader, states=states, **kwargs)

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if not super()._save(curr_step, last_step):
            return False
        folder = Path(self._create_checkpoint_id(curr_step))
        if curr_step == 0:  # a seed checkpoint: nothing was drawn
            return True
        exported = last_step and self.last_save_in_hf
        if self._export and not exported:
            self.maybe_wait_for_saving()
            self._export_to(folder)
            exported = True
        if exported and torch.distributed.get_rank() == 0:
            for pattern in _TO_SCORE:
                for file in Path(self._assets).glob(pattern):
                    shutil.copy(file, folder / file.name)
        self._mixture.loader.mark_checkpoint(folder)
        return True

    def _export_to(self, folder: Path) -> None:
        """Weights as safetensors, beside torchtitan's own files."""
        states = {
            key: value.to(self.export_dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for key, value in self.states[MODEL].state_dict().items()
        }
        self.dcp_save(states, checkpoint_id=str(folder), async_mode=AsyncMode.DISABLED, to_hf=True)


def check_trainer(trainer: Any, dataloader: Any) -> None:
    """That a step of torchtitan is a step of the loader.

    Raises:
        JobError: naming the setting, its value and the one that fits.
    """
    if not isinstance(dataloader, MixtureDataLoader):
        raise JobError(
            f"torchtitan's dataloader is a {type(dataloader).__name__}; the mixture's checkpoints "
            "want MixtureDataLoader.Config, as with_mixture sets it"
        )
    loader, training = dataloader.loader, trainer.config.training
    accumulation, steps = steady_steps(loader, "torchtitan")
    accumulated = trainer.gradient_accumulation_steps * trainer.num_pipeline_parallel_microbatches
    if accumulated != accumulation:
        raise JobError(
            f"torchtitan takes {accumulated} micro-batches for a step, the run "
            f"{accumulation}: make training.global_batch_size {loader.step_samples}"
        )
    if training.steps > steps:
        raise JobError(
            f"training.steps: {training.steps}, but the budget is spent after {steps} steps; "
            "lower it, or raise the run's budget"
        )


def with_mixture(config: Any, run: str | Path, *, export: bool = False, **options: Any) -> Any:
    """A `Trainer.Config` of torchtitan, on a mixture.

    Args:
        config: changed in place: its dataloader, and its metrics and checkpoints, of which all
            that was set is kept.
        run: path of the run.yaml.
        export: as `MixtureCheckpoints.Config.export`.
        options: of `MixtureDataLoader.Config`.

    Returns:
        `config`.

    Raises:
        JobError: its metrics or checkpoints are of a class that this can't extend, or its
            dataloader has worker processes.
    """
    check_workers("dataloader.num_workers", getattr(config.dataloader, "num_workers", 0))
    for name, base in (("metrics", MetricsProcessor), ("checkpoint", CheckpointManager)):
        if type(getattr(config, name)) is not base.Config:
            raise JobError(
                f"with_mixture: config.{name} is a {type(getattr(config, name)).__qualname__}; "
                f"only {base.__name__}.Config can be extended"
            )
    config.dataloader = MixtureDataLoader.Config(run=str(run), **options)
    config.metrics = MixtureMetrics.Config(**_values(config.metrics))
    config.checkpoint = MixtureCheckpoints.Config(**_values(config.checkpoint), export=export)
    return config


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}
