"""Where a judgment went and what a version came from, as a page. Address and staff as in training.views."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from django.contrib.auth.decorators import permission_required
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET

from labeling.models import Judgment
from serving.models import Adapter
from training import lineage
from training.models import RewardModel, Run, Snapshot
from training.views import page

Lists = dict[str, Page[Any]]


def of_judgment(row: Judgment, pages: lineage.Pages) -> Lists:
    down = lineage.downstream(Judgment.objects.filter(pk=row.pk), pages)
    return {"judgments": _one([row]), **_lists(down)}


def of_snapshot(row: Snapshot, pages: lineage.Pages) -> Lists:
    return {
        "judgments": lineage.judgments_in(row, pages.judgments),
        **_lists(lineage.downstream_of_snapshot(row, pages)),
    }


def of_run(row: Run, pages: lineage.Pages) -> Lists:
    """Its own snapshot and version; what it goes on from is on the version's page."""
    snapshots = [row.snapshot] if row.snapshot else []
    retracted = lineage.count_retracted(snapshots)
    return {
        "judgments": lineage.judgments_in(row.snapshot, pages.judgments) if row.snapshot else _one([]),
        "snapshots": _one([lineage.Held(one, one.counts.get("judgments", 0), retracted[one.pk]) for one in snapshots]),
        "runs": _one([lineage.Trained(row, False)]),
        "versions": _one(lineage.versions([row.adapter] if row.adapter else [])),
        "reward_models": _one(list(RewardModel.objects.filter(run=row).select_related("campaign", "run"))),
    }


def of_version(row: Adapter, pages: lineage.Pages) -> Lists:
    up = lineage.upstream(row, pages)
    feedback = lineage.judgments_on(row, pages.feedback)
    chain: Lists = {"judgments": up.judgments, "snapshots": up.snapshots, "runs": up.runs, "versions": up.versions}
    return {**chain, "feedback": feedback}


@dataclass(frozen=True)
class Kind:
    model: type[Model]
    permission: str
    words: Any
    find: Callable[[Any, lineage.Pages], Lists]


KINDS = {
    "judgment": Kind(Judgment, "labeling.view_judgment", gettext_lazy("judgment"), of_judgment),
    "snapshot": Kind(Snapshot, "training.view_snapshot", gettext_lazy("snapshot"), of_snapshot),
    "run": Kind(Run, "training.view_run", gettext_lazy("run"), of_run),
    "version": Kind(Adapter, "serving.view_adapter", gettext_lazy("version"), of_version),
}


LISTS = [one.name for one in fields(lineage.Pages)]


@require_GET
@permission_required("training.view_run", raise_exception=True)
def lineage_detail(request: HttpRequest, kind: str, pk: int) -> HttpResponse:
    """The chain through one row, from judgments to feedback. Judgments are listed for those who may view them."""
    if kind not in KINDS:
        raise Http404
    of = KINDS[kind]
    if not request.user.has_perm(of.permission):
        raise PermissionDenied
    row = get_object_or_404(of.model._default_manager, pk=pk)
    lists = of.find(row, asked_pages(request))
    said = lineage.feedback(version.adapter for version in lists["versions"])
    context = {
        "kind": kind,
        "row": row,
        "name": _name(of, row),
        "lists": lists,
        "said": [(version.adapter, said[version.adapter.pk]) for version in lists["versions"]],
        "authors": lineage.written_by(row) if isinstance(row, Judgment) else [],
        "can_view_reward_models": request.user.has_perm("training.view_rewardmodel"),
        "can_view_judgments": request.user.has_perm("labeling.view_judgment"),
        "title": _("Lineage of %s") % _name(of, row),
    }
    return page(request, "training/lineage.html", context)


def asked_pages(request: HttpRequest) -> lineage.Pages:
    """Which page of each list the address asks for, by the list's name."""
    return lineage.Pages(**{name: _page_of(request, name) for name in LISTS})


def _lists(found: lineage.Downstream) -> Lists:
    return {
        "snapshots": found.snapshots,
        "runs": found.runs,
        "versions": found.versions,
        "reward_models": found.reward_models,
    }


def _one(rows: list[Any]) -> Page[Any]:
    """All of a short list as a page."""
    return Paginator(rows, max(len(rows), 1)).page(1)


def _name(of: Kind, row: Model) -> str:
    names = {Judgment: f"{of.words} {row.pk}", Snapshot: f"{of.words} {getattr(row, 'sha256', '')[:12]}"}
    return names.get(type(row)) or str(row)


def _page_of(request: HttpRequest, name: str) -> int:
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 1
