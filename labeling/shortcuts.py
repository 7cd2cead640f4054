"""Keys of the comparison screen: what can be done there, by which key, and what a person may change about that.

A key is what the browser calls it, in lower case: one printable character, or one of `NAMED`. Tab and Escape stay the
browser's, so that nobody is ever caught in the page.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Campaign

SEVEN, SIMPLE, RANKING = "seven", "simple", "ranking"  # seven grades · three-way or binary · three or four responses
NAMED = {
    "enter": "↵", "space": "␣", "backspace": "⌫", "delete": "⌦", "insert": "Ins", "home": "Home", "end": "End",
    "pageup": "PgUp", "pagedown": "PgDn", "arrowleft": "←", "arrowright": "→", "arrowup": "↑", "arrowdown": "↓",
}  # fmt: skip
FIXED = {RANKING: "abcd1234"}  # letters pick a response, digits give it a rank


@dataclass(frozen=True)
class Action:
    """`also` are further keys, which yield as soon as somebody uses them for something else."""

    name: str
    label: str | Promise
    key: str
    modes: tuple[str, ...] = (SEVEN, SIMPLE, RANKING)
    also: tuple[str, ...] = ()


_L = gettext_lazy
GRADES = (
    Action("much_left", _L("Response 1 is much better"), "1", (SEVEN,)),
    Action("left", _L("Response 1 is better"), "2", (SEVEN,)),
    Action("slightly_left", _L("Response 1 is slightly better"), "3", (SEVEN,)),
    Action("tie", _L("Tie: both are equally good"), "4", (SEVEN,)),
    Action("slightly_right", _L("Response 2 is slightly better"), "5", (SEVEN,)),
    Action("right", _L("Response 2 is better"), "6", (SEVEN,)),
    Action("much_right", _L("Response 2 is much better"), "7", (SEVEN,)),
    Action("both_bad", _L("All bad: none should have been given"), "0", (SEVEN, RANKING)),
)
SIDES = (
    Action("choose_left", _L("Response 1 is better"), "arrowleft", (SIMPLE,), ("1",)),
    Action("choose_right", _L("Response 2 is better"), "arrowright", (SIMPLE,)),  # its digit depends on the scale
    Action("choose_tie", _L("Tie: both are equally good"), "arrowdown", (SIMPLE,)),
    Action("choose_both_bad", _L("Both bad: neither should have been given"), "arrowup", (SIMPLE,), ("0",)),
)
ANSWERING = (
    Action("all_equal", _L("All equally good"), "=", (RANKING,)),
    Action("confirm", _L("Confirm, and go on"), "enter"),
    Action("reasons", _L("Say why"), "r"),
    Action("criteria", _L("Next criterion, then digits"), "c", (SEVEN, SIMPLE)),
    Action("ranking_criteria", _L("Next criterion, where three or four are ranked"), "k", (RANKING,)),
    Action("edit", _L("Improve the chosen response"), "e"),
    Action("flag", _L("Flag: unsafe, private data, broken prompt"), "f"),
    Action("skip", _L("Skip; twice: without a reason"), "s"),
    Action("undo", _L("Undo, as often as you like"), "z", also=("backspace",)),
)
READING = (
    Action("diff", _L("Mark where the two responses differ"), "d", (SEVEN, SIMPLE)),
    Action("raw", _L("Formatted or raw text"), "m"),
    Action("linked", _L("Scroll the responses together"), "l"),
    Action("pane_before", _L("Response to the left"), "arrowleft", (SEVEN, RANKING)),
    Action("pane_after", _L("Response to the right"), "arrowright", (SEVEN, RANKING)),
    Action("scroll_up", _L("Scroll up"), "arrowup", (SEVEN, RANKING)),
    Action("scroll_down", _L("Scroll down"), "arrowdown", (SEVEN, RANKING)),
    Action("page_up", _L("A screen up"), "pageup"),
    Action("page_down", _L("A screen down"), "space", also=("pagedown",)),
    Action("prompt", _L("Fold the prompt"), "p"),
    Action("thread", _L("The whole conversation"), "t"),
    Action("guidelines", _L("Guidelines"), "g"),
    Action("pause", _L("Take a break"), "x"),
    Action("help", _L("This sheet"), "?"),
)
GROUPS = (
    ("grades", _L("Seven grades"), GRADES),
    ("sides", _L("Two or three choices"), SIDES),
    ("answering", _L("Answering"), ANSWERING),
    ("reading", _L("Reading"), READING),
)
ACTIONS = {action.name: action for _name, _label, group in GROUPS for action in group}


def mode_of(campaign: Campaign) -> str:
    """How two responses are compared in this campaign; three or four are always ranked."""
    return SEVEN if campaign.scale == Campaign.Scale.SEVEN else SIMPLE


def problems(keys: Mapping[str, object]) -> dict[str, str]:
    """What is wrong with a person's keys, by action; empty when nothing is. A key must be one that we know, free in
    every mode in which its action exists. `keys` may leave actions out: they keep their defaults.
    """
    found = {name: _("There is no such action.") for name in keys if name not in ACTIONS}
    found |= {
        name: _("Give one character, or a name like enter, space or arrowleft.")
        for name, key in keys.items()
        if name in ACTIONS and not _is_key(key)
    }
    for mode in (SEVEN, SIMPLE, RANKING):
        taken: dict[str, str] = dict.fromkeys(FIXED.get(mode, ""), "")
        for action in _in_mode(mode):
            if action.name in found:
                continue
            key = str(keys.get(action.name, action.key))
            if key in taken:
                found[action.name] = _conflict(key, taken[key])
            taken.setdefault(key, action.name)
    return found


def _is_key(key: object) -> bool:
    if not isinstance(key, str):
        return False
    return key in NAMED or (len(key) == 1 and key.isprintable() and not key.isspace() and key == key.lower())


def _in_mode(mode: str) -> list[Action]:
    return [action for action in ACTIONS.values() if mode in action.modes]


def _conflict(key: str, name: str) -> str:
    if not name:
        return _("“%(key)s” is needed to rank three or four responses.") % {"key": shown(key)}
    return _("“%(key)s” is taken by “%(action)s”.") % {"key": shown(key), "action": ACTIONS[name].label}


def differing(keys: Mapping[str, str]) -> dict[str, str]:
    """What of `keys` is not the default anyway: this is stored, so that a better default reaches everybody."""
    return {name: key for name, key in keys.items() if key != ACTIONS[name].key}


def bindings(mode: str, chosen: Mapping[str, str], scale: str = "") -> dict[str, str]:
    """Key → action in this mode. What was stored once and is no longer valid counts as never chosen."""
    usable = {} if problems(chosen) else chosen
    actions = _in_mode(mode)
    bound = {usable.get(action.name, action.key): action.name for action in actions}
    further = [(key, action.name) for action in actions for key in action.also]
    if mode == SIMPLE:
        last = "3" if scale == Campaign.Scale.THREE else "2"
        further += [(last, "choose_right")] + ([("2", "choose_tie")] if last == "3" else [])
    for key, name in further:
        bound.setdefault(key, name)
    return bound


def keys_of(bound: Mapping[str, str]) -> dict[str, list[str]]:
    """Action → its keys, digits first: they stand on the buttons."""
    found: dict[str, list[str]] = {}
    for key in sorted(bound, key=lambda key: not key.isdigit()):
        found.setdefault(bound[key], []).append(key)
    return found


def shown(key: str) -> str:
    """A key as it is printed on keyboards."""
    return NAMED.get(key, key.upper())
