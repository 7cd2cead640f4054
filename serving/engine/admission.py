"""Who may run: waiting sequences by caller, what each caller holds, and whose turn it is.

The next place goes to the caller who has been given the fewest tokens (virtual token counter, Sheng et al. 2024, arXiv
2401.00588, algorithm 1): somebody's flood of requests delays that somebody only.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.engine.sequence import Sequence

MAX_DEBTS = 4096  # callers who have left; whoever had the least is forgotten first


class Overloaded(Exception):
    """The queue is full; try again later."""


class Crowded(Overloaded):
    """This caller has as many requests waiting as one may have."""


class Oversized(ValueError):
    """The request has more choices than could ever wait; coming back later helps nothing."""


@dataclass(frozen=True)
class Limits:
    max_running: int = 64  # sequences in one step
    max_waiting: int = 256
    max_tokens: int = 65536  # that running sequences may come to hold together: the bound on the memory of the caches
    max_wait_seconds: float = 60.0  # until a request has begun
    max_seconds: float = 600.0  # until it has ended, waiting included
    # Of places, tokens and queue, for one caller who said who they are: there is always room for somebody else.
    share: float = 0.75


@dataclass
class Account:
    """What one caller has waiting, holds now, and has been given."""

    waiting: deque[Sequence] = field(default_factory=deque)
    n_running: int = 0
    n_held: int = 0  # tokens that the running ones may come to hold
    n_given: int = 0  # tokens

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.n_running


class Admission:
    """The queue and the books. Not safe for threads: the scheduler's lock guards it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._accounts: dict[str, Account] = {}
        self._debts: dict[str, int] = {}  # what callers had been given who left while others were here
        self._n_waiting = self._n_running = self.n_held = 0

    def __len__(self) -> int:
        """How many are waiting."""
        return self._n_waiting

    def add(self, sequences: list[Sequence]) -> None:
        """Queue a request's sequences, all or none; they have one caller. Raises Oversized, Overloaded or Crowded."""
        caller = sequences[0].caller
        most = max(1, int(self._limits.share * self._limits.max_waiting)) if caller else self._limits.max_waiting
        if len(sequences) > most:
            raise Oversized(f"A request may have at most {most} choices here, not {len(sequences)}; send several.")
        if self._n_waiting + len(sequences) > self._limits.max_waiting:
            raise Overloaded(f"{self._n_waiting} requests are waiting already; try again in a moment.")
        known = self._accounts.get(caller)
        n_own = len(known.waiting) if known else 0
        if caller and n_own + len(sequences) > most:
            raise Crowded(f"{n_own} requests of yours are waiting already; try again when some have been answered.")
        account = known or self._open(caller)
        account.waiting.extend(sequences)
        self._n_waiting += len(sequences)

    def take(self) -> Sequence | None:
        """The sequence whose turn it is, booked as running; None when there is no room or nobody waits."""
        if self._n_running >= self._limits.max_running:
            return None
        ready = [(a.n_given, caller) for caller, a in self._accounts.items() if a.waiting and self._may_have(caller, a)]
        if not ready:
            return None
        account = self._accounts[min(ready, key=lambda pair: pair[0])[1]]
        n_tokens = account.waiting[0].n_reserved
        if self.n_held + n_tokens > self._limits.max_tokens:
            return None  # a large request waits for room; if others went before it, it could wait for ever
        return self._book(account)

    def settle(self, sequence: Sequence) -> None:
        """A sequence that was taken has ended: what it held is free, what it did not use is not counted."""
        account = self._accounts[sequence.caller]
        account.n_running -= 1
        account.n_held -= sequence.n_reserved
        account.n_given -= sequence.params.max_tokens - len(sequence.tokens)
        self._n_running -= 1
        self.n_held -= sequence.n_reserved
        self._close_if_idle(sequence.caller)

    def remove(self, is_gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Take the sequences that will not run out of the queue."""
        gone = []
        for caller, account in list(self._accounts.items()):
            if found := [s for s in account.waiting if is_gone(s)]:
                gone += found
                account.waiting = deque(s for s in account.waiting if s not in found)
                self._close_if_idle(caller)
        self._n_waiting -= len(gone)
        return gone

    def _may_have(self, caller: str, account: Account) -> bool:
        """Whether this caller's next sequence stays within one caller's share. Who holds nothing may always have one."""
        if not caller or not account.n_running:
            return True
        share, limits = self._limits.share, self._limits
        n_held = account.n_held + account.waiting[0].n_reserved
        return account.n_running < share * limits.max_running and n_held <= share * limits.max_tokens

    def _book(self, account: Account) -> Sequence:
        sequence = account.waiting.popleft()
        sequence.is_admitted = True
        account.n_running += 1
        account.n_held += sequence.n_reserved
        account.n_given += sequence.n_reserved
        self._n_waiting -= 1
        self._n_running += 1
        self.n_held += sequence.n_reserved
        return sequence

    def _open(self, caller: str) -> Account:
        """Time away earns nothing: who comes begins with what the least served has been given, or with their own."""
        n_least = min((account.n_given for account in self._accounts.values()), default=0)
        n_given = max(n_least, self._debts.pop(caller, 0))
        return self._accounts.setdefault(caller, Account(n_given=n_given))

    def _close_if_idle(self, caller: str) -> None:
        """A pause forgives nothing while somebody else is here; when all have left, the books begin anew."""
        if not self._accounts[caller].is_idle:
            return
        self._debts[caller] = self._accounts.pop(caller).n_given
        if not self._accounts:
            self._debts.clear()
        elif len(self._debts) > MAX_DEBTS:
            del self._debts[min(self._debts, key=self._debts.__getitem__)]
