"""Where judgments went, and what a version came from: judgment → snapshot → run → version → alias → feedback, both ways.
A run may leave a reward model in the place of a version; nothing goes on from that.

Pure queries. Every function takes a fixed number of them, whatever the number of rows, and returns pages. A run that
continues its incumbent also learned from all that the incumbent had learned from, so both directions follow that link.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery

from labeling import judgments
from labeling.models import Judgment, Response
from serving.models import Adapter, DeploymentEvent, Message
from training.models import RewardModel, Run, Snapshot

PER_PAGE = 25
CHUNK = 5_000
Verdict = Judgment.Verdict
# By verdict, what it counts as of each response.
COUNTED = {Verdict.TIE: "n_ties", Verdict.BOTH_BAD: "n_both_bad", Verdict.GOOD: "n_good", Verdict.BAD: "n_bad"}


@dataclass(frozen=True)
class Pages:
    """Which page of each list is wanted, from 1; a number that is too high shows the last."""

    judgments: int = 1
    snapshots: int = 1
    runs: int = 1
    versions: int = 1
    reward_models: int = 1
    feedback: int = 1


FIRST_PAGES = Pages()


@dataclass(frozen=True)
class Held:
    """A snapshot, how many judgments it holds, and how many of those were taken back since it was made."""

    snapshot: Snapshot
    n_judgments: int
    n_retracted: int


@dataclass(frozen=True)
class Trained:
    """A run (with campaign, snapshot, adapter and evaluation), and whether it learned only by continuing its incumbent."""

    run: Run
    is_inherited: bool


@dataclass(frozen=True)
class Stay:
    """One time that an alias pointed at a version; `until` is None while it does."""

    event: DeploymentEvent
    until: datetime | None

    @property
    def is_current(self) -> bool:
        return self.until is None


@dataclass
class Feedback:
    """What people said of the responses that a version wrote: judgments in force, and thumbs in chat."""

    n_responses: int = 0
    n_preferred: int = 0  # ranked first, or level with the first, where not all are level
    n_beaten: int = 0
    n_ties: int = 0
    n_both_bad: int = 0
    n_good: int = 0
    n_bad: int = 0
    n_answers: int = 0  # in chat
    n_thumbs_up: int = 0
    n_thumbs_down: int = 0

    @property
    def n_judgments(self) -> int:
        return self.n_preferred + self.n_beaten + self.n_ties + self.n_both_bad + self.n_good + self.n_bad


@dataclass(frozen=True)
class Version:
    """An adapter, and every time that an alias pointed at it, newest first."""

    adapter: Adapter
    stays: list[Stay] = field(default_factory=list)

    @property
    def is_deployed(self) -> bool:
        return any(stay.is_current for stay in self.stays)


@dataclass(frozen=True)
class Downstream:
    """All that learned from some judgments: pages of Held, Trained, Version and RewardModel, newest first; before them the
    versions that an alias points at and the reward models that are in use.
    """

    snapshots: Page[Held]
    runs: Page[Trained]
    versions: Page[Version]
    reward_models: Page[RewardModel]


@dataclass(frozen=True)
class Upstream:
    """What a version came from: pages of Version (itself, and those that it goes on from), Trained, Held and Judgment."""

    versions: Page[Version]
    runs: Page[Trained]
    snapshots: Page[Held]
    judgments: Page[Judgment]


def downstream(said: QuerySet[Judgment], pages: Pages = FIRST_PAGES) -> Downstream:
    """Where judgments went: those of one (`Judgment.objects.filter(pk=…)`), of a person, of a retraction."""
    return _down(_holding(said), pages)


def downstream_of_snapshot(snapshot: Snapshot, pages: Pages = FIRST_PAGES) -> Downstream:
    return _down(Snapshot.objects.filter(pk=snapshot.pk), pages)


def upstream(adapter: Adapter, pages: Pages = FIRST_PAGES) -> Upstream:
    """What a version learned from; of the base, nothing. Of a response: `upstream(response.adapter)`."""
    ancestors = _ancestors(adapter)
    runs = Run.objects.filter(adapter__in=ancestors)
    snapshots = Snapshot.objects.filter(Exists(runs.filter(snapshot=OuterRef("pk"))))
    own = set(adapter.runs.values_list("pk", flat=True))
    return Upstream(
        versions=_versions(Adapter.objects.filter(pk__in=ancestors), pages.versions),
        runs=_trained(runs, own, pages.runs),
        snapshots=_held(snapshots, pages.snapshots),
        judgments=_judgments(_held_by(snapshots), pages.judgments),
    )


def judgments_in(snapshot: Snapshot, number: int = 1) -> Page[Judgment]:
    """A page of what a snapshot holds, with comparison, prompt, annotator and, where it was taken back, by which row."""
    return _judgments(_held_by(Snapshot.objects.filter(pk=snapshot.pk)), number)


def judgments_on(adapter: Adapter, number: int = 1) -> Page[Judgment]:
    """A page of the judgments in force on responses that this version wrote, newest first."""
    written = Response.objects.filter(adapter=adapter, items__comparison=OuterRef("comparison"))
    return _judgments(judgments.in_force().filter(Exists(written)), number)


def written_by(judgment: Judgment) -> list[Adapter]:
    """The versions that wrote the responses that it is about, oldest first: the way from feedback to a version."""
    return list(Adapter.objects.filter(responses__items__comparison=judgment.comparison_id).distinct().order_by("pk"))


def versions(adapters: Iterable[Adapter]) -> list[Version]:
    """Each with its stays, in one query for all of them."""
    adapters = list(adapters)
    stays = _stays(adapters)
    return [Version(adapter, stays[adapter.pk]) for adapter in adapters]


def runs_that_learned(snapshots: QuerySet[Snapshot]) -> tuple[set[int], set[int]]:
    """Ids of the runs on these snapshots, and of the runs that go on from what those made. Two queries."""
    direct = dict(Run.objects.filter(snapshot__in=snapshots).values_list("pk", "adapter"))
    children: dict[int, list[tuple[int, int | None]]] = defaultdict(list)
    for run, incumbent, adapter in _continuing():
        children[incumbent].append((run, adapter))
    inherited: set[int] = set()
    waiting = [adapter for adapter in direct.values() if adapter]
    while waiting:
        for run, adapter in children.pop(waiting.pop(), ()):
            inherited.add(run)
            waiting += [adapter] if adapter else []
    return set(direct), inherited - set(direct)


def _continuing() -> QuerySet[Run, Any]:
    """(run, incumbent, adapter) of the runs that began with the incumbent's weights. (One of the base began with none.)"""
    runs = Run.objects.filter(params__start="incumbent", incumbent__is_base=False)
    return runs.order_by().values_list("pk", "incumbent", "adapter")


