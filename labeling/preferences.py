"""How one person likes to work: keys of the comparison screen, and breaks."""

from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib.auth.models import User
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling import shortcuts
from labeling.errors import Invalid
from labeling.models import Preferences

MAX_BREAK_MINUTES = 240
Group = tuple[str | Promise, list[forms.BoundField]]


def preferences_of(person: User) -> Preferences:
    """This person's preferences; those of somebody who never chose any are the defaults, and not stored."""
    return Preferences.objects.filter(user=person).first() or Preferences(user=person)


def store_preferences(person: User, keys: dict[str, str], break_minutes: int) -> Preferences:
    """Stores what differs from the defaults. Raises Invalid when a key is unknown, or taken twice."""
    if found := shortcuts.problems(keys):
        raise Invalid(next(iter(found.values())))
    if not 0 <= break_minutes <= MAX_BREAK_MINUTES:
        raise Invalid(_("Breaks come after 0 (never) to %(n)d minutes.") % {"n": MAX_BREAK_MINUTES})
    values = {"keys": shortcuts.differing(keys), "break_minutes": break_minutes}
    return Preferences.objects.update_or_create(user=person, defaults=values)[0]


class PreferencesForm(forms.Form):
    """One field per action, named after it."""

    break_minutes = forms.IntegerField(
        label=_("Propose a break after"),
        min_value=0,
        max_value=MAX_BREAK_MINUTES,
        help_text=_("Minutes of labeling; 0 = never."),
    )

    def __init__(self, preferences: Preferences, data: Any = None) -> None:
        super().__init__(data, initial={"break_minutes": preferences.break_minutes})
        for name, action in shortcuts.ACTIONS.items():
            attributes = {"class": "key-field", "autocomplete": "off", "autocapitalize": "off", "spellcheck": "false"}
            self.fields[name] = forms.CharField(
                label=str(action.label),
                initial=preferences.keys.get(name, action.key),
                max_length=12,
                strip=False,
                widget=forms.TextInput(attrs={**attributes, "data-default": action.key}),
            )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        given = {name: _named(key) for name, key in data.items() if name in shortcuts.ACTIONS}
        for name, problem in shortcuts.problems(given).items():
            if name in given:
                self.add_error(name, problem)
        return {**data, **given}

    @property
    def keys(self) -> dict[str, str]:
        """Action → key, of a form that is valid."""
        return {name: self.cleaned_data[name] for name in shortcuts.ACTIONS}

    def groups(self) -> Iterator[Group]:
        for _name, label, actions in shortcuts.GROUPS:
            yield label, [self[action.name] for action in actions]


def _named(key: str) -> str:
    """A key as somebody may type it: a capital letter, a space, the sign that is printed on it."""
    signs = {sign.lower(): name for name, sign in shortcuts.NAMED.items()}
    return "space" if key.isspace() else signs.get(key.strip().lower(), key.strip().lower())
