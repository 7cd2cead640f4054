import re

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from labeling import accounts, campaign_urls, campaigns, gold, leases
from labeling.models import Campaign, Comparison, Invitation, Judgment, Lease, Membership
from tests.labeling import make

pytestmark = pytest.mark.django_db
REVIEWERS = {"campaign_disputes", "adjudicate", "decision_undo", "gold_set", "campaign_gold", "campaign_leaderboard"}
ONLY_POST = {
    "decision_undo", "gold_set", "campaign_delete", "member_invite", "member_change", "invitation_revoke",
}  # fmt: skip
PATTERNS = [  # imports and exports have tests of their own
    pattern for pattern in campaign_urls.urlpatterns if pattern.callback.__module__ != "labeling.exchange_views"
]
HOSTILE = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def cats():
    return make.campaign("cats")


@pytest.fixture
def mia(client, cats):
    user = make.person("mia", cats, role="manager")
    client.force_login(user)
    return user


def _addresses(campaign):
    """Name and address of every page of managers and reviewers, about rows that exist."""
    anna = make.person("anna", campaign)
    judgment = make.judge(make.lease(make.comparison(campaign), anna))
    campaigns.publish_guidelines(campaign, "Be kind.", anna, make.NOW)
    invitation = Invitation(expires_at=make.later(10**9), note="Zoe")
    accounts.prepare(invitation, anna)
    invitation.save()
    invitation.campaigns.add(campaign)
    rows = {
        "campaign_annotator": [anna.pk],
        "adjudicate": [judgment.comparison_id],
        "decision_undo": [judgment.comparison_id],
        "gold_set": [judgment.comparison_id],
        "guidelines_version": [1],
        "member_change": [Membership.objects.get(user=anna).pk],
        "invitation_revoke": [invitation.pk],
    }
    for pattern in PATTERNS:
        yield pattern.name, reverse(pattern.name, args=[campaign.slug, *rows.get(str(pattern.name), [])])


def _ask(client, name, address):
    return client.post(address, {"action": "remove", "name": "Cats"}) if name in ONLY_POST else client.get(address)


@pytest.mark.parametrize(
    ("who", "expected"), [("nobody", 302), ("annotator", 403), ("stranger", 404), ("manager of another", 404)]
)
def test_it_shows_nothing_to_who_has_no_part_in_it(client, cats, who, expected):
    dogs = make.campaign("dogs")
    people = {
        "annotator": make.person("ann", cats),
        "stranger": make.person("ben", dogs),
        "manager of another": make.person("max", dogs, role="manager"),
    }
    addresses = list(_addresses(cats))
    if who in people:
        client.force_login(people[who])
    for name, address in addresses:
        assert _ask(client, name, address).status_code == expected, name
    assert (Membership.objects.filter(campaign=cats).count(), Invitation.objects.count()) == (2, 1)
    assert Campaign.objects.filter(slug="cats").exists()
    assert not Lease.objects.filter(repeat=2).exists()


def test_it_shows_reviewers_disputes_and_no_more(client, cats):
    rob = make.person("rob", cats, role="reviewer")
    addresses = list(_addresses(cats))
    client.force_login(rob)
    for name, address in addresses:
        status = _ask(client, name, address).status_code
        assert (status != 403) is (name in REVIEWERS), (name, status)


def test_it_opens_every_page_to_a_manager(client, cats, mia):
    for name, address in _addresses(cats):
        if name not in ONLY_POST:
            response = client.get(address)
            assert response.status_code == 200, name
            assert "Cats" in response.content.decode()


def test_it_takes_rows_of_other_campaigns_for_missing(client, cats, mia):
    other = list(_addresses(make.campaign("dogs")))
    for name, address in other:
        response = _ask(client, name, address.replace("/dogs/", "/cats/"))
        if re.search(r"/\d+/", address) and name != "guidelines_version":
            assert response.status_code == 404, name
    assert Membership.objects.filter(campaign__slug="dogs").count() == 1


def _posted(client, address):
    """What the form on this page sends when nothing is changed."""
    page = client.get(address)
    body = {}
    for form in (page.context["form"], page.context["criteria"].management_form, *page.context["criteria"]):
        for field in form:
            value = field.value()
            body[field.html_name] = "" if value is None or value is False else value
    return {name: value for name, value in body.items() if value != ""}


