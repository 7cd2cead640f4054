import json
import re

import pytest
from django.urls import reverse

from labeling.models import Campaign, Prompt
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def cats():
    return make.campaign("cats", guidelines="# Prefer **cats**\n<script>alert(1)</script>")


@pytest.fixture
def anna(client, cats):
    user = make.person("anna", cats)
    client.force_login(user)
    return user


def _home(client):
    return client.get(reverse("home")).content.decode()


def test_it_says_what_happens_next(client, cats, anna):
    assert "There are no prompts here yet" in _home(client)
    make.prompt(cats)
    page = _home(client)
    assert "The model is writing responses to 1 of 1 prompts" in page
    assert "every 4s" in page
    comparison = make.comparison(cats)
    assert "Start labeling" in _home(client)
    make.judge(make.lease(comparison, anna))
    Prompt.objects.update(candidates_state="done")
    page = _home(client)
    assert "You have judged everything" in page
    assert "1 of 1 judgments · 1 by you" in page
    assert "every 60s" in page
    Campaign.objects.update(status="paused")
    assert "Paused" in _home(client)


def test_it_tells_people_without_a_campaign_whom_to_ask(client):
    client.force_login(make.person("zoe"))
    assert "Ask the person who invited you" in _home(client)
    client.force_login(make.person("root", is_staff=True))
    assert "Make a campaign" in _home(client)


def test_it_answers_htmx_with_the_list_alone(client, anna):
    page = client.get(reverse("home"), headers={"HX-Request": "true"}).content.decode()
    assert page.lstrip().startswith('<div id="campaigns"')


def test_it_needs_as_many_queries_for_many_pairs_as_for_few(
    client, cats, anna, django_assert_num_queries, django_assert_max_num_queries
):
    make.comparison(cats)
    with django_assert_max_num_queries(10) as few:
        _home(client)
    for _ in range(10):
        make.comparison(cats)
    with django_assert_num_queries(len(few)):
        _home(client)


def _label(client):
    return client.get(reverse("label", args=["cats"])).content.decode()


def test_it_renders_guidelines_and_what_the_script_needs(client, anna):
    page = _label(client)
    assert "Prefer <strong>cats</strong>" in page
    assert "alert(1)</script>" not in page
    config = json.loads(re.findall(r'<script id="label-config" type="application/json">(.*?)</script>', page)[0])
    assert config["urls"]["claim"] == "/api/campaigns/cats/leases/"
    assert config["person"] == anna.pk


def _keys(page):
    return re.findall(r'data-key="(\w)"', page)


@pytest.mark.parametrize(("fields", "keys"), [
    ({}, "1234567"),
    ({"allow_tie": False}, "123567"),
    ({"scale": "three"}, "123"),
    ({"scale": "binary"}, "12"),
])  # fmt: skip
def test_it_offers_the_buttons_of_the_scale(client, cats, anna, fields, keys):
    Campaign.objects.update(**fields)
    assert _keys(_label(client)) == [*keys, "0"]
    Campaign.objects.update(allow_both_bad=False)
    assert _keys(_label(client)) == [*keys]


def test_it_holds_no_inline_script_style_or_handler(client, anna):
    for page in (_home(client), _label(client)):
        inline = [
            tag for tag in re.findall(r"<script[^>]*>", page) if "src=" not in tag and "application/json" not in tag
        ]
        assert inline == []
        assert not re.search(r"\s(style|on\w+)=", page)
