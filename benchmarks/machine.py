"""What a figure was measured on; every benchmark prints it first."""

import os
import platform
from pathlib import Path

import psutil


def describe() -> str:
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    flags = next((set(line.split()) for line in _cpuinfo() if line.startswith("flags")), set())
    bf16 = ", ".join(sorted(flags & {"avx512_bf16", "amx_bf16"})) or "no bf16 instructions"
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores ({bf16}), {memory:.0f} GiB, Python {platform.python_version()}, load {load:.1f}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
