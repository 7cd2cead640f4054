"""Preferences: one row per person, changed by its own form only."""

import pytest
from django.urls import reverse

from labeling import preferences, shortcuts
from labeling.errors import Invalid
from labeling.models import Preferences
from tests.labeling import make

pytestmark = pytest.mark.django_db
DEFAULTS = {name: action.key for name, action in shortcuts.ACTIONS.items()}


@pytest.fixture
def anna(client):
    anna = make.person("anna")
    client.force_login(anna)
    return anna


def _post(client, **changes):
    return client.post(reverse("preferences"), {**DEFAULTS, "break_minutes": 30, **changes})


def test_it_has_defaults_without_storing_them(anna):
    found = preferences.preferences_of(anna)
    assert (found.keys, found.break_minutes) == ({}, 30)
    assert not Preferences.objects.exists()


def test_it_stores_what_differs_and_changes_it_again(anna):
    preferences.store_preferences(anna, {**DEFAULTS, "skip": "q"}, 45)
    preferences.store_preferences(anna, {"skip": "w"}, 0)
    assert Preferences.objects.get().keys == {"skip": "w"}
    assert Preferences.objects.get().break_minutes == 0


@pytest.mark.parametrize(("keys", "minutes"), [({"skip": "z"}, 30), ({"fly": "q"}, 30), ({}, -1), ({}, 241)])
def test_it_refuses_what_would_break_the_screen(anna, keys, minutes):
    with pytest.raises(Invalid):
        preferences.store_preferences(anna, keys, minutes)


def test_it_shows_and_saves_the_form(client, anna):
    assert 'name="much_left"' in client.get(reverse("preferences")).content.decode()
    response = _post(client, skip="Q", page_down=" ", undo="⌫", break_minutes=0)
    assert response.status_code == 302
    assert Preferences.objects.get().keys == {"skip": "q", "undo": "backspace"}
    assert Preferences.objects.get().break_minutes == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skip": "z"}, "is taken by"),
        ({"skip": "escape"}, "Give one character"),
        ({"skip": ""}, "This field is required"),
        ({"skip": "<script>"}, "Give one character"),
        ({"break_minutes": 999}, "less than or equal to 240"),
    ],
)
def test_it_says_what_is_wrong_and_saves_nothing(client, anna, change, said):
    response = _post(client, **change)
    assert response.status_code == 200
    assert said in response.content.decode()
    assert "<script>" not in response.content.decode().split("</head>")[1].replace("</script>", "")
    assert not Preferences.objects.exists()


def test_it_asks_for_a_login(client):
    for response in (client.get(reverse("preferences")), _post(client)):
        assert response.status_code == 302
        assert response["Location"].startswith(reverse("login"))
    assert not Preferences.objects.exists()


def test_it_keeps_people_apart(client, anna):
    bert = make.person("bert")
    preferences.store_preferences(bert, {"skip": "w"}, 10)
    assert 'value="w"' not in client.get(reverse("preferences")).content.decode()
    _post(client, skip="q")
    assert Preferences.objects.get(user=bert).keys == {"skip": "w"}


def test_it_shows_changed_keys_on_the_screen(client, anna):
    cats = make.campaign("cats")
    cats.memberships.create(user=anna)
    preferences.store_preferences(anna, {"much_left": "q", "skip": "w"}, 30)
    page = client.get(reverse("label", args=["cats"])).content.decode()
    assert 'data-key="q"' in page
    assert '<kbd class="kbd" aria-hidden="true">W</kbd>' in page
