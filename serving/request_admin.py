"""Who asked models for what: the request log, to be looked at; keys, with their use and their limits."""

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from serving import keys, requests
from serving.deployment_admin import ReadOnlyAdmin
from serving.models import ApiKey, ServedRequest
from serving.requests import Outcome

OUTCOME_COLOURS = {
    Outcome.DONE: "success",
    Outcome.CANCELLED: "info",
    Outcome.REFUSED: "warning",
    Outcome.FAILED: "danger",
}
LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent")


@admin.register(ServedRequest)
class ServedRequestAdmin(ReadOnlyAdmin):
    """One row for each answer that a version was asked for. What was said is in no row."""

    list_display = ("when", "shown_outcome", "version", "asked_by", "endpoint", "tokens", "first_token", "took")
    list_filter = (
        "outcome",
        ("adapter", admin.RelatedOnlyFieldListFilter),
        ("key", admin.RelatedOnlyFieldListFilter),
        "endpoint",
        "is_canary",
    )
    search_fields = ("=request_id", "person__username", "error")
    search_help_text = _("A request id, a person's name, or words of an error")
    list_select_related = ("adapter", "person", "key")
    date_hierarchy = "at"
    show_full_result_count = False  # it would count all rows of a month for each page
    list_per_page = 50

    @display(description=_("at"), ordering="at")
    def when(self, row: ServedRequest) -> str:
        return f"{timezone.localtime(row.at):%Y-%m-%d %H:%M:%S}"

    @display(description=_("outcome"), ordering="outcome", label=OUTCOME_COLOURS)
    def shown_outcome(self, row: ServedRequest) -> tuple[str, str]:
        return row.outcome, f"{row.get_outcome_display()} {row.status}"

    @display(description=_("version"), ordering="adapter")
    def version(self, row: ServedRequest) -> str:
        """And the name that it was asked by."""
        trial = gettext("on trial") if row.is_canary else ""
        return " · ".join(filter(None, [str(row.adapter), row.alias, trial]))

    @display(description=_("asked by"), ordering="person__username")
    def asked_by(self, row: ServedRequest) -> str:
        return " · ".join(str(who) for who in (row.person, row.key and row.key.name) if who) or "–"

    @display(description=_("tokens (in + out)"))
    def tokens(self, row: ServedRequest) -> str:
        return f"{row.prompt_tokens} + {row.completion_tokens}"

    @display(description=_("first token after"), ordering="seconds_to_first_token")
    def first_token(self, row: ServedRequest) -> str:
        return "–" if row.seconds_to_first_token is None else gettext("%.2f\xa0s") % row.seconds_to_first_token

    @display(description=_("took"), ordering="seconds")
    def took(self, row: ServedRequest) -> str:
        return gettext("%.2f\xa0s") % row.seconds


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Who has which keys; owners make and revoke them on their own page. Here they get limits of their own."""

    list_display = ("owner", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("owner__username", "name", "prefix")
    list_select_related = ("owner",)
    fields = (*list_display, "used_today", *LIMITS)
    readonly_fields = (*list_display, "used_today")

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_active and request.user.has_perm("serving.change_apikey")

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any) -> Any:
        of_site = _("Empty: as the site has it. 0: no limit.")
        return super().get_form(request, obj, change, help_texts=dict.fromkeys(LIMITS, of_site), **kwargs)

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        keys.set_limits(
            obj, requests=obj.requests_per_minute, tokens=obj.tokens_per_minute, concurrent=obj.max_concurrent
        )

    @display(description=_("today, of models"))
    def used_today(self, key: ApiKey) -> str:
        use = requests.used_today([key], timezone.now())[key.pk]
        return gettext("%(requests)d requests, %(tokens)d tokens") % {
            "requests": use.n_requests,
            "tokens": use.n_tokens,
        }
