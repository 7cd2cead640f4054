"""Reward models and scoring jobs in the admin: to be looked at, to say which is used, to stop one."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import action, display

from labeling import access
from serving.deployment_admin import ReadOnlyAdmin, ReasonForm
from training import gates, reward_models, scorings
from training.models import RewardModel, Scoring

SCORING_COLOURS = {
    Scoring.Status.RUNNING: "info",
    Scoring.Status.SUCCEEDED: "success",
    Scoring.Status.FAILED: "danger",
    Scoring.Status.CANCELLED: "warning",
}


class TrainerAdmin(ReadOnlyAdmin):
    """Rows that are looked at; who may change runs may act on them."""

    def has_act_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return request.user.is_active and request.user.has_perm("training.change_run")


class RewardModelAdmin(TrainerAdmin):
    list_display = ("name", "campaign", "shown_use", "verdict", "shown_calibration", "created_at")
    list_filter = ("campaign", "is_active", "is_passed")
    list_select_related = ("campaign", "run")
    search_fields = ("campaign__name", "sha256")
    actions_row = ("use",)
    actions_detail = ("use",)
    readonly_fields = ("shown_run", "shown_calibration", "shown_likelihood", "shown_lengths", "shown_ties")
    fields = (
        "campaign", "shown_run", "is_active", "is_passed", "verdict", "shown_calibration", "shown_likelihood",
        "shown_lengths", "shown_ties", "sha256", "base_sha256", "created_at",
    )  # fmt: skip

    @display(description=_("reward model"), ordering="id")
    def name(self, row: RewardModel) -> str:
        return str(row)

    @display(description=_("in use"), label={True: "success", False: "info"})
    def shown_use(self, row: RewardModel) -> tuple[bool, str]:
        return row.is_active, gettext("in use") if row.is_active else gettext("not used")

    @display(description=_("run"))
    def shown_run(self, row: RewardModel) -> SafeString:
        return format_html('<a href="{}">{}</a>', reverse("admin:training_run_change", args=[row.run_id]), row.run)

    @display(description=_("calibration error, before and after its temperature"))
    def shown_calibration(self, row: RewardModel) -> str:
        before, after = _figure(row, "before", "ece"), _figure(row, "after", "ece")
        temperature = row.figures.get("temperature")
        if before is None or after is None or not isinstance(temperature, int | float):
            return "–"
        return f"{before:.1%} → {after:.1%} (T = {temperature:.2f})"

    @display(description=_("Brier score and nats per held-out pair"))
    def shown_likelihood(self, row: RewardModel) -> str:
        brier, nll = _figure(row, "after", "brier"), _figure(row, "after", "nll")
        return "–" if brier is None or nll is None else f"{brier:.3f}, {nll:.3f}"

    @display(description=_("accuracy by length of the longer response, in characters"))
    def shown_lengths(self, row: RewardModel) -> str:
        buckets = [one for one in _calibration(row).get("by_length", []) if one.get("n")]
        return "; ".join(f"{_span(one)}: {one['accuracy']:.1%} ({one['n']})" for one in buckets) or "–"

    @display(description=_("ties among held-out votes: said, foretold"))
    def shown_ties(self, row: RewardModel) -> str:
        ties = row.figures.get("ties") or {}
        said, foretold = ties.get("observed"), ties.get("predicted")
        return "–" if said is None or foretold is None else f"{said:.1%}, {foretold:.1%}"

    @action(description=_("Use this one…"), url_path="use", permissions=["act"])
    def use(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks for a reason, which only a doubtful one needs; POST acts, and goes to its page."""
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404
        doubt = reward_models.doubt(row)
        form = ReasonForm(request.POST if request.method == "POST" else None)
        form.fields["reason"].required = bool(doubt)
        if form.is_valid():
            _use(request, row, form.cleaned_data["reason"])
            return redirect("admin:training_rewardmodel_change", row.pk)
        context = {**self.admin_site.each_context(request), "title": gettext("Use %s") % row, "row": row}
        return TemplateResponse(request, "training/use_reward_model.html", {**context, "doubt": doubt, "form": form})


def _use(request: HttpRequest, row: RewardModel, reason: str) -> None:
    try:
        reward_models.use(row, access.person(request), reason)
    except (reward_models.NotUsable, gates.ReasonWanted) as error:
        messages.error(request, str(error))
    else:
        said = gettext("“%(campaign)s” uses %(name)s from now on.") % {"campaign": row.campaign, "name": row}
        messages.success(request, said)


class ScoringAdmin(TrainerAdmin):
    list_display = ("reward_model", "shown_status", "n_responses", "attempt", "error", "created_at", "finished_at")
    list_filter = ("status", "reward_model__campaign")
    list_select_related = ("reward_model",)
    actions = ("cancel",)

    @display(description=_("status"), ordering="status", label=SCORING_COLOURS)
    def shown_status(self, row: Scoring) -> tuple[str, str]:
        return row.status, row.get_status_display()

    @admin.action(description=_("Cancel"), permissions=["act"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Scoring]) -> None:
        for row in chosen:
            scorings.request_cancel(row)
        messages.success(request, gettext("They stop within seconds."))


def _calibration(row: RewardModel) -> dict[str, Any]:
    found = row.figures.get("calibration")
    return found if isinstance(found, dict) else {}


def _figure(row: RewardModel, when: str, name: str) -> float | None:
    value = (_calibration(row).get(when) or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _span(bucket: dict[str, Any]) -> str:
    return f"{bucket['from']}–{bucket['to']}" if bucket["to"] else f"{bucket['from']}+"
