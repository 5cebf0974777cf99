"""Linear combinations of weights, one tensor in memory at a time.

Two are used: the mean of a run's last checkpoints, in which the optimiser's noise averages out
(pre-trained model averaging, 2505.12082), and a checkpoint plus task vectors (2212.04089), which
stands for training on a mixture. A term is a checkpoint's folder or a lone safetensors file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mixloop.common.errors import one_line

from .weight_files import bare_names, is_weight, some, weight_files

_FLOATING = ("F64", "F32", "BF16", "F16")
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class WeightSum:
    """``sum_i coefficient_i * weights_i``.

    Attributes:
        terms: (coefficient, folder or safetensors file). The first is a checkpoint's folder; names,
            dtypes and everything that is no floating-point number are its own.
    """

    terms: tuple[tuple[float, Path], ...]

    @classmethod
    def mean(cls, folders: Sequence[Path]) -> WeightSum:
        """The mean of checkpoints, the newest of which is first."""
        return cls(tuple((1 / len(folders), folder) for folder in folders))

    @classmethod
    def merge(cls, checkpoint: Path, deltas: Mapping[Path, float]) -> WeightSum:
        """A checkpoint plus weighted deltas, the files of :func:`write_delta`."""
        return cls(((1.0, checkpoint), *((weight, delta) for delta, weight in deltas.items())))


class OpenWeights:
    """The tensors of a checkpoint's folder, or of one safetensors file, read one by one.

    `names` are the stored names by those without wrappers' parts: tensors of two checkpoints that
    were saved by different means go by the same ones.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: what is there isn't a whole model's.
    """

    def __init__(self, place: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.place = place
        self._files: dict[str, tuple[str, Any]] = {}
        folder, files = (place, weight_files(place)) if place.is_dir() else (place.parent, None)
        for file in files or [place.name]:
            try:
                # not memory-mapped: what is read doesn't change with the file
                opened = stack.enter_context(
                    safe_open(folder / file, framework="pt", device="cpu", backend="pread")
                )
            except SafetensorError as error:
                raise ValueError(f"{file}: {one_line(error)}") from error
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if name in self._files:
                    raise ValueError(f"{file}: {name} is in another weight file too")
                self._files[name] = file, opened

    @property
    def stored(self) -> list[str]:
        """All names, as they were saved."""
        return list(self._files)

    @cached_property
    def names(self) -> dict[str, str]:
        """Stored names by those without wrappers' parts.

        Raises:
            ValueError: two names become one.
        """
        return bare_names(self._files)

    @cached_property
    def floating(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that can be added up, by names without wrappers' parts."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, stored in self.names.items():
            view = self._files[stored][1].get_slice(stored)
            shape = tuple(view.get_shape())
            if view.get_dtype() in _FLOATING and is_weight(name, len(shape)):
                shapes[name] = shape
        return shapes

    def tensor(self, stored: str) -> torch.Tensor:
        """The tensor of a stored name, in memory of its own.

        Raises:
            OSError: it can't be read.
            ValueError: its file is damaged.
        """
        from safetensors import SafetensorError

        file, opened = self._files[stored]
        try:
            tensor: torch.Tensor = opened.get_tensor(stored)
        except SafetensorError as error:
            raise ValueError(f"{file}: {one_line(error)}") from error
        return tensor

    def read(self, name: str) -> torch.Tensor:
        """The tensor of a name without wrappers' parts."""
        return self.tensor(self.names[name])

    def is_tied(self, name: str, others: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a tensor is a copy of one of the others: tied, but saved under both names."""
        alike = [other for other, shape in others.items() if shape == self.floating[name]]
        return any(torch.equal(self.read(name), self.read(other)) for other in alike)


@contextmanager
def open_weights(*places: Path) -> Iterator[list[OpenWeights]]:
    """The weights of several checkpoints or files, which are closed afterwards.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: what is there isn't a whole model's; one line.
    """
    with ExitStack() as stack:
        yield [OpenWeights(place, stack) for place in places]


def common_names(first: OpenWeights, other: OpenWeights) -> list[str]:
    """Names of the tensors to add up, those of both; a tied one that only one has is left out.

    Raises:
        ValueError: names or shapes are not the same; one line with both places.
    """
    mine, theirs = first.floating, other.floating
    both = {name: shape for name, shape in mine.items() if name in theirs}
    lone = [(first, name) for name in mine if name not in theirs]
    lone += [(other, name) for name in theirs if name not in mine]
    strange = [name for side, name in lone if not side.is_tied(name, both)]
    shapes = [
        f"{name} ({list(theirs[name])}, not {list(shape)})"
        for name, shape in both.items()
        if shape != theirs[name]
    ]
    if strange or shapes:
        told = f"only one has {some(strange)}" if strange else f"another shape of {some(shapes)}"
        raise ValueError(f"{other.place} has not the weights of {first.place}: {told}")
    return list(both)


def summed(name: str, terms: Sequence[tuple[float, OpenWeights]]) -> torch.Tensor:
    """``sum_i coefficient_i * tensor_i`` in float32; a term of coefficient 0 is not read."""
    (coefficient, first), *others = terms
    total = first.read(name).float()
    if coefficient != 1.0:
        total = total.mul(coefficient)
    for coefficient, weights in others:
        if coefficient:
            total = total.add(weights.read(name).float(), alpha=coefficient)
    return total


def read_sum(weights: WeightSum, *, upcast: bool) -> dict[str, torch.Tensor]:
    """A sum's tensors by the first term's stored names, each of the dtype it has there.

    Half precision is rounded to once, after adding up; with `upcast` it becomes float32.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: the terms are not weights of one model; one line.
    """
    with open_weights(*(place for _, place in weights.terms)) as opened:
        first, others = opened[0], opened[1:]
        if not others:
            return {name: _raised(first.tensor(name), upcast) for name in first.stored}
        names = set(first.floating).intersection(*(common_names(first, o) for o in others))
        terms = list(zip((coefficient for coefficient, _ in weights.terms), opened, strict=True))
        tensors: dict[str, torch.Tensor] = {}
        for name, stored in first.names.items():
            own = first.tensor(stored)
            if name in names:
                total = summed(name, terms)
                tensors[stored] = total if upcast else total.to(own.dtype)
            elif name not in first.floating:
                tensors[stored] = own
        return tensors


def _raised(tensor: torch.Tensor, upcast: bool) -> torch.Tensor:
    return tensor.float() if upcast and tensor.dtype in _HALF else tensor
