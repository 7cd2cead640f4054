"""What the comparison screen is told before its first pair."""

import json
import re
from pathlib import Path

import pytest
from django.conf import settings

from labeling import choices, screen
from labeling.models import Campaign, Preferences
from tests.labeling import make

pytestmark = pytest.mark.django_db
SCRIPTS = {path.name: path.read_text() for path in (Path(settings.BASE_DIR) / "static/js").glob("*.js")}


def _context(**fields):
    return screen.context(make.campaign("cats", **fields), make.person("anna"), Preferences())


def _sheet(context):
    return [str(row["label"]) for _label, rows in context["sheet"] for row in rows]


def test_it_offers_the_reasons_and_flags_that_the_server_takes():
    assert [code for code, _name in screen.skip_reasons()] == list(choices.SKIP_REASONS)
    assert [code for code, _name in screen.flags()] == list(choices.FLAGS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["much_left", "left", "slightly_left", "tie", "slightly_right", "right", "much_right", "both_bad"]),
        ({"scale": "three"}, ["choose_left", "choose_tie", "choose_right", "choose_both_bad"]),
        ({"scale": "binary", "allow_both_bad": False}, ["choose_left", "choose_right"]),
    ],
)
def test_it_has_the_buttons_of_the_scale(fields, expected):
    found = _context(**fields)["buttons"]
    assert [button["action"] for place in ("left", "middle", "right", "extra") for button in found[place]] == expected


def test_it_lists_only_keys_that_do_something_here():
    plain = _sheet(_context())
    assert "Improve the chosen response" not in plain
    assert "Guidelines" not in plain
    Campaign.objects.all().delete()
    full = screen.context(
        make.campaign("dogs", allow_edit=True, guidelines="Be fair.", group_size=3), make.person("bert"), Preferences()
    )
    assert {"Improve the chosen response", "Guidelines", "All equally good"} <= set(_sheet(full))
    assert "Mark where the two responses differ" not in _sheet(full)


def test_it_tells_the_script_what_the_campaign_asks():
    criteria = [{"key": "truth", "label": "Truthful", "scale": "seven"}]
    config = _context(criteria=criteria, reason_tags=["clearer"], rationale="required")["config"]
    assert config["asks"]["criteria"] == criteria
    assert config["asks"]["tags"] == ["clearer"]
    assert config["asks"]["rationale"] == "required"
    assert json.dumps(config, default=str)


def test_it_has_every_sentence_that_the_scripts_say_and_no_other():
    said = set().union(*(re.findall(r"\bstrings\.(\w+)", text) for text in SCRIPTS.values()))
    assert set(_context()["config"]["strings"]) == said


def test_it_has_every_action_that_the_screen_knows():
    known = set(_context()["config"]["keys"]["pair"].values()) | set(_context_ranking())
    script = SCRIPTS["label.js"]
    for name in known - {button["action"] for group in screen.buttons(*_scale()).values() for button in group}:
        assert re.search(rf"\b{name}\b", script), name


def _context_ranking():
    return screen.context(make.campaign("rank", group_size=3), make.person("rita"), Preferences())["config"]["keys"][
        "ranking"
    ].values()


def _scale():
    campaign = make.campaign("scale")
    keys = screen.context(campaign, make.person("sven"), Preferences())["config"]["keys"]["pair"]
    return campaign, screen.shortcuts.keys_of(keys)
