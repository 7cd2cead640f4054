"""Between text and tokens: the chat template, the tokenizer, streaming detokenisation and stop strings.

Uses `tokenizers` and jinja2 directly: importing transformers would add seconds to the start. The template sees the same
environment as in transformers' `apply_chat_template`; a test compares the two.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from serving.engine.model_folder import TEMPLATE, BrokenModel, ModelConfig

INCOMPLETE = "\ufffd"  # what decoding puts in place of bytes that are no character (yet)
MAX_HELD_TOKENS = 8  # a character has at most four bytes; longer incomplete tails are rubbish, not half a character
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class BadConversation(ValueError):
    """The chat template refuses these messages, or the text cannot be encoded."""


class Tokenizer:
    """The tokenizer files of one model folder."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        self._fast.no_truncation()
        self._fast.no_padding()
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
        self.special = {name: text for name in SPECIAL if (text := _special_text(settings.get(name)))}
        self._template = _environment().from_string((folder / TEMPLATE).read_text(encoding="utf-8"))
        eos = self._fast.token_to_id(self.special.get("eos_token", ""))
        self.eos_ids = frozenset(config.eos_ids) | ({eos} if eos is not None else set())
        self.n_vocabulary = config.vocab_size
        if (largest := max(self._fast.get_vocab(with_added_tokens=True).values(), default=0)) >= self.n_vocabulary:
            raise BrokenModel(
                f"The tokenizer in {folder} has a token {largest}; config.json has a vocab_size of {self.n_vocabulary}."
            )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadConversation("The text holds half of a surrogate pair, which is no character.") from error
        # `encode` keeps Python's lock, and a long text would stop the server; a batch gives it back.
        return self._fast.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, ids: list[int], *, has_special: bool = False) -> str:
        """`has_special`: special tokens are part of the text."""
        return self._fast.decode(ids, skip_special_tokens=not has_special)

    def token_strings(self, ids: list[int]) -> list[str]:
        """The vocabulary's own names of the tokens."""
        return [self._fast.id_to_token(token) or "" for token in ids]

    def token_text(self, token: int) -> str:
        """One token alone, special ones included; bytes that are no character are replaced."""
        return self._fast.decode([token], skip_special_tokens=False)

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, is_continued: bool = False) -> str:
        """The conversation as the model reads it. `is_continued`: the last message is left open, to be continued."""
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise BadConversation(f"The model's chat template refuses these messages: {error}") from error
        if is_continued:
            last = messages[-1]["content"].strip()
            cut = text.rfind(last)
            if cut < 0:
                raise BadConversation("The model's chat template changes the last message, so it cannot be continued.")
            text = text[: cut + len(last)]
        return text


class Detokenizer:
    """Turns one sequence's tokens into pieces of text as they come: only whole characters, no special tokens.

    Decoding starts again from the tokens of the piece before, because a token's text can depend on its neighbour.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # where decoding starts
        self._done = 0  # how many tokens have been turned into text

    def push(self, token: int) -> str:
        self._ids.append(token)
        piece = self._undone()
        if piece.endswith(INCOMPLETE) and len(self._ids) - self._done <= MAX_HELD_TOKENS:
            return ""
        # Special tokens make no text: they are not decoded again with every token that follows.
        if piece or len(self._ids) - self._done > MAX_HELD_TOKENS:
            self._context, self._done = self._done, len(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end, without half characters."""
        piece = self._undone().rstrip(INCOMPLETE)
        self._done = len(self._ids)
        return piece

    def _undone(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._done])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]


class StopScanner:
    """Finds stop strings in a stream of pieces, and holds back what may turn out to be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """-> (text that is safe to send, the stop string that was hit or None). Nothing after a stop is ever sent."""
        text = self._held + piece
        hits = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if hits:
            place, stop = min(hits)
            self._held = ""
            return text[:place], stop
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], None

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _special_text(value: Any) -> str | None:
    """tokenizer_config.json holds special tokens as text or as {"content": text}."""
    return value.get("content") if isinstance(value, dict) else value


class GenerationTag(Extension):
    """{% generation %} marks the assistant's text for training; here it is transparent."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [loopcontrols, GenerationTag]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Plain JSON: jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
