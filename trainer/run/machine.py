"""What the machine does while it trains: memory, utilisation, model FLOPs utilisation (MFU)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mixloop.common.process import resident
from mixloop.contract import System

if TYPE_CHECKING:
    import torch


PEAK_BF16 = {
    "A100": 312e12,  # nvidia.com/en-us/data-center/a100
    "A800": 312e12,  # as A100; only its links are slower
    "A10": 125e12,  # a10-datasheet.pdf
    "A40": 149.7e12,  # nvidia-a40-datasheet.pdf
    "H100": 989e12,  # nvidia.com/en-us/data-center/h100: SXM, half of what it says with sparsity
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H200": 989e12,  # nvidia.com/en-us/data-center/h200
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,  # Blackwell datasheet, dense
    "L40S": 362e12,  # l40s-datasheet
    "MI250X": 191.5e12,  # amd.com, instinct/mi250x: one of its two dies, which is one device
    "MI300X": 1307e12,  # amd.com, instinct/mi300x
    "MI325X": 1307e12,
}
"""Dense bf16 FLOP per second of one device, by its name, as the vendors' datasheets give it."""


def peak_flops(name: str) -> float | None:
    """The bf16 peak of a device from the name that its driver gives; None for an unknown one.

    >>> peak_flops("NVIDIA H100 80GB HBM3") == PEAK_BF16["H100"]
    True
    """
    words = name.replace("-", " ").split()
    fitting = [device for device in PEAK_BF16 if set(device.split()) <= set(words)]
    return PEAK_BF16[max(fitting, key=len)] if fitting else None


def flops_per_token(model: Any, sequence_length: int) -> float | None:
    """Model FLOPs of one training token, forward and backward: 6 N + 12 L H Q T.

    Chowdhery et al. 2022 (PaLM), appendix B. N are the parameters that are multiplied: an input
    embedding that is not the output's as well is only looked up. Causality and recomputation
    (activation checkpointing) are not counted, as there.

    Returns:
        None for a model whose experts make N a different number for every token.
    """
    config = model.config
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    if any((getattr(config, name, None) or 0) > 1 for name in experts):
        return None
    count: int = sum(parameter.numel() for parameter in model.parameters())
    looked_up = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    if output is None or output.weight is not looked_up:
        count -= looked_up.numel()
    heads: int = config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers: int = config.num_hidden_layers
    return 6.0 * count + 12.0 * layers * heads * head * sequence_length


class Meter:
    """Reads rank 0's process and device at a status step.

    Args:
        flops: model FLOPs of one token; None where unknown.
        peak: FLOP per second that one device can do in the precision used; None where unknown.
        world: ranks, each with a device of its own.
    """

    def __init__(
        self, device: torch.device, flops: float | None, peak: float | None, world: int
    ) -> None:
        import torch

        self._device = device
        self._cuda = device.type == "cuda"
        self._name = torch.cuda.get_device_name(device) if self._cuda else device.type
        self._flops = flops
        self._peak = peak
        self._world = world
        self._utilisation = self._cuda
        self._before = (time.monotonic(), time.process_time())

    def read(self, tokens_per_second: float | None) -> System:
        """What was used since the last reading, at this speed over all ranks."""
        (then, busy), now = self._before, (time.monotonic(), time.process_time())
        passed = now[0] - then
        self._before = now
        mfu = None
        if tokens_per_second is not None and self._flops is not None and self._peak is not None:
            mfu = tokens_per_second * self._flops / (self._peak * self._world)
        return System(
            device=self._name,
            cpu_percent=100 * (now[1] - busy) / passed if passed > 0 else None,
            rss_gb=resident(),
            gpu_memory_gb=self._gpu_memory(),
            gpu_utilisation=self._gpu_utilisation(),
            tokens_per_second=tokens_per_second,
            mfu=mfu,
        )

    def _gpu_memory(self) -> float | None:
        if not self._cuda:
            return None
        import torch

        most = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return most / 1e9

    def _gpu_utilisation(self) -> float | None:
        if not self._utilisation:
            return None
        import torch

        try:
            return float(torch.cuda.utilization(self._device))
        except Exception:  # nvidia-ml-py is not there, or the driver doesn't say: not asked again
            self._utilisation = False
            return None
