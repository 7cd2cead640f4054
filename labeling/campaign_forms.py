"""Forms by which a campaign is made and run: its settings, guidelines, criteria, members and invitations."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.text import slugify
from django.utils.translation import gettext_lazy as _

from labeling import choices
from labeling.errors import Invalid
from labeling.models import Campaign, Invitation, Membership

MAX_TAGS, MAX_TAG = 20, 60
MAX_CRITERIA = 12
# Field: least and most value that makes sense.
LIMITS = {
    "overlap": (1, 20),
    "lease_seconds": (20, 3600),
    "max_tokens": (1, 8192),
    "n_candidates": (0, 16),
    "n_samples": (0, 64),
    "group_size": (2, 4),
    "gold_share": (0, 0.5),
    "repeat_share": (0, 0.5),
    "random_share": (0.2, 1),
    "min_dwell_ms": (0, 60_000),
}
MOST_CHECKS = 0.6  # of the pairs shown: the rest must be what the campaign is for
SHARES = ("gold_share", "repeat_share", "random_share")


class CampaignForm(forms.ModelForm):
    """Every field of a campaign, with the rules that hold between them."""

    class Meta:
        model = Campaign
        exclude: tuple[str, ...] = ()  # an administrator edits every field
        labels = {
            "allow_tie": _("Allow ties"),
            "allow_both_bad": _("Allow “both bad”"),
            "allow_edit": _("Let people improve the chosen response"),
            "overlap": _("Judgments per pair"),
            "max_overlap": _("Judgments per pair where people disagree, at most"),
            "min_dwell_ms": _("Minimal dwell (ms)"),
            "n_candidates": _("Responses per prompt"),
            "n_samples": _("Best of n"),
            "keeps": _("Kept of the n"),
            "max_tokens": _("Tokens per response, at most"),
            "lease_seconds": _("Seconds that a pair is held"),
            "group_size": _("Responses on one screen"),
            "strategy": _("Which pair comes next"),
            "rationale": _("Reason in words"),
            "practice_pairs": _("Pairs to practise on"),
        }

    def clean_temperatures(self) -> list[float]:
        values = self.cleaned_data["temperatures"] or []
        are_numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not are_numbers or not all(0 <= value <= 2 for value in values):
            raise ValidationError(_("A list of numbers from 0 to 2, like [0.7, 1.0]."))
        return values

    def clean_criteria(self) -> list[dict[str, str]]:
        try:
            return choices.check_criteria(self.cleaned_data["criteria"] or [])
        except Invalid as error:
            raise ValidationError(str(error)) from error

    def clean_reason_tags(self) -> list[str]:
        tags = self.cleaned_data["reason_tags"] or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
            raise ValidationError(_("A list of short texts, like [“clearer”, “safer”]."))
        tags = list(dict.fromkeys(tag.strip() for tag in tags))
        if len(tags) > MAX_TAGS or any(len(tag) > MAX_TAG for tag in tags):
            message = _("At most %(n)s reasons of at most %(length)s characters each.")
            raise ValidationError(message, params={"n": MAX_TAGS, "length": MAX_TAG})
        return tags

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        for name, (least, most) in LIMITS.items():
            value = data.get(name)
            if value is not None and not least <= value <= most:
                self.add_error(name, self.range_error(name, least, most))
        self._check_together(data)
        return data

    def range_error(self, name: str, least: float, most: float) -> ValidationError:
        return ValidationError(_("From %(least)s to %(most)s."), params={"least": f"{least:g}", "most": f"{most:g}"})

    def _check_together(self, data: dict[str, Any]) -> None:
        gold, repeats = data.get("gold_share"), data.get("repeat_share")
        if gold is not None and repeats is not None and gold + repeats > MOST_CHECKS + 1e-9:
            self.add_error("repeat_share", _("Gold pairs and repeats together may be at most 60 % of what is shown."))
        most, k = data.get("max_overlap"), data.get("overlap")
        if most and k and most < k:
            self.add_error("max_overlap", _("0, or at least the judgments per pair."))
        if data.get("scale") == Campaign.Scale.BINARY and data.get("allow_tie"):
            data["allow_tie"] = False  # left or right is all there is


class PercentField(forms.FloatField):
    """A share from 0 to 1, shown and typed as a percentage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(widget=forms.NumberInput(attrs={"step": 1, "inputmode": "decimal"}), **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return f"{value * 100:g}" if isinstance(value, float | int) else value

    def clean(self, value: Any) -> float | None:
        number = super().clean(value)
        return None if number is None else number / 100

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(None if initial is None else float(self.prepare_value(initial)), data)


class LinesField(forms.CharField):
    """A list of texts, one per line."""

    widget = forms.Textarea(attrs={"rows": 4})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [line.strip() for line in (super().to_python(value) or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return list(initial or []) != self.to_python(data)


class NumbersField(forms.CharField):
    """A list of numbers, written with commas or blanks between them."""

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(f"{one:g}" for one in value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        try:
            return [float(one) for one in (super().to_python(value) or "").replace(",", " ").split()]
        except ValueError as error:
            raise ValidationError(_("Numbers with commas between them, like 0.7, 1.0.")) from error

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return list(initial or []) != self.to_python(data)
        except ValidationError:
            return True


class SettingsForm(CampaignForm):
    """What a manager sets. Criteria have rows of their own (CriteriaFormSet), guidelines a page of their own."""

    gold_share = PercentField(
        label=_("Gold pairs, % of those shown"),
        help_text=_("Pairs with a known answer, 0 to 50. They measure people; nobody is told which they are."),
    )
    repeat_share = PercentField(
        label=_("Swapped repeats, % of those shown"),
        help_text=_("Pairs judged before, shown again later with the sides swapped, 0 to 50."),
    )
    random_share = PercentField(
        label=_("Drawn at random, %"),
        help_text=_("Under any strategy, 20 to 100: what the strategy saves is measured against them."),
    )
    reason_tags = LinesField(
        label=_("Reasons to tick"), required=False, help_text=_("One per line, like: clearer. None: not asked for.")
    )
    temperatures = NumbersField(
        label=_("Temperatures"),
        required=False,
        help_text=_("One per response, repeated when there are fewer. Empty: 1."),
    )

    class Meta(CampaignForm.Meta):
        exclude = ("slug", "guidelines", "criteria")  # noqa: DJ006 - a new field is to be shown; a test looks
        widgets = {"description": forms.Textarea(attrs={"rows": 2})}
        help_texts = {
            "overlap": _("How many people judge each pair."),
            "max_overlap": _("0: never more than the number before."),
            "group_size": _("2 compares pairs; 3 or 4 are ranked. Groups made before keep their size."),
            "practice_pairs": _("Gold pairs with feedback that a newcomer judges first; 0: none."),
            "min_dwell_ms": _("Keys are ignored until a pair was shown this long, in milliseconds."),
            "lease_seconds": _("Then it may go to somebody else."),
            "n_candidates": _("Sampled from the current model; 0: none, pairs are imported."),
            "n_samples": _("So many are sampled, and the reward model chooses whose pairs people see; 0: all of them."),
            "keeps": _("A share of the prompts, the random share above, keeps any."),
            "allow_edit": _("The improved text is the best of the three for training."),
        }

    SECTIONS = (
        (_("Campaign"), ("name", "description", "status")),
        (_("What people answer"), ("scale", "group_size", "allow_tie", "allow_both_bad")),
        (_("What they may add"), ("rationale", "reason_tags", "allow_edit")),
        (_("How many judge a pair"), ("overlap", "max_overlap")),
        (_("What measures people"), ("gold_share", "repeat_share", "practice_pairs", "min_dwell_ms")),
        (_("Which pair comes next"), ("strategy", "random_share", "lease_seconds")),
        (_("Responses sampled from the model"), ("n_candidates", "n_samples", "keeps", "max_tokens", "temperatures")),
    )

    def range_error(self, name: str, least: float, most: float) -> ValidationError:
        by = 100 if name in SHARES else 1
        return super().range_error(name, least * by, most * by)

    def sections(self) -> list[tuple[str, list[forms.BoundField]]]:
        """Titles with their fields, in the order of the page."""
        return [(str(title), [self[name] for name in names]) for title, names in self.SECTIONS]


class CriterionForm(forms.Form):
    """One criterion beside the overall choice. `key` stays when the label is reworded: judgments refer to it."""

    key = forms.CharField(required=False, max_length=200, widget=forms.HiddenInput)
    label = forms.CharField(label=_("Question"), max_length=200)
    scale = forms.ChoiceField(
        label=_("Scale"),
        choices=[
            ("seven", _("7 grades")),
            ("three", _("left, tie, right")),
            ("binary", _("left or right")),
            ("rating", _("1 to 5 for each")),
        ],
    )
    help = forms.CharField(label=_("Explanation"), max_length=200, required=False)

    def clean_key(self) -> str:
        key = self.cleaned_data["key"]
        if key and not key.isidentifier():
            raise ValidationError(_("Remove this criterion and add it again."))
        return key


class BaseCriteriaFormSet(forms.BaseFormSet):
    def clean(self) -> None:
        if not any(self.errors):
            try:
                choices.check_criteria(self.criteria())
            except Invalid as error:
                raise ValidationError(str(error)) from error

    def criteria(self) -> list[dict[str, str]]:
        """As `Campaign.criteria` holds them."""
        kept = [
            form.cleaned_data
            for form in self.forms
            if form.cleaned_data.get("label") and not form.cleaned_data.get("DELETE")
        ]
        taken = {data["key"] for data in kept if data["key"]}
        criteria = []
        for data in kept:
            key = data["key"] or new_key(data["label"], taken)
            taken.add(key)
            criteria.append({"key": key, "label": data["label"], "scale": data["scale"]})
            if data["help"]:
                criteria[-1]["help"] = data["help"]
        return criteria


CriteriaFormSet = forms.formset_factory(
    CriterionForm, formset=BaseCriteriaFormSet, extra=1, max_num=MAX_CRITERIA, validate_max=True, can_delete=True
)


def new_key(label: str, taken: set[str]) -> str:
    """A word made of the label that no other criterion has."""
    word = slugify(label).replace("-", "_")[:40].strip("_")
    stem = word if word.isidentifier() else f"criterion_{word}".rstrip("_")
    numbered = (stem if n == 1 else f"{stem}_{n}" for n in range(1, MAX_CRITERIA + 2))
    return next(key for key in numbered if key not in taken)


class GuidelinesForm(forms.Form):
    text = forms.CharField(
        label=_("Guidelines"),
        required=False,
        max_length=50_000,
        widget=forms.Textarea(attrs={"rows": 16, "spellcheck": "true"}),
        help_text=_("Markdown. People open them with one key while they label."),
    )

    def clean_text(self) -> str:
        return self.cleaned_data["text"].replace("\r\n", "\n").strip()


class MemberForm(forms.Form):
    username = forms.CharField(
        label=_("User name"), max_length=150, widget=forms.TextInput(attrs={"autocomplete": "off"})
    )
    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role.choices)


class CampaignInvitationForm(forms.ModelForm):
    """A link into this campaign; a manager cannot promise more than the campaign's roles."""

    role = forms.ChoiceField(label=_("Role"), choices=Membership.Role.choices)

    class Meta:
        model = Invitation
        fields = ("role", "note")
        labels = {"note": _("For whom")}
        help_texts = {"note": _("Only you see this.")}
