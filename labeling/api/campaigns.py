"""Campaigns: listed, made and changed."""

from typing import Any, ClassVar

from django.db.models import Case, QuerySet, Value, When
from django.forms.models import model_to_dict
from django.utils import timezone
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, campaigns
from labeling.api.base import Endpoint, Strict, idempotent, parse
from labeling.api.lists import ListEndpoint
from labeling.campaign_forms import CampaignForm
from labeling.choices import CRITERION_SCALES
from labeling.models import Campaign, Membership

ASKED = (
    "slug", "name", "description", "status", "scale", "allow_tie", "allow_both_bad", "criteria", "reason_tags",
    "rationale", "allow_edit", "group_size", "lease_seconds", "min_dwell_ms",
)  # fmt: skip
# How people are measured and which pair comes next: not for those who are measured.
FOR_MANAGERS = (
    "overlap", "max_overlap", "gold_share", "repeat_share", "practice_pairs", "strategy", "random_share",
    "n_candidates", "n_samples", "keeps", "max_tokens", "temperatures",
)  # fmt: skip


class CriterionShown(Strict):
    key = serializers.CharField(max_length=200)
    label = serializers.CharField(max_length=200)  # type: ignore[assignment]
    scale = serializers.ChoiceField(choices=CRITERION_SCALES)
    help = serializers.CharField(max_length=200, required=False)


class CampaignShown(serializers.ModelSerializer):
    """What those who label are asked; managers also see how pairs are chosen and people measured."""

    criteria = CriterionShown(many=True)
    reason_tags = serializers.ListField(child=serializers.CharField())
    temperatures = serializers.ListField(child=serializers.FloatField(), required=False)
    role = serializers.ChoiceField(choices=Membership.Role.choices, help_text="yours")

    class Meta:
        model = Campaign
        fields = ("id", *ASKED, "guidelines", "guidelines_version", "role", *FOR_MANAGERS, "created_at")
        extra_kwargs: ClassVar[dict[str, Any]] = {name: {"required": False} for name in FOR_MANAGERS}

    def to_representation(self, instance: Campaign) -> dict[str, Any]:
        shown = super().to_representation(instance)
        is_manager = shown["role"] == Membership.Role.MANAGER
        return shown if is_manager else {name: value for name, value in shown.items() if name not in FOR_MANAGERS}


class CampaignFields(Strict):
    """Values as the campaign's page takes them; the rules between them are those of its form."""

    name = serializers.CharField(max_length=120)
    description = serializers.CharField(required=False, allow_blank=True, max_length=20_000)
    status = serializers.ChoiceField(choices=Campaign.Status.choices, required=False)
    scale = serializers.ChoiceField(choices=Campaign.Scale.choices, required=False)
    allow_tie = serializers.BooleanField(required=False)
    allow_both_bad = serializers.BooleanField(required=False)
    criteria = CriterionShown(many=True, required=False)
    reason_tags = serializers.ListField(child=serializers.CharField(max_length=60), required=False, max_length=20)
    rationale = serializers.ChoiceField(choices=Campaign.Rationale.choices, required=False)
    allow_edit = serializers.BooleanField(required=False)
    group_size = serializers.IntegerField(min_value=2, max_value=4, required=False)
    lease_seconds = serializers.IntegerField(min_value=20, max_value=3600, required=False)
    min_dwell_ms = serializers.IntegerField(min_value=0, max_value=60_000, required=False)
    overlap = serializers.IntegerField(min_value=1, max_value=20, required=False)
    max_overlap = serializers.IntegerField(min_value=0, max_value=100, required=False)
    gold_share = serializers.FloatField(min_value=0, max_value=0.5, required=False)
    repeat_share = serializers.FloatField(min_value=0, max_value=0.5, required=False)
    practice_pairs = serializers.IntegerField(min_value=0, max_value=1000, required=False)
    strategy = serializers.ChoiceField(choices=Campaign.Strategy.choices, required=False)
    random_share = serializers.FloatField(min_value=0.2, max_value=1, required=False)
    n_candidates = serializers.IntegerField(min_value=0, max_value=16, required=False)
    n_samples = serializers.IntegerField(min_value=0, max_value=64, required=False)
    keeps = serializers.ChoiceField(choices=Campaign.Keeps.choices, required=False)
    max_tokens = serializers.IntegerField(min_value=1, max_value=8192, required=False)
    temperatures = serializers.ListField(
        child=serializers.FloatField(min_value=0, max_value=2), required=False, max_length=16
    )


