"""Judgments: said, changed and taken back."""

from typing import Any, ClassVar

from django.db.models import QuerySet, TextChoices
from django.utils import timezone
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, choices, gold, judgments, texts
from labeling.api.base import MAX_INTEGER, Endpoint, Strict, parse
from labeling.api.leases import LeaseShown, lease_json
from labeling.api.lists import IntegerFilter, ListEndpoint, MomentFilter
from labeling.models import Judgment, Purpose

MAX_LISTED = 50
MAX_RESPONSES = 4


class GivenVerdict(TextChoices):
    """What a client may say; retractions are made by undo."""

    PREFERENCE = "preference"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"


class RanksField(serializers.DictField):
    """Response id → rank, as a JSON object: {"17": 1, "18": 2}."""

    child = serializers.IntegerField(min_value=1, max_value=MAX_RESPONSES)

    def to_internal_value(self, data: Any) -> dict[int, int]:
        ranks = super().to_internal_value(data)
        if len(ranks) > MAX_RESPONSES or not all(key.isascii() and key.isdigit() for key in ranks):
            raise serializers.ValidationError(_("Give every response shown a rank, by its id."))
        return {int(key[:20]): rank for key, rank in ranks.items()}


class AttentionField(Strict):
    """How the responses were looked at, by their place in `order`."""

    panes = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=MAX_INTEGER),
        required=False,
        max_length=MAX_RESPONSES,
        help_text="milliseconds in view",
    )
    switches = serializers.IntegerField(required=False, min_value=0, max_value=MAX_INTEGER)
    scrolled = serializers.ListField(
        child=serializers.FloatField(min_value=0, max_value=1),
        required=False,
        max_length=MAX_RESPONSES,
        help_text="share of each that was scrolled into view",
    )


class ChoiceRequest(Strict):
    """What was decided, and why: shared by a first judgment and its revision."""

    client_key = serializers.UUIDField(help_text="made by the client; send the same one when you try again")
    verdict = serializers.ChoiceField(choices=GivenVerdict.choices)
    order = serializers.ListField(
        child=serializers.IntegerField(min_value=1),
        max_length=MAX_RESPONSES,
        help_text="the lease's order, as it was shown",
    )
    choice = serializers.IntegerField(required=False, allow_null=True, help_text="of two: id of the one preferred")
    strength = serializers.IntegerField(required=False, allow_null=True, min_value=1, max_value=3)
    ranks = RanksField(required=False, allow_null=True, help_text="of three or four: id → rank, 1 best, ties equal")
    reason = serializers.CharField(required=False, allow_blank=True, max_length=choices.MAX_REASON, default="")
    tags = serializers.ListField(child=serializers.CharField(max_length=200), required=False, max_length=MAX_LISTED)
    criteria = serializers.DictField(
        child=serializers.JSONField(),
        required=False,
        help_text="a criterion's key → grade (positive: the first of order is better), or id → rating",
    )
    flags = serializers.ListField(child=serializers.ChoiceField(choices=choices.FLAGS), required=False, max_length=3)
    skip_reason = serializers.ChoiceField(
        choices=choices.SKIP_REASONS, required=False, allow_blank=True, help_text="with the verdict skip only"
    )
    edit = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=texts.MAX_CHARS,
        trim_whitespace=False,
        help_text="the preferred response as you improved it",
    )
    shown_ms = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=MAX_INTEGER)
    attention = AttentionField(required=False)


class JudgmentRequest(ChoiceRequest):
    lease = serializers.UUIDField()


class RevisionRequest(ChoiceRequest):
    judgment = serializers.UUIDField(help_text="client_key of the judgment that this one replaces")


class UndoRequest(Strict):
    client_key = serializers.UUIDField()


class PracticeShown(serializers.Serializer):
    right = serializers.BooleanField()
    answer = serializers.DictField(child=serializers.IntegerField(), help_text="response id → rank, 1 best")
    left = serializers.IntegerField(help_text="pairs of the practice round that are still to come")


class Stored(serializers.Serializer):
    id = serializers.IntegerField()
    client_key = serializers.UUIDField()
    surplus = serializers.BooleanField(
        help_text="it came when somebody else had the pair already: kept, and counted nowhere"
    )
    practice = PracticeShown(required=False, help_text="in the practice round only")


class JudgmentShown(serializers.ModelSerializer):
    """What its author may see of a judgment: not why they were asked, which would tell the pairs with a known answer."""

    campaign = serializers.SlugField(source="comparison.campaign.slug")
    surplus = serializers.BooleanField(source="is_surplus")
    edit = serializers.CharField(source="edit.text", default=None, allow_null=True)
    ranks = serializers.DictField(child=serializers.IntegerField())
    order = serializers.ListField(child=serializers.IntegerField())
    tags = serializers.ListField(child=serializers.CharField())
    flags = serializers.ListField(child=serializers.CharField())
    criteria = serializers.DictField(child=serializers.JSONField())

    class Meta:
        model = Judgment
        fields: tuple[str, ...] = (
            "id", "client_key", "campaign", "comparison", "verdict", "ranks", "strength", "order", "reason", "tags",
            "criteria", "flags", "skip_reason", "edit", "shown_ms", "surplus", "created_at",
        )  # fmt: skip


