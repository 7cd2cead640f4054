"""Comparisons: made, looked at, given a known answer, decided."""

from typing import Any, ClassVar

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Prefetch, Q, QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response as Answer

from labeling import access, adjudication, gold, judgments, leases, pairs, statistics
from labeling.api.base import Endpoint, Strict, parse
from labeling.api.judgments import CampaignJudgmentShown, JudgmentShown, RanksField
from labeling.api.leases import LeaseShown, lease_json
from labeling.api.lists import MAX_ID, IntegerFilter, ListEndpoint
from labeling.api.prompts import ResponseShown, Turn
from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Membership, Response

MAX_COMPARISONS = 500
FOR_MANAGERS = (
    "source", "n_judgments", "n_wanted", "is_open", "is_disputed", "gold_ranks", "arm", "propensity", "authors",
)  # fmt: skip
FOR_REVIEWERS = ("n_judgments", "n_wanted", "is_open", "is_disputed")


class BlindResponse(serializers.ModelSerializer):
    class Meta:
        model = Response
        fields = ("id", "text")


class ComparisonShown(serializers.ModelSerializer):
    """Blind for those who label: neither who wrote what, nor whether the answer is known, nor how others judged."""

    messages = serializers.SerializerMethodField()
    responses = BlindResponse(many=True)
    gold_ranks = serializers.DictField(child=serializers.IntegerField(), allow_null=True, required=False)
    authors = serializers.SerializerMethodField(required=False, help_text="who wrote the responses")

    class Meta:
        model = Comparison
        fields: tuple[str, ...] = ("id", "prompt", "messages", "responses", "created_at", *FOR_MANAGERS)
        extra_kwargs: ClassVar[dict[str, Any]] = {name: {"required": False} for name in FOR_MANAGERS}

    @extend_schema_field(Turn(many=True))
    def get_messages(self, comparison: Comparison) -> list[dict[str, str]]:
        return comparison.prompt.messages

    @extend_schema_field(ResponseShown(many=True))
    def get_authors(self, comparison: Comparison) -> list[dict[str, Any]]:
        return list(ResponseShown(comparison.responses.all(), many=True).data)

    def get_fields(self) -> dict[str, Any]:
        """Without a `role` in the context, as when the schema is written, all of them."""
        fields = super().get_fields()
        role = self.context.get("role", Membership.Role.MANAGER)
        kept = {Membership.Role.MANAGER: FOR_MANAGERS, Membership.Role.REVIEWER: FOR_REVIEWERS}.get(role, ())
        return {name: field for name, field in fields.items() if name not in FOR_MANAGERS or name in kept}


class ComparisonInFull(ComparisonShown):
    judgments = serializers.SerializerMethodField(help_text="those in force: yours; for managers everybody's")

    class Meta(ComparisonShown.Meta):
        fields = (*ComparisonShown.Meta.fields, "judgments")

    @extend_schema_field(CampaignJudgmentShown(many=True))
    def get_judgments(self, comparison: Comparison) -> list[dict[str, Any]]:
        shown = comparison.shown_judgments  # type: ignore[attr-defined]
        is_manager = self.context["role"] == Membership.Role.MANAGER
        return list((CampaignJudgmentShown if is_manager else JudgmentShown)(shown, many=True).data)


class BlindFilter(filters.FilterSet):
    prompt = IntegerFilter()

    class Meta:
        model = Comparison
        fields = ("prompt",)


class ReviewFilter(BlindFilter):
    is_disputed = filters.BooleanFilter()
    is_open = filters.BooleanFilter()

    class Meta:
        model = Comparison
        fields = ("prompt", "is_disputed", "is_open")


class FullFilter(ReviewFilter):
    is_gold = filters.BooleanFilter(field_name="gold_ranks", lookup_expr="isnull", exclude=True)
    source = filters.ChoiceFilter(choices=Comparison.Source.choices)

    class Meta:
        model = Comparison
        fields = ("prompt", "is_disputed", "is_open", "is_gold", "source")


FILTERS: dict[str, type[filters.FilterSet]] = {
    Membership.Role.MANAGER: FullFilter,
    Membership.Role.REVIEWER: ReviewFilter,
}


class ComparisonsRequest(Strict):
    comparisons = serializers.ListField(
        child=serializers.ListField(
            child=serializers.IntegerField(min_value=1, max_value=MAX_ID), min_length=1, max_length=4
        ),
        min_length=1,
        max_length=MAX_COMPARISONS,
        help_text="of each, the ids of its responses, all to one prompt of the campaign",
    )


class ComparisonsAdded(serializers.Serializer):
    comparisons = ComparisonShown(many=True, help_text="the new ones; those that were there already are left out")


def visible(user: User, campaign: Campaign, role: str) -> QuerySet[Comparison]:
    """All of the campaign's for its reviewers and managers, but for what was compared in chats; for others, and of chats,
    those that they judged themselves.
    """
    rows = Comparison.objects.filter(campaign=campaign)
    mine = Q(pk__in=judgments.in_force().filter(annotator=user).values("comparison"))
    is_private = Q(source=Comparison.Source.CHAT)
    return _with_contents(rows.filter(mine if role == Membership.Role.ANNOTATOR else mine | ~is_private))


def _with_contents(rows: QuerySet[Comparison]) -> QuerySet[Comparison]:
    answers = Response.objects.select_related("adapter").order_by("items__index")
    return rows.select_related("prompt").prefetch_related(Prefetch("responses", queryset=answers))


