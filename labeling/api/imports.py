"""Responses from elsewhere, on their way in."""

from typing import ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, exchange
from labeling.api.base import Endpoint, Strict, parse

MAX_LINES = 5_000


class ImportRequest(Strict):
    pairs = serializers.ListField(child=serializers.JSONField(), min_length=1, max_length=MAX_LINES)


class LineRefused(serializers.Serializer):
    line = serializers.IntegerField(help_text="from 1")
    why = serializers.CharField()


class ImportReport(serializers.Serializer):
    lines = serializers.IntegerField()
    added = serializers.IntegerField(help_text="comparisons")
    duplicates = serializers.IntegerField()
    refused = LineRefused(many=True)


class ImportPairs(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"POST": "imports:write"}
    throttle = "transfers"

    @extend_schema(request=ImportRequest, responses={201: ImportReport, 200: ImportReport})
    def post(self, request: Request, slug: str) -> Response:
        """Responses from elsewhere, to be compared here. The report says what was refused and why."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        report = exchange.import_pairs(campaign, parse(ImportRequest, request)["pairs"])
        return Response(report.as_json(), status=201 if report.added else 200)
