"""What the deployments page shows: every alias with its versions and their figures, the engines, the last events."""

from dataclasses import dataclass

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import adapters, figures, fleet, trials
from serving.client import engines
from serving.figures import Figures
from serving.models import Adapter, Deployment, DeploymentEvent

N_EVENTS = 20


@dataclass(frozen=True)
class VersionRow:
    """A version that an alias has a use for."""

    adapter: Adapter
    role: str
    kind: str  # answers, canary or previous
    percent: float  # of conversations
    figures: Figures

    @property
    def is_failing(self) -> bool:
        return self.figures.failed_percent >= 100 * trials.FLOOR


@dataclass(frozen=True)
class AliasPanel:
    deployment: Deployment
    versions: list[VersionRow]


@dataclass(frozen=True)
class EngineRow:
    """A model server and the versions that are resident there; or why it says nothing."""

    url: str
    names: list[str]
    error: str
    missing: list[str]  # versions in use that it does not hold


def panels() -> list[AliasPanel]:
    """One for each alias, `current` among them even before anything was published. Raises InvalidAdapter."""
    adapters.deployment()
    rows = list(Deployment.objects.select_related("adapter", "previous", "canary").order_by("alias"))
    used = {adapter for row in rows for adapter in (row.adapter, row.previous, row.canary) if adapter}
    found = figures.last_hour(used, timezone.now())
    return [AliasPanel(row, _versions(row, found)) for row in rows]


def _versions(row: Deployment, found: dict[int, Figures]) -> list[VersionRow]:
    percent = 100 * row.canary_share if row.canary else 0.0
    shown = [
        (row.adapter, _("answers"), "answers", 100 - percent),
        (row.canary, _("on trial"), "canary", percent),
        (row.previous, _("before it"), "previous", 0.0),
    ]
    return [
        VersionRow(adapter, role, kind, percent, found.get(adapter.pk, Figures()))
        for adapter, role, kind, percent in shown
        if adapter
    ]


def engine_rows(shown: list[AliasPanel]) -> list[EngineRow]:
    """Asks every engine at once; one that is silent takes the client's own time limit."""
    used = {row.adapter.engine_name for panel in shown for row in panel.versions}
    answers, failures = fleet.ask_each(engines(), lambda engine: engine.models())
    held = [EngineRow(engine.url, names, "", sorted(used - set(names))) for engine, names in answers.items()]
    silent = [EngineRow(engine.url, [], fleet.in_words({engine: why}), []) for engine, why in failures.items()]
    return silent + held


def last_events() -> QuerySet[DeploymentEvent]:
    return DeploymentEvent.objects.select_related("adapter", "previous", "actor")[:N_EVENTS]
