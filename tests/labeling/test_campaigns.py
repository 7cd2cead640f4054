import pytest
from django.contrib.auth.models import User

from labeling import accounts, campaigns, judgments, leases, progress, starter
from labeling.errors import Frozen
from labeling.models import Campaign, Guidelines, Invitation, Judgment, Membership
from tests.labeling import make

pytestmark = pytest.mark.django_db


def test_it_keeps_every_version_of_the_guidelines():
    cats, mia = make.campaign("cats"), make.person("mia")
    first = campaigns.publish_guidelines(cats, "Be kind.", mia, make.NOW)
    second = campaigns.publish_guidelines(cats, "Be kind and brief.", mia, make.later(60))
    assert [first.number, second.number] == [1, 2]
    cats.refresh_from_db()
    assert (cats.guidelines, cats.guidelines_version) == ("Be kind and brief.", 2)
    assert list(cats.guidelines_versions.values_list("number", "text")) == [
        (2, "Be kind and brief."),
        (1, "Be kind."),
    ]
    assert make.judge(make.lease(make.comparison(cats), make.person("anna", cats))).guidelines_version == 2


def test_it_makes_no_new_version_of_unchanged_guidelines():
    cats = make.campaign("cats")
    once = campaigns.publish_guidelines(cats, "", None, make.NOW)
    assert campaigns.publish_guidelines(cats, "", None, make.later(60)) == once
    assert Guidelines.objects.count() == 1


def test_it_changes_settings_without_touching_what_was_published_meanwhile():
    cats, mia = make.campaign("cats"), make.person("mia")
    comparison = make.comparison(cats)
    open_in_another_tab = Campaign.objects.get()
    campaigns.publish_guidelines(cats, "Be kind.", mia, make.NOW)
    campaigns.publish_guidelines(cats, "Be brief.", mia, make.NOW)
    open_in_another_tab.overlap = 3
    campaigns.change(open_in_another_tab)
    cats.refresh_from_db()
    comparison.refresh_from_db()
    assert (cats.overlap, cats.guidelines, cats.guidelines_version, comparison.n_wanted) == (3, "Be brief.", 2, 3)


def test_it_starts_the_first_campaign_with_version_1_of_its_guidelines():
    campaign = starter.ensure()
    assert campaign.guidelines_versions.get().text == campaign.guidelines
    assert starter.ensure().guidelines_versions.count() == 1


def test_it_adds_changes_and_removes_members():
    cats, anna = make.campaign("cats"), make.person("anna")
    membership = campaigns.add_member(cats, "anna", "annotator")
    with pytest.raises(campaigns.AlreadyMember):
        campaigns.add_member(cats, "anna", "reviewer")
    campaigns.set_role(membership, "reviewer")
    assert Membership.objects.get(user=anna).role == "reviewer"
    make.judge(make.lease(make.comparison(cats), anna))
    campaigns.remove_member(membership)
    assert not Membership.objects.exists()
    assert judgments.counting().count() == 1
    with pytest.raises(User.DoesNotExist):
        campaigns.add_member(cats, "nobody", "annotator")


def test_it_keeps_the_last_manager():
    cats = make.campaign("cats")
    mia = Membership.objects.get(user=make.person("mia", cats, role="manager"))
    with pytest.raises(campaigns.LastManager):
        campaigns.set_role(mia, "annotator")
    with pytest.raises(campaigns.LastManager):
        campaigns.remove_member(mia)
    make.person("max", cats, role="manager")
    campaigns.set_role(mia, "annotator")
    assert cats.memberships.filter(role="manager").count() == 1


def test_it_gives_no_pairs_to_who_is_paused_and_takes_what_they_hold():
    cats = make.campaign("cats")
    anna = make.person("anna", cats)
    held = make.lease(make.comparison(cats), anna)
    make.comparison(cats)
    membership = Membership.objects.get(user=anna)
    campaigns.pause_member(membership, make.NOW)
    assert leases.claim(cats, anna, make.NOW) == []
    assert progress.overview(anna, make.NOW)[0].state == "paused"
    make.judge(held)
    assert judgments.counting().count() == 1
    campaigns.resume_member(membership)
    assert len(leases.claim(cats, anna, make.NOW)) == 1


def test_it_pauses_in_one_campaign_only():
    cats, dogs = make.campaign("cats"), make.campaign("dogs")
    anna = make.person("anna", cats, dogs)
    make.comparison(dogs)
    campaigns.pause_member(Membership.objects.get(campaign=cats), make.NOW)
    assert len(leases.claim(dogs, anna, make.NOW)) == 1


def test_it_deletes_a_campaign_that_nothing_learned_from():
    cats = make.campaign("cats")
    anna = make.person("anna", cats)
    judgment = make.judge(make.lease(make.comparison(cats), anna))
    judgments.undo(judgment, make.NOW)
    campaigns.publish_guidelines(cats, "Be kind.", anna, make.NOW)
    campaigns.delete(cats)
    assert not Campaign.objects.exists()
    assert not Judgment.objects.exists()


def test_it_deletes_links_that_led_into_the_campaign_alone():
    cats, dogs, anna = make.campaign("cats"), make.campaign("dogs"), make.person("anna")
    tokens = []
    for into in ([cats], [cats, dogs], []):
        tokens.append(accounts.prepare(invitation := Invitation(expires_at=make.later(60)), anna))
        invitation.save()
        invitation.campaigns.set(into)
    campaigns.delete(cats)
    assert [bool(accounts.find(token, make.NOW)) for token in tokens] == [False, True, True]


def test_it_refuses_in_words_to_delete_what_a_model_learned_from():
    cats = make.campaign("cats")
    make.judge(make.lease(make.comparison(cats), make.person("anna", cats)))
    Judgment.objects.update(frozen_at=make.NOW)
    with pytest.raises(Frozen, match="Close the campaign instead"):
        campaigns.delete(cats)
    assert Judgment.objects.count() == 1