def test_it_saves_settings_and_says_so(client, cats, mia):
    address = reverse("campaign_settings", args=["cats"])
    make.judge(make.lease(make.comparison(cats), make.person("anna", cats)))
    body = _posted(client, address) | {
        "overlap": 3, "gold_share": 15, "reason_tags": "clearer\nsafer", "description": HOSTILE,
        "criteria-0-label": "Is it true?", "criteria-0-scale": "seven",
    }  # fmt: skip
    response = client.post(address, body, follow=True)
    assert "Saved." in response.content.decode()
    assert HOSTILE not in response.content.decode()
    cats.refresh_from_db()
    assert (cats.overlap, cats.gold_share, cats.reason_tags) == (3, 0.15, ["clearer", "safer"])
    assert cats.criteria == [{"key": "is_it_true", "label": "Is it true?", "scale": "seven"}]
    assert Comparison.objects.get().is_open


def test_it_saves_nothing_of_a_form_with_a_mistake(client, cats, mia):
    address = reverse("campaign_settings", args=["cats"])
    for wrong in ({"random_share": 10}, {"name": ""}, {"criteria-0-label": "x" * 201, "criteria-0-scale": "seven"}):
        response = client.post(address, _posted(client, address) | {"overlap": 9} | wrong)
        assert response.status_code == 422
        assert "Nothing was saved yet" in response.content.decode()
        assert Campaign.objects.get().overlap == 1


def test_it_publishes_guidelines_and_lists_the_versions(client, cats, mia):
    address = reverse("campaign_guidelines", args=["cats"])
    client.post(address, {"text": "Be *kind*. <script>alert(1)</script>"})
    client.post(address, {"text": "Be kind and brief."})
    page = client.get(address).content.decode()
    assert "Version 1" in page
    assert "People see version 2 now" in page
    first = client.get(reverse("guidelines_version", args=["cats", 1])).content.decode()
    assert "<em>kind</em>" in first
    assert "<script>alert" not in first


def test_it_adds_members_changes_roles_pauses_and_removes(client, cats, mia):
    make.person("anna")
    address = reverse("campaign_members", args=["cats"])
    assert (
        "Nobody has this user name" in client.post(address, {"username": "zoe", "role": "annotator"}).content.decode()
    )
    client.post(address, {"username": "anna", "role": "annotator"})
    membership = Membership.objects.get(user__username="anna")
    change = reverse("member_change", args=["cats", membership.pk])
    client.post(change, {"action": "role", "role": "reviewer"})
    client.post(change, {"action": "pause"})
    membership.refresh_from_db()
    assert membership.role == "reviewer"
    assert membership.paused_at
    client.post(change, {"action": "resume"})
    client.post(change, {"action": "role", "role": "administrator"})
    client.post(change, {"action": "explode"})
    membership.refresh_from_db()
    assert (membership.role, membership.paused_at) == ("reviewer", None)
    client.post(change, {"action": "remove"})
    assert not Membership.objects.filter(user__username="anna").exists()
    own = reverse("member_change", args=["cats", Membership.objects.get(user=mia).pk])
    assert "only manager" in client.post(own, {"action": "remove"}, follow=True).content.decode()


def test_it_makes_a_link_into_this_campaign_and_withdraws_it(client, cats, mia):
    make.campaign("dogs")
    response = client.post(reverse("member_invite", args=["cats"]), {"role": "reviewer", "note": HOSTILE}, follow=True)
    page = response.content.decode()
    [token] = re.findall(r"/invite/([\w-]+)/", page)
    assert HOSTILE not in page
    assert token not in client.get(reverse("campaign_members", args=["cats"])).content.decode()
    accounts.accept(token, "zoe", "pass-word-123", make.NOW)
    assert [str(one.campaign) for one in User.objects.get(username="zoe").memberships.all()] == ["Cats"]
    client.post(reverse("member_invite", args=["cats"]), {"role": "annotator", "note": "Max"})
    unused = Invitation.objects.get(used_at=None)
    client.post(reverse("invitation_revoke", args=["cats", unused.pk]))
    assert Invitation.objects.count() == 1


