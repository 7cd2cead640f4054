"""The JSON API of labeling. Every error is {"error": {"code", "message", "fields"?}}; the message says what to do."""

import uuid
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import TextChoices
from django.http import Http404
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling import access, chat, choices, exchange, judgments, leases, progress
from labeling.errors import Refused
from labeling.models import Campaign, Lease
from serving.rendering import to_html

MAX_LEASES = 4
MAX_LINES = 5_000
MAX_INTEGER = 2**31 - 1


class GivenVerdict(TextChoices):
    """What a client may say; retractions are made by undo."""

    PREFERENCE = "preference"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"


class Strict(serializers.Serializer):
    """A serializer that refuses keys that it does not know: a misspelt one is never silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            raise serializers.ValidationError({key: [_("There is no such key here. Leave it out.")] for key in unknown})
        return super().to_internal_value(data)


class ClaimRequest(Strict):
    n = serializers.IntegerField(min_value=1, max_value=MAX_LEASES, default=2)


class JudgmentRequest(Strict):
    lease = serializers.UUIDField()
    client_key = serializers.UUIDField(help_text="made by the client; send the same one when you try again")
    verdict = serializers.ChoiceField(choices=GivenVerdict.choices)
    order = serializers.ListField(
        child=serializers.IntegerField(min_value=1), max_length=4, help_text="the lease's order, as it was shown"
    )
    choice = serializers.IntegerField(required=False, allow_null=True, help_text="id of the response preferred")
    strength = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=3)
    reason = serializers.CharField(required=False, allow_blank=True, max_length=2_000, default="")
    shown_ms = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=MAX_INTEGER)


class UndoRequest(Strict):
    client_key = serializers.UUIDField()


class ChatRequest(Strict):
    messages = serializers.ListField(child=serializers.UUIDField(), min_length=2, max_length=2)
    client_key = serializers.UUIDField()
    verdict = serializers.ChoiceField(choices=GivenVerdict.choices)
    choice = serializers.UUIDField(required=False, allow_null=True, help_text="id of the message preferred")


class ImportRequest(Strict):
    pairs = serializers.ListField(child=serializers.JSONField(), min_length=1, max_length=MAX_LINES)


class Endpoint(APIView):
    """Maps what goes wrong to one error format."""

    def get_exception_handler(self) -> Any:
        return answer_error


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """The one mapping of exceptions to answers; None (a bug, hence 500) for any other."""
    if isinstance(error, Refused):
        return _error(error.status, error.code, str(error))
    if isinstance(error, (Http404, exceptions.NotFound)):
        return _error(404, "not_found", _("There is nothing here that you may see."))
    if isinstance(error, exceptions.NotAuthenticated):
        return _error(401, "login_required", _("You are logged out. Log in again."))
    if isinstance(error, exceptions.ValidationError):
        message = _("Some values are wrong; fields says which.")
        return _error(400, "invalid", message, fields=error.detail)
    if isinstance(error, (PermissionDenied, exceptions.PermissionDenied)):
        message = str(error) or _("Only a manager of this campaign may do this.")
        return _error(403, "forbidden", message)
    if isinstance(error, exceptions.APIException):
        return _error(error.status_code, str(error.default_code), str(error.detail))
    return None


def _error(status: int, code: str, message: str, **more: Any) -> Response:
    return Response({"error": {"code": code, "message": message, **more}}, status=status)


def _parse(serializer: type[Strict], request: Request) -> dict[str, Any]:
    parsed = serializer(data=request.data)
    parsed.is_valid(raise_exception=True)
    return parsed.validated_data


def lease_json(lease: Lease) -> dict[str, Any]:
    """One pair to judge, blind: no word on who wrote what. `responses` come in the order in which they are shown."""
    by_id = {response.pk: response for response in lease.comparison.responses.all()}
    return {
        "id": lease.pk,
        "expires_at": lease.expires_at,
        "messages": [_shown(turn["content"], role=turn["role"]) for turn in lease.comparison.prompt.messages],
        "order": lease.order,
        "responses": [_shown(by_id[pk].text, id=pk) for pk in lease.order],
    }


def _shown(text: str, **more: object) -> dict[str, object]:
    return {**more, "text": text, "html": to_html(text)}


def campaign_json(campaign: Campaign, user: User, n_leases: int) -> dict[str, Any]:
    """How far it is and, when there is nothing to judge, why."""
    counts = progress.of_campaign(campaign, user)
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
    @extend_schema(request=ClaimRequest, responses=dict)
    def post(self, request: Request, slug: str) -> Response:
        """Up to n pairs to judge: those that you hold already, then new ones."""
        person = access.person(request)
        campaign = access.get_campaign(person, slug)
        claimed = leases.claim(campaign, person, timezone.now(), _parse(ClaimRequest, request)["n"])
        return Response(
            {
                "leases": [lease_json(lease) for lease in claimed],
                "lease_seconds": campaign.lease_seconds,
                "undoable": judgments.undoable(campaign, person),
                **campaign_json(campaign, person, len(claimed)),
            }
        )


class LeaseRenew(Endpoint):
    @extend_schema(request=None, responses=dict)
    def post(self, request: Request, pk: uuid.UUID) -> Response:
        """Holds the pair for you a while longer. 409 lease_lost when somebody else has it by now."""
        lease = leases.renew(access.get_lease(access.person(request), pk), timezone.now())
        return Response({"expires_at": lease.expires_at})


class LeaseRelease(Endpoint):
    @extend_schema(request=None, responses={204: None})
    def post(self, request: Request, pk: uuid.UUID) -> Response:
        """Lets go of the pair, so that others can have it at once."""
        leases.release(access.get_lease(access.person(request), pk), timezone.now())
        return Response(status=204)


class JudgmentCreate(Endpoint):
    @extend_schema(request=JudgmentRequest, responses={201: dict})
    def post(self, request: Request) -> Response:
        """Stores a judgment. Sending it again with the same client_key changes nothing."""
        data = _parse(JudgmentRequest, request)
        person = access.person(request)
        lease = access.get_lease(person, data["lease"])
        choice = choices.Choice(
            verdict=data["verdict"],
            order=data["order"],
            chosen=data.get("choice"),
            strength=data.get("strength"),
            reason=data["reason"],
            shown_ms=data.get("shown_ms"),
        )
        judgment = judgments.record(lease, person, data["client_key"], choice, timezone.now())
        return Response({"id": judgment.pk, "client_key": judgment.client_key}, status=201)


class JudgmentUndo(Endpoint):
    @extend_schema(request=UndoRequest, responses=dict)
    def post(self, request: Request) -> Response:
        """Takes a judgment of yours back. `lease` is the pair to judge again, null when somebody else has it by now."""
        judgment = access.get_judgment(access.person(request), _parse(UndoRequest, request)["client_key"])
        lease = judgments.undo(judgment, timezone.now())
        return Response({"lease": lease_json(lease) if lease else None})


class ImportPairs(Endpoint):
    @extend_schema(request=ImportRequest, responses=dict)
    def post(self, request: Request, slug: str) -> Response:
        """Responses from elsewhere, to be compared here. The report says what was refused and why."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        report = exchange.import_pairs(campaign, _parse(ImportRequest, request)["pairs"])
        return Response(report.as_json(), status=201 if report.added else 200)


class ChatComparison(Endpoint):
    @extend_schema(request=ChatRequest, responses={201: dict})
    def post(self, request: Request) -> Response:
        """A choice between two answers in your own chat, shown side by side (`messages` from left to right)."""
        data = _parse(ChatRequest, request)
        judgment = chat.record_choice(
            access.person(request),
            data["messages"],
            data["client_key"],
            data["verdict"],
            data.get("choice"),
            timezone.now(),
        )
        return Response({"id": judgment.pk, "comparison": judgment.comparison_id}, status=201)