class ComparisonList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read", "POST": "campaigns:write"}
    serializer_class = ComparisonShown

    @property
    def filterset_class(self) -> type[filters.FilterSet]:  # type: ignore[override]
        is_schema = getattr(self, "swagger_fake_view", False)
        return FullFilter if is_schema else FILTERS.get(self._role(), BlindFilter)

    def _role(self) -> str:
        return self.get_serializer_context()["role"]

    def get_serializer_context(self) -> dict[str, Any]:
        if getattr(self, "swagger_fake_view", False):
            return dict(super().get_serializer_context())
        if not hasattr(self, "seen_as"):
            person = access.person(self.request)
            self.campaign = access.get_campaign(person, self.kwargs["slug"])
            self.seen_as = access.role(person, self.campaign)
        return {**super().get_serializer_context(), "role": self.seen_as}

    def rows(self) -> QuerySet[Comparison]:
        role = self._role()
        return visible(access.person(self.request), self.campaign, role)

    def get(self, request: Request, slug: str) -> Answer:
        """The campaign's comparisons: all for its reviewers and managers, for others those that they judged."""
        return self.listed()

    @extend_schema(request=ComparisonsRequest, responses={201: ComparisonsAdded})
    def post(self, request: Request, slug: str) -> Answer:
        """Opens responses to be compared, for managers. The same set is compared once: again changes nothing."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        groups = _groups(campaign, parse(ComparisonsRequest, request)["comparisons"])
        with transaction.atomic():
            new = pairs.add_comparisons(campaign, groups, Comparison.Source.CAMPAIGN)
        shown = _with_contents(Comparison.objects.filter(pk__in=[one.pk for one in new])).order_by("id")
        context = {"role": Membership.Role.MANAGER}
        return Answer({"comparisons": ComparisonShown(shown, many=True, context=context).data}, status=201)


def _groups(campaign: Campaign, wanted: list[list[int]]) -> list[list[Response]]:
    """The responses of each comparison; raises Invalid unless they differ and answer one prompt of the campaign."""
    found = Response.objects.filter(prompt__campaign=campaign).in_bulk({pk for ids in wanted for pk in ids})
    for number, ids in enumerate(wanted, 1):
        are_known = len(set(ids)) == len(ids) and all(pk in found for pk in ids)
        if not are_known or len({found[pk].prompt_id for pk in ids}) != 1:
            raise Invalid(
                _("Comparison %(n)d: name different responses to one prompt of this campaign.") % {"n": number}
            )
    return [[found[pk] for pk in ids] for ids in wanted]


class ComparisonDetail(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read"}

    @extend_schema(responses=ComparisonInFull)
    def get(self, request: Request, pk: int) -> Answer:
        """One comparison with the judgments in force: yours; for managers everybody's, with who wrote what."""
        person = access.person(request)
        campaign = _campaign_of(person, pk)
        role = access.role(person, campaign)
        said = judgments.in_force().select_related("comparison__campaign", "annotator", "edit")
        if role != Membership.Role.MANAGER:
            said = said.filter(annotator=person)
        with_judgments = Prefetch("judgments", queryset=said, to_attr="shown_judgments")
        comparison = get_object_or_404(visible(person, campaign, role).prefetch_related(with_judgments), pk=pk)
        return Answer(ComparisonInFull(comparison, context={"role": role}).data)


class GoldRequest(Strict):
    ranks = RanksField(help_text="the known answer: response id → rank, 1 best, ties equal")


class ComparisonGold(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"PUT": "campaigns:write", "DELETE": "campaigns:write"}

    @extend_schema(request=GoldRequest, responses={204: None})
    def put(self, request: Request, pk: int) -> Answer:
        """Says which answer is right: from now on the pair measures people, and leaves the ordinary ones."""
        ranks = parse(GoldRequest, request)["ranks"]
        _set_answer(_managed(request, pk), {str(response): rank for response, rank in ranks.items()})
        return Answer(status=204)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, pk: int) -> Answer:
        """Makes it an ordinary pair again."""
        _set_answer(_managed(request, pk), None)
        return Answer(status=204)


def _set_answer(comparison: Comparison, ranks: dict[str, int] | None) -> None:
    gold.set_answer(comparison, ranks)
    statistics.mark_stale(comparison.campaign)


def _campaign_of(person: User, pk: int) -> Campaign:
    rows = Comparison.objects.select_related("campaign").only("campaign")
    return get_object_or_404(rows, pk=pk, campaign__in=access.campaigns(person)).campaign


def _managed(request: Request, pk: int) -> Comparison:
    managed = access.managed_campaigns(access.person(request))
    return get_object_or_404(Comparison.objects.prefetch_related("items"), pk=pk, campaign__in=managed)


class ComparisonDecide(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=None, responses=LeaseShown)
    def post(self, request: Request, pk: int) -> Answer:
        """A lease by which a reviewer decides what others disagree on: judge under it, and that settles the pair."""
        person = access.person(request)
        campaign = access.get_reviewed_campaign(person, _campaign_of(person, pk).slug)
        disputed = adjudication.listed(campaign, "disputed")
        lease = leases.decide(get_object_or_404(disputed, pk=pk), person, timezone.now())
        return Answer(lease_json(leases.with_contents(type(lease).objects.filter(pk=lease.pk)).get()))
