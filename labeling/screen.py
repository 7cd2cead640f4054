"""What the comparison screen needs to know before its first pair: buttons, keys, addresses, and every sentence that its
scripts say, in the reader's language.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from labeling import shortcuts
from labeling.models import Campaign, Preferences

NOBODY = uuid.UUID(int=0)  # stands for the lease in addresses that the page completes
LETTERS = "ABCD"
Button = dict[str, Any]


def context(campaign: Campaign, person: User, preferences: Preferences) -> dict[str, Any]:
    """For templates/labeling/label.html."""
    mode = shortcuts.mode_of(campaign)
    bound = {
        "pair": shortcuts.bindings(mode, preferences.keys, campaign.scale),
        "ranking": shortcuts.bindings(shortcuts.RANKING, preferences.keys),
    }
    keys = shortcuts.keys_of(bound["pair"])
    return {
        "campaign": campaign,
        "buttons": buttons(campaign, keys),
        "letters": LETTERS,
        "skip_reasons": skip_reasons(),
        "flags": flags(),
        "hints": {name: shortcuts.shown(found[0]) for name, found in _both(bound).items()},
        "sheet": sheet(campaign, bound),
        "asks": asks(campaign),
        "config": _config(campaign, person, preferences, bound),
    }


def _both(bound: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    return shortcuts.keys_of(bound["ranking"]) | shortcuts.keys_of(bound["pair"])


def asks(campaign: Campaign) -> dict[str, Any]:
    """What the campaign wants to know beside the choice. With none of it, the next pair follows at once."""
    return {
        "criteria": campaign.criteria,
        "tags": campaign.reason_tags,
        "rationale": campaign.rationale,
        "edit": campaign.allow_edit,
        "tie": campaign.allow_tie,
        "bothBad": campaign.allow_both_bad,
    }


def skip_reasons() -> list[tuple[str, str | Promise]]:
    """In the order of their digits; those of labeling.choices.SKIP_REASONS."""
    return [
        ("unsure", _("I cannot tell")),
        ("too_long", _("Too long")),
        ("language", _("Not my language")),
        ("expertise", _("Not my field")),
        ("uncomfortable", _("I would rather not read this")),
        ("other", _("Something else")),
    ]


def flags() -> list[tuple[str, str]]:
    """Those of labeling.choices.FLAGS."""
    return [
        ("unsafe", _("Unsafe content")),
        ("private_data", _("Private data")),
        ("broken_prompt", _("Broken prompt")),
    ]


def buttons(campaign: Campaign, keys: Mapping[str, list[str]]) -> dict[str, list[Button]]:
    """The buttons of the campaign's scale, by where they stand."""
    left: list[tuple[str, int | None]]
    right: list[tuple[str, int | None]]
    has_tie = campaign.allow_tie and campaign.scale != Campaign.Scale.BINARY
    if campaign.scale == Campaign.Scale.SEVEN:
        left = [("much_left", 3), ("left", 2), ("slightly_left", 1)]
        right = [("slightly_right", 1), ("right", 2), ("much_right", 3)]
        tie, both_bad = "tie", "both_bad"
    else:
        left, right = [("choose_left", None)], [("choose_right", None)]
        tie, both_bad = "choose_tie", "choose_both_bad"
    return {
        "left": [_grade(name, 0, strength, keys) for name, strength in left],
        "middle": [_button(tie, "tie", _("Tie"), keys)] if has_tie else [],
        "right": [_grade(name, 1, strength, keys) for name, strength in right],
        "extra": [_button(both_bad, "both_bad", _("Both bad"), keys)] if campaign.allow_both_bad else [],
    }


def _grade(name: str, side: int, strength: int | None, keys: Mapping[str, list[str]]) -> Button:
    labels = {3: _("much better"), 2: _("better"), 1: _("slightly"), None: _("better")}
    return _button(name, "preference", labels[strength], keys) | {"side": side, "strength": strength}


def _button(name: str, verdict: str, label: str, keys: Mapping[str, list[str]]) -> Button:
    """`label` is on the button, `title` says it in full; `key` is printed on it."""
    key = keys[name][0]
    return {
        "action": name,
        "verdict": verdict,
        "label": label,
        "title": shortcuts.ACTIONS[name].label,
        "key": key,
        "shown": shortcuts.shown(key),
        "shortcuts": " ".join(keys[name]),
    }


def sheet(campaign: Campaign, bound: Mapping[str, Mapping[str, str]]) -> list[tuple[str | Promise, list[Button]]]:
    """The help sheet: groups of actions that exist in this campaign, each with its keys."""
    is_ranked = campaign.group_size > 2
    found = shortcuts.keys_of(bound["ranking" if is_ranked else "pair"])
    hidden = _unavailable(campaign)
    groups: list[tuple[str | Promise, list[Button]]] = []
    for _name, label, actions in shortcuts.GROUPS:
        rows = [
            {"label": action.label, "keys": [shortcuts.shown(key) for key in found[action.name]]}
            for action in actions
            if action.name in found and action.name not in hidden
        ]
        if rows:
            groups.append((label, rows))
    return groups


