"""Makes the tiny model of the tests: `python -m tests.models REAL_MODEL_DIR OUTPUT_DIR`."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def make_tiny(real: Path, output: Path, *, is_native: bool = False) -> None:
    """Writes a 2-layer Llama (hidden 64, 4 heads, 2 key-value heads, fp32) with the tokenizer of `real` to `output`.

    `is_native`: in bf16, and with heads of 32, which is what the engine's own step computes.
    """
    output.mkdir(parents=True)
    theirs = json.loads((real / "config.json").read_text())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32 if is_native else 16,
        max_position_embeddings=theirs["max_position_embeddings"],
        bos_token_id=theirs["bos_token_id"],
        eos_token_id=theirs["eos_token_id"],
        pad_token_id=theirs.get("pad_token_id"),
        tie_word_embeddings=True,
        # Larger than the customary 0.02: distributions of a tiny random model are otherwise almost uniform.
        initializer_range=0.1,
    )
    made = LlamaForCausalLM(config)
    (made.bfloat16() if is_native else made.float()).save_pretrained(output)
    for name in TOKENIZER_FILES:
        if (real / name).exists():
            shutil.copyfile(real / name, output / name)
    card = json.loads((real / "alignapp-model.json").read_text())
    _describe(output, card, "bfloat16" if is_native else "float32")


def _describe(output: Path, real: dict[str, str], dtype: str) -> None:
    described = {
        **real,
        "sha256": hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest(),
        "source": "tests.models",
        "dtype": dtype,
        "architecture": "LlamaForCausalLM",
    }
    (output / "alignapp-model.json").write_text(json.dumps(described, indent=2))


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]), Path(sys.argv[2]))
