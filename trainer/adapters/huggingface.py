"""The mixture inside `transformers.Trainer`.

    class MyTrainer(MixtureMixin, Trainer): ...

    loader = MixtureLoader.from_config("run.yaml")
    MyTrainer(model, args, mixture=loader).train()

The Trainer gets its batches from the loader and nothing shuffles, shards or skips them again. A
callback tells the run's files how training goes, leaves `mixloop.json` in every `checkpoint-N`
(which the controller reads with `checkpoints: {layout: hf-trainer}`), and a resume goes on at the
exact sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from mixloop.trainer.job import JobError
from mixloop.trainer.loader import MixtureLoader

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_FOR_MODELS = ("input_ids", "labels", "position_ids")


class MixtureCallback(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Reports steps, marks checkpoints, ends the loader's threads.

    For a Trainer that takes its batches from `mixture`; :class:`MixtureMixin` adds it by itself.
    """

    def __init__(self, mixture: MixtureLoader) -> None:
        self.mixture = mixture
        self._logged: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Refuse settings under which the Trainer's steps would not be the loader's."""
        check_arguments(args, self.mixture)
        if state.global_step != self.mixture.step:
            raise JobError(
                f"the Trainer begins at step {state.global_step}, the loader at "
                f"{self.mixture.step}: resume both from one checkpoint "
                "(MixtureMixin does; else call loader.restore(folder))"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep what the Trainer has worked out, for the next heartbeat."""
        known = ("loss", "grad_norm", "learning_rate")
        self._logged |= {key: (logs or {})[key] for key in known if key in (logs or {})}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell the step; end training when the budget is spent."""
        self.mixture.report(
            step=state.global_step,
            loss=self._logged.get("loss"),
            lr=self._logged.get("learning_rate"),
            grad_norm=self._logged.get("grad_norm"),
        )
        if self.mixture.tokens >= self.mixture.job.budget:
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint is whole: say which mixture it was trained on."""
        self.mixture.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last status, and the end of the loader's threads."""
        self.mixture.close()


class MixtureMixin:
    """Before `Trainer` in a class's bases: `mixture=` takes the place of `train_dataset=`.

    Raises:
        JobError: settings of the Trainer under which its steps would not be the loader's.
    """

    def __init__(self, *args: Any, mixture: MixtureLoader, **kwargs: Any) -> None:
        self.mixture = mixture
        given: Any = kwargs.get("args", args[1] if len(args) > 1 else None)
        if given is not None:
            check_arguments(given, mixture)
            # what is left to train on says when to stop; batches are never replayed
            given.ignore_data_skip = True
            if given.max_steps <= 0:
                given.max_steps = len(mixture) // mixture.job.settings.accumulation
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.add_callback(MixtureCallback(mixture))

    def get_train_dataloader(self) -> Any:
        """The loader's micro-batches, with the keys that models take."""
        return _Batches(self.mixture)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        above: Any = super()
        above._load_from_checkpoint(resume_from_checkpoint, model)
        self.mixture.restore(resume_from_checkpoint)


class _Batches:
    """What the Trainer asks of a dataloader, and no more: accelerate would fetch one ahead."""

    def __init__(self, mixture: MixtureLoader) -> None:
        self._mixture = mixture
        self.dataset = mixture
        self.batch_size = mixture.job.settings.micro_batch

    def __len__(self) -> int:
        return len(self._mixture)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._mixture:
            yield {key: batch[key] for key in _FOR_MODELS if key in batch}


def check_arguments(args: TrainingArguments, mixture: MixtureLoader) -> None:
    """That a step of the Trainer is a step of the loader.

    Raises:
        JobError: naming the argument, its value and the one that fits.
    """
    settings = mixture.job.settings
    for name, given, right in (
        ("per_device_train_batch_size", args.per_device_train_batch_size, settings.micro_batch),
        ("gradient_accumulation_steps", args.gradient_accumulation_steps, settings.accumulation),
        ("dataloader_num_workers", args.dataloader_num_workers, 0),
    ):
        if given != right:
            why = (
                "the loader draws ahead in a thread of its own" if right == 0 else "as in run.yaml"
            )
            raise JobError(f"TrainingArguments.{name}: {given}; make it {right} ({why})")
    if args.world_size != mixture.world:
        raise JobError(
            f"{args.world_size} processes share the batches out, the loader knows of "
            f"{mixture.world}: make it after TrainingArguments, which joins the ranks"
        )


__all__ = ["MixtureCallback", "MixtureMixin", "check_arguments"]