def _unavailable(campaign: Campaign) -> set[str]:
    """Actions that this campaign does not offer."""
    offered = {
        ("tie", "choose_tie", "all_equal"): campaign.allow_tie,
        ("both_bad", "choose_both_bad"): campaign.allow_both_bad,
        ("criteria", "ranking_criteria"): bool(campaign.criteria),
        ("edit",): campaign.allow_edit,
        ("reasons",): bool(campaign.reason_tags) or campaign.rationale != Campaign.Rationale.OFF,
        ("guidelines",): bool(campaign.guidelines),
    }
    return {name for names, is_offered in offered.items() if not is_offered for name in names}


def _config(
    campaign: Campaign, person: User, preferences: Preferences, bound: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """What static/js/label.js reads."""
    return {
        "person": person.pk,
        "campaign": campaign.slug,
        "nobody": str(NOBODY),
        "loginUrl": reverse("login"),
        "minDwellMs": campaign.min_dwell_ms,
        "breakMinutes": preferences.break_minutes,
        "practicePairs": campaign.practice_pairs,
        "scale": campaign.scale,
        "asks": asks(campaign),
        "grades": [action.label for action in shortcuts.GRADES[:7]],
        "keys": bound,
        "shown": {name: shortcuts.shown(found[0]) for name, found in _both(bound).items()},
        "urls": {
            "claim": reverse("lease_claim", args=[campaign.slug]),
            "renew": reverse("lease_renew", args=[NOBODY]),
            "release": reverse("lease_release", args=[NOBODY]),
            "judge": reverse("judgment_create"),
            "undo": reverse("judgment_undo"),
        },
        "roles": {"system": _("Instructions to the model"), "user": _("User"), "assistant": _("Assistant")},
        "strings": {**_sayings(), **_labels()},
    }


def _sayings() -> dict[str, str]:
    """What the screen says after something happened."""
    return {
        "saved": _("✓ Saved. %(key)s takes it back."),
        "surplus": _("Kept, but not counted: somebody else had judged it by then."),
        "skipped": _("Skipped. %(key)s takes it back."),
        "undone": _("Taken back. Choose again."),
        "undoneGone": _("Taken back. Somebody else judges that pair now, so here is another one."),
        "nothingToUndo": _("There is nothing to undo."),
        "offline": _("No connection. Your judgments are kept here and sent as soon as it is back."),
        "login": _("Log in"),
        "loginAgain": _("You are logged out. Your judgments are kept here; log in to send them."),
        "sent": _("Back online: everything is saved."),
        "lost": _("That pair was open for so long that somebody else has it now. Here is another one."),
        "elsewhere": _("You judged that pair in another tab. Here is the next one."),
        "readBoth": _("Look at every response first."),
        "chooseFirst": _("Choose first."),
        "rankAll": _("Rank every response first."),
        "noReasons": _("This campaign asks for no reasons."),
        "rationaleNeeded": _("Please write why: this campaign asks for it with ties and strong preferences."),
        "cannotEdit": _("Choose the response to improve first."),
        "same": _("The responses are the same, word by word."),
        "differences": _("Marked: %(left)s words only in response 1, %(right)s only in response 2."),
        "linesDiffer": _("Too different to compare word by word: whole lines are marked."),
        "noDiff": _("Differences are no longer marked."),
        "cannotMark": _("This browser cannot mark differences."),
        "raw": _("Raw text."),
        "rendered": _("Formatted text."),
        "linked": _("The responses scroll together."),
        "unlinked": _("Each response scrolls by itself."),
    }


def _labels() -> dict[str, str]:
    """Words that the scripts put into the page."""
    return {
        "earlierOne": _("Show the turn before"),
        "earlier": _("Show %(n)s earlier turns"),
        "count": _("%(done)s of %(wanted)s · %(mine)s by you"),
        "session": _("This time: %(n)s, a median of %(seconds)s s"),
        "pair": _("Comparison %(n)s"),
        "response": _("Response %(name)s"),
        "rankOf": _("Rank of response %(name)s"),
        "rank": _("Rank %(n)s"),
        "unranked": _("Rank the responses: 1 is the best."),
        "picked": _("Rank of %(name)s?"),
        "flagged": _("Flag (%(n)s)"),
        "flag": _("Flag"),
        "practice": _("Practice: the answer to these is known, and you see it after each."),
        "practiceRight": _("Right."),
        "practiceWrong": _("Not quite."),
        "practiceAnswer": _("The known answer: %(answer)s."),
        "practiceSummary": _("You agreed with the known answer in %(right)s of %(n)s pairs."),
    }
