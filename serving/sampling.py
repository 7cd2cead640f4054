"""How answers are drawn, and what the model is told beforehand: the defaults, and what an owner may set for a conversation."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from serving.models import Conversation

DEFAULTS = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 1024}
MAX_SYSTEM_CHARS = 8_000
MAX_SEED = 2**31 - 1
KNOWN = ("system_prompt", "temperature", "top_p", "max_tokens", "seed")


class Invalid(Exception):
    """Settings that no answer can be drawn with; `errors` has a sentence for each field that is wrong."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__(" ".join(errors.values()))
        self.errors = errors


@dataclass(frozen=True)
class Settings:
    """What an owner set: `sampling` holds only what differs from DEFAULTS, and the seed where one was fixed."""

    system_prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def is_default(self) -> bool:
        return not self.system_prompt and not self.sampling


class SettingsForm(forms.Form):
    """An empty field means the default."""

    system_prompt = forms.CharField(
        label=gettext_lazy("System prompt"),
        help_text=gettext_lazy("What the model is told before the first question. Empty: the model's own."),
        required=False,
        max_length=MAX_SYSTEM_CHARS,
        widget=forms.Textarea({"rows": 4, "dir": "auto"}),
    )
    temperature = forms.FloatField(
        label=gettext_lazy("Temperature"),
        help_text=gettext_lazy("0: always the likeliest word. Higher: more varied."),
        required=False,
        min_value=0,
        max_value=2,
        widget=forms.NumberInput({"step": "0.05", "placeholder": DEFAULTS["temperature"]}),
    )
    top_p = forms.FloatField(
        label=gettext_lazy("Top-p"),
        help_text=gettext_lazy("Draws from the likeliest words that together have this probability."),
        required=False,
        min_value=0.01,
        max_value=1,
        widget=forms.NumberInput({"step": "0.01", "placeholder": DEFAULTS["top_p"]}),
    )
    max_tokens = forms.IntegerField(
        label=gettext_lazy("Longest answer"),
        help_text=gettext_lazy("In tokens, about three quarters of a word each."),
        required=False,
        min_value=1,
        max_value=32_768,
        widget=forms.NumberInput({"placeholder": DEFAULTS["max_tokens"]}),
    )
    seed = forms.IntegerField(
        label=gettext_lazy("Seed"),
        help_text=gettext_lazy("The same seed gives the same answer again. Empty: another one each time."),
        required=False,
        min_value=0,
        max_value=MAX_SEED,
        widget=forms.NumberInput({"placeholder": gettext_lazy("random")}),
    )


def parse(given: Mapping[str, Any]) -> Settings:
    """Settings from a request: KNOWN keys, each a number, a text or null. Raises Invalid."""
    errors = {name: _("There is no setting of this name: %s.") % str(name)[:40] for name in given if name not in KNOWN}
    for name in KNOWN:
        if isinstance(given.get(name), (bool, list, dict)):
            errors[name] = _("This must be a number or a text.")
    form = SettingsForm(dict(given))
    errors = {name: str(problems[0]) for name, problems in form.errors.items()} | errors
    if errors:
        raise Invalid(errors)
    return _of(form.cleaned_data)


def _of(cleaned: dict[str, Any]) -> Settings:
    system_prompt = cleaned.pop("system_prompt")
    changed = {name: value for name, value in cleaned.items() if value is not None and value != DEFAULTS.get(name)}
    return Settings(system_prompt, changed)


def of_conversation(conversation: Conversation) -> Settings:
    return Settings(conversation.system_prompt, conversation.sampling)


def to_dict(settings: Settings) -> dict[str, Any]:
    """By KNOWN name; null where the default applies."""
    return {name: settings.sampling.get(name) for name in KNOWN} | {"system_prompt": settings.system_prompt}


def drawn(settings: Settings) -> dict[str, Any]:
    """What goes to the engine for one more answer: complete, with a seed of its own unless one was fixed."""
    return DEFAULTS | {"seed": new_seed()} | settings.sampling


def new_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)
