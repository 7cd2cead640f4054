"""Pages by which managers bring files in and take data out."""

import uuid
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling import access, exchange, exports, exports_files, formats, judgments
from labeling.campaign_pages import frame
from labeling.errors import Invalid
from labeling.exchange_forms import ExportForm, StartForm, UploadForm
from labeling.models import Import

PER_PAGE = 50
N_SHOWN = 20  # imports in the list
DEFAULTS = {"kind": "preference", "format": "jsonl"}
PROBLEM_COLUMNS = ("line", "is_refused", "why", "excerpt")


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def campaign_import(request: HttpRequest, slug: str) -> HttpResponse:
    """The imports of a campaign, and the upload of a file. An upload leads to its preview."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    is_sent = request.method == "POST"
    form = UploadForm(
        request.POST if is_sent else None,
        request.FILES if is_sent else None,
        initial={"client_key": uuid.uuid4()},
    )
    if form.is_valid():
        data = form.cleaned_data
        try:
            row = exchange.upload(campaign, person, data["client_key"], data["file"], timezone.now())
            return redirect("import_detail", slug, row.pk)
        except Invalid as error:
            form.add_error("file", str(error))
    context = {
        **frame(person, campaign, "campaign_import"),
        "form": form,
        "imports": campaign.imports.select_related("created_by")[:N_SHOWN],
        "formats": formats.FORMATS.values(),
    }
    return render(request, "labeling/import.html", context, status=422 if form.errors else 200)


@require_safe
@login_required
@never_cache
def import_detail(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Before the start a preview, then progress (htmx asks for it alone), and at the end the report."""
    person = access.person(request)
    row = _import(person, slug, pk)
    context = {**frame(person, row.campaign, "campaign_import"), "row": row, "is_live": _is_live(row)}
    if _is_waiting_for_start(row):
        return render(request, "labeling/import_preview.html", {**context, **_preview(request, row)})
    context["page_obj"] = Paginator(row.problems.all(), PER_PAGE).get_page(request.GET.get("page"))
    context["known"] = formats.FORMATS.get(row.format)
    if "HX-Request" not in request.headers:
        return render(request, "labeling/import_detail.html", context)
    response = render(request, "labeling/_import_progress.html", context)
    if not context["is_live"]:
        response.headers["HX-Refresh"] = "true"  # it is over: now there is a report to show
    return response


def _import(person: User, slug: str, pk: int) -> Import:
    campaign = access.get_managed_campaign(person, slug)
    return get_object_or_404(campaign.imports.select_related("campaign", "created_by"), pk=pk)


def _is_waiting_for_start(row: Import) -> bool:
    return row.state == Import.State.WAITING and not row.options


def _is_live(row: Import) -> bool:
    return row.state in (Import.State.WAITING, Import.State.RUNNING)


def _preview(request: HttpRequest, row: Import) -> dict[str, Any]:
    chosen = request.GET.get("format", row.format)
    format = chosen if chosen in formats.FORMATS else row.format
    context: dict[str, Any] = {"form": StartForm(initial={"format": format}), "known": formats.FORMATS[format]}
    try:
        return {**context, "records": [_shown(item) for item in exchange.preview(row, format)]}
    except Invalid as error:
        return {**context, "unreadable": str(error)}


def _shown(item: formats.Record | formats.Refusal) -> dict[str, Any]:
    """A record as the preview shows it: each answer with its ranks in the order of the votes."""
    if isinstance(item, formats.Refusal):
        return {"refusal": item, "number": item.number}
    return {
        "number": item.number,
        "messages": item.messages,
        "answers": [
            {"text": answer.text, "generator": answer.generator, "ranks": [v.ranks[i] for v in item.votes if v.ranks]}
            for i, answer in enumerate(item.answers)
        ],
        "votes": item.votes,
        "warnings": exchange.warnings_of(item),
    }


@require_POST
@login_required
def import_start(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    row = _import(access.person(request), slug, pk)
    form = StartForm(request.POST)
    try:
        if not form.is_valid():
            raise Invalid(_("Choose one of the formats in the list."))
        exchange.start(row, form.cleaned_data["format"], form.cleaned_data["on_warning"])
    except Invalid as error:
        messages.error(request, str(error))
    return redirect("import_detail", slug, pk)


@require_POST
@login_required
def import_discard(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    row = _import(access.person(request), slug, pk)
    try:
        exchange.discard(row)
    except Invalid as error:
        messages.error(request, str(error))
        return redirect("import_detail", slug, pk)
    messages.success(request, _("The file was thrown away; nothing was imported."))
    return redirect("campaign_import", slug)


@require_safe
@login_required
@never_cache
def import_problems(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """What was refused or warned of, as a table to download: at most exchange.MAX_PROBLEMS short rows."""
    row = _import(access.person(request), slug, pk)
    table = exports_files.csv_table(iter([list(row.problems.values(*PROBLEM_COLUMNS))]), PROBLEM_COLUMNS)
    return HttpResponse(
        b"".join(table),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="import-{row.pk}-problems.csv"'},
    )


@require_safe
@login_required
@never_cache
def campaign_export(request: HttpRequest, slug: str) -> HttpResponse:
    """What can be taken out, and in which form; the button leads to `export_file`."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    context = {
        **frame(person, campaign, "campaign_export"),
        "form": ExportForm(),
        "kinds": exports.KINDS,
        "n_judgments": judgments.learnable().filter(comparison__campaign=campaign).count(),
    }
    return render(request, "labeling/export.html", context)


@require_safe
@login_required
@never_cache
def export_file(request: HttpRequest, slug: str) -> HttpResponseBase:
    """The file itself, made while it is sent: one batch is in memory at a time."""
    campaign = access.get_managed_campaign(access.person(request), slug)
    form = ExportForm({**DEFAULTS, **request.GET.dict()})
    if not form.is_valid():
        messages.error(request, _("There is no such export. Choose one of these."))
        return redirect("campaign_export", slug)
    name, data = form.cleaned_data["kind"], form.cleaned_data
    chunks, content_type = exports_files.write(exports.KINDS[name], data["format"], campaign, form.options())
    response = StreamingHttpResponse(exports_files.asynchronously(chunks), content_type=content_type)
    file = f"{campaign.slug}-{name}-{timezone.now():%Y-%m-%d}.{data['format']}"
    response.headers["Content-Disposition"] = f'attachment; filename="{file}"'
    return response
