"""One sequence in the engine: its tokens, its store of keys and values, and what it tells the one who asked for it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import Tensor

from serving.engine.cache import BLOCK, Block, Root, SequenceCache, new_uid
from serving.engine.sampler import Sampler, SamplingParams, TokenLogprob
from serving.engine.text import Detokenizer, StopScanner, Tokenizer
from serving.engine.versions import Version


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is safe to send, and the tokens since the piece before, with log-probabilities if they were asked for."""

    index: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Done:
    index: int
    reason: str  # "stop" or "length"
    stop_reason: str | int | None  # the stop string or stop token that was hit, or TIMEOUT
    n_tokens: int
    n_cached: int  # prompt tokens that were not computed
    prompt_logprobs: tuple[TokenLogprob, ...] | None  # of prompt tokens 1 … T−1


@dataclass(frozen=True, slots=True)
class Failed:
    index: int
    message: str
    status: int  # as HTTP has them: 500 and above


Event = Piece | Done | Failed

# Scoring also takes the head's product and a softmax for each token, most often on another version than the one that others
# are being written on: a step with that should take no longer than one with a prompt's block.
SCORED_TOKEN_COST = 2
TIMEOUT = "timeout"  # the stop reason of an answer whose time ran out


@dataclass(frozen=True)
class Ending:
    """When an answer may end and must end, beyond what its sampling says."""

    min_tokens: int = 0
    includes_stop: bool = False  # a stop string that was hit is part of the text
    seconds: float = math.inf  # from its arrival


class State(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


@dataclass
class Turn:
    """What the sequences of one request have in common."""

    begun_at_step: int = 0  # in which the first of them was admitted; 0: none was


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
        ending: Ending = Ending(),
        caller: str = "",
    ) -> None:
        """index: of the choice in its request; draw: which of the seed's random streams it uses; caller: who asks, if they
        said so.
        """
        self.uid = new_uid()
        self.version, self.prompt, self.params, self.index = version, prompt, params, index
        self.ending, self.caller = ending, caller
        self.state = State.WAITING
        self.is_cancelled = False
        self.is_admitted = False  # it holds a place among the running ones
        # Monotonic seconds, kept by the engine for its metrics.
        self.arrived_at = self.begun_at = self.token_at = 0.0
        self.begin_by = self.end_by = math.inf  # monotonic seconds
        self.turn = Turn()
        self.n_blocks = 0  # of prompts to compute until its own is, those before it in its request included
        self.deadline = 0  # in steps; decides whose prompt is computed first
        self.cache: SequenceCache | None = None
        self.n_computed = 0  # prompt tokens whose keys and values are in the cache
        self.n_cached = 0  # of these, found in the prefix cache
        self.chain: list[Block] = []  # the prompt's blocks so far
        self.tokens: list[int] = []  # generated
        self.reason = ""  # "stop", "length" or "error" once it has ended
        self.prompt_logprobs: list[TokenLogprob] = []
        self.hidden: Tensor | None = None  # (H,) whose logits give the next token
        self._on_event = on_event
        self._tokenizer = tokenizer
        self.sampler = Sampler(params, prompt, draw)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopScanner(params.stop)
        self._unsent: list[TokenLogprob] = []
        self._n_sent = 0  # tokens
        self._ends = torch.tensor(sorted(tokenizer.eos_ids | params.stop_token_ids), dtype=torch.long)

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
    def parent(self) -> Root | int:
        """What the prompt's next block follows, in the prefix cache's terms."""
        return self.chain[-1].uid if self.chain else (self.version.uid, self.caller)

    @property
    def is_sharing(self) -> bool:
        """Scoring a prompt needs each of its hidden states, which the prefix cache does not keep."""
        return self.params.prompt_logprobs is None

    @property
    def token_cost(self) -> int:
        """What a token of its prompt takes of a step, in such tokens of prompts that are not scored."""
        return 1 if self.is_sharing else SCORED_TOKEN_COST

    @property
    def block(self) -> int:
        """Prompt tokens that are computed at a time."""
        return BLOCK // self.token_cost

    @property
    def is_adjusting(self) -> bool:
        """Whether `adjusted` changes anything at the next token."""
        return self.params.changes_logits or len(self.tokens) < self.ending.min_tokens

    def adjusted(self, logits: Tensor) -> Tensor:
        """logits (V,) as they are to be drawn from."""
        if len(self.tokens) < self.ending.min_tokens:
            logits = self._without_ends(logits)
        return self.sampler.adjusted(logits)

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """The next token, with its log-probability if these are asked for: send what can be sent, and end if it is time."""
        self.tokens.append(token)
        self.sampler.count(token)
        if logprob:
            self._unsent.append(logprob)
        is_eos = token in self._tokenizer.eos_ids and not self.params.ignore_eos
        if is_eos or token in self.params.stop_token_ids:
            self._end("stop", None if is_eos else token)
            return
        text, stop = self._scan(self._detokenizer.push(token))
        self._send(text)
        if stop is not None:
            self._end("stop", stop, is_flushed=True)
        elif len(self.tokens) >= self.params.max_tokens:
            self._end("length", None)

    def run_out(self) -> None:
        """Its time is over: the answer ends with what there is; without any it has failed."""
        if self.tokens:
            self._end("length", TIMEOUT)
        else:
            self.fail("The time for this request was over before its answer had begun.", 504)

    def fail(self, message: str, status: int = 500) -> None:
        self.state, self.reason = State.ENDED, "error"
        self._on_event(Failed(self.index, message, status))

    def _without_ends(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[self._ends.to(logits.device)] = -math.inf
        return logits

    def _scan(self, piece: str) -> tuple[str, str | None]:
        """-> (text to send, the stop string that was hit). Stop strings count once there are enough tokens."""
        if len(self.tokens) < self.ending.min_tokens:
            return piece, None
        text, stop = self._stops.push(piece)
        return (text + stop, stop) if stop is not None and self.ending.includes_stop else (text, stop)

    def _end(self, reason: str, stop_reason: str | int | None, *, is_flushed: bool = False) -> None:
        if not is_flushed:
            text, stop = self._scan(self._detokenizer.flush())
            if stop is None:
                text += self._stops.flush()
            else:
                reason, stop_reason = "stop", stop
            self._send(text)
        self._send("", is_last=True)
        logprobs = tuple(self.prompt_logprobs) if self.params.prompt_logprobs is not None else None
        done = Done(self.index, reason, stop_reason, len(self.tokens), self.n_cached, logprobs)
        self.state, self.reason = State.ENDED, reason  # until here it can still fail
        self._on_event(done)

    def _send(self, text: str, *, is_last: bool = False) -> None:
        """`is_last`: the tokens that made no text of their own go too."""
        if text or (is_last and self._n_sent < len(self.tokens)):
            self._on_event(Piece(self.index, text, tuple(self.tokens[self._n_sent :]), tuple(self._unsent)))
            self._n_sent = len(self.tokens)
            self._unsent.clear()
