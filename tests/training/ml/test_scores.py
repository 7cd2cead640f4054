import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import make_learner, some_pairs
from training.ml import policy, scores
from training.ml.errors import TrainingError
from training.ml.progress import Progress
from training.ml.scores import Memory, Scores
from training.ml.watch import Watch


@contextmanager
def forward_passes(model: torch.nn.Module, act: Callable[[int], None] = lambda n_tokens: None) -> Iterator[list[int]]:
    """The tokens of each forward pass; `act` is called with them before it."""
    seen: list[int] = []

    def look(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(args[0].shape[1])
        act(seen[-1])

    handle = model.get_input_embeddings().register_forward_pre_hook(look)  # type: ignore[operator]
    try:
        yield seen
    finally:
        handle.remove()


def score(base: policy.Base, cache: Path, watch: Watch, *, n: int = 8, budget: int = 40, who: str = "base") -> Scores:
    memory = Memory(cache, who)
    return scores.score(base.model, some_pairs(n), memory, budget=budget, watch=watch, progress=Progress())


def test_it_computes_nothing_twice(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    first = score(base, tmp_path / "c", watch)
    with forward_passes(base.model) as seen:
        assert score(base, tmp_path / "c", watch) == first
    assert seen == []


def test_it_computes_only_what_is_new(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    first = score(base, tmp_path / "c", watch, n=4)
    second = score(base, tmp_path / "c", watch, n=5)
    files = sorted((tmp_path / "c").glob("*/*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert [len(json.loads(file.read_text())) for file in files] == [len(first), 2]
    assert first.items() <= second.items()


@pytest.mark.parametrize("who", ["another base", "base adapter"])
def test_it_keeps_scorers_apart(base: policy.Base, tmp_path: Path, watch: Watch, who: str) -> None:
    score(base, tmp_path / "c", watch)
    with forward_passes(base.model) as seen:
        score(base, tmp_path / "c", watch, who=who)
    assert seen


def test_it_keys_by_where_the_prompt_ends(tmp_path: Path) -> None:
    memory = Memory(tmp_path, "base")
    assert memory.key((1, 2), (3,)) != memory.key((1,), (2, 3))


def test_it_scores_a_response_whatever_it_is_packed_with(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    together, alone = score(base, tmp_path / "1", watch, budget=512), score(base, tmp_path / "2", watch, budget=16)
    assert together == pytest.approx(alone, rel=1e-12)


def test_it_computes_damaged_files_again(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    first = score(base, tmp_path / "c", watch)
    (file,) = (tmp_path / "c").glob("*/*.json")
    file.write_text(file.read_text()[:-9])
    assert score(base, tmp_path / "c", watch) == first
    assert score(base, tmp_path / "c", watch) == first


def remember(cache: Path, numbers: range) -> None:
    """One file a number: its score is itself."""
    for number in numbers:
        memory = Memory(cache, "base")
        memory.put((number,), (1,), float(number))
        memory.save()


def recalled(cache: Path, n: int) -> list[float | None]:
    memory = Memory(cache, "base")
    return [memory.get((number,), (1,)) for number in range(n)]


def test_it_merges_its_files_when_they_are_many(tmp_path: Path) -> None:
    remember(tmp_path, range(scores.MAX_FILES))
    assert len(list(tmp_path.glob("*/*"))) == scores.MAX_FILES
    remember(tmp_path, range(scores.MAX_FILES, scores.MAX_FILES + 1))
    assert len(list(tmp_path.glob("*/*"))) == 1
    assert recalled(tmp_path, scores.MAX_FILES + 1) == list(range(scores.MAX_FILES + 1))


def test_it_leaves_a_damaged_file_when_it_merges(tmp_path: Path) -> None:
    remember(tmp_path, range(1))
    (file,) = tmp_path.glob("*/*.json")
    (file.parent / "damaged.json").write_text("[1")
    remember(tmp_path, range(1, scores.MAX_FILES + 1))
    assert {path.name for path in tmp_path.glob("*/*")} > {"damaged.json"}
    assert recalled(tmp_path, scores.MAX_FILES + 1) == list(range(scores.MAX_FILES + 1))


def test_it_finds_what_another_process_merges_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path, range(scores.MAX_FILES))
    read_text = Path.read_text

    def merge_first(path: Path, encoding: str) -> str:
        monkeypatch.setattr(Path, "read_text", read_text)
        remember(tmp_path, range(scores.MAX_FILES, scores.MAX_FILES + 1))
        return path.read_text(encoding=encoding)

    monkeypatch.setattr(Path, "read_text", merge_first)
    assert recalled(tmp_path, scores.MAX_FILES) == list(range(scores.MAX_FILES))


def test_it_loses_nothing_when_several_processes_merge(tmp_path: Path) -> None:
    n = 5 * scores.MAX_FILES
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: remember(tmp_path, range(number, number + 1)), range(n)))
    assert recalled(tmp_path, n) == list(range(n))


def test_it_goes_on_in_smaller_packs_when_memory_runs_out(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    def allocate(n_tokens: int) -> None:
        if n_tokens > 64:
            raise torch.OutOfMemoryError

    with forward_passes(base.model, allocate) as seen:
        found = score(base, tmp_path / "1", watch, budget=120)
    assert max(seen) > 64 >= seen[-1]
    assert found == pytest.approx(score(base, tmp_path / "2", watch, budget=16), rel=1e-12)


def test_it_gives_up_when_one_response_is_too_much(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    def allocate(n_tokens: int) -> None:
        raise torch.OutOfMemoryError

    with forward_passes(base.model, allocate), pytest.raises(torch.OutOfMemoryError):
        score(base, tmp_path / "c", watch)


def test_it_keeps_what_was_computed_before_a_stop(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    seen: list[int] = []

    def interrupt(n_tokens: int) -> None:
        seen.append(n_tokens)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with forward_passes(base.model, interrupt), pytest.raises(KeyboardInterrupt):
        score(base, tmp_path / "c", watch, budget=30)
    before = len(Memory(tmp_path / "c", "base").known)
    score(base, tmp_path / "c", watch)
    assert 0 < before < len(Memory(tmp_path / "c", "base").known)


def test_it_says_that_weights_are_damaged(base: policy.Base, tmp_path: Path, watch: Watch) -> None:
    make_learner(base, some_pairs())
    with torch.no_grad():
        base.model.get_decoder().norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="weights are damaged"):
        score(base, tmp_path / "c", watch)