def test_it_lets_no_manager_invite_an_administrator_or_withdraw_a_link_into_several(client, cats, mia):
    response = client.post(reverse("member_invite", args=["cats"]), {"role": "administrator", "note": ""})
    assert response.status_code == 422
    assert not Invitation.objects.exists()
    wide = Invitation(expires_at=make.later(10**9))
    accounts.prepare(wide, mia)
    wide.save()
    wide.campaigns.add(cats, make.campaign("dogs"))
    assert client.post(reverse("invitation_revoke", args=["cats", wide.pk])).status_code == 404


def test_it_lets_administrators_delete_a_campaign_by_its_name(client, cats):
    make.judge(make.lease(make.comparison(cats), make.person("anna", cats)))
    client.force_login(make.person("root", is_staff=True))
    address = reverse("campaign_delete", args=["cats"])
    assert "Nothing was deleted" in client.post(address, {"name": "cats"}, follow=True).content.decode()
    Judgment.objects.update(frozen_at=make.NOW)
    assert "Close the campaign instead" in client.post(address, {"name": "Cats"}, follow=True).content.decode()
    Judgment.objects.update(frozen_at=None)
    assert "was deleted" in client.post(address, {"name": "Cats"}, follow=True).content.decode()
    assert not Campaign.objects.exists()


def test_it_lists_a_thousand_members_in_pages(client, cats, mia, django_assert_max_num_queries):
    people = User.objects.bulk_create(User(username=f"person-{n:04}") for n in range(1000))
    Membership.objects.bulk_create(Membership(campaign=cats, user=user) for user in people)
    with django_assert_max_num_queries(15):
        page = client.get(reverse("campaign_members", args=["cats"])).content.decode()
    assert page.count("<tr>") < 60
    assert "Page 1 of 21" in page
    found = client.get(reverse("campaign_members", args=["cats"]), {"q": "0777"}).content.decode()
    assert "person-0777" in found
    assert "person-0778" not in found
    last = client.get(reverse("campaign_members", args=["cats"]), {"page": "999999"}).content.decode()
    assert "person-0999" in last


def test_it_escapes_names_everywhere(client, mia):
    campaign = Campaign.objects.create(name=HOSTILE, slug="hostile", overlap=2)
    Membership.objects.create(campaign=campaign, user=mia, role="manager")
    for name, side in ((HOSTILE, 0), ("\u202eevil", 1)):
        user = make.person(name, campaign)
        if not campaign.comparisons.exists():
            make.comparison(campaign, HOSTILE, "It depends on the cat.")
        [lease] = leases.claim(campaign, user, make.NOW, 1)
        make.judge(lease, side=lease.order.index(min(lease.order)) if side else lease.order.index(max(lease.order)))
    comparison = campaign.comparisons.get()
    for pattern in PATTERNS:
        if pattern.name in ONLY_POST or pattern.name == "guidelines_version":
            continue
        args = {"adjudicate": [comparison.pk], "campaign_annotator": [User.objects.get(username=HOSTILE).pk]}
        page = client.get(reverse(pattern.name, args=["hostile", *args.get(str(pattern.name), [])])).content.decode()
        assert "<img src=x" not in page, pattern.name


def test_it_links_to_a_campaigns_pages_from_home(client, cats, mia):
    page = client.get(reverse("home")).content.decode()
    assert reverse("campaign_dashboard", args=["cats"]) in page
    client.force_login(make.person("rob", cats, role="reviewer"))
    page = client.get(reverse("home")).content.decode()
    assert reverse("campaign_disputes", args=["cats"]) in page
    assert reverse("campaign_dashboard", args=["cats"]) not in page
    client.force_login(make.person("anna", cats))
    assert reverse("campaign_disputes", args=["cats"]) not in client.get(reverse("home")).content.decode()


def test_it_shows_gold_pairs_with_how_people_did(client, cats, mia):
    cats.gold_share = 0.5
    cats.save()
    comparison = make.comparison(cats)
    first, second = [item.response_id for item in comparison.items.all()]
    gold.set_answer(comparison, {str(first): 1, str(second): 2})
    for name, right in (("anna", True), ("ben", False)):
        user = make.person(name, cats)
        lease = Lease.objects.create(
            comparison=comparison, annotator=user, purpose="gold", order=[first, second],
            created_at=make.NOW, expires_at=make.later(60),
        )  # fmt: skip
        make.judge(lease, side=0 if right else 1)
    page = client.get(reverse("campaign_gold", args=["cats"]))
    [row] = page.context["rows"]
    assert (row.n, row.n_right) == (2, 1)
