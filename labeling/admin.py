"""The admin's pages of campaigns, people and judgments. Judgments are read-only: they are append-only facts."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import EmptyFieldListFilter
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Count, Field, Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin, TabularInline
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from labeling import access, accounts, campaigns, prompts
from labeling.campaign_forms import CampaignForm
from labeling.forms import PromptForm
from labeling.models import (
    Campaign,
    Comparison,
    Guidelines,
    Import,
    Invitation,
    Judgment,
    Membership,
    Prompt,
    Statistics,
)
from serving.deployment_admin import ReadOnlyAdmin

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(BaseUserAdmin, ModelAdmin):
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin, ModelAdmin):
    pass


class MembershipInline(TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)
    tab = True


@admin.register(Campaign)
class CampaignAdmin(ModelAdmin):
    form = CampaignForm
    list_display = ("name", "status", "scale", "overlap", "n_prompts", "n_pairs")
    list_filter = ("status",)
    search_fields = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)
    fieldsets = (
        (None, {"fields": ("name", "slug", "description", "guidelines", "status")}),
        (
            _("What people answer"),
            {"fields": ("scale", ("allow_tie", "allow_both_bad"), "group_size", "min_dwell_ms")},
        ),
        (_("What they may add"), {"fields": ("criteria", "reason_tags", "rationale", "allow_edit")}),
        (_("How many judge a pair"), {"fields": (("overlap", "max_overlap"),)}),
        (_("What measures people"), {"fields": (("gold_share", "repeat_share"), "practice_pairs")}),
        (_("Which pair comes next"), {"fields": (("strategy", "random_share"), "lease_seconds")}),
        (
            _("Responses sampled from the model"),
            {"fields": ("n_candidates", "n_samples", "keeps", "max_tokens", "temperatures")},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Campaign]:
        counted = super().get_queryset(request)
        return counted.annotate(
            prompt_count=Count("prompts", distinct=True), pair_count=Count("comparisons", distinct=True)
        )

    @admin.display(description=_("prompts"))
    def n_prompts(self, campaign: Any) -> int:
        return campaign.prompt_count

    @admin.display(description=_("pairs"))
    def n_pairs(self, campaign: Any) -> int:
        return campaign.pair_count

    def save_model(self, request: HttpRequest, obj: Campaign, form: forms.ModelForm, change: bool) -> None:
        if change:
            campaigns.change(obj)
        else:
            super().save_model(request, obj, form, change)
        campaigns.publish_guidelines(obj, obj.guidelines, access.person(request), timezone.now())

    def has_delete_permission(self, request: HttpRequest, obj: Campaign | None = None) -> bool:
        return False  # on the campaign's settings page, which says what hinders it


@admin.register(Prompt)
class PromptAdmin(ModelAdmin):
    form = PromptForm
    list_display = ("excerpt", "campaign", "domain", "source", "candidates_state", "created_at")
    list_filter = ("campaign", "domain", "candidates_state", "source")
    list_select_related = ("campaign",)
    actions = ("ask_again",)
    fields = ("campaign", "messages", "domain", "candidates_state")

    def get_readonly_fields(self, request: HttpRequest, obj: Prompt | None = None) -> tuple[str, ...]:
        if obj and obj.responses.exists():  # they answer these very words, and people judged them as such
            return ("campaign", "messages", "candidates_state")
        return ("candidates_state",)

    @admin.action(description=_("Ask the model for responses"))
    def ask_again(self, request: HttpRequest, queryset: QuerySet[Prompt]) -> None:
        n = prompts.want_candidates(queryset)
        self.message_user(request, _("The model is asked for responses to %(n)d prompts.") % {"n": n})


@admin.register(Invitation)
class InvitationAdmin(ModelAdmin):
    list_display = ("for_whom", "role", "created_by", "expires_at", "used_by")
    list_filter = ("role",)
    list_select_related = ("created_by", "used_by")
    fields = ("role", "campaigns", "note", "expires_at")
    filter_horizontal = ("campaigns",)

    @admin.display(description=_("for"), ordering="note")
    def for_whom(self, invitation: Invitation) -> str:
        return invitation.note or "–"

    def formfield_for_choice_field(self, db_field: Field, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "role":
            kwargs["choices"] = [(role.value, role.label) for role in accounts.roles(access.person(request))]
        return super().formfield_for_choice_field(db_field, request, **kwargs)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"expires_at": timezone.now() + accounts.VALID_FOR, **super().get_changeform_initial_data(request)}

    def has_change_permission(self, request: HttpRequest, obj: Invitation | None = None) -> bool:
        return False  # what a link promises does not change after it was sent; delete it and make another

    def save_model(self, request: HttpRequest, obj: Invitation, form: forms.ModelForm, change: bool) -> None:
        token = accounts.prepare(obj, access.person(request))
        super().save_model(request, obj, form, change)
        link = request.build_absolute_uri(reverse("invitation", args=[token]))
        text = _("Send this link; it works once, and is shown only now:")
        messages.warning(request, format_html("{}<br><code>{}</code>", text, link))


@admin.register(Judgment)
class JudgmentAdmin(ReadOnlyAdmin):
    list_display = ("id", "campaign", "annotator", "verdict", "strength", "purpose", "created_at", "frozen_at")
    list_filter = ("comparison__campaign", "verdict", "purpose", "is_surplus", ("frozen_at", EmptyFieldListFilter))
    list_select_related = ("comparison__campaign", "annotator")
    list_per_page = 50
    search_fields = ("annotator__username", "reason")
    date_hierarchy = "created_at"
    readonly_fields = ("learned_by",)

    @admin.display(description=_("campaign"), ordering="comparison__campaign")
    def campaign(self, judgment: Judgment) -> Campaign:
        return judgment.comparison.campaign

    @admin.display(description=_("learned by"))
    def learned_by(self, judgment: Judgment) -> str:
        """The snapshots that hold it, and the runs and versions that learned from them: `training` points here."""
        lines = []
        for snapshot in judgment.snapshots.prefetch_related("runs__adapter"):
            found = [snapshot, *(row for run in snapshot.runs.all() for row in (run, run.adapter) if row)]
            lines.append(format_html_join(" → ", '<a href="{}">{}</a>', map(_linked, found)))
        # By address, not by import: lineage belongs to a package to the right.
        whole = format_html(
            '<a href="{}">{}</a>', reverse("admin:training_lineage", args=["judgment", judgment.pk]), _("lineage")
        )
        return format_html("{}{}", format_html_join("", "{}<br>", ((line,) for line in lines)), whole)


def _linked(row: Model) -> tuple[str, str]:
    """Address and name of a row's page in the admin."""
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]), str(row)


@admin.register(Guidelines)
class GuidelinesAdmin(ReadOnlyAdmin):
    list_display = ("campaign", "number", "created_by", "created_at")
    list_filter = ("campaign",)
    list_select_related = ("campaign", "created_by")


@admin.register(Comparison)
class ComparisonAdmin(ReadOnlyAdmin):
    list_display = ("id", "campaign", "prompt", "n_judgments", "n_wanted", "is_open", "is_disputed", "arm")
    list_filter = ("campaign", "is_open", "is_disputed", "arm", "source", ("gold_ranks", EmptyFieldListFilter))
    list_select_related = ("campaign", "prompt")
    list_per_page = 50
    show_full_result_count = False


@admin.register(Import)
class ImportAdmin(ReadOnlyAdmin):
    list_display = ("filename", "campaign", "format", "state", "n_added", "n_refused", "created_by", "created_at")
    list_filter = ("campaign", "state", "format")
    list_select_related = ("campaign", "created_by")


@admin.register(Statistics)
class StatisticsAdmin(ReadOnlyAdmin):
    list_display = ("campaign", "computed_at", "last_judgment")
    list_select_related = ("campaign",)
