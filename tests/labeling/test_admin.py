import re

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from labeling import accounts, campaigns, responses, statistics
from labeling.models import Campaign, Comparison, Import, Invitation, Judgment, Prompt
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def root(client):
    user = make.person("root", is_staff=True, is_superuser=True)
    client.force_login(user)
    return user


def test_it_shows_the_link_of_an_invitation_once(client):
    address = reverse("admin:labeling_invitation_add")
    body = {"role": "manager", "campaigns": [], "note": "Mia", "expires_at_0": "2099-01-01", "expires_at_1": "12:00"}
    page = client.post(address, body, follow=True).content.decode()
    [token] = set(re.findall(r"/invite/([\w-]+)/", page))
    assert accounts.find(token, make.NOW) == Invitation.objects.get(note="Mia")
    assert token not in client.get(reverse("admin:labeling_invitation_changelist")).content.decode()


def test_it_opens_every_page(client, root):
    campaign = make.campaign()
    judgment = make.judge(make.lease(make.comparison(campaign), root))
    rows = {
        "campaign": campaign,
        "prompt": judgment.comparison.prompt,
        "judgment": judgment,
        "comparison": judgment.comparison,
        "guidelines": campaigns.publish_guidelines(campaign, "Be kind.", root, make.NOW),
        "statistics": statistics.refresh(campaign, make.NOW),
        "import": Import.objects.create(
            campaign=campaign, created_by=root, filename="pairs.csv", format="csv", created_at=make.NOW
        ),
    }
    for name, row in rows.items():
        assert client.get(reverse(f"admin:labeling_{name}_changelist")).status_code == 200
        assert client.get(reverse(f"admin:labeling_{name}_change", args=[row.pk])).status_code == 200
    for name in ("campaign", "prompt", "invitation"):
        assert client.get(reverse(f"admin:labeling_{name}_add")).status_code == 200
    assert client.get(reverse("admin:auth_user_changelist")).status_code == 200


def test_it_changes_no_judgment(client, root):
    judgment = make.judge(make.lease(make.comparison(make.campaign()), root))
    client.post(reverse("admin:labeling_judgment_change", args=[judgment.pk]), {"verdict": "tie"})
    client.post(reverse("admin:labeling_judgment_delete", args=[judgment.pk]), {"post": "yes"})
    assert Judgment.objects.get().verdict == "preference"


def test_it_adds_a_prompt_with_its_hash_and_only_once(client):
    campaign = make.campaign()
    body = {"campaign": campaign.pk, "messages": '"Why?"', "domain": ""}
    client.post(reverse("admin:labeling_prompt_add"), body)
    prompt = Prompt.objects.get()
    assert prompt.messages == [{"role": "user", "content": "Why?"}]
    assert len(prompt.sha256) == 64
    assert prompt.candidates_state == "wanted"
    page = client.post(reverse("admin:labeling_prompt_add"), body).content.decode()
    assert "has the same prompt already" in page
    wrong = client.post(reverse("admin:labeling_prompt_add"), {**body, "messages": "[1]"}).content.decode()
    assert "Turn 1 must have" in wrong


def test_it_changes_the_words_of_a_prompt_until_it_has_responses(client):
    prompt = make.prompt(make.campaign(), "Why?")
    address = reverse("admin:labeling_prompt_change", args=[prompt.pk])
    body = {"campaign": prompt.campaign_id, "messages": '"Who?"', "domain": "a", "candidates_state": "failed"}
    assert client.post(address, body).status_code == 302
    prompt.refresh_from_db()
    assert (prompt.excerpt, prompt.domain, prompt.candidates_state) == ("Who?", "a", "wanted")
    sha256 = prompt.sha256
    responses.add_response(prompt, "Me.")
    other = make.campaign("dogs")
    assert client.post(address, {**body, "campaign": other.pk, "messages": '"How?"', "domain": "b"}).status_code == 302
    prompt.refresh_from_db()
    assert (prompt.excerpt, prompt.sha256, prompt.campaign.slug, prompt.domain) == ("Who?", sha256, "cats", "b")


def test_it_lets_only_a_superuser_invite_an_administrator(client):
    body = {"role": "administrator", "note": "Mia", "expires_at_0": "2099-01-01", "expires_at_1": "12:00"}
    clerk = make.person("clerk", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="labeling"))
    client.force_login(clerk)
    address = reverse("admin:labeling_invitation_add")
    assert "administrator" not in str(client.get(address).context["adminform"].form["role"])
    assert "role" in client.post(address, body).context["adminform"].form.errors
    assert not Invitation.objects.exists()
    client.post(address, {**body, "role": "manager"})
    assert Invitation.objects.get().role == "manager"
    client.force_login(User.objects.get(username="root"))
    client.post(address, body)
    assert Invitation.objects.filter(role="administrator").count() == 1


def test_it_asks_the_model_again(client):
    prompt = make.prompt(make.campaign())
    Prompt.objects.update(candidates_state="failed")
    body = {"action": "ask_again", "_selected_action": [prompt.pk]}
    client.post(reverse("admin:labeling_prompt_changelist"), body)
    prompt.refresh_from_db()
    assert prompt.candidates_state == "wanted"


def test_it_reopens_pairs_when_the_overlap_grows(client, root):
    campaign = make.campaign()
    make.judge(make.lease(make.comparison(campaign), root))
    page = client.get(reverse("admin:labeling_campaign_change", args=[campaign.pk]))
    form = page.context["adminform"].form
    body = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    body |= {"overlap": 2, "allow_tie": "on", "allow_both_bad": "on", "temperatures": "[0.5]", "description": "x"}
    body |= {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0}
    response = client.post(reverse("admin:labeling_campaign_change", args=[campaign.pk]), body)
    assert response.status_code == 302, response.context["errors"]
    assert Campaign.objects.get().temperatures == [0.5]
    assert Comparison.objects.get().is_open


def test_it_publishes_the_guidelines_of_a_campaign(client, root):
    body: dict[str, str | float] = {
        "name": "Dogs",
        "slug": "dogs",
        "guidelines": "Be *kind*.",
        "status": "active",
        "scale": "seven",
    }
    body |= {"overlap": 1, "max_overlap": 0, "lease_seconds": 120, "min_dwell_ms": 600, "n_candidates": 4}
    body |= {"max_tokens": 256, "group_size": 2, "gold_share": 0, "repeat_share": 0, "practice_pairs": 0}
    body |= {"n_samples": 0, "keeps": "best"}
    body |= {"strategy": "random", "random_share": 0.2, "rationale": "off"}
    body |= {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0}
    response = client.post(reverse("admin:labeling_campaign_add"), body)
    assert response.status_code == 302, response.context["errors"]
    published = Campaign.objects.get().guidelines_versions.get()
    assert (published.number, published.text, published.created_by) == (1, "Be *kind*.", root)


def test_it_resets_a_password(client):
    anna = make.person("anna")
    body = {"password1": "another-one-99", "password2": "another-one-99", "usable_password": "true"}
    client.post(reverse("admin:auth_user_password_change", args=[anna.pk]), body)
    assert User.objects.get(pk=anna.pk).check_password("another-one-99")
