import time

import torch

from training.ml import system


def test_it_counts_what_this_process_takes() -> None:
    before = system.figures()
    kept = torch.ones(50_000_000)  # 200 MB, touched
    began = time.process_time()
    while time.process_time() - began < 0.3:
        kept.sum()
    after = system.figures()
    assert after["rss_mb"] - before["rss_mb"] > 150
    assert after["rss_peak_mb"] >= after["rss_mb"] - 1
    assert after["cpu_percent"] > 0
    assert after["n_threads"] == torch.get_num_threads()
    assert ("gpu_mb" in after) is torch.cuda.is_available()
