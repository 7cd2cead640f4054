"""The audit log: who did what with a version, when and why. The only writer of DeploymentEvent; nothing changes a row."""

from django.contrib.auth.models import User
from django.db.models import Max

from serving.models import Adapter, DeploymentEvent

Kind = DeploymentEvent.Kind


def record_alias(
    alias: str,
    generation: int,
    kind: Kind,
    adapter: Adapter,
    *,
    previous: Adapter | None = None,
    share: float | None = None,
    actor: User | None = None,
    reason: str = "",
) -> DeploymentEvent:
    """What was done to an alias. Raises IntegrityError when its generation has an event already."""
    return DeploymentEvent.objects.create(
        alias=alias,
        generation=generation,
        kind=kind,
        adapter=adapter,
        previous=previous,
        share=share,
        actor=actor,
        reason=reason,
    )


def record_engine(adapter: Adapter, kind: Kind, engine: str, *, actor: User | None = None, reason: str = "") -> None:
    """What happened to a version on one engine, by its URL. What the log's last line says already is not said again: a
    load that fails every 15 seconds is one event.
    """
    last = DeploymentEvent.objects.filter(adapter=adapter, engine=engine[:200]).first()
    if last is None or (last.kind, last.reason) != (kind, reason):
        DeploymentEvent.objects.create(adapter=adapter, kind=kind, engine=engine[:200], actor=actor, reason=reason)


def last_generation(alias: str) -> int:
    """Of all aliases that ever had this name; 0: none did."""
    return DeploymentEvent.objects.filter(alias=alias).aggregate(last=Max("generation"))["last"] or 0


def verdicts(adapter: Adapter) -> dict[str, bool]:
    """By the URL of each engine that tested it: whether it passed there the last time. One query."""
    tests = DeploymentEvent.objects.filter(adapter=adapter, kind__in=(Kind.SELF_TEST_PASSED, Kind.SELF_TEST_FAILED))
    return {
        engine: kind == Kind.SELF_TEST_PASSED for engine, kind in tests.order_by("pk").values_list("engine", "kind")
    }
