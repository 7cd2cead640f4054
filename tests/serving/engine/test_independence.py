"""On the real model: what a sequence says depends on nothing but its version, its prompt and its seed."""

import threading
from pathlib import Path
from typing import Any

import pytest

from serving.engine.engine import Engine, Options, build
from serving.engine.sequence import Sequence
from tests.serving.engine.conftest import Listener, make_adapter, submit

QUESTIONS = (
    "Explain why the sky is blue in a few sentences.",
    "Write a short poem about a lighthouse keeper.",
    "List five uses of baking soda, each with a reason.",
    "What should I pack for a week in the mountains?",
)


@pytest.fixture
def engine(model_dir: Path, adapters_dir: Path) -> Engine:
    for i in range(3):
        make_adapter(adapters_dir / f"adapter-{i}", model_dir, seed=i, rank=8, size=0.02)
    engine = build(Options(model=model_dir, adapters=adapters_dir))
    for i in range(2):
        engine.versions.load(f"adapter-{i}", f"adapter-{i}", 0)
    return engine


def ask(engine: Engine, question: str, name: str, n: int, seed: int | None = None) -> tuple[Sequence, Listener]:
    text = engine.tokenizer.render([{"role": "user", "content": question}], add_generation_prompt=True)
    prompt = engine.tokenizer.encode(text, add_special_tokens=False)
    how: dict[str, Any] = {
        "max_tokens": n,
        "ignore_eos": True,
        "temperature": 0.0 if seed is None else 0.8,
        "seed": seed,
    }
    return submit(engine, prompt, name, **how)


def test_it_says_the_same_alone_and_in_traffic_while_versions_come_and_go(engine: Engine) -> None:
    engine.start()
    jobs: list[tuple[str, str, int | None]] = [
        (QUESTIONS[0], "base", None),
        (QUESTIONS[1], "adapter-0", None),
        (QUESTIONS[2], "adapter-1", None),
    ]
    jobs.append((QUESTIONS[3], "adapter-0", 7))
    alone = []
    for question, name, seed in jobs:
        sequence, listener = ask(engine, question, name, 40, seed)
        assert listener.wait().done
        alone.append((sequence.tokens, listener.text))
    running = [ask(engine, question, name, 40, seed) for question, name, seed in jobs]
    engine.versions.unload("adapter-1")  # while a sequence runs on it
    loader = threading.Thread(target=engine.versions.load, args=("adapter-2", "adapter-2", 0))
    loader.start()
    late = [ask(engine, question, name, 40, seed) for question, name, seed in (jobs[0], jobs[1], jobs[3])]
    for _, listener in (*running, *late):
        assert listener.wait().done
    loader.join()
    assert [(s.tokens, listener.text) for s, listener in running] == alone
    assert [(s.tokens, listener.text) for s, listener in late] == [alone[0], alone[1], alone[3]]
    assert [v.name for v in engine.versions.names()] == ["base", "adapter-0", "adapter-2"]
    assert len({text for _, text in alone}) == 4
    engine.stop()
    engine.join(10)


def test_it_measures_the_effect_of_an_adapter(engine: Engine) -> None:
    """The self-test of a deployment: scaled, swapped and right adapters differ in their prompts' log-probabilities."""
    engine.start()
    prompt = engine.tokenizer.encode("The lighthouse keeper lit the lamp at dusk.", add_special_tokens=False)

    def logps(name: str) -> list[float]:
        _, listener = submit(engine, prompt, name, max_tokens=1, prompt_logprobs=0)
        done = listener.wait().done
        assert done
        return [item.logprob for item in done.prompt_logprobs or ()]

    base, zero, one = logps("base"), logps("adapter-0"), logps("adapter-1")
    assert len(base) == len(prompt) - 1
    assert logps("base") == base
    assert max(abs(a - b) for a, b in zip(base, zero, strict=True)) > 0.01
    assert max(abs(a - b) for a, b in zip(zero, one, strict=True)) > 0.01
    engine.stop()
    engine.join(10)
