"""The admin of training: runs and their pages, policies, snapshots; and beat's schedules in the same look."""

from dataclasses import fields
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django_celery_beat.admin import PeriodicTaskAdmin as BeatPeriodicTaskAdmin
from django_celery_beat.admin import PeriodicTaskForm, TaskSelectWidget
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from serving.deployment_admin import ReadOnlyAdmin
from training import comparison, comparison_views, dashboard, figures_views, lineage_views, policies, report, views
from training.forms import PolicyForm
from training.lineage import count_retracted
from training.models import Policy, RewardModel, Run, Scoring, Snapshot
from training.reward_admin import RewardModelAdmin, ScoringAdmin
from training.rules import Rules

STATUS_COLOURS = {
    Run.Status.QUEUED: "info",
    Run.Status.RUNNING: "info",
    Run.Status.SUCCEEDED: "success",
    Run.Status.FAILED: "danger",
    Run.Status.CANCELLED: "warning",
}


class TagFilter(admin.SimpleListFilter):
    """Runs that have a tag. Tags lie in JSON, which each database searches in its own way: they are read here."""

    title = _("tag")
    parameter_name = "tag"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(tag, tag) for tag in sorted({tag for _pk, tags in self._tagged() for tag in tags})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Run]) -> QuerySet[Run]:
        if not self.value():
            return queryset
        return queryset.filter(pk__in=[pk for pk, tags in self._tagged() if self.value() in tags])

    @staticmethod
    def _tagged() -> QuerySet[Run, tuple[int, list[str]]]:
        return Run.objects.exclude(tags=[]).order_by().values_list("pk", "tags")


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    """Only the pages below write a run, each with its own check: the admin's form would write any column."""

    list_display = ("name", "campaign", "method", "shown_status", "verdict", "adapter", "shown_tags", "created_at")
    list_filter = ("status", TagFilter, "campaign", "method", "trigger")
    list_per_page = 50
    search_fields = ("campaign__name", "adapter__name", "error", "notes")
    actions = ("compare",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        rows = super().get_queryset(request).select_related("campaign", "adapter", "evaluation", "reward_model")
        return rows.defer(*dashboard.EVIDENCE)

    @admin.action(description=_("Compare"), permissions=["view"])
    def compare(self, request: HttpRequest, runs: QuerySet[Run]) -> HttpResponse | None:
        """Two to six of them, side by side."""
        ids = list(runs.values_list("pk", flat=True)[: comparison.MOST + 1])
        query = urlencode([("run", pk) for pk in ids])
        return redirect(f"{reverse('admin:training_run_compare')}?{query}")

    @display(description=_("run"), ordering="id")
    def name(self, run: Run) -> str:
        return str(run)

    @display(description=_("status"), ordering="status", label=STATUS_COLOURS)
    def shown_status(self, run: Run) -> tuple[str, str]:
        return run.status, run.get_status_display()

    @display(description=_("tags"))
    def shown_tags(self, run: Run) -> str:
        return ", ".join(run.tags) or "–"

    @display(description=_("verdict"))
    def verdict(self, run: Run) -> str:
        return report.verdict(run) or "–"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return ModelAdmin.has_add_permission(self, request)  # `add/` is a page of our own

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        own = [
            path("rollback/", wrap(views.deployment_rollback), name="training_run_rollback"),
            path("<int:run_id>/live.json", wrap(figures_views.run_live), name="training_run_live"),
            path("<int:run_id>/events/", wrap(figures_views.run_events), name="training_run_events"),
            path("<int:run_id>/curves.json", wrap(figures_views.run_curves), name="training_run_curves"),
            *(
                path(
                    f"<int:run_id>/metrics.{kind}",
                    wrap(figures_views.run_metrics),
                    {"kind": kind},
                    name=f"training_run_{kind}",
                )
                for kind in figures_views.FILES
            ),
            path("compare/", wrap(comparison_views.run_compare), name="training_run_compare"),
            path("estimate/", wrap(views.run_estimate), name="training_run_estimate"),
            path("lineage/<slug:kind>/<int:pk>/", wrap(lineage_views.lineage_detail), name="training_lineage"),
            path("<int:run_id>/annotate/", wrap(views.run_annotate), name="training_run_annotate"),
            path("<int:run_id>/cancel/", wrap(views.run_cancel), name="training_run_cancel"),
            path("<int:run_id>/retry/", wrap(views.run_retry), name="training_run_retry"),
            path("<int:run_id>/publish/", wrap(views.run_publish), name="training_run_publish"),
            # Same addresses and names as the admin's own; these come first.
            path("add/", wrap(views.run_start), name="training_run_add"),
            path("<int:run_id>/change/", wrap(views.run_detail), name="training_run_change"),
        ]
        return [*own, *super().get_urls()]


@admin.register(Policy)
class PolicyAdmin(ModelAdmin):
    form = PolicyForm
    list_display = ("campaign", "is_enabled", "every_n", "crontab", "method", "publishes")
    list_select_related = ("campaign", "crontab")
    fieldsets = (
        (None, {"fields": ("campaign", "is_enabled")}),
        (_("When it trains"), {"fields": ("every_n", "crontab")}),
        (_("How it trains"), {"fields": ("method", "params")}),
        (_("What follows"), {"fields": ("publishes", "min_heldout_pairs")}),
        (_("What the gate asks"), {"fields": tuple(rule.name for rule in fields(Rules)), "classes": ("collapse",)}),
    )

    def save_model(self, request: HttpRequest, obj: Policy, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        policies.schedule(obj)

    def delete_model(self, request: HttpRequest, obj: Policy) -> None:
        policies.unschedule(obj)
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Policy]) -> None:
        for policy in queryset:
            policies.unschedule(policy)
        super().delete_queryset(request, queryset)


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnlyAdmin):
    list_display = ("short_hash", "campaign", "shown_counts", "created_at")
    list_filter = ("campaign",)
    fields = ("campaign", "sha256", "lineage", "shown_counts", "n_retracted", "counts", "created_at")
    readonly_fields = ("shown_counts", "n_retracted", "lineage")

    @display(description="sha256", ordering="sha256")
    def short_hash(self, snapshot: Snapshot) -> SafeString:
        return format_html("<code>{}</code>", snapshot.sha256[:12])

    @display(description=_("lineage"))
    def lineage(self, snapshot: Snapshot) -> SafeString:
        address = reverse("admin:training_lineage", args=["snapshot", snapshot.pk])
        return format_html('<a href="{}">{}</a>', address, _("its judgments, runs and versions"))

    @display(description=_("pairs: train + held out, of judgments"))
    def shown_counts(self, snapshot: Snapshot) -> str:
        return "{train} + {heldout}, {judgments}".format(**snapshot.counts)

    @display(description=_("judgments retracted since"))
    def n_retracted(self, snapshot: Snapshot) -> int:
        return count_retracted([snapshot])[snapshot.pk]


admin.site.register(RewardModel, RewardModelAdmin)
admin.site.register(Scoring, ScoringAdmin)


class UnfoldTaskSelectWidget(UnfoldAdminSelectWidget, TaskSelectWidget):
    """Beat's list of registered tasks in unfold's look."""


class UnfoldPeriodicTaskForm(PeriodicTaskForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = UnfoldTaskSelectWidget()


for model in (PeriodicTask, IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule):
    admin.site.unregister(model)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(BeatPeriodicTaskAdmin, ModelAdmin):
    form = UnfoldPeriodicTaskForm


@admin.register(CrontabSchedule)
class CrontabScheduleAdmin(ModelAdmin):
    list_display = ("__str__", "human_readable")


@admin.register(IntervalSchedule)
class IntervalScheduleAdmin(ModelAdmin):
    pass
