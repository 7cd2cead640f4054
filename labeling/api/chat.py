"""What people say of answers in their own chat, and whether it may be learned from."""

from typing import ClassVar

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, chat
from labeling.api.base import Endpoint, Strict, parse
from labeling.api.judgments import GivenVerdict


class ChatRequest(Strict):
    messages = serializers.ListField(child=serializers.UUIDField(), min_length=2, max_length=2)
    client_key = serializers.UUIDField()
    verdict = serializers.ChoiceField(choices=GivenVerdict.choices)
    choice = serializers.UUIDField(required=False, allow_null=True, help_text="id of the message preferred")


class ChatStored(serializers.Serializer):
    id = serializers.IntegerField()
    comparison = serializers.IntegerField()


class RatingRequest(Strict):
    message = serializers.UUIDField(help_text="id of an answer in your own chat")
    client_key = serializers.UUIDField()
    verdict = serializers.ChoiceField(choices=["good", "bad", chat.NONE], help_text="none takes a thumb back")


class Rated(serializers.Serializer):
    judgment = serializers.IntegerField(allow_null=True, help_text="the judgment in force; null: there is none")


class ConsentRequest(Strict):
    consent = serializers.BooleanField()


class ConsentShown(serializers.Serializer):
    consent_at = serializers.DateTimeField(allow_null=True, help_text="null: nothing of your chat is stored")
    retracted = serializers.IntegerField(required=False, help_text="judgments that withdrawing took back")


class ChatComparison(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "chat"}

    @extend_schema(request=ChatRequest, responses={201: ChatStored})
    def post(self, request: Request) -> Response:
        """A choice between two answers in your own chat, shown side by side (`messages` from left to right).

        409 consent_wanted until you agreed that it may be learned from.
        """
        data = parse(ChatRequest, request)
        judgment = chat.record_choice(
            access.person(request),
            data["messages"],
            data["client_key"],
            data["verdict"],
            data.get("choice"),
            timezone.now(),
        )
        return Response({"id": judgment.pk, "comparison": judgment.comparison_id}, status=201)


class ChatRating(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "chat"}

    @extend_schema(request=RatingRequest, responses=Rated)
    def post(self, request: Request) -> Response:
        """A thumb on an answer in your own chat; sent again, with another verdict, it replaces the one before.

        409 consent_wanted until you agreed that it may be learned from.
        """
        data = parse(RatingRequest, request)
        person = access.person(request)
        judgment = chat.rate(person, data["message"], data["client_key"], data["verdict"], timezone.now())
        return Response({"judgment": judgment.pk if judgment else None})


class ChatConsent(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "chat", "PUT": "chat"}

    @extend_schema(responses=ConsentShown)
    def get(self, request: Request) -> Response:
        """Since when what you say of answers in chat may be stored and learned from."""
        return Response({"consent_at": chat.consent_of(access.person(request))})

    @extend_schema(request=ConsentRequest, responses=ConsentShown)
    def put(self, request: Request) -> Response:
        """Agrees, or withdraws: then nothing more is stored, and what no training has used is taken back."""
        person, now = access.person(request), timezone.now()
        if parse(ConsentRequest, request)["consent"]:
            return Response({"consent_at": chat.give_consent(person, now)})
        return Response({"consent_at": None, "retracted": chat.withdraw_consent(person, now)})
