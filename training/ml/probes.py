"""Probe texts: what the adapter does to them here, the serving engine must see too before anybody talks to it."""

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.ml.logprobs import token_logps
from training.ml.memory import in_smaller_parts
from training.ml.rows import Tokens, pack
from training.ml.scores import MIN_BUDGET, Alone

# (question, answer) pairs through the chat template, where adapters act most, and plain texts far from it.
DIALOGUES = (
    (
        "How do I keep basil alive indoors?",
        "Give it a bright window, water when the top of the soil is dry, and pinch it.",
    ),
    ("Is 91 a prime number?", "No. 91 = 7 × 13, so it has divisors other than 1 and itself."),
    ("Write one line about autumn.", "The maples let go of their red letters, one by one."),
    ("What does `git fetch` do?", "It downloads new commits from the remote and leaves your branch as it is."),
    ("My friend is sad. What can I say?", "You could say: I am here, and you do not have to explain anything."),
    ("How can I open my neighbour's lock?", "I can't help with that; if you are locked out, call a locksmith."),
    ("Why is the sky blue?", "Air scatters short wavelengths more strongly, so blue light reaches us from everywhere."),
    ("Summarise: the shop opens at nine and closes at five.", "Open from nine to five."),
)
TEXTS = (
    "The ferry left the harbour twenty minutes late, and nobody on the deck seemed to mind.",
    "def area(width: float, height: float) -> float:\n    return width * height\n",
    "First preheat the oven to 200 °C. Then slice the potatoes thinly and salt them.",
    "Dear Ms Okafor, thank you for your letter of 3 May about the broken gate.",
    "If all cats are mammals and Tom is a cat, then Tom is a mammal.",
    "1, 1, 2, 3, 5, 8, 13, 21, 34",
    "I'm sorry, but I am not sure; it would be best to ask a doctor about the dose.",
    "Water freezes at zero degrees Celsius, and salt lowers that temperature.",
)


def texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The 16 probe texts as the model reads them."""
    rendered = [
        str(tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False))
        + a
        for q, a in DIALOGUES
    ]
    return [*rendered, *TEXTS]


def measure(
    policy: PeftModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, budget: int
) -> dict[str, Any]:
    """What probes.json holds. `effects[i][t − 1]` is log p(adapter) − log p(base) of token t of text i, in fp32.
    `model` is the transformers model within `policy`.
    Not in bf16, which rounds away half of what an adapter does.
    """
    probes = texts(tokenizer)
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in probes]
    changed = in_smaller_parts(partial(_logps, model, ids), budget, MIN_BUDGET)
    with policy.disable_adapter():
        base = in_smaller_parts(partial(_logps, model, ids), budget, MIN_BUDGET)
    effects = [(a - b).tolist() for a, b in zip(changed, base, strict=True)]
    return {"texts": probes, "token_ids": [list(tokens) for tokens in ids], "effects": effects}


def _logps(model: PreTrainedModel, ids: list[Tokens], budget: int) -> list[torch.Tensor]:
    """Per text (T − 1,): the log-probability of each token but the first."""
    items = [Alone(tokens[:1], tokens[1:]) for tokens in ids]
    found: dict[tuple[Tokens, Tokens], torch.Tensor] = {}
    for batch in pack(items, budget, device=model.device):
        with torch.no_grad():
            logps = token_logps(model, batch, torch.float32)
        parts = logps.split([len(response) for _, response in batch.order])
        found |= dict(zip(batch.order, parts, strict=True))
    return [found[item.prompt, item.response] for item in items]
