"""Trials: does a new version fail more often than the one before? A canary that does is stopped, a publication taken back.

Counted are requests to an alias that were answered (DONE) or that the engine failed (FAILED). Who names a version knows
what they try. What was refused was the request's fault, what was cancelled its reader's choice, and what no engine took or
began in time (503 or 504 before the first token: all are down, starting or too busy) says nothing about a version. Answers
that break off on one engine within BURST count as one: an engine that is restarted cuts all that it writes. A canary is compared with the version beside it over the time since
its share was last set; a publication, for PROBATION, with what the version before it did in the LOOKBACK before.

The rule is asked every 15 seconds, so an ordinary test at 1 % would raise a false alarm sooner or later for certain. So
the k-th failure is allowed LEVEL / k(k+1), which over all k adds up to LEVEL. Of a publication only a further failure can
turn the verdict; of a canary it may also be an answer by the other side, which grows too. That the level holds all the same
is not proved: it rests on simulation. With both sides failing in 0.5 to 30 % of requests, asked after each failure, 4,000 times
each: at most 0.23 % of canaries with 5, 20 or 50 % of 3,000 requests were stopped for nothing, and at most 0.25 % of
publications with 2,000 requests taken back, after 20 to 1,000 by the version before; asked after each request of either
side, at most 0.5 % of 1,000 canaries with 1,500 requests. One that always fails is found out
after 20 requests; of those that fail in 20 % after 1 % in 100 requests, 99 % are, half of them within 36 requests.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q
from django.utils.translation import gettext as _
from scipy.stats import hypergeom

from serving import adapters
from serving.client import EngineDown, EngineError
from serving.models import Adapter, Deployment, DeploymentEvent, ServedRequest

log = logging.getLogger(__name__)

Kind = DeploymentEvent.Kind
Outcome = ServedRequest.Outcome
MIN_REQUESTS = 20
FLOOR = 0.05  # of requests that fail: below it nobody is called, whatever the other side does
LEVEL = 0.01
# What a side is taken to have done before it was watched: a version without a past is judged too.
NOTIONAL_REQUESTS, NOTIONAL_FAILURES = 20, 1
NOT_TAKEN = Q(status__in=(503, 504), seconds_to_first_token__isnull=True)
BURST = timedelta(seconds=60)
PROBATION = timedelta(hours=1)
LOOKBACK = timedelta(days=1)


@dataclass(frozen=True)
class Tally:
    """Requests of one version that say something about it, and how many of them failed."""

    n: int
    n_failed: int

    @property
    def rate(self) -> float:
        return self.n_failed / self.n if self.n else 0.0

    def __str__(self) -> str:
        return _("%(failed)d of %(n)d requests failed (%(rate)s %%)") % {
            "failed": self.n_failed,
            "n": self.n,
            "rate": f"{100 * self.rate:.1f}",
        }


def is_worse(new: Tally, old: Tally) -> bool:
    """Whether `new` fails too often, and more often than `old` beyond chance: Fisher's exact test, one-sided."""
    if new.n < MIN_REQUESTS or new.rate < FLOOR:
        return False
    return p_value(new, old) <= LEVEL / (new.n_failed * (new.n_failed + 1))


def p_value(new: Tally, old: Tally) -> float:
    """Of all ways to spread the failures over the requests of both sides, the share that gives `new` as many or more."""
    n_old, n_old_failed = old.n + NOTIONAL_REQUESTS, old.n_failed + NOTIONAL_FAILURES
    return float(hypergeom.sf(new.n_failed - 1, new.n + n_old, new.n_failed + n_old_failed, new.n))


def tally(adapter: Adapter, since: datetime, until: datetime | None = None) -> Tally:
    """Two queries. `until` is left out itself."""
    rows = ServedRequest.objects.filter(adapter=adapter, at__gte=since).exclude(alias="").order_by()
    if until is not None:
        rows = rows.filter(at__lt=until)
    failed = rows.filter(Q(outcome=Outcome.FAILED) & ~NOT_TAKEN)
    n_failed = _n_bursts(failed.values_list("engine", "at", "seconds"))
    return Tally(rows.filter(outcome=Outcome.DONE).count() + n_failed, n_failed)


def _n_bursts(failures: Iterable[tuple[str, datetime, float]]) -> int:
    """Engine, beginning and duration in seconds of each → how many there were. No engine: it failed before the first token,
    which no restart makes look like this; each counts.
    """
    n, last = 0, dict[str, datetime]()
    for ended, engine in sorted((at + timedelta(seconds=seconds), engine) for engine, at, seconds in failures):
        if not engine or engine not in last or ended >= last[engine] + BURST:
            n, last[engine] = n + 1, ended
    return n


# --- acting -----------------------------------------------------------------------------------------------------------
def judge(now: datetime) -> None:
    """Ends every trial that goes badly; see above. Five queries for each alias that has one, else one."""
    for row in Deployment.objects.select_related("adapter", "previous", "canary"):
        try:
            _judge_canary(row)
            _judge_publication(row, now)
        except (adapters.AliasMoved, adapters.NoCanary, adapters.NothingToRollBack) as error:
            log.info("“%s”: %s", row.alias, error)  # a person was faster
        except (EngineDown, EngineError) as error:
            log.error("“%s” could not be rolled back: %s", row.alias, error)  # asked again in 15 seconds


def _judge_canary(row: Deployment) -> None:
    if row.canary is None:
        return
    started = _last(row, (Kind.CANARY_STARTED, Kind.CANARY_CHANGED, *DeploymentEvent.MOVES))
    if started is None:
        return
    new, old = tally(row.canary, started.at), tally(row.adapter, started.at)
    if is_worse(new, old):
        log.error("%s is on trial no more: %s", row.canary, new)
        adapters.stop_canary(
            row.alias, reason=_reason(row.canary, new, row.adapter, old), expected_generation=row.generation
        )


def _judge_publication(row: Deployment, now: datetime) -> None:
    """After a rollback there is no probation: two versions that fail must not take turns."""
    if row.previous is None:
        return
    moved = _last(row, DeploymentEvent.MOVES)
    if moved is None or moved.kind == Kind.ROLLED_BACK or moved.at < now - PROBATION:
        return
    new, old = tally(row.adapter, moved.at), tally(row.previous, moved.at - LOOKBACK, moved.at)
    if is_worse(new, old):
        log.error("%s answers no more: %s", row.adapter, new)
        adapters.rollback(
            row.alias, reason=_reason(row.adapter, new, row.previous, old), expected_generation=row.generation
        )


def _last(row: Deployment, kinds: tuple[Kind, ...]) -> DeploymentEvent | None:
    """None only where a row was restored without its history: what is not known is not judged."""
    return DeploymentEvent.objects.filter(alias=row.alias, kind__in=kinds).order_by("-generation").first()


def _reason(bad: Adapter, new: Tally, good: Adapter, old: Tally) -> str:
    return _("By itself: with %(bad)s %(new)s, with %(good)s %(old)s.") % {
        "bad": bad,
        "new": new,
        "good": good,
        "old": old,
    }
