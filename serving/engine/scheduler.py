"""Which sequences run in a step, and running it: continuous batching over several versions.

A step of the engine's thread:
  1. take in what arrived, drop what was cancelled, admit waiting sequences while there is room;
  2. give the prompts with the earliest deadline their next blocks, up to one block's worth of tokens, so that a long prompt
     never holds up decoding; blocks that the prefix cache has cost nothing;
  3. for each version: one forward pass over its prompt blocks and its decoding sequences, then logits and one token for
     each sequence that has its prompt complete.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

import torch

from serving.engine.cache import BLOCK, PrefixCache
from serving.engine.metrics import Metrics
from serving.engine.model import Model, Segment
from serving.engine.sampler import BadLogits, token_logprob
from serving.engine.sequence import Sequence, State
from serving.engine.versions import Version, Versions

log = logging.getLogger("engine")

# A sequence without a segment has the hidden state of its next token already.
Work = tuple[Sequence, Segment | None]
FAILED = "The engine failed while it was working on this request."


class Overloaded(Exception):
    """The queue is full; try again later."""


class Stopped(Exception):
    """The engine is shutting down."""


@dataclass(frozen=True)
class Limits:
    max_running: int = 64  # sequences in one step
    max_waiting: int = 256
    max_tokens: int = 65536  # that running sequences may come to hold together: the bound on the memory of the caches


class Scheduler:
    """Owns the engine's thread and all running sequences."""

    def __init__(
        self, model: Model, versions: Versions, prefixes: PrefixCache, limits: Limits, metrics: Metrics
    ) -> None:
        self._model, self._versions, self._prefixes = model, versions, prefixes
        self.limits, self.metrics = limits, metrics
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._n_steps = 0
        self._wake = threading.Condition()  # guards _waiting and _is_stopping
        self._is_stopping = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    # --- called from other threads -----------------------------------------------------------------------------------
    def start(self, n_threads: int) -> None:
        """n_threads: cores for the products."""
        self._n_threads = n_threads
        self._thread.start()

    def stop(self) -> None:
        """End every sequence with an error and the thread with its current step. Does not wait (see `join`)."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences, all or none. Each has pinned its version. Raises Overloaded or Stopped."""
        now = time.monotonic()
        with self._wake:
            if self._is_stopping:
                raise Stopped("The engine is shutting down.")
            if len(self._waiting) + len(sequences) > self.limits.max_waiting:
                raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again in a moment.")
            for sequence in sequences:
                sequence.arrived_at = now
            self._waiting.extend(sequences)
            self._wake.notify()

    def cancel(self, sequences: list[Sequence]) -> None:
        """Nobody listens any more: drop them before the next step. Harmless for sequences that have ended."""
        with self._wake:
            for sequence in sequences:
                sequence.is_cancelled = True
            self._wake.notify()

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self._running), len(self._waiting)

    # --- the engine's thread -----------------------------------------------------------------------------------------
    def _loop(self) -> None:
        torch.set_num_threads(self._n_threads)  # this thread's; a loader may have set another default meanwhile
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_stopping or self._waiting or self._running)
                if self._is_stopping:
                    break
            try:
                self.step()
            except Exception:  # the loop must go on: whatever it is, it ended these sequences only
                log.exception("a step failed")
                self._fail(list(self._running), FAILED)
        self._fail([*self._running, *self._waiting], "The engine is shutting down.")

    def step(self) -> None:
        self._n_steps += 1
        self._drop_cancelled()
        self._admit()
        for version, work in self._plan().items():
            self._run(version, work)
        self._running = [s for s in self._running if s.state is not State.ENDED]

    def _drop_cancelled(self) -> None:
        with self._wake:
            gone = [s for s in (*self._waiting, *self._running) if s.is_cancelled and s.state is not State.ENDED]
            if gone:
                self._waiting = deque(s for s in self._waiting if not s.is_cancelled)
        for sequence in gone:
            sequence.state = State.ENDED
            self._release(sequence, "cancelled")
        self._running = [s for s in self._running if s.state is not State.ENDED]

    def _admit(self) -> None:
        n_held = sum(s.n_reserved for s in self._running)
        with self._wake:
            while self._waiting and len(self._running) < self.limits.max_running:
                sequence = self._waiting[0]
                n_held += sequence.n_reserved
                if n_held > self.limits.max_tokens:
                    break
                self._running.append(self._waiting.popleft())
                sequence.state = State.PREFILL
                sequence.deadline = self._n_steps + len(sequence.prompt) // BLOCK
        for sequence in [s for s in self._running if s.cache is None]:
            try:
                sequence.cache = self._model.new_cache(sequence.n_reserved)
            except (MemoryError, RuntimeError):
                log.exception("no memory for %d tokens", sequence.n_reserved)
                self._fail([sequence], "The engine has no memory for this request.")

    def _plan(self) -> dict[Version, list[Work]]:
        """This step's work by version."""
        plan: dict[Version, list[Work]] = {}
        n_left = BLOCK
        planned: set[tuple[int, tuple[int, ...]]] = set()
        for sequence in sorted(self._running, key=lambda s: (s.deadline, s.uid)):
            segment = None
            if sequence.state is State.DECODE:
                segment = Segment(sequence.store, sequence.end, sequence.tokens[-1:])
            elif n_left > 0 and (segment := self._next_block(sequence)):
                key = (sequence.parent, tuple(segment.tokens))
                is_shared = key in planned and sequence.is_sharing
                if is_shared or len(segment.tokens) > n_left:
                    continue  # in a later step; a shared block will then be in the prefix cache
                planned.add(key)
                n_left -= len(segment.tokens)
            elif sequence.hidden is None:
                continue
            plan.setdefault(sequence.version, []).append((sequence, segment))
        return plan

    def _next_block(self, sequence: Sequence) -> Segment | None:
        """The first prompt block that must be computed; None when the prefix cache had all of them.

        Blocks begin at multiples of BLOCK and end there or with the prompt, so the same tokens are always computed in the
        same shapes, whatever was found and whatever else is running.
        """
        while sequence.n_computed < len(sequence.prompt):
            start = sequence.n_computed
            tokens = sequence.prompt[start : start + BLOCK]
            block = self._prefixes.find(sequence.parent, tuple(tokens)) if sequence.is_sharing else None
            if block is None:
                return Segment(sequence.store, start, tokens)
            sequence.store.write(start, block.keys_values)
            sequence.chain.append(block)
            sequence.n_computed += len(tokens)
            sequence.n_cached += len(tokens)
        sequence.hidden = sequence.chain[-1].hidden
        return None

    def _run(self, version: Version, work: list[Work]) -> None:
        """One version's share of a step. If it fails, each sequence is tried alone, so that only the guilty one ends."""
        try:
            self._forward(version, work)
            self._sample(version, [sequence for sequence, _ in work if sequence.hidden is not None])
        except Exception as error:
            if len(work) > 1:
                log.warning("a step with %d sequences failed (%s); trying each alone", len(work), error)
                for item in work:
                    if item[0].state is not State.ENDED:
                        self._run(version, [item])
                return
            log.exception("a request failed")
            self._fail([work[0][0]], FAILED)

    def _forward(self, version: Version, work: list[Work]) -> None:
        """Compute the segments; afterwards every sequence whose prompt is complete has `hidden`."""
        todo = [(s, segment) for s, segment in work if segment and segment.start == s.end and s.hidden is None]
        if not todo:
            return
        hidden = self._model.hidden(version.weights, [segment for _, segment in todo])  # (N, H)
        row = 0
        for sequence, segment in todo:
            n = len(segment.tokens)
            own = hidden[row : row + n]
            row += n
            if sequence.state is State.PREFILL:
                self._keep_block(sequence, segment, own)
            if sequence.state is State.DECODE or sequence.n_computed == len(sequence.prompt):
                sequence.hidden = own[-1]

    def _keep_block(self, sequence: Sequence, segment: Segment, hidden: torch.Tensor) -> None:
        """Book a computed prompt block: into the prefix cache, or, for a scoring request, its log-probabilities."""
        self.metrics.prompt_tokens_computed += len(segment.tokens)
        sequence.n_computed += len(segment.tokens)
        if not sequence.is_sharing:
            self._score(sequence, segment, hidden)
            return
        keys_values = segment.cache.read(segment.start, sequence.n_computed)
        block = self._prefixes.add(sequence.parent, tuple(segment.tokens), keys_values, hidden[-1].clone())
        sequence.chain.append(block)

    def _score(self, sequence: Sequence, segment: Segment, hidden: torch.Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow this block's tokens."""
        following = sequence.prompt[segment.start + 1 : segment.start + len(segment.tokens) + 1]
        logprobs = self._model.exact_logprobs(sequence.version.weights, hidden[: len(following)])
        n_top = sequence.params.prompt_logprobs or 0
        sequence.prompt_logprobs += [token_logprob(row, t, n_top) for row, t in zip(logprobs, following, strict=True)]

    def _sample(self, version: Version, sequences: list[Sequence]) -> None:
        if not sequences:
            return
        rows = torch.stack([s.hidden for s in sequences if s.hidden is not None])
        for sequence, logits in zip(sequences, self._model.logits(version.weights, rows), strict=True):
            sequence.hidden = None
            if sequence.state is State.PREFILL:
                sequence.state = State.DECODE
                self._prefixes.touch(sequence.chain)
                sequence.chain = []
            self._choose(sequence, logits)

    def _choose(self, sequence: Sequence, logits: torch.Tensor) -> None:
        try:
            sequence.choose(logits)
        except BadLogits as error:
            self._fail([sequence], str(error))
        except Exception:  # its text, its stop strings, its listener: nothing that others should suffer for
            log.exception("a request failed")
            self._fail([sequence], FAILED)
        else:
            self.metrics.count_token(sequence, time.monotonic())
            if sequence.state is State.ENDED:
                self._release(sequence, "done")

    # --- endings -----------------------------------------------------------------------------------------------------
    def _fail(self, sequences: list[Sequence], message: str) -> None:
        for sequence in sequences:
            if sequence.state is not State.ENDED:
                sequence.fail(message)
                self._release(sequence, "failed")
        self._running = [s for s in self._running if s.state is not State.ENDED]

    def _release(self, sequence: Sequence, outcome: str) -> None:
        """Give back what an ended sequence held, the pin on its version last."""
        sequence.cache, sequence.hidden, sequence.chain = None, None, []
        self.metrics.endings[outcome] += 1
        self._versions.release(sequence.version)
