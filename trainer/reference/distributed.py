"""How ranks share a model, and what is recomputed or compiled: DDP or FSDP2.

With FSDP2 (`fully_shard`) each rank holds its part of the fp32 master weights, gradients and
moments; a layer's weights are gathered, in bf16 where that is the precision, while it is computed.
A rank that is alone has nothing to share and computes as with DDP: fp32 weights under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from mixloop.trainer.config import JobError, TrainerSettings
from mixloop.trainer.run import Collectives

from .model import autocast, computes_bf16

if TYPE_CHECKING:
    import torch


def decoder_layers(model: Any) -> list[Any]:
    """The blocks a model repeats, by the class names that transformers calls indivisible."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inner]


class ParallelModel:
    """A model as this rank's steps call it.

    `model` keeps its parameters' names; under FSDP2 they are DTensors from here on, and an
    optimizer must be made of these.

    Raises:
        JobError: the model's code can't do what the settings ask for.
    """

    def __init__(
        self, model: Any, settings: TrainerSettings, peers: Collectives, device: torch.device
    ) -> None:
        self.model = model
        self.device = device
        self.sharded = settings.parallel == "fsdp" and peers.world > 1
        self.bf16 = computes_bf16(settings.precision, device)
        self._replicated = settings.parallel == "ddp" and peers.world > 1
        if settings.activation_checkpointing:
            recompute_activations(model)
        if self.sharded:
            self._shard(settings.compile, peers.world)
            self.forward: Any = model
        else:
            self.forward = self._whole(settings)

    def _shard(self, compiled: bool, world: int) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        layers = decoder_layers(self.model)
        if not layers:
            raise JobError(
                f"settings.parallel: {type(self.model).__name__} does not say what its layers "
                "are, so fsdp has nothing to shard by; take ddp"
            )
        mesh = init_device_mesh(self.device.type, (world,))
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.bf16 else None, reduce_dtype=torch.float32
        )
        for layer in layers:
            if compiled:
                layer.compile()  # by the layer: gathering between them stays outside of graphs
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(self.model, mesh=mesh, mp_policy=precision)

    def _whole(self, settings: TrainerSettings) -> Any:
        import torch

        model = self.model.to(self.device)
        if self._replicated:
            devices = [self.device] if self.device.type == "cuda" else None
            model = torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)
        return torch.compile(model) if settings.compile else model

    def backward(self, last: bool) -> AbstractContextManager[Any]:
        """Context of a micro-batch's passes; `last`: of a step's last one.

        DDP exchanges gradients in that one only. FSDP2 does in each: kept apart until the last they
        would be whole on every rank, which is what sharding is there to avoid.
        """
        return self.forward.no_sync() if self._replicated and not last else nullcontext()

    def precision(self) -> AbstractContextManager[Any]:
        """Context of the forward pass; under FSDP2 the gathered weights are bf16 already."""
        return nullcontext() if self.sharded else autocast(self.bf16, self.device)

    def clip(self, limit: float) -> torch.Tensor:
        """Scale all gradients to a norm of at most `limit`.

        Returns:
            The norm before, on the device, the same on every rank. Collective under FSDP2.
        """
        import torch

        return whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in full on every rank, collectively; any other as it is."""
    from torch.distributed.tensor import DTensor

    full: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def recompute_activations(model: Any) -> None:
    """Keep only the inputs of decoder layers and compute the rest again in the backward pass.

    Raises:
        JobError: the model's code has no support for it.
    """
    # the newer of the two names, where transformers has it
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        enable = model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise JobError(f"settings.activation_checkpointing: {error}") from error


def tensors(model: Any) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """The distinct parameters and kept buffers of a model, each with all its names (tied: two)."""
    names: dict[int, list[str]] = {}
    values = model.state_dict(keep_vars=True)
    for name, value in values.items():
        names.setdefault(id(value), []).append(name)
    for same in names.values():
        yield tuple(same), values[same[0]]
