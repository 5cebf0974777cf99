"""torchtitan on a CPU: lends torch.cpu what it asks of an accelerator's module. Import it first."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch._utils

torch._utils._get_available_device_type = lambda: "cpu"


def _nothing(*_: Any) -> None:
    pass


cpu: Any = torch.cpu
cpu.get_device_name = lambda *_: "CPU"
cpu.get_device_properties = lambda *_: types.SimpleNamespace(total_memory=2**32, name="CPU")
cpu.reset_peak_memory_stats = cpu.empty_cache = _nothing
cpu.memory_stats = lambda *_: {}
cpu.current_device = lambda: 0

import torch.nn.attention.flex_attention as flex  # noqa: E402

flex._validate_device = _nothing  # its eager form has a backward pass here too
if not hasattr(torch.distributed, "set_timeout"):  # torchtitan 0.3 wants a torch newer than 2.13
    torch.distributed.set_timeout = _nothing
