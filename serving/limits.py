"""How much a key may ask models for: requests and tokens in a minute, and requests that are answered at once.

The minute slides. It is counted by the second, and a second is forgotten when all of it is more than a minute ago, so in no
sixty seconds does more pass than the limit. Tokens are taken as estimated when a request is admitted, and corrected by what
it used when it ends. A request in progress holds a lease that its process renews: those of a process that was killed run out.

With REDIS_URL all processes count together. Without it, or while Redis does not answer, each process counts for itself.
"""

import functools
import logging
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import redis
from django.conf import settings

from serving.models import ApiKey

log = logging.getLogger(__name__)

KEPT_SECONDS = 61  # of a second that began so long ago, all is more than a minute old
LEASE_SECONDS = 60
RENEWED_EVERY = 20.0
REDIS_TIMEOUT = 0.5
REDIS_AVOIDED = 5.0  # seconds after it did not answer


@dataclass(frozen=True)
class Limits:
    """0: no limit."""

    requests: int
    tokens: int
    concurrent: int


@dataclass(frozen=True)
class Use:
    """Of requests or of tokens, in the last minute; `reset` is in how many seconds all of it is forgotten."""

    n: int
    reset: float


@dataclass(frozen=True)
class Ticket:
    """An admitted request: `settle` takes it back."""

    key_id: int
    lease: str
    limits: Limits
    second: int  # that its tokens are counted in
    n_tokens: int  # taken so far
    requests: Use  # with this one
    tokens: Use
    store: "Store"


class Limited(Exception):
    """Refused. `kind` is requests, tokens or concurrent; `seconds` says when to come back, None: never as it is."""

    def __init__(self, kind: str, limits: Limits, seconds: float | None, requests: Use, tokens: Use) -> None:
        super().__init__(kind)
        self.kind, self.limits, self.seconds = kind, limits, seconds
        self.requests, self.tokens = requests, tokens


@dataclass(frozen=True)
class Asked:
    key_id: int
    lease: str  # ours: a name that the sender chose could stand for several requests
    n_tokens: int
    limits: Limits


class Store(Protocol):
    def take(self, asked: Asked, now: float) -> Ticket: ...

    def give_back(self, ticket: Ticket, n_tokens: int, now: float) -> None: ...

    def n_running(self, key_id: int, now: float) -> int: ...


def of(key: ApiKey) -> Limits:
    """The key's own limits, and the site's where it has none."""
    own = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent)
    of_site = (settings.KEY_REQUESTS_PER_MINUTE, settings.KEY_TOKENS_PER_MINUTE, settings.KEY_MAX_CONCURRENT)
    return Limits(*(site if value is None else value for value, site in zip(own, of_site, strict=True)))


def take(key: ApiKey, n_tokens: int, now: float | None = None) -> Ticket:
    """Admits a request that is estimated to use `n_tokens`. Raises Limited. `now`: seconds since 1970."""
    asked, now = Asked(key.pk, uuid.uuid4().hex, n_tokens, of(key)), time.time() if now is None else now
    shared = _shared()
    if shared is not None and shared.is_tried:
        try:
            return shared.take(asked, now)
        except redis.RedisError as error:
            shared.avoid()
            log.warning("Redis does not answer (%s): each process counts for itself", error)
    return IN_PROCESS.take(asked, now)


def settle(ticket: Ticket, n_tokens: int, now: float | None = None) -> None:
    """The request has ended, and used `n_tokens`."""
    ticket.store.give_back(ticket, n_tokens, time.time() if now is None else now)


def n_running(key: ApiKey) -> int:
    """How many requests of the key are being answered."""
    return (_shared() or IN_PROCESS).n_running(key.pk, time.time())


def _shared() -> "InRedis | None":
    return _in_redis(settings.CACHE_URL) if settings.CACHE_URL else None


@functools.cache
def _in_redis(url: str) -> "InRedis":
    return InRedis(url)


