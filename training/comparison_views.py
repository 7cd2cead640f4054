"""Runs beside each other. Address and staff as in training.views."""

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from training import comparison, dashboard
from training.comparison import FEWEST, MOST
from training.models import Run
from training.views import page

N_OFFERED = 50


@require_GET
@permission_required("training.view_run", raise_exception=True)
def run_compare(request: HttpRequest) -> HttpResponse:
    """`?run=` of two to six runs, oldest first whatever their order; back to the list when they are fewer or more."""
    wanted = {
        int(text) for text in request.GET.getlist("run") if text.isascii() and text.isdecimal() and len(text) < 10
    }
    rows = dashboard.recent_runs().select_related("snapshot", "incumbent")
    found = list(rows.filter(pk__in=wanted).order_by("pk")[: MOST + 1])
    if not FEWEST <= len(found) <= MOST:
        messages.error(request, _("Choose %(few)d to %(most)d runs to compare.") % {"few": FEWEST, "most": MOST})
        return redirect("admin:training_run_changelist")
    context = {
        "runs": found,
        "made_with": comparison.made_with(found),
        "results": comparison.results(found),
        "samples": comparison.samples(found),
        "others": Run.objects.exclude(pk__in=wanted).select_related("campaign")[:N_OFFERED]
        if len(found) < MOST
        else [],
        "title": _("Compare runs"),
    }
    return page(request, "training/run_compare.html", context)
