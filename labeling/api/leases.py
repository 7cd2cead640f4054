"""Pairs to judge: claimed, held and let go of."""

import functools
import uuid
from typing import Any, ClassVar

from django.contrib.auth.models import User
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, judgments, leases, progress
from labeling.api.base import Endpoint, Strict, parse
from labeling.models import Campaign, Lease, Purpose
from serving.rendering import to_html

KEPT_CHARS = 10_000


class ClaimRequest(Strict):
    n = serializers.IntegerField(min_value=1, max_value=leases.MAX_HELD, default=2)
    undoable = serializers.BooleanField(default=True, help_text="whether to list what can be undone")


class TurnLeased(serializers.Serializer):
    role = serializers.CharField()
    text = serializers.CharField()
    html = serializers.CharField(help_text="rendered from Markdown and sanitised")


class ResponseLeased(serializers.Serializer):
    id = serializers.IntegerField()
    text = serializers.CharField()
    html = serializers.CharField(help_text="rendered from Markdown and sanitised")


class LeaseShown(serializers.Serializer):
    id = serializers.UUIDField()
    expires_at = serializers.DateTimeField()
    messages = TurnLeased(many=True)
    order = serializers.ListField(child=serializers.IntegerField(), help_text="response ids from left to right")
    responses = ResponseLeased(many=True, help_text="in this order")
    practice = serializers.BooleanField(help_text="of the practice round: the answer to the judgment says the solution")


class ProgressShown(serializers.Serializer):
    judgments = serializers.IntegerField()
    wanted = serializers.IntegerField()
    mine = serializers.IntegerField()
    writing = serializers.IntegerField(help_text="prompts that the model still writes responses to")


class Claimed(serializers.Serializer):
    leases = LeaseShown(many=True)
    lease_seconds = serializers.IntegerField()
    undoable = serializers.ListField(child=serializers.UUIDField(), help_text="client keys, oldest first")
    state = serializers.ChoiceField(choices=["ready", "paused", "writing", "with_others", "finished", "empty"])
    progress = ProgressShown()


class Renewed(serializers.Serializer):
    expires_at = serializers.DateTimeField()


def lease_json(lease: Lease) -> dict[str, Any]:
    """One pair to judge, blind: no word on who wrote what, nor on why it is shown, except that practice says so.
    `responses` come in the order in which they are shown.
    """
    by_id = {response.pk: response for response in lease.comparison.responses.all()}
    return {
        "id": lease.pk,
        "expires_at": lease.expires_at,
        "messages": [_shown(turn["content"], role=turn["role"]) for turn in lease.comparison.prompt.messages],
        "order": lease.order,
        "responses": [_shown(by_id[pk].text, id=pk) for pk in lease.order],
        "practice": lease.purpose == Purpose.PRACTICE,
    }


def _shown(text: str, **more: object) -> dict[str, object]:
    return {**more, "text": text, "html": _lately(text) if len(text) <= KEPT_CHARS else to_html(text)}


_lately = functools.lru_cache(maxsize=512)(to_html)  # the same pair is shown to k people, one after the other


def campaign_json(campaign: Campaign, user: User, n_leases: int) -> dict[str, Any]:
    """How far it is and, when there is nothing to judge, why."""
    counts = (progress.lately if n_leases else progress.of_campaign)(campaign, user)
    return {
        "state": progress.state(campaign, user, counts, has_pairs=n_leases > 0),
        "progress": {
            "judgments": counts.n_judgments,
            "wanted": counts.n_wanted,
            "mine": counts.n_mine,
            "writing": counts.n_writing,
        },
    }


class LeaseClaim(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=ClaimRequest, responses=Claimed)
    def post(self, request: Request, slug: str) -> Response:
        """Up to n pairs to judge: those that you hold already, then new ones."""
        person = access.person(request)
        campaign = access.get_campaign(person, slug)
        asked = parse(ClaimRequest, request)
        claimed = leases.claim(campaign, person, timezone.now(), asked["n"])
        return Response(
            {
                "leases": [lease_json(lease) for lease in claimed],
                "lease_seconds": campaign.lease_seconds,
                "undoable": judgments.undoable(campaign, person) if asked["undoable"] else [],
                **campaign_json(campaign, person, len(claimed)),
            }
        )


class LeaseRenew(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=None, responses=Renewed)
    def post(self, request: Request, pk: uuid.UUID) -> Response:
        """Holds the pair for you a while longer. 409 lease_lost when somebody else has it by now."""
        lease = leases.renew(access.get_lease(access.person(request), pk), timezone.now())
        return Response({"expires_at": lease.expires_at})


class LeaseRelease(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=None, responses={204: None})
    def post(self, request: Request, pk: uuid.UUID) -> Response:
        """Lets go of the pair, so that others can have it at once."""
        leases.release(access.get_lease(access.person(request), pk), timezone.now())
        return Response(status=204)
