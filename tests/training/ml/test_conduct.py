import json
import math
from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import line, pair, shake, write_snapshot
from training import catalog
from training.ml import conduct, data, divergence, lines, neutral, policy, samples
from training.ml.progress import Progress
from training.ml.scores import Alone, Memory, score
from training.ml.watch import Watch


def test_it_asks_the_fixed_prompts_and_the_first_heldout_ones(base32: policy.Base, tmp_path: Path) -> None:
    held = [line(i) for i in range(100, 112)]
    snapshot = write_snapshot(tmp_path / "snapshot", [], [held[0], held[0] | {"pair": "again"}, *held[1:]])
    pairs = data.read(snapshot, base32.tokenizer, 512).heldout
    asked = conduct.questions(base32.tokenizer, lines.pairs(snapshot / "heldout.jsonl"), pairs)
    fixed, theirs = asked[: len(neutral.PROMPTS)], asked[len(neutral.PROMPTS) :]
    assert all(question.is_fixed for question in fixed)
    assert [question.messages for question in theirs] == [one["messages"] for one in held[: conduct.N_HELDOUT_PROMPTS]]
    assert theirs[0].prompt == pairs[0].prompt
    more = write_snapshot(tmp_path / "more", [], [*held, line(200)])
    again = data.read(more, base32.tokenizer, 512).heldout
    assert conduct.questions(base32.tokenizer, lines.pairs(more / "heldout.jsonl"), again) == asked


def test_it_leaves_out_heldout_prompts_that_are_long(base32: policy.Base) -> None:
    long = pair(list(range(10, 10 + conduct.MAX_PROMPT_TOKENS + 1)), [5], [6])
    assert len(conduct.questions(base32.tokenizer, [], [long])) == len(neutral.PROMPTS)


def test_it_asks_a_version_once(base32: policy.Base, tmp_path: Path) -> None:
    asked = conduct.questions(base32.tokenizer, [], [])[:3]
    first = conduct.respond(base32, "base", asked, tmp_path)
    prompts = [question.prompt for question in asked]
    assert first == samples.generate(
        base32.model, base32.tokenizer, prompts, conduct.N_TOKENS, conduct.SEED, temperature=conduct.TEMPERATURE
    )
    (file,) = (tmp_path / "samples").iterdir()
    file.write_text(json.dumps({"responses": [[7], [8], [9]]}))
    assert conduct.respond(base32, "base", asked, tmp_path) == [[7], [8], [9]]
    assert conduct.respond(base32, "another", asked, tmp_path) == first
    for damaged in ("", "{", "[]", '{"responses": 3}', '{"responses": [[7]]}', '{"responses": [[7], [8], []]}'):
        file.write_text(damaged)
        assert conduct.respond(base32, "base", asked, tmp_path) == first


def test_it_measures_perplexity_as_the_model_itself_does(base: policy.Base, watch: Watch, tmp_path: Path) -> None:
    items = conduct.neutral_items(base.tokenizer)
    found = score(base.model, items, Memory(tmp_path, "base"), budget=768, watch=watch, progress=Progress())
    base.model.set_attn_implementation("eager")
    total, count = 0.0, 0
    for text in neutral.TEXTS:
        ids = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        total += base.model(ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert conduct.perplexity(items, found) == pytest.approx(math.exp(total / count), rel=1e-6)
    assert count > 2000


def test_it_sums_the_divergence_over_the_vocabulary(base: policy.Base) -> None:
    """Against distributions from the model's own forward pass, adapter on and off."""
    model = policy.add_adapter(base, catalog.parse("dpo", {}))
    items = [Alone((11, 12, 13), (14, 15, 16)), Alone((21, 22), (23,))]
    assert divergence.per_token(model, base.model, items, 512) == 0
    shake(model)
    found = divergence.per_token(model, base.model, items, 512)
    base.model.set_attn_implementation("eager")
    expected = []
    for item in items:
        ids = torch.tensor([item.prompt + item.response])
        new = base.model(ids, use_cache=False).logits[0].log_softmax(-1)
        with model.disable_adapter():
            old = base.model(ids, use_cache=False).logits[0].log_softmax(-1)
        per_place = (new.exp() * (new - old)).sum(-1)
        expected += per_place[len(item.prompt) - 1 : -1].tolist()
    assert len(expected) == 4
    assert found == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert found > 0.001
