"""The campaign that a new installation starts with: prompts and guidelines written for it, in labeling/starter/."""

import json
from pathlib import Path

from django.db import transaction
from django.utils import timezone

from labeling import campaigns, prompts
from labeling.models import Campaign

FOLDER = Path(__file__).parent / "starter"
SLUG = "starter"


@transaction.atomic
def ensure() -> Campaign:
    """The starter campaign, made with all its prompts if it is not there; one that is there is left as people made it."""
    campaign, is_new = Campaign.objects.get_or_create(
        slug=SLUG,
        defaults={
            "name": "Everyday questions",
            "description": "Writing, explanation, advice, code, reasoning and safety, in short answers.",
            "temperatures": [0.2, 0.4, 0.6, 0.8],  # above that a model of this size loses the thread
        },
    )
    if is_new:
        campaigns.publish_guidelines(campaign, (FOLDER / "guidelines.md").read_text(), None, timezone.now())
        lines = (FOLDER / "prompts.jsonl").read_text().splitlines()
        prompts.add_prompts(campaign, _alternating([json.loads(line) for line in lines]), "starter")
    return campaign


def _alternating(items: list[dict]) -> list[dict]:
    """One prompt of each domain in turn: candidates are sampled in this order, so the first pairs are varied."""
    by_domain: dict[str, list[dict]] = {}
    for item in items:
        by_domain.setdefault(item["domain"], []).append(item)
    ranked = [(rank, item) for group in by_domain.values() for rank, item in enumerate(group)]
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
