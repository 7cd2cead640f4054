"""What comes in from elsewhere: pairs in a request, and files that a worker reads."""

import uuid
from typing import ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, exchange, formats
from labeling.api.base import Endpoint, Strict, parse
from labeling.api.lists import ListEndpoint
from labeling.errors import Invalid
from labeling.models import Import, ImportProblem

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


class ImportShown(serializers.ModelSerializer):
    class Meta:
        model = Import
        fields = (
            "id", "client_key", "filename", "format", "state", "position", "n_added", "n_duplicates", "n_refused",
            "n_warnings", "message", "created_at", "finished_at",
        )  # fmt: skip


class UploadRequest(Strict):
    file = serializers.FileField()
    client_key = serializers.UUIDField(required=False, help_text="made by you: sent again, it is the same import")
    format = serializers.ChoiceField(
        choices=[(name, name) for name in formats.FORMATS], required=False, help_text="left out: found out"
    )
    on_warning = serializers.ChoiceField(
        choices=[exchange.KEEP, exchange.REFUSE],
        default=exchange.KEEP,
        help_text="what to do with records that seem to name their author, to be errors, or to be private",
    )


class ImportList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "imports:write", "POST": "imports:write"}
    throttle = "transfers"
    parser_classes = [MultiPartParser]
    serializer_class = ImportShown

    def rows(self) -> QuerySet[Import]:
        campaign = access.get_managed_campaign(access.person(self.request), self.kwargs["slug"])
        return Import.objects.filter(campaign=campaign)

    def get(self, request: Request, slug: str) -> Response:
        """The campaign's imports, for managers."""
        return self.listed()

    @extend_schema(request=UploadRequest, responses={202: ImportShown})
    def post(self, request: Request, slug: str) -> Response:
        """Takes a file (multipart/form-data) and lets a worker import it; ask for the import to see how far it is."""
        person = access.person(request)
        campaign = access.get_managed_campaign(person, slug)
        data = parse(UploadRequest, request)
        row = exchange.upload(campaign, person, data.get("client_key", uuid.uuid4()), data["file"], timezone.now())
        if row.campaign_id != campaign.pk:
            raise Invalid(_("This client_key was used for a file in another campaign. Make a new one."))
        if not row.options:  # else it was sent before, and started then
            exchange.start(row, data.get("format", row.format), data["on_warning"])
        row.refresh_from_db()
        return Response(ImportShown(row).data, status=202)


class ImportDetail(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "imports:write"}

    @extend_schema(responses=ImportShown)
    def get(self, request: Request, pk: int) -> Response:
        """How far an import is."""
        return Response(ImportShown(_managed(request, pk)).data)


class ImportProblemShown(serializers.ModelSerializer):
    class Meta:
        model = ImportProblem
        fields = ("id", "line", "is_refused", "why", "excerpt")


class ProblemFilter(filters.FilterSet):
    is_refused = filters.BooleanFilter()

    class Meta:
        model = ImportProblem
        fields = ("is_refused",)


class ImportProblems(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "imports:write"}
    serializer_class = ImportProblemShown
    filterset_class = ProblemFilter
    ordering = "id"

    def rows(self) -> QuerySet[ImportProblem]:
        return ImportProblem.objects.filter(of=_managed(self.request, self.kwargs["pk"]))

    def get(self, request: Request, pk: int) -> Response:
        """What was refused, or taken with a warning, and why."""
        return self.listed()


def _managed(request: Request, pk: int) -> Import:
    return get_object_or_404(Import, pk=pk, campaign__in=access.managed_campaigns(access.person(request)))
