from collections import Counter

import pytest

from labeling import starter
from labeling.models import Campaign, Prompt

pytestmark = pytest.mark.django_db


def test_it_makes_the_starter_campaign_once():
    campaign = starter.ensure()
    campaign.prompts.earliest("id").delete()
    Campaign.objects.update(name="Ours now")
    again = starter.ensure()
    assert (again.pk, again.name) == (campaign.pk, "Ours now")
    assert Prompt.objects.count() == 77  # what people deleted does not come back


def test_it_has_many_prompts_in_every_domain_all_waiting_for_responses():
    campaign = starter.ensure()
    prompts = list(campaign.prompts.order_by("id"))
    assert Counter(prompt.domain for prompt in prompts) == dict.fromkeys(
        ["writing", "explanation", "advice", "code", "reasoning", "safety"], 13
    )
    assert {prompt.candidates_state for prompt in prompts} == {"wanted"}
    assert len({prompt.domain for prompt in prompts[:6]}) == 6
    assert sum(len(prompt.messages) > 2 for prompt in prompts) >= 10
    assert "Safety" in campaign.guidelines
