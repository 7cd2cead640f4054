"""The admin of serving: versions with publish and roll back; aliases and their history, to be looked at."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextInputWidget

from serving import adapters, gateway
from serving.client import EngineDown, EngineError
from serving.models import Adapter, ApiKey, Deployment, DeploymentEvent

STATUS_COLOURS = {
    Adapter.Status.REGISTERED: "info",
    Adapter.Status.READY: "success",
    Adapter.Status.REJECTED: "danger",
}


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=_("Reason"),
        max_length=500,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off", "autofocus": True}),
        error_messages={"required": _("Give a reason: it is kept in the history.")},
    )


class ReadOnlyAdmin(ModelAdmin):
    """Rows that the site writes itself: here they are only looked at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_publish_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return request.user.is_active and request.user.has_perm("serving.change_deployment")


@admin.register(Adapter)
class AdapterAdmin(ReadOnlyAdmin):
    list_display = ("name", "shown_status", "aliases", "lineage", "self_test_verdict", "created_at")
    list_filter = ("status", "is_base")
    search_fields = ("name", "notes", "sha256")
    readonly_fields = ("aliases", "lineage", "self_test_verdict")
    fields = (
        "name", "status", "aliases", "lineage", "notes", "self_test_verdict", "self_test", "error", "sha256",
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

    @action(description=_("Publish…"), url_path="publish", permissions=["publish"])
    def publish(self, request: HttpRequest, object_id: str) -> HttpResponse:
        adapter = _found(self, request, object_id)
        return _confirmed(
            self,
            request,
            title=gettext("Publish %s") % adapter,
            question=gettext(
                "New conversations and answers use it from now on. Answers being written keep their version."
            ),
            adapter=adapter,
            row=adapters.deployment(),
            act=lambda reason: adapters.publish(adapter, actor=_user(request), reason=reason),
        )


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    list_display = ("alias", "adapter", "previous", "generation", "updated_at")
    actions_row = ("roll_back",)
    actions_detail = ("roll_back",)

    @action(description=_("Roll back…"), url_path="roll-back", permissions=["publish"])
    def roll_back(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = _found(self, request, object_id)
        # As the page showed it; a post without it matches no row, so it moves nothing.
        shown = request.POST.get("generation", "")
        generation = row.generation if shown == str(row.generation) else 0
        return _confirmed(
            self,
            request,
            title=gettext("Roll back “%s”") % row.alias,
            question=gettext("The previous version answers again. It is still loaded."),
            adapter=row.previous,
            row=row,
            act=lambda reason: adapters.rollback(
                row.alias, actor=_user(request), reason=reason, expected_generation=generation
            ),
        )


@admin.register(DeploymentEvent)
class DeploymentEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "alias", "generation", "adapter", "previous", "actor", "reason")
    list_filter = ("alias",)
    list_select_related = ("adapter", "previous", "actor")
    search_fields = ("reason", "adapter__name")


def _found(model_admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """The row; Http404 when there is none, or when this is no id at all."""
    row = model_admin.get_object(request, object_id)
    if row is None:
        raise Http404
    return row


def _confirmed(
    model_admin: ModelAdmin,
    request: HttpRequest,
    *,
    title: str,
    question: str,
    adapter: Adapter | None,
    row: Deployment,
    act: Callable[[str], Deployment],
) -> HttpResponse:
    """GET asks for a reason; POST acts, says what happened, and goes back to the list."""
    form = ReasonForm(request.POST or None)
    if form.is_valid():
        _act(request, act, form.cleaned_data["reason"])
        return redirect(f"admin:serving_{model_admin.model._meta.model_name}_changelist")
    context: dict[str, Any] = {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "question": question,
        "adapter": adapter,
        "deployment": row,
        "form": form,
    }
    return TemplateResponse(request, "serving/admin/confirm.html", context)


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Who has which keys, and when they were used; owners make and revoke them on their own page."""

    list_display = ("owner", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("owner__username", "name", "prefix")
    list_select_related = ("owner",)
    fields = list_display


def _act(request: HttpRequest, act: Callable[[str], Deployment], reason: str) -> None:
    try:
        row = act(reason)
    except (EngineDown, EngineError) as error:
        messages.error(request, gateway.in_words(error, is_begun=False))
    except (adapters.NotServable, adapters.NothingToRollBack, adapters.AliasMoved) as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _("“%(alias)s” is now %(adapter)s.") % {"alias": row.alias, "adapter": row.adapter})


def _user(request: HttpRequest) -> Any:
    if not request.user.is_authenticated:
        raise PermissionDenied
    return request.user