def _ancestors(adapter: Adapter) -> set[int]:
    """The version and those that it goes on from, through any number of runs. One query."""
    parents: dict[int, set[int]] = defaultdict(set)
    for _run, incumbent, made in _continuing():
        if made:
            parents[made].add(incumbent)
    found, waiting = {adapter.pk}, [adapter.pk]
    while waiting:
        new = parents[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _holding(said: QuerySet[Judgment]) -> QuerySet[Snapshot]:
    links = Snapshot.judgments.through.objects.filter(judgment__in=said.order_by().values("pk"))
    return Snapshot.objects.filter(pk__in=links.values("snapshot"))


def _held_by(snapshots: QuerySet[Snapshot]) -> QuerySet[Judgment]:
    links = Snapshot.judgments.through.objects.filter(snapshot__in=snapshots.order_by().values("pk"))
    return Judgment.objects.filter(pk__in=links.values("judgment"))


def _down(snapshots: QuerySet[Snapshot], pages: Pages) -> Downstream:
    direct, inherited = runs_that_learned(snapshots.order_by())
    runs = Run.objects.filter(pk__in=direct | inherited)
    made = Adapter.objects.filter(Exists(runs.filter(adapter=OuterRef("pk"))))
    return Downstream(
        snapshots=_held(snapshots, pages.snapshots),
        runs=_trained(runs, direct, pages.runs),
        versions=_versions(made, pages.versions),
        reward_models=_reward_models(RewardModel.objects.filter(run__in=runs), pages.reward_models),
    )


def _page(rows: QuerySet[Any], number: int, show: Callable[[list[Any]], list[Any]]) -> Page[Any]:
    """A page of `rows`, each shown as what `show` makes of it. Two queries, and those of `show`."""
    page = Paginator(rows, PER_PAGE).get_page(number)
    page.object_list = show(list(page.object_list))
    return page


def _held(snapshots: QuerySet[Snapshot], number: int) -> Page[Held]:
    def show(rows: list[Snapshot]) -> list[Held]:
        n_retracted = count_retracted(rows)
        return [Held(row, row.counts.get("judgments", 0), n_retracted[row.pk]) for row in rows]

    return _page(snapshots.select_related("campaign").order_by("-pk"), number, show)


def count_retracted(snapshots: Iterable[Snapshot]) -> dict[int, int]:
    """Snapshot id → how many of its judgments were taken back since. One query, from the few that were."""
    ids = [snapshot.pk for snapshot in snapshots]
    links = Snapshot.judgments.through.objects.filter(
        snapshot__in=ids, judgment__in=Judgment.objects.filter(verdict=Verdict.RETRACTED).values("supersedes")
    )
    counted = dict(links.values_list("snapshot").annotate(n=Count("pk")).order_by())
    return {pk: counted.get(pk, 0) for pk in ids}


def holds_retracted(snapshot: Snapshot) -> bool:
    """Whether any of its judgments was taken back since it was made."""
    return count_retracted([snapshot])[snapshot.pk] > 0


def learned_retracted(adapter: Adapter) -> bool:
    """Whether the version, or one that it goes on from, learned from a judgment that was taken back since."""
    if adapter.is_base:
        return False
    snapshots = Snapshot.objects.filter(
        Exists(Run.objects.filter(snapshot=OuterRef("pk"), adapter__in=_ancestors(adapter)))
    )
    return any(count_retracted(snapshots).values())


def _trained(runs: QuerySet[Run], direct: set[int], number: int) -> Page[Trained]:
    rows = runs.select_related("campaign", "snapshot", "adapter", "evaluation", "reward_model", "incumbent")
    rows = rows.defer("evaluation__evidence", "reward_model__evidence", "reward_model__figures").order_by("-pk")
    return _page(rows, number, lambda found: [Trained(run, run.pk not in direct) for run in found])


def _versions(adapters: QuerySet[Adapter], number: int) -> Page[Version]:
    now = _moves().filter(~Exists(_later()), adapter=OuterRef("pk"))
    return _page(adapters.alias(is_now=Exists(now)).order_by("-is_now", "-pk"), number, versions)


def _reward_models(rows: QuerySet[RewardModel], number: int) -> Page[RewardModel]:
    rows = rows.select_related("campaign", "run").defer("evidence", "figures").order_by("-is_active", "-pk")
    return _page(rows, number, lambda found: found)


def _judgments(said: QuerySet[Judgment], number: int) -> Page[Judgment]:
    rows = said.select_related("comparison__prompt", "comparison__campaign", "annotator", "superseded_by")
    return _page(rows.order_by("-pk"), number, lambda found: found)


def _stays(adapters: list[Adapter]) -> dict[int, list[Stay]]:
    """A move, or the alias's end, ends the stay before it on the same alias."""
    until = Subquery(_later().order_by("generation").values("at")[:1])
    events = _moves().filter(adapter__in=adapters).select_related("actor").annotate(until=until)
    stays: dict[int, list[Stay]] = defaultdict(list)
    for event in events.order_by("-at", "-pk"):
        stays[event.adapter_id].append(Stay(event, event.until))
    return stays


def _moves() -> QuerySet[DeploymentEvent]:
    """What made an alias point at a version: no trial as a canary, no loading."""
    return DeploymentEvent.objects.filter(kind__in=DeploymentEvent.MOVES)


def _later() -> QuerySet[DeploymentEvent]:
    ends = DeploymentEvent.objects.filter(kind__in=DeploymentEvent.ENDS)
    return ends.filter(alias=OuterRef("alias"), generation__gt=OuterRef("generation"))


def feedback(adapters: Iterable[Adapter]) -> dict[int, Feedback]:
    """Adapter id → what people said. Four queries, and one pass over the preferences: ranks lie in JSON, which each database
    reads in its own way, so these are read here, as a stream.
    """
    found: dict[int, Feedback] = {adapter.pk: Feedback() for adapter in adapters}
    for pk, n in Response.objects.filter(adapter__in=found).values_list("adapter").annotate(n=Count("pk")).order_by():
        found[pk].n_responses = n
    said = judgments.in_force().filter(comparison__items__response__adapter__in=found).order_by()
    by, response = "comparison__items__response__adapter", "comparison__items__response"
    for pk, verdict, n in said.values_list(by, "verdict").annotate(n=Count("pk")):
        if name := COUNTED.get(verdict):
            setattr(found[pk], name, n)
    preferences = said.filter(verdict=Verdict.PREFERENCE).values_list(by, response, "ranks")
    for pk, written, ranks in preferences.iterator(CHUNK):
        _rank(found[pk], ranks, str(written))
    answers = Message.objects.filter(adapter__in=found, role=Message.Role.ASSISTANT).order_by()
    up, down = Count("pk", filter=Q(rating=1)), Count("pk", filter=Q(rating=-1))
    for pk, *counted in answers.values_list("adapter").annotate(Count("pk"), up=up, down=down):
        found[pk].n_answers, found[pk].n_thumbs_up, found[pk].n_thumbs_down = counted
    return found


def _rank(feedback: Feedback, ranks: dict[str, int], response: str) -> None:
    if response in ranks:
        is_best = ranks[response] == min(ranks.values())
        feedback.n_preferred += is_best
        feedback.n_beaten += not is_best
