"""One sequence in the engine: its tokens, its store of keys and values, and what it tells the one who asked for it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from torch import Tensor

from serving.engine.cache import Block, SequenceCache, new_uid
from serving.engine.sampler import Sampler, SamplingParams, TokenLogprob
from serving.engine.text import Detokenizer, StopScanner, Tokenizer
from serving.engine.versions import Version


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is safe to send, and the tokens since the piece before (filled when log-probabilities are asked for)."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Done:
    index: int
    reason: str  # "stop" or "length"
    stop_reason: str | int | None  # the stop string or stop token that was hit
    n_tokens: int
    n_cached: int  # prompt tokens that were not computed
    prompt_logprobs: tuple[TokenLogprob, ...] | None  # of prompt tokens 1 … T−1


@dataclass(frozen=True, slots=True)
class Failed:
    index: int
    message: str


Event = Piece | Done | Failed


class State(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


class Sequence:
    """One choice of one request. Touched by the engine's thread only, except `is_cancelled`."""

    def __init__(
        self,
        version: Version,
        prompt: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        on_event: Callable[[Event], None],
        index: int = 0,
        draw: int = 0,
    ) -> None:
        """index: of the choice in its request; draw: which of the seed's random streams it uses."""
        self.uid = new_uid()
        self.version, self.prompt, self.params, self.index = version, prompt, params, index
        self.state = State.WAITING
        self.is_cancelled = False
        self.arrived_at = self.token_at = 0.0  # monotonic seconds, kept by the engine for its metrics
        self.deadline = 0  # in steps; decides whose prompt is computed first
        self.cache: SequenceCache | None = None
        self.n_computed = 0  # prompt tokens whose keys and values are in the cache
        self.n_cached = 0  # of these, found in the prefix cache
        self.chain: list[Block] = []  # the prompt's blocks so far
        self.tokens: list[int] = []  # generated
        self.prompt_logprobs: list[TokenLogprob] = []
        self.hidden: Tensor | None = None  # (H,) whose logits give the next token
        self._on_event = on_event
        self._tokenizer = tokenizer
        self._sampler = Sampler(params, prompt, draw)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopScanner(params.stop)
        self._unsent: list[TokenLogprob] = []

    @property
    def n_reserved(self) -> int:
        """Tokens that it may come to hold."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def store(self) -> SequenceCache:
        if self.cache is None:
            raise RuntimeError("a sequence runs between its admission and its end only")
        return self.cache

    @property
    def end(self) -> int:
        """The position of the next token to compute."""
        return len(self.prompt) + len(self.tokens) - 1 if self.state is State.DECODE else self.n_computed

    @property
    def parent(self) -> int:
        """What the prompt's next block follows, in the prefix cache's terms."""
        return self.chain[-1].uid if self.chain else self.version.uid

    @property
    def is_sharing(self) -> bool:
        """Scoring a prompt needs each of its hidden states, which the prefix cache does not keep."""
        return self.params.prompt_logprobs is None

    def choose(self, logits: Tensor) -> None:
        """Take the next token from logits (V,), send what can be sent, and end if it is time. Raises BadLogits."""
        token, logprob = self._sampler.choose(logits)
        self.tokens.append(token)
        if logprob:
            self._unsent.append(logprob)
        is_eos = token in self._tokenizer.eos_ids and not self.params.ignore_eos
        if is_eos or token in self.params.stop_token_ids:
            self._end("stop", None if is_eos else token)
            return
        text, stop = self._stops.push(self._detokenizer.push(token))
        self._send(text)
        if stop is not None:
            self._end("stop", stop, is_flushed=True)
        elif len(self.tokens) >= self.params.max_tokens:
            self._end("length", None)

    def fail(self, message: str) -> None:
        self.state = State.ENDED
        self._on_event(Failed(self.index, message))

    def _end(self, reason: str, stop_reason: str | int | None, *, is_flushed: bool = False) -> None:
        self.state = State.ENDED
        if not is_flushed:
            text, stop = self._stops.push(self._detokenizer.flush())
            if stop is None:
                text += self._stops.flush()
            else:
                reason, stop_reason = "stop", stop
            self._send(text)
        if self._unsent:
            self._send("", is_last=True)
        logprobs = tuple(self.prompt_logprobs) if self.params.prompt_logprobs is not None else None
        self._on_event(Done(self.index, reason, stop_reason, len(self.tokens), self.n_cached, logprobs))

    def _send(self, text: str, *, is_last: bool = False) -> None:
        if text or is_last:
            self._on_event(Piece(self.index, text, tuple(self._unsent)))
            self._unsent.clear()
