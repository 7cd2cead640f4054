"""What this process takes of the machine, in the figures that status.json carries."""

import resource
from typing import Any

import psutil
import torch

_process = psutil.Process()
_process.cpu_percent()  # the first call only begins to count


def figures() -> dict[str, Any]:
    """Megabytes of memory now and at most; per cent of one processor since the last call (200 = two of them busy).

    On a GPU also `gpu_mb` and `gpu_peak_mb`, what torch holds there; asking costs no wait for the device.
    """
    on_gpu = {}
    if torch.cuda.is_available():
        on_gpu = {
            "gpu_mb": round(torch.cuda.memory_allocated() / 1e6),
            "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6),
        }
    return {
        "rss_mb": round(_process.memory_info().rss / 1e6),
        "rss_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "cpu_percent": round(_process.cpu_percent()),
        "n_threads": torch.get_num_threads(),
        **on_gpu,
    }
