"""The machine of a benchmark: rates mean little without the processor and its instructions."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
ISA_CLASSES = {
    "amx_tile": "amx",
    "avx512f": "avx512",
    "avx2": "avx2",
    "sve": "sve",
    "asimd": "neon",
}
"""Class of instructions by the flag that shows it; the first that the processor has counts."""
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables with which torch and oneDNN use less than the processor has."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A processor and its system.

    Attributes:
        processor: model name.
        isa: widest class of vector instructions of the processor, a value of `ISA_CLASSES` or
            `unknown`.
        isa_limits: those of `ISA_LIMITS` that the environment sets.
        cores: logical processors.
        system: operating system.
    """

    processor: str
    isa: str
    isa_limits: Mapping[str, str] = field(default_factory=dict)
    cores: int | None
    system: str

    @property
    def name(self) -> str:
        """Processor and instructions, to print next to a ratio."""
        limits = ", ".join(f"{name}={value}" for name, value in self.isa_limits.items())
        return f"{self.processor}, {self.isa}" + (f" limited by {limits}" if limits else "")


def this_machine(cpuinfo: Path = CPUINFO) -> Machine:
    """The machine of this process; the processor is that of `cpuinfo` (Linux) or of `platform`."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    pairs = [line.partition(":") for line in text.splitlines()]
    values = {name.strip(): value.strip() for name, _, value in pairs[::-1]}
    flags = set((values.get("flags") or values.get("Features") or "").split())
    return Machine(
        processor=values.get("model name") or platform.processor() or platform.machine(),
        isa=next((isa for flag, isa in ISA_CLASSES.items() if flag in flags), "unknown"),
        isa_limits={name: os.environ[name] for name in ISA_LIMITS if name in os.environ},
        cores=os.cpu_count(),
        system=platform.system(),
    )