# --- in this process --------------------------------------------------------------------------------------------------
class InProcess:
    """Rows of [second, requests, tokens] of each key, oldest first, and what each key has running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[int, list[list[int]]] = {}
        self._running: defaultdict[int, set[str]] = defaultdict(set)

    def take(self, asked: Asked, now: float) -> Ticket:
        with self._lock:
            rows = [row for row in self._rows.get(asked.key_id, []) if row[0] + KEPT_SECONDS > now]
            self._check(asked, rows, now)
            second = _add(rows, int(now), 1, asked.n_tokens)
            self._rows[asked.key_id] = rows
            self._running[asked.key_id].add(asked.lease)
        uses = (_use(rows, 1, now), _use(rows, 2, now))
        return Ticket(asked.key_id, asked.lease, asked.limits, second, asked.n_tokens, *uses, self)

    def _check(self, asked: Asked, rows: list[list[int]], now: float) -> None:
        limits, uses = asked.limits, (_use(rows, 1, now), _use(rows, 2, now))
        if limits.concurrent and len(self._running[asked.key_id]) >= limits.concurrent:
            raise Limited("concurrent", limits, 1.0, *uses)
        for i, kind, limit, n in ((1, "requests", limits.requests, 1), (2, "tokens", limits.tokens, asked.n_tokens)):
            over = uses[i - 1].n + n - limit
            if limit and over > 0:
                raise Limited(kind, limits, _wait(rows, i, over, now), *uses)

    def give_back(self, ticket: Ticket, n_tokens: int, now: float) -> None:
        with self._lock:
            self._running[ticket.key_id].discard(ticket.lease)
            if not self._running[ticket.key_id]:
                del self._running[ticket.key_id]
            more = n_tokens - ticket.n_tokens
            rows = self._rows.get(ticket.key_id, [])
            if more > 0:
                _add(rows, int(now), 0, more)
            for row in rows if more < 0 else ():
                if row[0] == ticket.second:
                    row[2] += more

    def n_running(self, key_id: int, now: float) -> int:
        return len(self._running.get(key_id, ()))


def _add(rows: list[list[int]], second: int, n_requests: int, n_tokens: int) -> int:
    """Into the newest row, which another machine's clock may have put ahead of ours, or a new one. -> its second"""
    if not rows or rows[-1][0] < second:
        rows.append([second, 0, 0])
    rows[-1][1] += n_requests
    rows[-1][2] += n_tokens
    return rows[-1][0]


def _use(rows: list[list[int]], i: int, now: float) -> Use:
    newest = max((row[0] for row in rows if row[i]), default=None)
    return Use(sum(row[i] for row in rows), 0.0 if newest is None else newest + KEPT_SECONDS - now)


def _wait(rows: list[list[int]], i: int, over: int, now: float) -> float | None:
    """Seconds until so many more are forgotten."""
    for row in rows:
        over -= row[i]
        if over <= 0:
            return row[0] + KEPT_SECONDS - now
    return None


IN_PROCESS = InProcess()

# --- in Redis ---------------------------------------------------------------------------------------------------------
# The same rows as one JSON text, and a sorted set of leases by when they run out. What is a fraction is sent as text:
# Redis cuts numbers to whole ones.
TAKE = """
local now, id, n_tokens, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[7])
local limits, asked = {tonumber(ARGV[4]), tonumber(ARGV[5])}, {1, n_tokens}
local rows, used, newest = {}, {0, 0}, {0, 0}
for _, row in ipairs(cjson.decode(redis.call('GET', KEYS[1]) or '[]')) do
  if row[1] + 61 > now then
    rows[#rows + 1] = row
    for i = 1, 2 do
      used[i] = used[i] + row[i + 1]
      if row[i + 1] > 0 then newest[i] = row[1] end
    end
  end
end
local function told(verdict, wait, second)
  return {verdict, tostring(wait), second, used[1], newest[1], used[2], newest[2]}
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local n_concurrent = tonumber(ARGV[6])
if n_concurrent > 0 and redis.call('ZCARD', KEYS[2]) >= n_concurrent then return told('concurrent', 1, 0) end
for i, kind in ipairs({'requests', 'tokens'}) do
  local over = used[i] + asked[i] - limits[i]
  if limits[i] > 0 and over > 0 then
    for _, row in ipairs(rows) do
      over = over - row[i + 1]
      if over <= 0 then return told(kind, row[1] + 61 - now, 0) end
    end
    return told(kind, -1, 0)
  end
end
local second = math.floor(now)
if #rows == 0 or rows[#rows][1] < second then rows[#rows + 1] = {second, 0, 0} end
for i = 1, 2 do
  used[i] = used[i] + asked[i]
  rows[#rows][i + 1] = rows[#rows][i + 1] + asked[i]
  if rows[#rows][i + 1] > 0 then newest[i] = rows[#rows][1] end
end
redis.call('SET', KEYS[1], cjson.encode(rows), 'EX', 62)
redis.call('ZADD', KEYS[2], now + lease, id)
redis.call('EXPIRE', KEYS[2], lease * 2)
return told('', 0, rows[#rows][1])
"""
GIVE_BACK = """
redis.call('ZREM', KEYS[2], ARGV[2])
local second, more, now = tonumber(ARGV[3]), tonumber(ARGV[4]), math.floor(tonumber(ARGV[1]))
local text = redis.call('GET', KEYS[1])
if more == 0 or (more < 0 and not text) then return end
local rows = cjson.decode(text or '[]')
if more > 0 then
  if #rows == 0 or rows[#rows][1] < now then rows[#rows + 1] = {now, 0, 0} end
  rows[#rows][3] = rows[#rows][3] + more
else
  for _, row in ipairs(rows) do
    if row[1] == second then row[3] = row[3] + more end
  end
end
redis.call('SET', KEYS[1], cjson.encode(rows), 'EX', 62)
"""


