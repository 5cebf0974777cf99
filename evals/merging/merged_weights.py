"""A loaded model's parameters as a checkpoint plus weighted deltas, streamed from their files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mixloop.evals.checkpoints import (
    CheckpointError,
    bare_names,
    common_names,
    open_weights,
)


class MergedWeights:
    """Sets a model's parameters to ``checkpoint + sum_i w_i delta_i``, in place.

    Sums are made in float32 on the model's device, one tensor at a time, and rounded once to the
    parameters' dtype. Files stay open; tensors are kept as they are stored until `memory` bytes are
    taken, in the order of names, and the others are read again at each pass.

    Args:
        checkpoint: The folder that all deltas start from.
        deltas: Files of :func:`write_delta`, by source.
        memory: Bytes of tensors that may be kept.

    Raises:
        CheckpointError: a file can't be read, or they aren't of one model.
    """

    def __init__(self, checkpoint: Path, deltas: Mapping[str, Path], memory: int) -> None:
        self.sources = tuple(deltas)
        self._stack = ExitStack()
        self._kept: dict[tuple[int, str], torch.Tensor] = {}
        self._room = memory
        try:
            self._opened = self._stack.enter_context(open_weights(checkpoint, *deltas.values()))
            base, others = self._opened[0], self._opened[1:]
            names = [set(common_names(base, other)) for other in others]
        except (OSError, ValueError) as error:
            self._stack.close()
            raise CheckpointError(f"{checkpoint}: no merge: {error}") from error
        common = set(base.floating).intersection(*names)
        self.names = tuple(name for name in base.floating if name in common)

    def close(self) -> None:
        """Closes the files."""
        self._kept.clear()
        self._stack.close()

    def why_not_in_place(self, model: Any) -> str | None:
        """Why a model's parameters can't be set, or None: its names aren't those of the files."""
        targets = _targets(model)
        lost = [name for name in self.names if name not in targets]
        if lost:
            return f"transformers computes with other weights than are saved ({lost[0]})"
        return next(
            (f"{n} is quantised" for n in self.names if not targets[n].is_floating_point()), None
        )

    @torch.no_grad()
    def set(self, model: Any, weights: Mapping[str, float]) -> None:
        """Makes `model` the merge of these weights; a source that isn't named counts 0."""
        factors = [weights.get(source, 0.0) for source in self.sources]
        for name, target in self._matched(model):
            total = self._read(0, name).to(target.device, torch.float32, copy=True)
            for index, factor in enumerate(factors, start=1):
                if factor:
                    delta = self._read(index, name).to(target.device, torch.float32)
                    total.add_(delta, alpha=factor)
            target.copy_(total)

    @torch.no_grad()
    def inner_products(self, model: Any) -> dict[str, float]:
        """By source the inner product of the parameters' gradients with its delta."""
        products = dict.fromkeys(self.sources, 0.0)
        for name, target in self._matched(model):
            if target.grad is None:
                continue
            slope = target.grad.float().flatten()
            for index, source in enumerate(self.sources, start=1):
                delta = self._read(index, name).to(slope.device, torch.float32).flatten()
                products[source] += float(torch.dot(slope, delta))
        return products

    def _matched(self, model: Any) -> list[tuple[str, torch.Tensor]]:
        """Names with the model's tensors, a tied one once."""
        targets = _targets(model)
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for name in self.names:
            found.setdefault(id(targets[name]), (name, targets[name]))
        return list(found.values())

    def _read(self, index: int, name: str) -> torch.Tensor:
        """A tensor of the checkpoint (0) or of a source's delta (from 1), as it is stored."""
        tensor = self._kept.get((index, name))
        if tensor is None:
            try:
                tensor = self._opened[index].read(name)
            except (OSError, ValueError) as error:
                place = self._opened[index].place
                raise CheckpointError(f"{place}: can't be read again: {error}") from error
            size = tensor.numel() * tensor.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[index, name] = tensor
        return tensor


def _targets(model: Any) -> dict[str, torch.Tensor]:
    """The model's own tensors by the names that files have without wrappers' parts."""
    state = model.state_dict(keep_vars=True)
    return {bare: state[name] for bare, name in bare_names(state).items()}
