"""Keys: defaults that fit together, and changes that cannot break the screen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import shortcuts
from labeling.models import Campaign
from labeling.shortcuts import RANKING, SEVEN, SIMPLE

NAMES = list(shortcuts.ACTIONS)
KEYS = st.one_of(st.sampled_from([*shortcuts.NAMED, *"abcdefgz0123456789?="]), st.text(max_size=3))


def test_it_has_defaults_without_a_conflict():
    assert shortcuts.problems({}) == {}
    assert shortcuts.problems({name: action.key for name, action in shortcuts.ACTIONS.items()}) == {}


@pytest.mark.parametrize("key", ["", "ab", " ", "tab", "escape", "A", "\n", "ctrl+s", 7, None, ["z"]])
def test_it_refuses_what_is_no_key(key):
    assert set(shortcuts.problems({"undo": key})) == {"undo"}


def test_it_refuses_an_action_that_does_not_exist():
    assert set(shortcuts.problems({"launch": "q"})) == {"launch"}


def test_it_refuses_a_key_that_is_taken_and_says_by_what():
    found = shortcuts.problems({"flag": "z"})
    assert "Flag" in found["undo"] or "Undo" in found["flag"]
    assert shortcuts.problems({"flag": "z", "undo": "f"}) == {}


def test_it_keeps_the_keys_that_rank():
    assert "needed to rank" in shortcuts.problems({"flag": "b"})["flag"]
    assert shortcuts.problems({"diff": "b"}) == {}  # there is no difference to mark among three


def test_it_lets_arrows_choose_or_move_where_they_cannot_meet():
    assert shortcuts.bindings(SEVEN, {})["arrowleft"] == "pane_before"
    assert shortcuts.bindings(SIMPLE, {}, "three")["arrowleft"] == "choose_left"


@pytest.mark.parametrize(("scale", "right", "tie"), [("three", "3", "2"), ("binary", "2", None)])
def test_it_gives_simple_scales_their_digits(scale, right, tie):
    bound = shortcuts.bindings(SIMPLE, {}, scale)
    assert (bound["1"], bound[right], bound["0"]) == ("choose_left", "choose_right", "choose_both_bad")
    assert tie is None or bound[tie] == "choose_tie"


def test_it_gives_up_a_second_key_that_somebody_uses():
    assert shortcuts.bindings(SEVEN, {})["backspace"] == "undo"
    bound = shortcuts.bindings(SEVEN, {"skip": "backspace"})
    assert (bound["backspace"], bound["z"]) == ("skip", "undo")


def test_it_falls_back_to_the_defaults_when_stored_keys_have_become_invalid():
    assert shortcuts.bindings(SEVEN, {"flag": "z", "gone": "q"}) == shortcuts.bindings(SEVEN, {})


@given(st.dictionaries(st.sampled_from(NAMES), KEYS, max_size=6))
def test_it_binds_every_action_of_a_mode_to_a_key_of_its_own(keys):
    if shortcuts.problems(keys):
        return
    for mode in (SEVEN, SIMPLE, RANKING):
        bound = shortcuts.bindings(mode, keys, Campaign.Scale.THREE)
        found = shortcuts.keys_of(bound)
        assert set(found) == {name for name, action in shortcuts.ACTIONS.items() if mode in action.modes}
        assert all(keys[name] in found[name] for name in keys if name in found)
        assert not set(bound) & set(shortcuts.FIXED.get(mode, ""))


def test_it_stores_only_what_differs():
    assert shortcuts.differing({"undo": "z", "skip": "q"}) == {"skip": "q"}
