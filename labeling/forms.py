"""Forms of people and of the admin."""

from typing import Any

from django import forms
from django.contrib.auth.forms import BaseUserCreationForm
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from labeling import prompts
from labeling.errors import Invalid
from labeling.models import Prompt


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
