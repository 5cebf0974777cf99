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

import torch
from transformers import TrainerCallback

from mixloop.common.log import say
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import SAVED_FILE, MixtureLoader, check_workers

from .steady_steps import steady_steps

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_FOR_MODELS = ("input_ids", "labels", "position_ids")


class MixtureCallback(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Reports every step, marks checkpoints, ends the loader's threads.

    :class:`MixtureMixin` adds it by itself. Alone it does for a Trainer subclass whose
    `get_train_dataloader` gives the micro-batches of `mixture` untouched, one by one.
    """

    def __init__(self, mixture: MixtureLoader) -> None:
        self.mixture = mixture
        self._warned = False

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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell the step; end training when the budget is spent."""
        # a resumed Trainer that replays no batches would count its epoch from 0 again
        total = _steps(self.mixture)[1]
        state.epoch = state.global_step / total
        if not control.should_log:  # else on_log tells it, with its loss
            self.mixture.report(step=state.global_step)
        if state.global_step >= total:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Tell the step with what the Trainer has worked out since it logged last."""
        logs = logs or {}
        self.mixture.report(
            step=state.global_step,
            loss=logs.get("loss"),
            lr=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The checkpoint is whole: say which mixture it was trained on."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.mixture.mark_checkpoint(folder) and not self._warned:
            self._warned = _warn_unscorable(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last status, and the end of the loader's threads."""
        self.mixture.close()


class MixtureMixin:
    """Before `Trainer` in a class's bases: `mixture=` takes the place of `train_dataset=`.

    accelerate is not asked to prepare the batches: it would deal them among the ranks again, and
    replay them on a resume. Before TRL's `SFTTrainer` it serves as well; that wants a dataset to
    look at, and gets one of a single row, which it does not train on.

    Raises:
        JobError: settings of the Trainer under which its steps would not be the loader's.
    """

    def __init__(self, *args: Any, mixture: MixtureLoader, **kwargs: Any) -> None:
        self.mixture = mixture
        arguments: Any = kwargs.get("args", args[1] if len(args) > 1 else None)
        if arguments is None:
            raise JobError("Trainer: args= is missing: TrainingArguments with the run's batch size")
        if kwargs.get("train_dataset") is not None:
            raise JobError("Trainer: train_dataset= beside mixture=; give one of the two")
        check_arguments(arguments, mixture)
        arguments.ignore_data_skip = True  # the loader itself goes on at the exact sample
        if arguments.max_steps <= 0:
            arguments.max_steps = _steps(mixture)[1]  # one epoch is the whole budget
        self._masked = _is_trl(type(self))
        if self._masked:
            kwargs["train_dataset"] = _row_to_look_at(mixture, arguments)
        super().__init__(*args, **kwargs)
        _refuse_shared_batches(_untyped(self))
        _untyped(self).add_callback(MixtureCallback(mixture))

    def get_train_dataloader(self) -> Any:
        """This rank's micro-batches, with the keys that models take."""
        return _Batches(self.mixture, masked=self._masked)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, with the mixture where the checkpoint left it.

        Args:
            resume_from_checkpoint: a folder, or True: the newest of `output_dir` that is whole,
                which `mixloop.json`, written last, tells.

        Raises:
            JobError: the checkpoint has no `mixloop.json` or is of another run.
        """
        trainer, above = _untyped(self), _untyped(super())
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _newest(Path(trainer.args.output_dir))
        if resume_from_checkpoint:
            self.mixture.restore(resume_from_checkpoint)
        return above.train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)


class _Batches:
    """What the Trainer asks of a dataloader, and no more; `masked`: attention masks of ones too."""

    def __init__(self, mixture: MixtureLoader, *, masked: bool) -> None:
        self.dataset = mixture
        self.batch_size = mixture.job.settings.micro_batch
        self._masked = masked

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.dataset:
            inputs = {key: batch[key] for key in _FOR_MODELS if key in batch}
            if self._masked:
                inputs["attention_mask"] = torch.ones_like(batch["input_ids"])
            yield inputs


def check_arguments(args: TrainingArguments, mixture: MixtureLoader) -> None:
    """That a step of the Trainer is a step of the loader, and that the loader alone draws.

    Raises:
        JobError: naming the argument, its value and the one that fits.
    """
    check_workers("TrainingArguments.dataloader_num_workers", args.dataloader_num_workers)
    for name in ("dispatch_batches", "split_batches"):
        if getattr(args.accelerator_config, name):
            raise JobError(
                f"TrainingArguments.accelerator_config.{name}: True; leave it out (each process "
                "draws its own batches, and accelerate would deal them out a second time)"
            )
    micro_batch = mixture.job.settings.micro_batch
    accumulation, steps = _steps(mixture)
    gpus = max(1, args.n_gpu)
    rows = f"trainer.micro_batch is {micro_batch}, for {gpus} device(s) of a process"
    for name, right, why in (
        ("per_device_train_batch_size", micro_batch // gpus, rows),
        ("gradient_accumulation_steps", accumulation, "as the run's steps"),
        ("auto_find_batch_size", False, "the order of the data is for one batch size"),
    ):
        value = getattr(args, name)
        if value != right:
            raise JobError(f"TrainingArguments.{name}: {value}; make it {right} ({why})")
    if args.world_size != mixture.world:
        raise JobError(
            f"{args.world_size} processes share the batches out, the loader knows of "
            f"{mixture.world}: make it after TrainingArguments, which joins the ranks"
        )
    if args.max_steps > steps:
        raise JobError(
            f"TrainingArguments.max_steps: {args.max_steps}, but the budget is spent after "
            f"{steps} steps; leave it out, or raise the run's budget"
        )


def _refuse_shared_batches(trainer: Any) -> None:
    """The loader gives every process other samples, which processes of one batch must not get."""
    for kind, name in (("tensor", "tp"), ("context", "cp"), ("sequence", "sp")):
        size = getattr(trainer, f"get_{name}_size", lambda: 1)()
        if size > 1:
            raise JobError(
                f"Trainer: {kind} parallelism of {size}: MixtureMixin does data parallelism alone "
                "(DDP, FSDP); with it, write a loop with MixtureLoader(rank=, world=)"
            )


def _is_trl(trainer: type) -> bool:
    """Whether a class extends TRL's SFTTrainer.

    Raises:
        JobError: it extends another one of TRL's.
    """
    names = [base.__name__ for base in trainer.__mro__ if base.__module__.startswith("trl.")]
    if names and "SFTTrainer" not in names:
        raise JobError(
            f"{names[0]}: it learns from prompts or preferences, a mixture has plain windows of "
            "tokens; put MixtureMixin before SFTTrainer or transformers' Trainer"
        )
    return bool(names)


def _row_to_look_at(mixture: MixtureLoader, arguments: Any) -> Any:
    """A dataset for TRL, which asks for its columns; nothing in it is prepared or trained on."""
    import datasets

    for name in ("packing", "padding_free", "assistant_only_loss", "completion_only_loss"):
        if getattr(arguments, name, None):
            raise JobError(
                f"SFTConfig.{name}: True; leave it out (the loader's rows are whole windows "
                "already, every token of which is trained on)"
            )
    options = getattr(arguments, "dataset_kwargs", None) or {}
    arguments.dataset_kwargs = {**options, "skip_prepare_dataset": True}
    row = [0] * mixture.job.sequence_length
    return datasets.Dataset.from_dict({"input_ids": [row], "labels": [row]})


def _untyped(trainer: Any) -> Any:
    """The Trainer that the mixin is mixed into."""
    return trainer


def _steps(mixture: MixtureLoader) -> tuple[int, int]:
    return steady_steps(mixture, "the Trainer")


def _newest(output: Path) -> Path:
    """The checkpoint that was completed last.

    Raises:
        JobError: there is none.
    """
    steps = {
        int(number): folder
        for folder in output.glob("checkpoint-*")
        if (number := folder.name.removeprefix("checkpoint-")).isdecimal()
        and (folder / SAVED_FILE).is_file()
        and (folder / "trainer_state.json").is_file()
    }
    if not steps:
        raise JobError(
            f"{output}: no checkpoint-N with {SAVED_FILE} and trainer_state.json to resume from"
        )
    return steps[max(steps)]


def _warn_unscorable(folder: Path) -> bool:
    """Say so when the controller will not be able to load a model from there."""
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return False
    say(
        f"{folder}: no config.json with safetensors, so the controller will not score it; save "
        "the full model (FSDP: state_dict_type FULL_STATE_DICT)",
        "mixloop",
    )
    return True
