"""The step in C++: the numbers of torch's step in float32, the same bits in any company, the draws of `sampler.draw`."""

import ctypes
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.engine import weights
from serving.engine.cache import SequenceCache
from serving.engine.model import Model, Segment
from serving.engine.model_folder import ModelConfig
from serving.engine.native import NativeModel, PackedLayout, PackedLinear, compiler
from serving.engine.native.compiler import Unavailable
from serving.engine.sampler import Sampler, SamplingParams, draw
from serving.engine.weights import Checkpoint, Weights

CONTEXT = 200
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA = ModelConfig("LlamaForCausalLM", 2, 6, 2, 32, 96, 160, 320, CONTEXT, 1e-5, ROPE, True, (2,))
QWEN = replace(LLAMA, architecture="Qwen2ForCausalLM", n_heads=4, n_kv_heads=1, head_dim=64, is_tied=False)
WIDE = replace(LLAMA, n_heads=2, n_kv_heads=2, head_dim=128)


class Memory(Checkpoint):
    """Random tensors by name, exact in bfloat16; biases where `has_bias`."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, layout: weights.Layout | None, *, has_bias: bool
    ) -> None:
        self.dtype, self.device, self.layout = dtype, torch.device("cpu"), layout or weights.TorchLayout()
        self._config, self._has_bias = config, has_bias

    def __contains__(self, name: str) -> bool:
        return not name.endswith(".bias") or (self._has_bias and "self_attn" in name and "o_proj" not in name)

    def size(self, name: str) -> tuple[int, ...]:
        return self._size(name)

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        found = torch.randn(self._size(name), generator=generator)
        found = 1 + 0.1 * found if "norm" in name else 0.15 * found
        return found.bfloat16().to(self.dtype)

    def _size(self, name: str) -> tuple[int, ...]:
        c = self._config
        n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        hidden, inner = c.hidden_size, c.intermediate_size
        sizes = {"q_proj": (n_q, hidden), "k_proj": (n_kv, hidden), "v_proj": (n_kv, hidden), "o_proj": (hidden, n_q)}
        sizes |= {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        part = next((size for key, size in sizes.items() if key in name), None)
        if part is None:
            return (hidden,) if "norm" in name else (c.vocab_size, hidden)
        return part[:1] if name.endswith(".bias") else part


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled step, which every test shares."""
    folder = tmp_path_factory.mktemp("compiled")
    compiler.library(folder)
    return folder


def native(folder: Path, config: ModelConfig, n_threads: int = 2, *, has_bias: bool = False) -> tuple[Model, Weights]:
    model = NativeModel(config, CONTEXT, compiler.library(folder), n_threads)
    return model, weights.load(config, Memory(config, torch.bfloat16, PackedLayout(), has_bias=has_bias))


def exact(config: ModelConfig, *, has_bias: bool = False) -> tuple[Model, Weights]:
    model = Model(config, CONTEXT, torch.float32, torch.device("cpu"))
    return model, weights.load(config, Memory(config, torch.float32, None, has_bias=has_bias))


def run(model: Model, of: Weights, ids: list[int], *cuts: int) -> Tensor:
    """Hidden states of a prompt computed in blocks that end at `cuts`."""
    cache, found, start = model.new_cache(len(ids)), [], 0
    for end in (*cuts, len(ids)):
        found.append(model.hidden(of, [Segment(cache, start, ids[start:end])]))
        start = end
    return torch.cat(found)


def prompt(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(320), k=n)


@pytest.mark.parametrize(
    ("config", "has_bias"), [(LLAMA, False), (QWEN, True), (WIDE, False)], ids=["llama", "qwen", "wide"]
)
def test_it_computes_what_torch_computes_in_float32(library: Path, config: ModelConfig, has_bias: bool) -> None:
    model, of = native(library, config, has_bias=has_bias)
    reference, exactly = exact(config, has_bias=has_bias)
    ids = prompt(75)
    expected, found = run(reference, exactly, ids, 64), run(model, of, ids, 64)
    assert float((found - expected).norm() / expected.norm()) < 0.02  # the inputs of products are bfloat16
    logits, wanted = model.logits(of, found), reference.logits(exactly, expected)
    assert float((logits - wanted).norm() / wanted.norm()) < 0.02


