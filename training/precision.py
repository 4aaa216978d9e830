"""In which precision a device computes fast: bfloat16 or float32. One rule, for training and for
embedding.

bf16 is chosen only where the processor has instructions for it. Elsewhere it is emulated. Demo
recipe, one thread, CPU seconds of a training step of 16 patches (f32 / bf16), then patches a second
that its encoder embeds:

    AMD Zen 4 (AVX-512 with bf16)             0.57 / 0.44        71 / 128
    the same, oneDNN held to AVX2             0.56 / 4.5         77 / 18
    AMD Zen 3 (AVX2)                          0.71 / 6.9         78 / 10
"""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "f32"]
PrecisionChoice = Literal["auto", "bf16", "f32"]


def precision_for(device: torch.device, choice: PrecisionChoice = "auto") -> Precision:
    """The precision to compute in.

    Args:
        device: that computes.
        choice: what was asked for; "auto" is bf16 where the device computes it in hardware.
    """
    if choice != "auto":
        return choice
    return "bf16" if _computes_bf16(device) else "f32"


def device_here() -> str:
    """Where torch computes fastest in this process: a GPU if it has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # What the processor has, and what oneDNN and ATen make of it: both can be held to less by their
    # environment variables. oneDNN alone would not do: it says yes to every AVX-512 processor, and
    # emulates bf16 on those without instructions for it.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    in_use = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(has_bf16 and in_use and "AVX512" in torch.backends.cpu.get_cpu_capability())