class InRedis:
    """Counts of all processes. Leases of this one are renewed by a thread, which ends when there are none."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT)
        self._take = self._redis.register_script(TAKE)
        self._give_back = self._redis.register_script(GIVE_BACK)
        self._avoided_until = 0.0  # monotonic seconds
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # lease → key
        self._is_renewing = False
        self._is_closed = threading.Event()

    @property
    def is_tried(self) -> bool:
        return time.monotonic() >= self._avoided_until

    def avoid(self) -> None:
        """So that not each request waits for one that does not answer."""
        self._avoided_until = time.monotonic() + REDIS_AVOIDED

    def take(self, asked: Asked, now: float) -> Ticket:
        limits = asked.limits
        verdict, wait, second, *uses = self._take(
            _names(asked.key_id),
            [now, asked.lease, asked.n_tokens, limits.requests, limits.tokens, limits.concurrent, LEASE_SECONDS],
        )
        n_requests, newest_request, n_tokens, newest_token = uses
        requests, tokens = _use_of(n_requests, newest_request, now), _use_of(n_tokens, newest_token, now)
        if verdict:
            seconds = float(wait)
            raise Limited(verdict.decode(), limits, None if seconds < 0 else seconds, requests, tokens)
        self._hold(asked)
        return Ticket(asked.key_id, asked.lease, limits, second, asked.n_tokens, requests, tokens, self)

    def give_back(self, ticket: Ticket, n_tokens: int, now: float) -> None:
        with self._lock:
            self._held.pop(ticket.lease, None)
        if not self.is_tried:
            return  # nobody renews the lease: it runs out by itself
        more = n_tokens - ticket.n_tokens
        try:
            self._give_back(_names(ticket.key_id), [now, ticket.lease, ticket.second, more])
        except redis.RedisError as error:
            self.avoid()
            log.warning("Redis does not answer (%s): a lease runs out by itself", error)

    def n_running(self, key_id: int, now: float) -> int:
        return int(self._redis.zcount(_names(key_id)[1], now, "+inf"))

    def close(self) -> None:
        """Leases that are still held run out by themselves."""
        self._is_closed.set()
        self._redis.close()

    def _hold(self, asked: Asked) -> None:
        with self._lock:
            if not self._is_renewing:
                threading.Thread(target=self._renew_while_held, name="leases", daemon=True).start()
                self._is_renewing = True
            self._held[asked.lease] = asked.key_id

    def _renew_while_held(self) -> None:
        while not self._is_closed.wait(RENEWED_EVERY):
            with self._lock:
                held = dict(self._held)
                if not held:
                    self._is_renewing = False
                    return
            try:
                self.renew(held, time.time())
            except Exception as error:  # whatever it is, the next round may do better, and no other thread would
                log.warning("leases were not renewed: %s", error)

    def renew(self, held: dict[str, int], now: float) -> None:
        """Only leases that are there (XX): one that was given back at this moment stays so."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for lease, key_id in held.items():
                pipeline.zadd(_names(key_id)[1], {lease: now + LEASE_SECONDS}, xx=True)
                pipeline.expire(_names(key_id)[1], LEASE_SECONDS * 2)
            pipeline.execute()


def _names(key_id: int) -> list[str]:
    """In one slot of a cluster."""
    return [f"limits:{{{key_id}}}:minute", f"limits:{{{key_id}}}:leases"]


def _use_of(n: int, newest: int, now: float) -> Use:
    return Use(n, newest + KEPT_SECONDS - now if newest else 0.0)