def test_it_gives_the_same_bits_however_a_prompt_is_cut(library: Path) -> None:
    model, of = native(library, LLAMA)
    ids = prompt(50)
    whole = run(model, of, ids)
    assert torch.equal(whole, run(model, of, ids, 1, 2, 17, 33))
    assert torch.equal(whole, run(model, of, ids, *range(1, 50)))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_it_gives_the_same_bits_in_any_company_and_by_any_threads(library: Path, n_threads: int) -> None:
    """31 others of all lengths, decoding and in their prompts; more rows than a tile holds."""
    model, of = native(library, LLAMA)
    crowded, of_crowd = native(library, LLAMA, n_threads)
    ids = prompt(41)
    alone = run(model, of, ids, 40)

    def fill(seed: int) -> Segment:
        n = 5 + 4 * seed
        cache = crowded.new_cache(CONTEXT)
        crowded.hidden(of_crowd, [Segment(cache, 0, prompt(n, seed))])
        return Segment(cache, n, prompt(1 + seed % 3, seed))

    others = [fill(seed) for seed in range(31)]
    own = crowded.new_cache(CONTEXT)
    first = crowded.hidden(of_crowd, [*others[:7], Segment(own, 0, ids[:40]), *others[7:]])
    start = sum(len(other.tokens) for other in others[:7])
    assert torch.equal(first[start : start + 40], alone[:40])
    second = crowded.hidden(of_crowd, [*others, Segment(own, 40, ids[40:])])
    assert torch.equal(second[-1:], alone[40:])
    assert torch.equal(crowded.logits(of_crowd, second)[-1:], model.logits(of, alone[40:]))


