"""Deployments in the admin: what answers, what is on trial, how they do; to roll back and to lead a trial, with a reason."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from serving import adapters, deployments_page, gateway
from serving.client import EngineDown, EngineError
from serving.models import Adapter, Deployment, DeploymentEvent

EVENT_COLOURS = {
    "load failed": "danger",
    "self-test failed": "danger",
    "rolled back": "warning",
    "canary stopped": "warning",
    "alias removed": "warning",
    "published": "success",
    "canary promoted": "success",
    "self-test passed": "success",
}


class ReasonForm(forms.Form):
    reason = forms.CharField(
        label=_("Reason"),
        max_length=500,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off", "autofocus": True}),
        error_messages={"required": _("Give a reason: it is kept in the history.")},
    )


class ForceForm(ReasonForm):
    is_forced = forms.BooleanField(
        label=_("Go on without model servers that do not answer; they get the version when they are back"),
        required=False,
    )


class PublishForm(ForceForm):
    field_order = ("alias", "reason", "is_forced")
    alias = forms.CharField(
        label=_("Alias"),
        required=False,
        initial=adapters.CURRENT,
        empty_value=adapters.CURRENT,
        widget=UnfoldAdminTextInputWidget(
            attrs={"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}
        ),
    )

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        adapters.deployment()  # so that there is one
        known = ", ".join(Deployment.objects.order_by("alias").values_list("alias", flat=True))
        self.fields["alias"].help_text = gettext("In use: %s. Another name makes a new alias.") % known

    def clean_alias(self) -> str:
        alias: str = self.cleaned_data["alias"]
        try:
            adapters.seen(alias)
        except adapters.InvalidAlias as error:
            raise forms.ValidationError(str(error)) from error
        return alias

    def row(self) -> Deployment:
        """What the alias is now; `current` while the form has none that can be."""
        is_named = self.is_bound and "alias" not in self.errors
        return adapters.seen(self.cleaned_data["alias"]) if is_named else adapters.deployment()


class ShareForm(ReasonForm):
    field_order = ("adapter", "percent", "reason", "is_forced")
    percent = forms.FloatField(
        label=_("Share of conversations, in %"),
        min_value=0,
        max_value=100,
        widget=UnfoldAdminIntegerFieldWidget(attrs={"inputmode": "decimal", "step": "any"}),
    )


class CanaryForm(ShareForm, ForceForm):
    adapter = forms.ModelChoiceField(
        label=_("Version"), queryset=Adapter.objects.none(), widget=UnfoldAdminSelectWidget, empty_label=None
    )

    def __init__(self, data: Any, row: Deployment) -> None:
        super().__init__(data, initial={"percent": 5})
        fitting = Adapter.objects.filter(base_sha256=row.adapter.base_sha256).exclude(pk=row.adapter_id)
        self.fields["adapter"].queryset = fitting  # type: ignore[attr-defined]


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


@admin.register(Deployment)
class DeploymentAdmin(ReadOnlyAdmin):
    fields = (
        "alias", "adapter", "previous", "generation", "updated_at", "canary", "canary_share", "canary_since",
    )  # fmt: skip
    actions_detail = ("roll_back", "start_canary", "change_canary", "promote_canary", "stop_canary", "remove_alias")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Not a list of rows but what is going on; htmx asks for that part alone."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": gettext("Deployments"),
            "can_publish": self.has_publish_permission(request),
            **_shown(),
        }
        is_part = "HX-Request" in request.headers
        template = "serving/admin/_deployments.html" if is_part else "serving/admin/deployments.html"
        return TemplateResponse(request, template, context)

    @action(description=_("Roll back…"), url_path="roll-back", permissions=["publish"])
    def roll_back(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Roll back “%s”") % row.alias,
            question=gettext("The previous version answers again. It is still loaded.") if row.previous else "",
            adapter=row.previous,
            row=row,
            form=ReasonForm(request.POST or None),
            act=lambda given, **who: adapters.rollback(row.alias, reason=given["reason"], **who),
        )

    @action(description=_("Try out…"), url_path="start-canary", permissions=["publish"])
    def start_canary(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Try out a version under “%s”") % row.alias,
            question=gettext(
                "It answers a share of the conversations, each of which stays with it. If it fails more often than the"
                " version beside it, the trial ends by itself."
            ),
            adapter=None,
            row=row,
            form=CanaryForm(request.POST or None, row),
            act=lambda given, **who: adapters.start_canary(
                given["adapter"],
                given["percent"] / 100,
                alias=row.alias,
                reason=given["reason"],
                is_forced=given["is_forced"],
                **who,
            ),
        )

    @action(description=_("Change share…"), url_path="change-canary", permissions=["publish"])
    def change_canary(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Change the share of the trial"),
            question=gettext("As it grows, the conversations that have the version on trial keep it."),
            adapter=row.canary,
            row=row,
            form=ShareForm(request.POST or None, initial={"percent": f"{100 * row.canary_share:g}"}),
            act=lambda given, **who: adapters.change_canary(
                given["percent"] / 100, alias=row.alias, reason=given["reason"], **who
            ),
        )

    @action(description=_("Promote…"), url_path="promote-canary", permissions=["publish"])
    def promote_canary(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Promote the version on trial"),
            question=gettext("It answers everybody from now on. Answers being written keep their version."),
            adapter=row.canary,
            row=row,
            form=ReasonForm(request.POST or None),
            act=lambda given, **who: adapters.promote_canary(row.alias, reason=given["reason"], **who),
        )

    @action(description=_("Stop…"), url_path="stop-canary", permissions=["publish"])
    def stop_canary(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Stop the trial"),
            question=gettext("Everybody is answered as before the trial."),
            adapter=row.canary,
            row=row,
            form=ReasonForm(request.POST or None),
            act=lambda given, **who: adapters.stop_canary(row.alias, reason=given["reason"], **who),
        )

    @action(description=_("Remove…"), url_path="remove", permissions=["publish"])
    def remove_alias(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row = found(self, request, object_id)
        return confirmed(
            self,
            request,
            title=gettext("Remove “%s”") % row.alias,
            question=gettext("Nobody can ask for this name any more. Its versions stay, and can be published again."),
            adapter=None,
            row=row,
            form=ReasonForm(request.POST or None),
            act=lambda given, **who: adapters.remove_alias(row.alias, reason=given["reason"], **who),
        )


@admin.register(DeploymentEvent)
class DeploymentEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "shown_kind", "adapter", "place", "shown_actor", "reason")
    list_filter = ("kind", "alias")
    list_select_related = ("adapter", "previous", "actor")
    search_fields = ("reason", "adapter__name", "engine")
    fields = (
        "at", "shown_kind", "adapter", "alias", "generation", "previous", "share", "engine", "shown_actor", "reason",
    )  # fmt: skip
    readonly_fields = ("shown_kind", "shown_actor")

    @display(description=_("what"), ordering="kind", label=EVENT_COLOURS)
    def shown_kind(self, event: DeploymentEvent) -> tuple[str, str]:
        return event.kind, event.kind

    @display(description=_("where"), ordering="engine")
    def place(self, event: DeploymentEvent) -> str:
        if not event.alias:
            return event.engine or "–"
        share = "" if event.share is None else f", {100 * event.share:g} %"
        return gettext("%(alias)s, generation %(n)d") % {"alias": event.alias, "n": event.generation} + share

    @display(description=_("who"), ordering="actor")
    def shown_actor(self, event: DeploymentEvent) -> str:
        return str(event.actor) if event.actor else gettext("the site")


def _shown() -> dict[str, Any]:
    try:
        panels = deployments_page.panels()
    except adapters.InvalidAdapter as error:
        return {"error": str(error)}
    return {
        "panels": panels,
        "engines": deployments_page.engine_rows(panels),
        "events": deployments_page.last_events(),
    }


# --- what needs a reason ----------------------------------------------------------------------------------------------
def found(model_admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """The row; Http404 when there is none, or when this is no id at all."""
    row = model_admin.get_object(request, object_id)
    if row is None:
        raise Http404
    return row


def confirmed(
    model_admin: ModelAdmin,
    request: HttpRequest,
    *,
    title: str,
    question: str,
    adapter: Adapter | None,
    row: Deployment,
    form: ReasonForm,
    act: Callable[..., Deployment | None],
) -> HttpResponse:
    """GET asks for a reason; POST acts on the generation that the page showed, says what happened, and goes back.

    One that names another alias than the page showed is asked again: what answers there has not been seen yet.
    """
    if form.is_valid() and request.POST.get("shown", row.alias) == row.alias:
        # A post without a generation matches no row, so it changes nothing.
        shown = request.POST.get("generation", "")
        generation = row.generation if shown == str(row.generation) else 0
        _act(request, lambda: act(form.cleaned_data, actor=_user(request), expected_generation=generation))
        return redirect(f"admin:serving_{model_admin.model._meta.model_name}_changelist")
    context: dict[str, Any] = {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "question": question,
        "adapter": adapter,
        "deployment": row,
        "form": form,
        "back": f"admin:serving_{model_admin.model._meta.model_name}_changelist",
    }
    return TemplateResponse(request, "serving/admin/confirm.html", context)


def _act(request: HttpRequest, act: Callable[[], Deployment | None]) -> None:
    try:
        row = act()
    except (EngineDown, EngineError) as error:
        messages.error(request, gateway.in_words(error, is_begun=False))
    except (adapters.NotServable, adapters.NothingToRollBack, adapters.NoCanary, adapters.AliasMoved) as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _in_words(row) if row else gettext("The alias was removed."))


def _in_words(row: Deployment) -> str:
    if row.canary is None:
        return gettext("“%(alias)s” is now %(adapter)s.") % {"alias": row.alias, "adapter": row.adapter}
    return gettext("“%(alias)s” is %(adapter)s; %(canary)s answers %(percent)s %% of its conversations.") % {
        "alias": row.alias,
        "adapter": row.adapter,
        "canary": row.canary,
        "percent": f"{100 * row.canary_share:g}",
    }


def _user(request: HttpRequest) -> Any:
    if not request.user.is_authenticated:
        raise PermissionDenied
    return request.user