class CampaignRequest(CampaignFields):
    slug = serializers.SlugField(max_length=50, help_text="its place in addresses; it stays")
    guidelines = serializers.CharField(required=False, allow_blank=True, max_length=50_000, help_text="Markdown")


class CampaignFilter(filters.FilterSet):
    name = filters.CharFilter(lookup_expr="icontains", help_text="a part of the name")
    status = filters.ChoiceFilter(choices=Campaign.Status.choices)

    class Meta:
        model = Campaign
        fields = ("name", "status")


def with_role(rows: QuerySet[Campaign], user: Any) -> QuerySet[Campaign]:
    """The campaigns with this person's role in each, in one query."""
    if access.is_administrator(user):
        return rows.annotate(role=Value(Membership.Role.MANAGER.value))
    mine = Membership.objects.filter(user=user).order_by()
    roles = Case(
        *(When(pk__in=mine.filter(role=role).values("campaign"), then=Value(role)) for role in Membership.Role)
    )
    return rows.annotate(role=roles)


class CampaignList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read", "POST": "campaigns:write"}
    serializer_class = CampaignShown
    filterset_class = CampaignFilter

    def rows(self) -> QuerySet[Campaign]:
        person = access.person(self.request)
        return with_role(access.campaigns(person), person)

    def get(self, request: Request) -> Response:
        """The campaigns that you may see."""
        return self.listed()

    @extend_schema(request=CampaignRequest, responses={201: CampaignShown})
    @idempotent
    def post(self, request: Request) -> Response:
        """Makes a campaign, and you its manager. For administrators, and for managers of another campaign."""
        person = access.person(request)
        if not access.may_create_campaigns(person):
            raise exceptions.PermissionDenied(_("Only administrators and managers make campaigns."))
        data = parse(CampaignRequest, request)
        guidelines = data.pop("guidelines", "")
        checked = _checked(Campaign(), data)
        made = campaigns.create(checked, guidelines, person, timezone.now())
        return Response(_shown(made.slug, person), status=201)


class CampaignDetail(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read", "PATCH": "campaigns:write"}

    @extend_schema(responses=CampaignShown)
    def get(self, request: Request, slug: str) -> Response:
        """What the campaign asks; for its managers also how it works."""
        person = access.person(request)
        return Response(_shown(access.get_campaign(person, slug).slug, person))

    @extend_schema(request=CampaignFields, responses=CampaignShown)
    def patch(self, request: Request, slug: str) -> Response:
        """Changes what is given, for managers. Guidelines are published by their own address."""
        person = access.person(request)
        campaign = access.get_managed_campaign(person, slug)
        campaigns.change(_checked(campaign, parse(CampaignFields, request, partial=True)))
        return Response(_shown(slug, person))


def _checked(campaign: Campaign, given: dict[str, Any]) -> Campaign:
    """The campaign with these values, not saved; raises ValidationError in the words of its form."""
    data = {**model_to_dict(campaign), **given}
    form = CampaignForm(data, instance=campaign)
    if not form.is_valid():
        raise exceptions.ValidationError({name: [str(word) for word in words] for name, words in form.errors.items()})
    return form.save(commit=False)


def _shown(slug: str, person: Any) -> dict[str, Any]:
    return CampaignShown(with_role(Campaign.objects.filter(slug=slug), person).get()).data
