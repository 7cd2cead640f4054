"""Forms of people and of the admin."""

from typing import Any

from django import forms
from django.contrib.auth.forms import BaseUserCreationForm
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from labeling import prompts
from labeling.errors import Invalid
from labeling.models import Campaign, Prompt


class InvitationForm(BaseUserCreationForm):
    """Name and password of a new account; `labeling.accounts.accept` makes it."""

    class Meta:
        model = User
        fields = ("username",)
        widgets = {"username": forms.TextInput(attrs={"autocomplete": "username"})}
        help_texts = {"username": _("Letters, digits and @ . + - _")}

    def clean_username(self) -> str:
        username = self.cleaned_data["username"]
        if User.objects.filter(username__iexact=username).exists():
            raise ValidationError(_("This name is taken. Choose another one."))
        return username


class PromptForm(forms.ModelForm):
    """Checks the turns and keeps the hash in step with them. A new prompt waits for the engine's responses."""

    class Meta:
        model = Prompt
        fields = ("campaign", "messages", "domain")

    def clean_messages(self) -> prompts.Messages:
        try:
            return prompts.canonical(self.cleaned_data["messages"])
        except Invalid as error:
            raise ValidationError(str(error)) from error

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        campaign, messages = data.get("campaign"), data.get("messages")
        if campaign and messages:
            self.instance.sha256 = prompts.digest(messages)
            same = Prompt.objects.filter(campaign=campaign, sha256=self.instance.sha256)
            if same.exclude(pk=self.instance.pk).exists():
                raise ValidationError(_("This campaign has the same prompt already."))
        if campaign and self.instance.pk is None:
            self.instance.candidates_state = prompts.first_state(campaign)
        return data


class CampaignForm(forms.ModelForm):
    class Meta:
        model = Campaign
        exclude = ()  # noqa: DJ006 - an administrator edits every field
        labels = {
            "allow_both_bad": _("Allow “both bad”"),
            "overlap": _("Judgments per pair"),
            "min_dwell_ms": _("Minimal dwell (ms)"),
            "n_candidates": _("Responses per prompt"),
            "max_tokens": _("Tokens per response, at most"),
            "lease_seconds": _("Seconds that a pair is held"),
        }

    def clean_temperatures(self) -> list[float]:
        values = self.cleaned_data["temperatures"] or []
        are_numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not are_numbers or not all(0 <= value <= 2 for value in values):
            raise ValidationError(_("A list of numbers from 0 to 2, like [0.7, 1.0]."))
        return values

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        for name, least in (("overlap", 1), ("lease_seconds", 20), ("max_tokens", 1)):
            if data.get(name) is not None and data[name] < least:
                self.add_error(name, ValidationError(_("At least %(least)s."), params={"least": least}))
        return data
