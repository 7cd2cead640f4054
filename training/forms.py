"""Forms of the admin: a run's parameters come from the catalog, field by field."""

import re
from dataclasses import Field as Parameter
from dataclasses import asdict, fields
from typing import Any, get_type_hints

from django import forms
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from labeling.models import Campaign
from training import catalog, rules
from training.models import Policy, Run

ABBREVIATIONS = {"lora": "LoRA", "rslora": "rsLoRA", "nll": "NLL"}

COMMON_FIRST = ("start", "epochs", "learning_rate", "batch_pairs", "lora_rank")  # what people change
MAX_TAGS, MAX_TAG_LENGTH = 10, 30


def method_choices() -> list[tuple[str, str]]:
    return [(method.name, method.label) for method in catalog.METHODS.values()]


class RunForm(forms.Form):
    """A campaign, a method, a preset, and one field per parameter of that method."""

    campaign = forms.ModelChoiceField(
        Campaign.objects.all(),
        widget=UnfoldAdminSelectWidget(),
        empty_label=None,
        label=gettext_lazy("Campaign"),
        help_text=gettext_lazy("whose judgments are learned"),
    )
    method = forms.ChoiceField(choices=method_choices, widget=forms.RadioSelect, label=gettext_lazy("Method"))

    def __init__(self, method: str, *args: Any, params: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """`params`: what the fields begin with, where it is not the default; a parameter of another method is left out.

        Raises catalog.ParameterError when there is no such method.
        """
        super().__init__(*args, **kwargs)
        self.chosen = catalog.get(method)
        self.initial.setdefault("method", method)
        hints = get_type_hints(self.chosen.params)
        for parameter in fields(self.chosen.params):
            self.fields[parameter.name] = field_of(parameter, hints[parameter.name])
            if params and parameter.name in params:
                self.initial[parameter.name] = params[parameter.name]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not self.errors:
            try:
                catalog.parse(cleaned["method"], self.parameters())
            except catalog.ParameterError as error:
                self.add_error(self._named_in(str(error)), str(error))
        return cleaned

    def _named_in(self, sentence: str) -> str | None:
        """The parameter that an error of the catalog is about."""
        return next((f.name for f in fields(self.chosen.params) if re.search(rf"\b{f.name}\b", sentence)), None)

    def parameters(self) -> dict[str, Any]:
        return {parameter.name: self.cleaned_data[parameter.name] for parameter in fields(self.chosen.params)}

    def own(self) -> list[forms.BoundField]:
        """The fields of parameters that this method has and others may not."""
        return [field for field in self._of_parameters() if field.name not in _common()]

    def first(self) -> list[forms.BoundField]:
        """Of those that every method has, the ones that people change."""
        return [self[name] for name in COMMON_FIRST if name in self.fields]

    def rest(self) -> list[forms.BoundField]:
        return [field for field in self._of_parameters() if field.name in _common() - set(COMMON_FIRST)]

    def has_errors_in_rest(self) -> bool:
        return any(field.errors for field in self.rest())

    def _of_parameters(self) -> list[forms.BoundField]:
        return [self[parameter.name] for parameter in fields(self.chosen.params)]


class RunNoteForm(forms.ModelForm):
    """What people want to remember of a run, and words to find it by."""

    tags = forms.CharField(
        required=False,
        label=gettext_lazy("Tags"),
        help_text=gettext_lazy("words with commas between them, such as baseline, beta sweep"),
        widget=UnfoldAdminTextInputWidget({"autocomplete": "off"}),
    )

    class Meta:
        model = Run
        fields = ("tags", "notes")
        labels = {"notes": gettext_lazy("Notes")}
        help_texts = {"notes": ""}
        widgets = {"notes": UnfoldAdminTextareaWidget({"rows": 3, "maxlength": 10_000})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["notes"].required = False
        self.initial["tags"] = ", ".join(self.instance.tags)

    def clean_tags(self) -> list[str]:
        words = [" ".join(tag.lower().split()) for tag in self.cleaned_data["tags"].split(",")]
        tags = list(dict.fromkeys(word for word in words if word))
        if len(tags) > MAX_TAGS or any(len(tag) > MAX_TAG_LENGTH for tag in tags):
            raise forms.ValidationError(
                _("At most %(n)d tags of at most %(length)d characters.") % {"n": MAX_TAGS, "length": MAX_TAG_LENGTH}
            )
        return tags


def field_of(parameter: "Parameter[Any]", kind: type) -> forms.Field:
    """The form field of one catalog parameter: its type, bounds, choices, default and sentence."""
    meta = parameter.metadata
    options: dict[str, Any] = {
        "label": label_of(parameter.name),
        "help_text": describe(parameter),
        "initial": parameter.default,
    }
    if meta["choices"]:
        choices = [(choice, choice) for choice in meta["choices"]]
        return forms.ChoiceField(choices=choices, widget=UnfoldAdminSelectWidget(), **options)
    if kind is bool:
        return forms.BooleanField(required=False, widget=UnfoldBooleanSwitchWidget(), **options)
    options |= {"min_value": meta["low"], "max_value": meta["high"]}
    if kind is int:
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget(), **options)
    if kind is float:
        # A text field: browsers show 1e-4 of a number field as 0.0001 at best, and refuse steps that they do not know.
        return forms.FloatField(widget=UnfoldAdminTextInputWidget({"inputmode": "decimal"}), **options)
    return forms.CharField(widget=UnfoldAdminTextInputWidget(), **options)


def label_of(name: str) -> str:
    """`max_grad_norm` → Max grad norm"""
    words = [ABBREVIATIONS.get(word, word) for word in name.split("_")]
    return " ".join([capfirst(words[0]) if words[0] == name.split("_")[0] else words[0], *words[1:]])


def describe(parameter: "Parameter[Any]") -> str:
    """The parameter's sentence and its bounds."""
    meta = parameter.metadata
    if meta["low"] is None or meta["high"] is None:
        return str(meta["help"])
    return _("%(help)s; %(low)s to %(high)s") % {
        "help": meta["help"],
        "low": f"{meta['low']:.12g}",
        "high": f"{meta['high']:.12g}",
    }


def _common() -> set[str]:
    return {parameter.name for parameter in fields(catalog.Common)}


def _rule_fields() -> dict[str, forms.Field]:
    hints = get_type_hints(rules.Rules)
    found = {rule.name: field_of(rule, hints[rule.name]) for rule in fields(rules.Rules)}
    for field in found.values():
        field.required = False  # empty: the default
    return found


# Declared, not added to an instance: the admin asks the class which fields there are.
RulesForm = type("RulesForm", (forms.Form,), _rule_fields())


class PolicyForm(RulesForm, forms.ModelForm):  # type: ignore[valid-type,misc]  # mypy cannot see what `type` makes
    method = forms.ChoiceField(choices=method_choices, widget=UnfoldAdminSelectWidget())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The rules are one field each; what is stored is what differs from the defaults."""
        super().__init__(*args, **kwargs)
        self.initial.update(asdict(rules.read(self.instance.rules)))

    class Meta:
        model = Policy
        fields = (
            "campaign", "is_enabled", "every_n", "crontab", "method", "params", "publishes", "min_heldout_pairs",
        )  # fmt: skip
        labels = {
            "is_enabled": gettext_lazy("Trains by itself"),
            "every_n": gettext_lazy("After so many judgments"),
            "crontab": gettext_lazy("At these times"),
            "params": gettext_lazy("Parameters"),
            "publishes": gettext_lazy("Publishes by itself"),
            "min_heldout_pairs": gettext_lazy("Held-out pairs wanted"),
        }
        widgets = {"params": UnfoldAdminTextareaWidget({"rows": 3})}
        help_texts = {
            "params": gettext_lazy('only what differs from the defaults, such as {"epochs": 1, "beta": 0.2}'),
        }

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if "method" in cleaned and "params" in cleaned:
            cleaned["params"] = cleaned["params"] or {}
            try:
                catalog.parse(cleaned["method"], _object(cleaned["params"]))
            except catalog.ParameterError as error:
                self.add_error("params", str(error))
        known = {rule.name: value for rule in fields(rules.Rules) if (value := cleaned.get(rule.name)) is not None}
        self.instance.rules = rules.changed(rules.Rules(**known))
        return cleaned


def _object(params: Any) -> dict[str, Any]:
    if not isinstance(params, dict):
        raise catalog.ParameterError(_('Parameters are an object like {"epochs": 1}.'))
    return params