def test_it_rounds_nothing_of_a_score_but_the_input(library: Path) -> None:
    model, of = native(library, LLAMA)
    hidden = 3 * torch.randn(40, LLAMA.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = hidden.bfloat16().double() @ of.embedding.double().T
    torch.testing.assert_close(model.float32_logits(of, hidden).double(), expected, rtol=0, atol=1e-4)


def test_it_keeps_the_vocabulary_twice_at_most(library: Path) -> None:
    """A head in panels serves scores as well; torch's needs it dense besides."""
    for config in (LLAMA, QWEN):
        _, of = native(library, config)
        assert of.head_dense is None
        assert exact(config)[1].head_dense is not None


@pytest.mark.parametrize("n_top", [0, 1, 5, 20])
def test_it_ranks_as_torch_does(library: Path, n_top: int) -> None:
    model, _ = native(library, LLAMA)
    reference, _ = exact(LLAMA)
    logits = (8 * torch.randn(50, LLAMA.vocab_size, generator=torch.Generator().manual_seed(0))).round(decimals=1)
    logits[:, ::7] = -torch.inf
    tokens = prompt(50)
    found, expected = model.rank(logits, tokens, n_top), reference.rank(logits, tokens, n_top)
    for one, same, row in zip(found, expected, logits, strict=True):
        assert (one.token, one.rank) == (same.token, same.rank)
        assert one.logprob == pytest.approx(same.logprob, abs=1e-5)
        # Of equally likely tokens it names the first ones, torch any.
        assert [p for _, p in one.top] == pytest.approx([p for _, p in same.top], abs=1e-5)
        assert [t for t, _ in one.top] == row.sort(descending=True, stable=True).indices[:n_top].tolist()


def test_it_ranks_nothing_among_logits_that_are_not_finite(library: Path) -> None:
    model, _ = native(library, LLAMA)
    logits = torch.zeros(2, LLAMA.vocab_size)
    logits[0, 300], logits[1, 5] = torch.nan, torch.inf
    assert all(math.isnan(one.logprob) for one in model.rank(logits, [1, 1], 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", ["qkv", "down"])
def test_it_hides_nothing_that_is_not_finite(library: Path, at: str, value: float) -> None:
    """Weights that a broken adapter overflowed must not come out as ordinary words."""
    model, of = native(library, LLAMA)
    with torch.inference_mode():
        broken = getattr(of.layers[0], at).weight.clone()
        broken.view(-1)[:2] = value
    changes: dict[str, Any] = {at: PackedLinear(broken, None)}
    layers = (replace(of.layers[0], **changes), *of.layers[1:])
    logits = model.logits(of, run(model, replace(of, layers=layers), prompt(20)))
    samplers = [Sampler(SamplingParams(max_tokens=1, temperature=0.0), []) for _ in range(20)]
    assert model.draw(logits, samplers) == [None] * 20


def test_it_reads_nothing_of_a_store_that_it_did_not_write(library: Path) -> None:
    model, of = native(library, LLAMA)
    ids = prompt(20)
    cache = model.new_cache(64)
    with torch.inference_mode():
        cache.store.fill_(torch.nan)
    found = torch.cat([model.hidden(of, [Segment(cache, 0, ids[:9])]), model.hidden(of, [Segment(cache, 9, ids[9:])])])
    assert torch.equal(found, run(model, of, ids))


def test_it_keeps_keys_and_values_where_torch_keeps_them(library: Path) -> None:
    model, of = native(library, LLAMA)
    reference, exactly = exact(LLAMA)
    stores: list[SequenceCache] = []
    for one, its in ((model, of), (reference, exactly)):
        stores.append(one.new_cache(12))
        one.hidden(its, [Segment(stores[-1], 0, prompt(12))])
    found, expected = (cache.read(0, 12).float() for cache in stores)
    assert float((found - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.95},
        {"temperature": 1.5, "top_k": 40},
        {"temperature": 1.2, "min_p": 0.1},
        {"temperature": 2.0, "top_p": 0.999, "top_k": 200, "min_p": 0.0001},
        {"temperature": 1.0, "top_p": 0.6, "min_p": 0.1},
        {"temperature": 1.0, "top_p": 0.6, "top_k": 8, "min_p": 0.05},
        {"temperature": 0.05, "top_p": 0.5},
    ],
    ids=str,
)
def test_it_draws_what_the_sampler_draws(library: Path, params: dict[str, float]) -> None:
    """Float sums differ in their last bits, so a number at the very border of two tokens may fall to either."""
    model, _ = native(library, LLAMA)
    how = SamplingParams(max_tokens=1, seed=1, **params)  # type: ignore[arg-type]
    logits = 4 * torch.randn(2000, 320, generator=torch.Generator().manual_seed(0))
    logits[::5, ::3] = -torch.inf
    samplers, same = [Sampler(how, [], i) for i in range(2000)], [Sampler(how, [], i) for i in range(2000)]
    found = model.draw(logits, samplers)
    expected = [draw(row, how, one.uniform()) for row, one in zip(logits, same, strict=True)]
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 2
    assert all(logits[i, token] > -torch.inf for i, token in enumerate(found) if token is not None)


def test_it_draws_nothing_from_a_row_that_is_not_finite(library: Path) -> None:
    model, _ = native(library, LLAMA)
    logits = torch.randn(3, 320)
    logits[0, 300], logits[2, 5] = torch.nan, torch.inf
    samplers = [Sampler(SamplingParams(max_tokens=1, temperature=t), []) for t in (0.0, 1.0, 1.0)]
    found = model.draw(logits, samplers)
    assert (found[0], found[2]) == (None, None)
    assert found[1] is not None


def test_it_lets_python_run_while_it_computes(library: Path) -> None:
    """ctypes.CDLL gives the lock back; PyDLL would keep it."""
    assert type(compiler.library(library)).__name__ == "CDLL"


def test_it_refuses_shapes_that_do_not_fit(library: Path) -> None:
    for misfit in (replace(LLAMA, hidden_size=100), replace(LLAMA, head_dim=16), replace(LLAMA, head_dim=288)):
        with pytest.raises(Unavailable, match="multiples of 32"):
            NativeModel(misfit, CONTEXT, compiler.library(library), 1)


# --- compiling --------------------------------------------------------------------------------------------------------
def test_it_compiles_once(library: Path) -> None:
    (made,) = library.iterdir()
    before = made.stat().st_mtime_ns
    compiler.library(library)
    assert [path.name for path in library.iterdir()] == [made.name]
    assert made.stat().st_mtime_ns == before


def test_it_says_what_helps_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    sys.modules.pop("ziglang", None)
    with pytest.raises(Unavailable, match="pip install ziglang"):
        compiler.compiler()


def test_it_says_why_a_compiler_failed_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -c \"import sys; sys.exit('no such flag')\"")
    with pytest.raises(Unavailable, match="no such flag"):
        compiler.library(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_cannot_keep_it_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be kept"):
        compiler.library(tmp_path / "file" / "below")


def test_it_gives_the_same_numbers_compiled_for_any_cpu(library: Path, tmp_path: Path) -> None:
    """Without AVX-512 other code is compiled: it must not rot on machines that have it."""
    plain = tmp_path / "plain.so"
    flags = [flag for flag in compiler.FLAGS if not flag.startswith("-march")]
    subprocess.run(
        [*compiler.compiler(), *flags, "-o", plain, compiler.SOURCES / "step.cpp"], check=True, env=os.environ
    )
    slow = NativeModel(QWEN, CONTEXT, ctypes.CDLL(str(plain)), 2)
    fast, of = native(library, QWEN, has_bias=True)
    found, expected = run(slow, of, prompt(30)), run(fast, of, prompt(30))
    assert float((found - expected).norm() / expected.norm()) < 0.01
