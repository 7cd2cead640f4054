import pytest

from labeling.campaign_forms import CriteriaFormSet, GuidelinesForm, SettingsForm, new_key
from labeling.models import Campaign
from tests.labeling import make

pytestmark = pytest.mark.django_db
FIELDS = {
    "name": "Cats", "status": "active", "scale": "seven", "group_size": 2, "allow_tie": "on", "rationale": "off",
    "overlap": 2, "max_overlap": 0, "gold_share": 10, "repeat_share": 5, "practice_pairs": 0, "min_dwell_ms": 600,
    "strategy": "random", "random_share": 20, "lease_seconds": 120, "n_candidates": 4, "n_samples": 0,
    "keeps": "best", "max_tokens": 256,
    "temperatures": "0.2, 0.4", "reason_tags": "clearer\n\n safer \nclearer",
}  # fmt: skip


def _form(**changed):
    return SettingsForm({**FIELDS, **changed}, instance=Campaign(slug="cats"))


def test_it_reads_shares_lists_and_numbers_as_people_write_them():
    form = _form()
    assert form.is_valid(), form.errors
    campaign = form.save()
    campaign.refresh_from_db()
    assert (campaign.gold_share, campaign.repeat_share, campaign.random_share) == (0.1, 0.05, 0.2)
    assert campaign.reason_tags == ["clearer", "safer"]
    assert campaign.temperatures == [0.2, 0.4]
    shown = SettingsForm(instance=campaign)
    assert shown["gold_share"].value() == "10"
    assert shown["reason_tags"].value() == "clearer\nsafer"
    assert shown["temperatures"].value() == "0.2, 0.4"


def test_it_sees_no_change_in_what_was_shown_and_sent_back():
    campaign = _form().save()
    again = SettingsForm({**FIELDS, "reason_tags": "clearer\nsafer"}, instance=campaign)
    assert again.is_valid()
    assert again.changed_data == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gold_share", 51, "From 0 to 50"),
        ("repeat_share", -1, "From 0 to 50"),
        ("random_share", 19, "From 20 to 100"),
        ("group_size", 5, "From 2 to 4"),
        ("group_size", 1, "From 2 to 4"),
        ("overlap", 0, "From 1 to 20"),
        ("max_overlap", 1, "at least the judgments per pair"),
        ("lease_seconds", 5, "From 20"),
        ("temperatures", "warm", "Numbers with commas"),
        ("temperatures", "2.5", "from 0 to 2"),
        ("temperatures", "nan", "from 0 to 2"),
        ("gold_share", "nan", "Enter a number"),
        ("reason_tags", "x" * 61, "at most 60 characters"),
        ("reason_tags", "\n".join(map(str, range(21))), "At most 20 reasons"),
        ("strategy", "best", "Select a valid choice"),
    ],
)
def test_it_says_what_is_out_of_range(field, value, message):
    form = _form(**{field: value})
    assert not form.is_valid()
    assert message in str(form.errors[field])


def test_it_leaves_room_for_pairs_that_count():
    assert _form(gold_share=30, repeat_share=30).is_valid()
    assert "60" in str(_form(gold_share=40, repeat_share=30).errors["repeat_share"])


def test_it_has_no_tie_on_a_binary_scale():
    form = _form(scale="binary")
    assert form.is_valid()
    assert form.save().allow_tie is False


def test_it_shows_every_field_in_one_section():
    form = SettingsForm(instance=make.campaign())
    names = [field.name for _, fields in form.sections() for field in fields]
    assert sorted(names) == sorted(form.fields)


def _criteria(*rows):
    data = {"criteria-TOTAL_FORMS": len(rows), "criteria-INITIAL_FORMS": 0}
    for n, row in enumerate(rows):
        data |= {f"criteria-{n}-{name}": value for name, value in row.items()}
    return CriteriaFormSet(data, prefix="criteria")


def test_it_makes_criteria_of_rows_and_keeps_their_keys():
    formset = _criteria(
        {"label": "Is it true?", "scale": "seven", "help": "As far as you know."},
        {"key": "tone", "label": "Better tone now", "scale": "rating"},
        {"label": "Gone", "scale": "three", "DELETE": "on"},
        {},
    )
    assert formset.is_valid(), formset.errors
    assert formset.criteria() == [
        {"key": "is_it_true", "label": "Is it true?", "scale": "seven", "help": "As far as you know."},
        {"key": "tone", "label": "Better tone now", "scale": "rating"},
    ]


def test_it_refuses_broken_criteria():
    assert not _criteria({"label": "True?", "scale": "eleven"}).is_valid()
    assert not _criteria({"key": "a b", "label": "True?", "scale": "seven"}).is_valid()
    twice = {"key": "truth", "label": "True?", "scale": "seven"}
    assert "same key" in str(_criteria(twice, twice).non_form_errors())


def test_it_names_criteria_in_any_script():
    assert new_key("事实", set()) == "criterion"
    assert new_key("事实", {"criterion"}) == "criterion_2"
    assert new_key("1st point", set()) == "criterion_1st_point"


def test_it_reads_guidelines_with_plain_line_ends():
    form = GuidelinesForm({"text": "\r\n# Be kind\r\nand brief\r\n"})
    assert form.is_valid()
    assert form.cleaned_data["text"] == "# Be kind\nand brief"
