"""The admin of serving: versions with publish. Deployments, keys and the request log have modules of their own."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import action, display

from serving import adapters, deployment_admin, request_admin
from serving.deployment_admin import ReadOnlyAdmin
from serving.models import Adapter, Deployment

__all__ = ["AdapterAdmin", "deployment_admin", "request_admin"]

N_EVENTS = 50
STATUS_COLOURS = {
    Adapter.Status.REGISTERED: "info",
    Adapter.Status.READY: "success",
    Adapter.Status.REJECTED: "danger",
}


@admin.register(Adapter)
class AdapterAdmin(ReadOnlyAdmin):
    list_display = ("name", "shown_status", "aliases", "lineage", "self_test_verdict", "created_at")
    list_filter = ("status", "is_base")
    search_fields = ("name", "notes", "sha256")
    readonly_fields = ("aliases", "lineage", "self_test_verdict", "history")
    fields = (
        "name", "status", "aliases", "lineage", "notes", "self_test_verdict", "history", "self_test", "error", "sha256",
        "base_sha256", "manifest", "wanted_until", "created_at",
    )  # fmt: skip
    actions_row = ("publish",)
    actions_detail = ("publish",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Adapter]:
        return super().get_queryset(request).prefetch_related("deployments")

    @display(description=_("status"), ordering="status", label=STATUS_COLOURS)
    def shown_status(self, adapter: Adapter) -> tuple[str, str]:
        return adapter.status, adapter.get_status_display()

    @display(description=_("alias"))
    def aliases(self, adapter: Adapter) -> str:
        return ", ".join(row.alias for row in adapter.deployments.all()) or "–"

    @display(description=_("made by"))
    def lineage(self, adapter: Adapter) -> str | SafeString:
        """The run that made it and the version that it continued, as its manifest has them."""
        # By address, not by import: runs and lineage belong to a package to the right.
        whole = format_html(
            '<a href="{}">{}</a>', reverse("admin:training_lineage", args=["version", adapter.pk]), _("lineage")
        )
        return format_html("{} · {}", self._origin(adapter), whole)

    @staticmethod
    def _origin(adapter: Adapter) -> str | SafeString:
        run, parent = adapter.manifest.get("run"), adapter.manifest.get("parent")
        if adapter.is_base:
            return str(_("the base model"))
        if type(run) is not int:
            return adapter.notes or "–"
        link = format_html('<a href="{}">{}</a>', reverse("admin:training_run_change", args=[run]), _("run %d") % run)
        return format_html(gettext("{} from {}"), link, parent) if parent else link

    @display(description=_("self-test"))
    def self_test_verdict(self, adapter: Adapter) -> str:
        return adapter.self_test.get("verdict", "") or adapter.error or "–"

    @display(description=_("history"))
    def history(self, adapter: Adapter) -> SafeString | str:
        """What was done with it, newest first."""
        rows = adapter.events.select_related("actor")[:N_EVENTS]
        return render_to_string("serving/admin/_history.html", {"events": rows}) if rows else "–"

    @action(description=_("Publish…"), url_path="publish", permissions=["publish"])
    def publish(self, request: HttpRequest, object_id: str) -> HttpResponse:
        adapter = deployment_admin.found(self, request, object_id)
        form = deployment_admin.PublishForm(request.POST or None)
        row = form.row()
        return deployment_admin.confirmed(
            self,
            request,
            title=gettext("Publish %(adapter)s as “%(alias)s”") % {"adapter": adapter, "alias": row.alias},
            question=_question(row),
            adapter=adapter,
            row=row,
            form=form,
            act=lambda given, **who: adapters.publish(
                adapter, alias=given["alias"], reason=given["reason"], is_forced=given["is_forced"], **who
            ),
        )


def _question(row: Deployment) -> str:
    if row.pk is None:
        return gettext("There is no alias “%s” yet. It is made, and can be asked for by this name.") % row.alias
    if row.alias != adapters.CURRENT:
        return gettext("Who asks “%s” is answered by it from now on.") % row.alias
    return gettext("New conversations and answers use it from now on. Answers being written keep their version.")
