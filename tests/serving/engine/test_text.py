"""Template, tokens and streaming text."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from serving.engine import model_folder
from serving.engine.text import BadConversation, Detokenizer, StopScanner, Tokenizer

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "  spaces and\n\nnew lines\n"},
        {"role": "assistant", "content": "An answer with <b>HTML</b> & {{ braces }} {% raw %}"},
        {"role": "user", "content": "日本語 и emoji 👩‍👩‍👧 \\n"},
    ],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": "I did not hear you."}],
]
TEMPLATES = {
    "loop controls, JSON, special tokens": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "[{{ m | tojson }}]{{ m.content | trim | tojson(indent=2) }}\n{% endfor %}{{ eos_token }}"
    ),
    "blocks on lines of their own": (
        "{% for m in messages %}\n  {% if loop.first %}\nFirst:\n  {%- endif %}\n {{ m.content }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n>\n{% endif %}"
    ),
    "namespace and generation": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Tokenizer:
    return Tokenizer(tiny_model_dir, model_folder.read_config(tiny_model_dir))


@pytest.fixture(scope="module")
def theirs(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_it_refuses_a_tokenizer_that_knows_more_tokens_than_the_model(tiny_model_dir: Path) -> None:
    """Such a token would be read from beyond the embedding."""
    config = model_folder.read_config(tiny_model_dir)
    Tokenizer(tiny_model_dir, config)
    with pytest.raises(model_folder.BrokenModel, match=f"has a token .*vocab_size of {config.vocab_size - 1}"):
        Tokenizer(tiny_model_dir, replace(config, vocab_size=config.vocab_size - 1))


def test_it_lets_other_threads_run_while_it_encodes(tokenizer: Tokenizer) -> None:
    is_encoding, is_over = threading.Event(), threading.Event()
    n_turns = 0

    def take_turns() -> None:
        nonlocal n_turns
        while not is_over.is_set():
            n_turns += is_encoding.is_set()
            time.sleep(0.0001)

    other = threading.Thread(target=take_turns)
    other.start()
    text = " ".join(f"word{i}" for i in range(100_000))
    try:
        is_encoding.set()
        tokenizer.encode(text, add_special_tokens=False)
        is_encoding.clear()
    finally:
        is_over.set()
        other.join()
    assert n_turns > 10  # a thread that keeps the lock lets in one at its beginning and one at its end


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_it_renders_and_encodes_as_transformers(
    tokenizer: Tokenizer, theirs: Any, messages: list[dict[str, str]], add_generation_prompt: bool
) -> None:
    how = {"add_generation_prompt": add_generation_prompt}
    rendered = tokenizer.render(messages, **how)
    assert rendered == theirs.apply_chat_template(messages, tokenize=False, **how)
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **how)
    assert tokenizer.encode(rendered, add_special_tokens=False) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_renders_other_templates_as_transformers(
    tiny_model_dir: Path, theirs: Any, tmp_path: Path, name: str
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(tiny_model_dir / file)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    other = Tokenizer(tmp_path, model_folder.read_config(tiny_model_dir))
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
        )
        assert other.render(messages, add_generation_prompt=True) == expected


def test_it_leaves_a_message_open_to_be_continued(tokenizer: Tokenizer, theirs: Any) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    found = tokenizer.render(messages, add_generation_prompt=False, is_continued=True)
    assert found.endswith("One, two,")
    assert found == theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)


def test_it_reports_what_a_template_refuses(tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(tiny_model_dir / file)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    broken = Tokenizer(tmp_path, model_folder.read_config(tiny_model_dir))
    with pytest.raises(BadConversation, match="roles must alternate"):
        broken.render(CONVERSATIONS[0], add_generation_prompt=True)


def test_it_refuses_half_of_a_surrogate_pair(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadConversation, match="surrogate"):
        tokenizer.encode("\ud800", add_special_tokens=False)


def test_it_knows_every_end_of_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [2]
    assert 2 in tokenizer.eos_ids


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_it_streams_text_without_loss_or_half_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)  # not always the text: the vocabulary lacks some rare bytes
    detokenizer = Detokenizer(tokenizer)
    pieces = [*(detokenizer.push(token) for token in ids), detokenizer.flush()]
    assert "".join(pieces) == whole.rstrip("\ufffd") or "\ufffd" in whole
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 600), max_size=60))
@settings(max_examples=100, deadline=None)
def test_it_survives_any_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    whole = tokenizer.decode(ids)
    assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_it_skips_special_tokens_and_drops_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a👩", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(t) for t in [1, ids[0], 2]] == ["", "a", ""]
    assert [detokenizer.push(t) for t in ids[1:-1]] == [""] * (len(ids) - 2)
    assert detokenizer.flush() == ""


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "hit"),
    [
        (("END",), ["abEN", "D more"], ["ab", ""], "END"),
        (("END",), ["abEN", "de"], ["ab", "ENde"], None),
        (("\n\n",), ["x\n", "\ny"], ["x", ""], "\n\n"),
        (("aab",), ["aa", "ab"], ["", "a"], "aab"),
        (("b", "ab"), ["xab"], ["x"], "ab"),
        ((), ["anything"], ["anything"], None),
        (("é",), ["caf", "é!"], ["caf", ""], "é"),
    ],
)
def test_it_stops_across_borders(stops: tuple[str, ...], pieces: list[str], sent: list[str], hit: str | None) -> None:
    scanner = StopScanner(stops)
    found = [scanner.push(piece) for piece in pieces]
    assert [text for text, _ in found] == sent
    assert found[-1][1] == hit


@given(
    text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), data=st.data()
)
@settings(max_examples=200, deadline=None)
def test_it_sends_the_text_up_to_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    scanner, sent, rest, hit = StopScanner(tuple(stops)), "", text, None
    while rest and hit is None:
        n = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:n], rest[n:]
        safe, hit = scanner.push(piece)
        sent += safe
    if hit is None:
        sent += scanner.flush()
    assert not any(stop in sent for stop in stops)
    assert text.startswith(sent)
    assert (sent == text) == (not any(stop in text for stop in stops))
