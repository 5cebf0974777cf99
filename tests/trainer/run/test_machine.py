"""The peak of a device."""

from __future__ import annotations

import pytest

from mixloop.trainer.run import peak_flops
from mixloop.trainer.run.machine import PEAK_BF16


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA A1000", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name: str, known: str | None) -> None:
    assert peak_flops(name) == (PEAK_BF16[known] if known else None)
