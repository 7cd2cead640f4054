"""The versions that a chat can be answered by, each with what it is and, in plain words, what changed with it."""

from dataclasses import dataclass, field

from django.utils.translation import gettext as _

from serving import adapters
from serving.models import Adapter, Deployment

MAX_OPTIONS = 50  # the newest, and those that an alias names


@dataclass(frozen=True)
class Option:
    adapter: Adapter
    badges: list[tuple[str, str]] = field(default_factory=list)  # word, and kind of badge
    lines: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return label(self.adapter)


def label(adapter: Adapter) -> str:
    return _("base") if adapter.is_base else adapter.name


def options(deployment: Deployment) -> list[Option]:
    """Everything that can be asked by name: what the alias names first, then the newest."""
    named = {deployment.adapter_id: 0, deployment.canary_id: 1, deployment.previous_id: 2}
    servable = adapters.servable().prefetch_related("events")
    rows = list(servable[:MAX_OPTIONS])
    known = {row.pk for row in rows}
    rows += [row for row in servable.filter(pk__in=[pk for pk in named if pk]) if row.pk not in known]
    if (root := adapters.base()).pk not in {row.pk for row in rows}:
        rows.append(root)
    rows.sort(key=lambda row: (named.get(row.pk, 3), row.is_base, -row.pk))
    return [Option(row, badges(row, deployment), describe(row)) for row in rows]


def badges(adapter: Adapter, deployment: Deployment) -> list[tuple[str, str]]:
    """What it is by now, in words; several may hold at once."""
    found = []
    if adapter.pk == deployment.adapter_id:
        found.append((_("current"), "ok"))
    if adapter.pk == deployment.canary_id:
        found.append((_("on trial for %d %%") % round(deployment.canary_share * 100), "warn"))
    if adapter.pk == deployment.previous_id:
        found.append((_("previous"), ""))
    is_newer = adapter.pk > deployment.adapter_id and not adapter.is_base
    if is_newer and not found and not adapter.events.all():
        found.append((_("candidate"), "accent"))
    return found


def describe(adapter: Adapter) -> list[str]:
    """What changed with it, sentence by sentence; what is not known is left out."""
    if adapter.is_base:
        return [_("The model as it came, before it learned from anybody here.")]
    lines = adapter.notes.splitlines()
    if adapter.self_test.get("is_passed"):
        lines.append(_("Passed its checks on this server."))
    return lines
