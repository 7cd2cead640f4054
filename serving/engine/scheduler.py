"""Which sequences run in a step, and running it: continuous batching over several versions.

A step of the engine's thread:
  1. drop what was cancelled and end what is out of time, admit waiting sequences while there is room (see `admission`);
  2. give the prompts with the earliest deadline their next blocks, up to one block's worth of tokens (one that is scored
     counts for two), so that a long prompt never holds up decoding; blocks that the prefix cache has cost nothing. A prompt
     is due after as many steps as it has blocks, and a request's prompts one after the other, as if they were one: what is
     shorter goes first, for a while;
  3. for each version: one forward pass over its prompt blocks and its decoding sequences, then logits and one token for
     each sequence that has its prompt complete;
  4. send what came of it, all at once (see `outbox`).
"""

import logging
import math
import threading
import time

import torch

from serving.engine.admission import Admission, Limits
from serving.engine.cache import BLOCK, Key, PrefixCache
from serving.engine.metrics import Metrics
from serving.engine.model import Model, Segment
from serving.engine.outbox import Outbox
from serving.engine.sequence import Sequence, State, Turn
from serving.engine.turns import Turns
from serving.engine.versions import Version, Versions

log = logging.getLogger("engine")

# A sequence without a segment has the hidden state of its next token already.
Work = tuple[Sequence, Segment | None]
FAILED = "The engine failed while it was working on this request."
NOT_FINITE = "The model's output is not finite."
CLOSING = "The engine is shutting down."


class Stopped(Exception):
    """The engine is shutting down."""


