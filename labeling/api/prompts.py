"""Prompts and the responses to them: what managers bring in one by one. Who wrote what is shown to managers only."""

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response as Answer

from labeling import access, prompts, responses, screening, texts
from labeling.api.base import Strict, parse
from labeling.api.lists import IntegerFilter, ListEndpoint
from labeling.errors import Invalid
from labeling.models import Prompt, Response

MAX_PROMPTS = 1_000
MAX_RESPONSES = 100


class Turn(Strict):
    role = serializers.ChoiceField(choices=prompts.ROLES)
    content = serializers.CharField(max_length=texts.MAX_CHARS, trim_whitespace=False)


class PromptShown(serializers.ModelSerializer):
    messages = Turn(many=True)
    warnings = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = Prompt
        fields = ("id", "messages", "domain", "source", "warnings", "candidates_state", "created_at")


class PromptItem(Strict):
    messages = Turn(many=True, allow_empty=False, help_text="the last turn is the user's")
    domain = serializers.CharField(required=False, allow_blank=True, max_length=40, default="")


class PromptsRequest(Strict):
    prompts = serializers.ListField(child=PromptItem(), min_length=1, max_length=MAX_PROMPTS)
    wants_candidates = serializers.BooleanField(
        default=False, help_text="the model writes responses, as many as the campaign's n_candidates"
    )


class PromptsAdded(serializers.Serializer):
    prompts = PromptShown(many=True, help_text="in the order sent; those that were there already are the same rows")


class PromptFilter(filters.FilterSet):
    domain = filters.CharFilter()
    source = filters.CharFilter()
    candidates_state = filters.ChoiceFilter(choices=Prompt._meta.get_field("candidates_state").choices)

    class Meta:
        model = Prompt
        fields = ("domain", "source", "candidates_state")


class PromptList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read", "POST": "campaigns:write"}
    serializer_class = PromptShown
    filterset_class = PromptFilter

    def rows(self) -> QuerySet[Prompt]:
        campaign = access.get_managed_campaign(access.person(self.request), self.kwargs["slug"])
        return Prompt.objects.filter(campaign=campaign)

    def get(self, request: Request, slug: str) -> Answer:
        """The campaign's prompts, for managers."""
        return self.listed()

    @extend_schema(request=PromptsRequest, responses={201: PromptsAdded})
    def post(self, request: Request, slug: str) -> Answer:
        """Adds prompts, each once by its content: sending them again changes nothing."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        data = parse(PromptsRequest, request)
        added = prompts.add_prompts(campaign, data["prompts"], "api", wants_candidates=data["wants_candidates"])
        return Answer({"prompts": PromptShown(added, many=True).data}, status=201)


class ResponseShown(serializers.ModelSerializer):
    adapter = serializers.CharField(
        source="adapter.name", default=None, allow_null=True, help_text="the version that wrote it"
    )
    warnings = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = Response
        fields = ("id", "prompt", "text", "adapter", "generator", "source", "warnings", "reward", "created_at")


class ResponseItem(Strict):
    text = serializers.CharField(max_length=texts.MAX_CHARS)
    generator = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=80,
        default="",
        help_text="who wrote it; never shown while labeling",
    )


class ResponsesRequest(Strict):
    responses = serializers.ListField(child=ResponseItem(), min_length=1, max_length=MAX_RESPONSES)


class ResponsesAdded(serializers.Serializer):
    responses = ResponseShown(many=True, help_text="in the order sent; those that were there already are the same rows")


class ResponseFilter(filters.FilterSet):
    adapter = filters.CharFilter(field_name="adapter__name", help_text="a version's name")
    source = filters.CharFilter()
    prompt = IntegerFilter()

    class Meta:
        model = Response
        fields = ("adapter", "source", "prompt")


class CampaignResponses(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read"}
    serializer_class = ResponseShown
    filterset_class = ResponseFilter

    def rows(self) -> QuerySet[Response]:
        campaign = access.get_managed_campaign(access.person(self.request), self.kwargs["slug"])
        return Response.objects.filter(prompt__campaign=campaign).select_related("adapter")

    def get(self, request: Request, slug: str) -> Answer:
        """All responses in the campaign, for managers."""
        return self.listed()


class PromptResponses(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read", "POST": "campaigns:write"}
    serializer_class = ResponseShown

    def rows(self) -> QuerySet[Response]:
        return Response.objects.filter(prompt=self._prompt()).select_related("adapter")

    def _prompt(self) -> Prompt:
        managed = access.managed_campaigns(access.person(self.request))
        return get_object_or_404(Prompt, pk=self.kwargs["pk"], campaign__in=managed)

    def get(self, request: Request, pk: int) -> Answer:
        """The responses to one prompt, for managers."""
        return self.listed()

    @extend_schema(request=ResponsesRequest, responses={201: ResponsesAdded})
    def post(self, request: Request, pk: int) -> Answer:
        """Adds responses, each once by its text: sending them again changes nothing."""
        prompt = self._prompt()
        drafts = [_draft(prompt, item) for item in parse(ResponsesRequest, request)["responses"]]
        stored = responses.store(drafts)
        return Answer({"responses": ResponseShown(stored, many=True).data}, status=201)


def _draft(prompt: Prompt, item: dict[str, Any]) -> Response:
    draft = responses.draft(
        prompt,
        item["text"],
        source="api",
        generator=item["generator"],
        warnings=screening.screen_response(item["text"]),
    )
    if draft is None:
        raise Invalid("A response is empty.")
    return draft
