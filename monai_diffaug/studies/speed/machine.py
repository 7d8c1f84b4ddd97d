"""Description of the machine of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe_machine", "multiplies_bfloat16"]

LIBRARIES = ("torch", "diffusers", "monai", "segment-anything", "scikit-image")
PROCESSOR_FILE = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str | int]:
    """Processor, memory, GPU and versions, as plain values."""
    description: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30) if hasattr(os, "sysconf") else 0,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    for name in LIBRARIES:
        try:
            description[name] = version(name)
        except PackageNotFoundError:
            description[name] = "not installed"
    return description


def _processor() -> str:
    lines = PROCESSOR_FILE.read_text().splitlines() if PROCESSOR_FILE.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (a GPU, or a CPU with AMX); otherwise float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return PROCESSOR_FILE.is_file() and "amx_bf16" in PROCESSOR_FILE.read_text()
