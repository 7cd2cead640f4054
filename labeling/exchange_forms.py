"""What a manager chooses when a file comes in, and when one goes out."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from labeling import exchange, exports
from labeling.formats import FORMATS
from labeling.provenance import LEAVE_OUT, SOFT, Options


class UploadForm(forms.Form):
    client_key = forms.UUIDField(widget=forms.HiddenInput)
    file = forms.FileField(
        label=_("File"),
        max_length=255,
        help_text=_(
            "JSON lines, JSON, CSV or Parquet, not packed; at most 2 GB. Nothing is imported before you say so."
        ),
        error_messages={
            "required": _("Choose a file first."),
            "empty": _("This file is empty."),
            "max_length": _("The name of this file is too long. Give it a shorter one."),
        },
    )


class StartForm(forms.Form):
    format = forms.ChoiceField(
        label=_("Format"),
        choices=[(name, known.label) for name, known in FORMATS.items()],
        help_text=_("Found by looking at the first records. Choose another one and the preview changes."),
    )
    on_warning = forms.ChoiceField(
        label=_("Records with warnings"),
        choices=[(exchange.KEEP, _("Take them, marked")), (exchange.REFUSE, _("Leave them out"))],
        initial=exchange.KEEP,
        help_text=_("A response that says who wrote it, an error message, or what is likely to be private."),
    )


class ExportForm(forms.Form):
    """`options` are those of the export. Every choice has a default, so an address with some of them works, too."""

    kind = forms.ChoiceField(
        label=_("What"),
        choices=[(name, kind.label) for name, kind in exports.KINDS.items()],
        initial="preference",
    )
    format = forms.ChoiceField(
        label=_("File"),
        choices=[("jsonl", _("JSON lines")), ("csv", "CSV"), ("parquet", "Parquet")],
        initial="jsonl",
        help_text=_("CSV is safe to open in a spreadsheet: what looks like a formula stays a text."),
    )
    ties = forms.ChoiceField(
        label=_("Ties"),
        choices=[(LEAVE_OUT, _("Leave them out")), (SOFT, _("Keep them, with a label of 0.5"))],
        initial=LEAVE_OUT,
        required=False,
        help_text=_("For preference pairs. “Both bad” is never one; it makes two negatives of unpaired data."),
    )
    without_warned = forms.BooleanField(
        label=_("Leave out what screening warned of"),
        required=False,
        help_text=_("Identity leaks, errors, private data."),
    )
    with_names = forms.BooleanField(
        label=_("With the names of people"),
        required=False,
        help_text=_("Otherwise each person has a pseudonym, the same in every export of this campaign."),
    )

    def switches(self) -> list[forms.BoundField]:
        return [self["without_warned"], self["with_names"]]

    def options(self) -> Options:
        data: dict[str, Any] = self.cleaned_data
        return Options(data["ties"] or LEAVE_OUT, data["with_names"], data["without_warned"])
