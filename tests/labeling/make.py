"""Rows for the tests of labeling: plain functions with defaults, no fixtures to look up."""

import itertools
import uuid
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import User

from labeling import choices, judgments, leases, pairs, prompts, responses
from labeling.models import Campaign, Comparison, Judgment, Lease, Membership, Prompt

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_numbers = itertools.count(1)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def campaign(slug: str = "cats", **fields) -> Campaign:
    return Campaign.objects.create(**{"name": slug.title(), "slug": slug, **fields})


def person(name: str = "", *campaigns: Campaign, role: str = "annotator", **fields) -> User:
    user = User.objects.create_user(username=name or f"person-{next(_numbers)}", password="pass-word-123", **fields)
    for joined in campaigns:
        Membership.objects.create(campaign=joined, user=user, role=role)
    return user


def prompt(in_campaign: Campaign, text: str = "") -> Prompt:
    item = {"messages": text or f"What is question {next(_numbers)}?"}
    return prompts.add_prompts(in_campaign, [item], "test")[0]


def comparison(
    in_campaign: Campaign, first: str = "A cat is a small animal.", second: str = "It depends!"
) -> Comparison:
    asked = prompt(in_campaign)
    for text in (first, second):
        responses.add_response(asked, text)
    return pairs.make_comparisons(asked)[0]


def lease(of: Comparison, user: User, at: datetime = NOW) -> Lease:
    """A lease on this very comparison: it must be the first one open to the person."""
    [claimed] = leases.claim(of.campaign, user, at, n=1)
    assert claimed.comparison_id == of.pk
    return claimed


def choice(of: Lease, verdict: str = "preference", *, side: int = 0, strength: int | None = 2) -> choices.Choice:
    if verdict != "preference":
        return choices.Choice(verdict=verdict, order=of.order)
    return choices.Choice(verdict=verdict, order=of.order, chosen=of.order[side], strength=strength)


def judge(of: Lease, verdict: str = "preference", at: datetime = NOW, **fields) -> Judgment:
    return judgments.record(of, of.annotator, uuid.uuid4(), choice(of, verdict, **fields), at)
