"""TRL's DPOTrainer as a contender of `benchmarks.training`: `python -m benchmarks.training_trl JOB.json`."""

import json
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.training_peer import BETA, RATE, Stopwatch, report

TUNED: dict[str, Any] = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}  # beside weights in bf16


class Trainer(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokens already: TRL's tokenising is not timed


class Timer(TrainerCallback):
    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.watch.start()

    def on_log(self, *_: Any, **told: Any) -> None:
        logs = told["logs"]
        if "grad_norm" in logs:
            self.watch.stop(float(logs["loss"]), float(logs["grad_norm"]))


def trl(job: dict[str, Any], watch: Stopwatch) -> int:
    """On the same tokens as ours; `is_tuned`: at its best instead of with its defaults."""
    start = Path(job["start"])
    config = json.loads((start / "adapter_config.json").read_text())
    trainer = Trainer(
        model=job["model"],
        args=DPOConfig(
            output_dir=f"{job['folder']}/trl", per_device_train_batch_size=job["batch"],
            num_train_epochs=job.get("epochs", 1), learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.0,
            max_grad_norm=1.0, beta=BETA, optim="adamw_torch_fused", logging_steps=1, logging_nan_inf_filter=False,
            save_strategy="no", report_to=[], train_sampling_strategy="sequential", disable_tqdm=True, max_length=None,
            use_cpu=not torch.cuda.is_available(), model_init_kwargs={"dtype": "bfloat16"} if job["is_tuned"] else {},
            **(TUNED if job["is_tuned"] else {}),
        ),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=datasets.Dataset.from_list(job["rows"]),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=config["r"], lora_alpha=config["lora_alpha"], use_rslora=config["use_rslora"],
            target_modules=config["target_modules"], lora_dropout=0.0,
        ),
        callbacks=[Timer(watch)],
    )  # fmt: skip
    model = cast(PeftModel, trainer.model)  # made one by peft_config
    set_peft_model_state_dict(model, load_file(start / "adapter_model.safetensors"))
    trainer.train()
    if "save" in job:
        model.save_pretrained(job["save"])
    return 0


if __name__ == "__main__":
    report(trl)