class Scheduler:
    """Owns the engine's thread and all running sequences."""

    def __init__(
        self,
        model: Model,
        versions: Versions,
        prefixes: PrefixCache,
        limits: Limits,
        metrics: Metrics,
        turns: Turns,
    ) -> None:
        self._model, self._versions, self._prefixes = model, versions, prefixes
        self.limits, self.metrics, self._turns = limits, metrics, turns
        self.outbox = Outbox()
        self._admission = Admission(limits)
        self._running: list[Sequence] = []
        self._n_steps = 0
        self._wake = threading.Condition()  # guards _admission and _is_stopping
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
        _line_up(sequences)
        now = time.monotonic()
        for sequence in sequences:
            sequence.arrived_at = now
            sequence.begin_by = now + min(self.limits.max_wait_seconds, sequence.ending.seconds)
            sequence.end_by = now + min(self.limits.max_seconds, sequence.ending.seconds)
        with self._wake:
            if self._is_stopping:
                raise Stopped(CLOSING)
            self._admission.add(sequences)
            self._wake.notify()

    def cancel(self, sequences: list[Sequence]) -> None:
        """Nobody listens any more: drop them before the next step. Harmless for sequences that have ended."""
        with self._wake:
            for sequence in sequences:
                sequence.is_cancelled = True
            self._wake.notify()

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        return len(self._running), len(self._admission)

    @property
    def n_held(self) -> int:
        """Tokens that the running sequences may come to hold, at most `limits.max_tokens`."""
        return self._admission.n_held

    # --- the engine's thread -----------------------------------------------------------------------------------------
    def _loop(self) -> None:
        torch.set_num_threads(self._n_threads)  # this thread's; a loader may have set another default meanwhile
        try:
            self._work()
        finally:
            self._close()

    def _work(self) -> None:
        while True:
            if not self._has_work():
                self._turns.idle()
            with self._wake:
                self._wake.wait_for(self._has_work)
                if self._is_stopping:
                    return
            self._turns.begin()
            began_at = time.monotonic()
            try:
                self.step()
            except BaseException:  # the loop must go on, also after a panic in Rust, which is no Exception
                log.exception("a step failed")
                self._fail(list(self._running), FAILED)
                self.outbox.flush()
            self._turns.after_step(time.monotonic() - began_at)

    def _has_work(self) -> bool:
        return bool(self._is_stopping or self._admission or self._running)

    def _close(self) -> None:
        """Also when the thread dies of what nobody expected: what it has not answered, nobody else will."""
        self._turns.idle()
        with self._wake:
            self._is_stopping = True
            waiting = self._admission.remove(lambda _: True)
        self._fail([*self._running, *waiting], CLOSING, 503)
        self.outbox.flush()

    def step(self) -> None:
        self._n_steps += 1
        self._sweep(time.monotonic())
        self._admit()
        for version, work in self._plan().items():
            self._run(version, work)
        self._running = [s for s in self._running if s.state is not State.ENDED]
        self.outbox.flush()

    def _sweep(self, now: float) -> None:
        """Drop what was cancelled, end what is out of time. now: monotonic seconds."""
        with self._wake:
            gone = self._admission.remove(lambda s: s.is_cancelled or now >= s.begin_by)
        for sequence in [*gone, *self._running]:
            if sequence.is_cancelled:
                sequence.state = State.ENDED
                self._release(sequence, "cancelled")
            elif not sequence.is_admitted:
                seconds = now - sequence.arrived_at
                self._fail([sequence], f"The engine is busy: this request waited {seconds:.0f} s for its turn.", 503)
            elif now >= sequence.end_by:
                self._run_out(sequence)
        self._running = [s for s in self._running if s.state is not State.ENDED]

    def _admit(self) -> None:
        with self._wake:
            while sequence := self._admission.take():
                self._running.append(sequence)
                sequence.state, sequence.begun_at = State.PREFILL, time.monotonic()
                sequence.turn.begun_at_step = sequence.turn.begun_at_step or self._n_steps
                sequence.deadline = sequence.turn.begun_at_step + sequence.n_blocks
        for sequence in [s for s in self._running if s.cache is None]:
            try:
                sequence.cache = self._model.new_cache(sequence.n_reserved)
            except (MemoryError, RuntimeError):
                log.exception("no memory for %d tokens", sequence.n_reserved)
                self._fail([sequence], "The engine has no memory for this request.", 503)

    def _plan(self) -> dict[Version, list[Work]]:
        """This step's work by version."""
        plan: dict[Version, list[Work]] = {}
        n_left = BLOCK
        planned: set[Key] = set()
        for sequence in sorted(self._running, key=lambda s: (s.deadline, s.uid)):
            segment = None
            if sequence.state is State.DECODE:
                segment = Segment(sequence.store, sequence.end, sequence.tokens[-1:])
            elif n_left > 0 and (segment := self._next_block(sequence)):
                key = (sequence.parent, tuple(segment.tokens))
                is_shared = sequence.is_sharing and key in planned
                cost = len(segment.tokens) * sequence.token_cost
                if is_shared or cost > n_left:
                    continue  # in a later step; a shared block will then be in the prefix cache
                if sequence.is_sharing:
                    planned.add(key)
                n_left -= cost
            elif sequence.hidden is None:
                continue
            plan.setdefault(sequence.version, []).append((sequence, segment))
        return plan

    def _next_block(self, sequence: Sequence) -> Segment | None:
        """The first prompt block that must be computed; None when the prefix cache had all of them.

        Blocks begin at multiples of their size and end there or with the prompt, so the same tokens are always computed in
        the same shapes, whatever was found and whatever else is running.
        """
        while sequence.n_computed < len(sequence.prompt):
            start = sequence.n_computed
            tokens = sequence.prompt[start : start + sequence.block]
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
            is_prompt_complete = sequence.state is State.PREFILL and sequence.n_computed == len(sequence.prompt)
            if sequence.state is State.DECODE or is_prompt_complete:
                sequence.hidden = own[-1]

    def _keep_block(self, sequence: Sequence, segment: Segment, hidden: torch.Tensor) -> None:
        """Book a computed prompt block: into the prefix cache, or, for a scoring request, its log-probabilities."""
        if not sequence.is_sharing:
            self._score(sequence, segment, hidden)  # may fail: then the block is not counted
        self.metrics.prompt_tokens_computed += len(segment.tokens)
        sequence.n_computed += len(segment.tokens)
        if sequence.is_sharing:
            keys_values = segment.cache.read(segment.start, sequence.n_computed)
            block = self._prefixes.add(sequence.parent, tuple(segment.tokens), keys_values, hidden[-1].clone())
            sequence.chain.append(block)

    def _score(self, sequence: Sequence, segment: Segment, hidden: torch.Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow this block's tokens."""
        following = sequence.prompt[segment.start + 1 : segment.start + len(segment.tokens) + 1]
        if following:
            logits = self._model.float32_logits(sequence.version.weights, hidden[: len(following)])
            scored = self._model.rank(logits, following, sequence.params.prompt_logprobs or 0)
            if not all(math.isfinite(one.logprob) for one in scored):
                self._fail([sequence], NOT_FINITE)
            sequence.prompt_logprobs += scored

    def _sample(self, version: Version, sequences: list[Sequence]) -> None:
        if not sequences:
            return
        rows = torch.stack([s.hidden for s in sequences if s.hidden is not None])  # (R, H)
        logits = self._model.logits(version.weights, rows)  # (R, V)
        tokens = self._model.draw(_adjusted(logits, sequences), [s.sampler for s in sequences])
        for i, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            sequence.hidden = None
            if sequence.state is State.PREFILL:
                sequence.state = State.DECODE
                self._prefixes.touch(sequence.chain)
                sequence.chain = []
            self._take(sequence, token, logits[i : i + 1])

    def _take(self, sequence: Sequence, token: int | None, logits: torch.Tensor) -> None:
        """logits: (1, V), as the model gave them."""
        if token is None:
            self._fail([sequence], NOT_FINITE)
            return
        try:
            n_top = sequence.params.logprobs
            sequence.take(token, None if n_top is None else self._model.rank(logits, [token], n_top)[0])
        except Exception:  # its text, its stop strings, its listener: nothing that others should suffer for
            log.exception("a request failed")
            self._fail([sequence], FAILED)
        else:
            self.metrics.count_token(sequence, time.monotonic())
            if sequence.state is State.ENDED:
                self._release(sequence, "done")

    # --- endings -----------------------------------------------------------------------------------------------------
    def _run_out(self, sequence: Sequence) -> None:
        try:
            sequence.run_out()
        except Exception:  # as in _take
            log.exception("a request failed")
            self._fail([sequence], FAILED)
        else:
            self._release(sequence, "timeout")

    def _fail(self, sequences: list[Sequence], message: str, status: int = 500) -> None:
        for sequence in sequences:
            if sequence.state is not State.ENDED:
                sequence.fail(message, status)
                self._release(sequence, "failed")
        self._running = [s for s in self._running if s.state is not State.ENDED]

    def _release(self, sequence: Sequence, outcome: str) -> None:
        """Give back what an ended sequence held, the pin on its version last."""
        sequence.cache, sequence.hidden, sequence.chain = None, None, []
        if sequence.is_admitted:
            with self._wake:
                self._admission.settle(sequence)
        self.metrics.count_ending(sequence, outcome, time.monotonic())
        self._versions.release(sequence.version)


def _line_up(sequences: list[Sequence]) -> None:
    """Tells a request's sequences how many blocks it has to compute until each has its prompt: choices of one prompt share
    its blocks, where it is not scored.
    """
    turn, n_blocks, before = Turn(), 0, None
    for sequence in sequences:
        if sequence.prompt != before or not sequence.is_sharing:
            n_blocks += math.ceil(len(sequence.prompt) / sequence.block)
        sequence.turn, sequence.n_blocks, before = turn, n_blocks, sequence.prompt


def _adjusted(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """logits (R, V) as each sequence wants its own changed; the same tensor when none does."""
    if not any(sequence.is_adjusting for sequence in sequences):
        return logits
    return torch.stack([sequence.adjusted(row) for sequence, row in zip(sequences, logits, strict=True)])
