"""What people say of answers in their own chat."""

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


class ChatComparison(Endpoint):
    @extend_schema(request=ChatRequest, responses={201: ChatStored})
    def post(self, request: Request) -> Response:
        """A choice between two answers in your own chat, shown side by side (`messages` from left to right)."""
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
