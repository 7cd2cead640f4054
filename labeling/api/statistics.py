"""A campaign's figures, as last computed."""

from typing import ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access
from labeling.api.base import Endpoint
from labeling.models import Statistics


class StatisticsShown(serializers.ModelSerializer):
    data = serializers.DictField(  # type: ignore[assignment]
        help_text="agreement, annotators, biases, leaderboard, …"
    )

    class Meta:
        model = Statistics
        fields = ("data", "last_judgment", "computed_at")


class CampaignStatistics(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read"}

    @extend_schema(responses=StatisticsShown)
    def get(self, request: Request, slug: str) -> Response:
        """Agreement, annotators, biases and the versions' ranking, for managers. 404 until they were first computed."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        found = Statistics.objects.filter(campaign=campaign).first()
        if found is None:
            raise exceptions.NotFound
        return Response(StatisticsShown(found).data)