class CampaignJudgmentShown(JudgmentShown):
    """With who said it and why they were asked; for managers."""

    annotator = serializers.CharField(source="annotator.username", required=False)
    attention = serializers.DictField(child=serializers.JSONField(), required=False)

    class Meta(JudgmentShown.Meta):
        fields = (
            *JudgmentShown.Meta.fields, "annotator", "purpose", "repeat", "guidelines_version", "attention", "frozen_at",
        )  # fmt: skip
        extra_kwargs: ClassVar[dict[str, Any]] = {
            name: {"required": False} for name in ("purpose", "repeat", "guidelines_version", "frozen_at")
        }


class JudgmentFilter(filters.FilterSet):
    campaign = filters.CharFilter(field_name="comparison__campaign__slug", help_text="its slug")
    comparison = IntegerFilter()
    verdict = filters.ChoiceFilter(choices=Judgment.Verdict.choices)
    after = MomentFilter(field_name="created_at", lookup_expr="gte")
    before = MomentFilter(field_name="created_at", lookup_expr="lt")

    class Meta:
        model = Judgment
        fields = ("campaign", "comparison", "verdict", "after", "before")


class CampaignJudgmentFilter(JudgmentFilter):
    campaign = None
    annotator = filters.CharFilter(field_name="annotator__username", help_text="a user name")
    purpose = filters.ChoiceFilter(choices=Purpose.choices)

    class Meta:
        model = Judgment
        fields = ("comparison", "verdict", "after", "before", "annotator", "purpose")


class Undone(serializers.Serializer):
    lease = LeaseShown(allow_null=True, help_text="null when the pair went to somebody else")


def choice_of(data: dict[str, Any]) -> choices.Choice:
    """What a checked request says."""
    return choices.Choice(
        verdict=data["verdict"],
        order=data["order"],
        chosen=data.get("choice"),
        strength=data.get("strength"),
        ranks=data.get("ranks"),
        reason=data["reason"],
        tags=list(dict.fromkeys(data.get("tags", []))),
        criteria=data.get("criteria", {}),
        flags=sorted(set(data.get("flags", []))),
        skip_reason=data.get("skip_reason", ""),
        edit=data.get("edit", ""),
        shown_ms=data.get("shown_ms"),
        attention=dict(data.get("attention", {})),
    )


def stored_json(judgment: Judgment) -> dict[str, Any]:
    """What its author learns of a stored judgment: never why they were asked, except in practice."""
    stored = {"id": judgment.pk, "client_key": judgment.client_key, "surplus": judgment.is_surplus}
    return stored if judgment.purpose != Purpose.PRACTICE else {**stored, "practice": practice_json(judgment)}


def practice_json(judgment: Judgment) -> dict[str, Any]:
    """How a judgment of the practice round compares with the known answer."""
    comparison = judgment.comparison
    known = comparison.gold_ranks or {}
    return {
        "right": gold.is_right(comparison, judgment.ranks),
        "answer": known,
        "left": gold.n_to_practise(comparison.campaign, judgment.annotator),
    }


class JudgmentList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read", "POST": "labels:write"}
    throttle = "labeling"
    serializer_class = JudgmentShown
    filterset_class = JudgmentFilter

    def rows(self) -> QuerySet[Judgment]:
        mine = judgments.in_force().filter(annotator=access.person(self.request))
        return mine.select_related("comparison__campaign", "edit")

    def get(self, request: Request) -> Response:
        """Your own judgments in force."""
        return self.listed()

    @extend_schema(request=JudgmentRequest, responses={201: Stored})
    def post(self, request: Request) -> Response:
        """Stores a judgment. Sending it again with the same client_key changes nothing."""
        data = parse(JudgmentRequest, request)
        person = access.person(request)
        lease = access.get_lease(person, data["lease"])
        judgment = judgments.record(lease, person, data["client_key"], choice_of(data), timezone.now())
        return Response(stored_json(judgment), status=201)


class CampaignJudgments(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read"}
    serializer_class = CampaignJudgmentShown
    filterset_class = CampaignJudgmentFilter

    def rows(self) -> QuerySet[Judgment]:
        campaign = access.get_managed_campaign(access.person(self.request), self.kwargs["slug"])
        said = judgments.in_force().filter(comparison__campaign=campaign)
        return said.select_related("comparison__campaign", "annotator", "edit")

    def get(self, request: Request, slug: str) -> Response:
        """Everybody's judgments in force, for managers."""
        return self.listed()


class JudgmentRevise(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=RevisionRequest, responses={201: Stored})
    def post(self, request: Request) -> Response:
        """Replaces a judgment of yours: another choice, or the same one with reasons. Send all of it, not the change."""
        data = parse(RevisionRequest, request)
        judgment = access.get_revisable_judgment(access.person(request), data["judgment"])
        revised = judgments.revise(judgment, data["client_key"], choice_of(data), timezone.now())
        return Response(stored_json(revised), status=201)


class JudgmentUndo(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "labels:write"}
    throttle = "labeling"

    @extend_schema(request=UndoRequest, responses=Undone)
    def post(self, request: Request) -> Response:
        """Takes a judgment of yours back. `lease` is the pair to judge again, null when somebody else has it by now."""
        judgment = access.get_judgment(access.person(request), parse(UndoRequest, request)["client_key"])
        lease = judgments.undo(judgment, timezone.now())
        return Response({"lease": lease_json(lease) if lease else None})
