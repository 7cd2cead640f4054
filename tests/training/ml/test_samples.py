"""Samples against the model's own forward pass, and against what they must not disturb."""

import math

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tests.training.ml.cases import shake
from training import catalog
from training.ml import attention, policy, samples
from training.ml.data import end_of_turn

PROMPTS = [(11, 12, 13, 14, 15, 16, 17), (21, 22), (31, 32, 33, 34)]


def likeliest(base: policy.Base, prompt: tuple[int, ...], n_tokens: int) -> list[int]:
    """The greedy response, by one whole forward pass for each token and no cache."""
    ids, end = list(prompt), end_of_turn(base.tokenizer)
    base.model.set_attn_implementation("eager")
    while len(ids) < len(prompt) + n_tokens and (len(ids) == len(prompt) or ids[-1] != end):
        with torch.no_grad():
            logits = base.model(torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    base.model.set_attn_implementation(attention.NAME)
    return ids[len(prompt) :]


def test_it_gives_each_prompt_what_it_would_get_alone(base: policy.Base) -> None:
    found = samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0)
    assert found == [likeliest(base, prompt, 9) for prompt in PROMPTS]


def test_it_generates_one_at_a_time_when_out_of_memory(base: policy.Base) -> None:
    def look(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 1:
            raise MemoryError

    whole = samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0)
    handle = base.model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        assert samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0) == whole
    finally:
        handle.remove()


def test_it_samples_under_the_active_adapter(base: policy.Base) -> None:
    before = samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0)
    model = policy.add_adapter(base, catalog.parse("dpo", {}))
    shake(model, 0.3)
    after = samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0)
    assert after != before
    assert after == [likeliest(base, prompt, 9) for prompt in PROMPTS]
    with model.disable_adapter():
        assert samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1, temperature=0) == before


def test_it_follows_the_seed_and_nothing_else(base32: policy.Base) -> None:
    one, again, other = (samples.generate(base32.model, base32.tokenizer, PROMPTS, 8, seed=s) for s in (1, 1, 2))
    torch.manual_seed(99)
    assert one == again == samples.generate(base32.model, base32.tokenizer, PROMPTS, 8, seed=1)
    assert one != other


def test_it_draws_from_the_models_distribution(base32: policy.Base) -> None:
    """The first tokens of many samples are as likely on average as the distribution says: its mean is −entropy."""
    prompt, n = (21, 22), 600
    base32.model.set_attn_implementation("eager")
    with torch.no_grad():
        logps = base32.model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double().log_softmax(-1)  # (V,)
    base32.model.set_attn_implementation(attention.NAME)
    mean = (logps.exp() * logps).sum()
    spread = ((logps.exp() * (logps - mean) ** 2).sum() / n).sqrt()
    firsts = [response[0] for response in samples.generate(base32.model, base32.tokenizer, [prompt] * n, 1, seed=5)]
    assert abs(logps[firsts].mean() - mean) < 4 * spread
    assert len(set(firsts)) > 20


def test_it_leaves_attention_random_numbers_and_defaults_alone(base32: policy.Base) -> None:
    defaults = base32.model.generation_config = GenerationConfig(repetition_penalty=1.3)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    samples.generate(base32.model, base32.tokenizer, PROMPTS, 4, seed=1)
    assert torch.equal(torch.rand(4), expected)
    assert base32.model.config._attn_implementation == attention.NAME
    assert base32.model.generation_config is defaults
    policy.verify(base32.model)


def test_it_puts_things_back_when_generation_fails(base32: policy.Base) -> None:
    with pytest.raises(IndexError):
        samples.generate(base32.model, base32.tokenizer, [(10**7,)], 4, seed=1)
    policy.verify(base32.model)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_writes_nothing_by_a_model_that_is_broken(base32: policy.Base, temperature: float) -> None:
    with torch.no_grad():
        base32.model.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(samples.NotFinite, match="lower learning rate"):
        samples.generate(base32.model, base32.tokenizer, PROMPTS, 4, seed=1, temperature=temperature)


def test_it_draws_the_same_in_smaller_batches(base: policy.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1)
    monkeypatch.setattr(samples, "BATCH", 1)
    assert samples.generate(base.model, base.tokenizer, PROMPTS, 9, seed=1) == whole


def test_it_draws_no_token_that_is_impossible() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -math.log(3), -math.inf]]).expand(4000, -1)  # 3 : 1
    drawn = samples.draw(logits, torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1])
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 3).double().mean().item() == pytest.approx(0.25, abs=0.001)


def test_it_ends_a_response_with_the_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    end = end_of_turn(tokenizer)
    assert samples._until(end, [5, 6, end, end, end]) == [5, 6, end]
    assert samples._until(end, [5, 6, 7]) == [5, 6, 7]


def test_it_needs_no_prompts(base32: policy.Base) -> None:
    assert samples.generate(base32.model, base32.tokenizer, [], 4, seed=1) == []


def test_it_generates_more_prompts_than_fit_in_a_batch(base: policy.Base) -> None:
    many = [(10 + i, 20 + i) for i in range(samples.BATCH + 3)]
    found = samples.generate(base.model, base.tokenizer, many, 3, seed=1, temperature=0)
    assert found[-1] == likeliest(base, many[-1], 3)
    assert found[0] == likeliest(base, many[0], 3)
