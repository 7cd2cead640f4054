"""What goes out: a campaign's judgments as files for training and analysis, made while they are sent."""

from collections.abc import Iterable
from typing import Any, ClassVar

from django.http import Http404, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from labeling import access, exports, exports_files
from labeling.api.base import Endpoint, Strict
from labeling.provenance import LEAVE_OUT, SOFT, Options

CONTENT_TYPES = [content_type for _writer, content_type in exports_files.WRITERS.values()]


class ExportRequest(Strict):
    format = serializers.ChoiceField(choices=list(exports_files.WRITERS), default="jsonl")
    ties = serializers.ChoiceField(
        choices=[LEAVE_OUT, SOFT], default=LEAVE_OUT, help_text="in preference pairs: left out, or with a label of 0.5"
    )
    with_names = serializers.BooleanField(default=False, help_text="user names instead of pseudonyms")
    without_warned = serializers.BooleanField(default=False, help_text="without what screening warned of")


class AsAsked(BaseContentNegotiation):
    """The format is asked for in the address, not by the Accept header; errors are JSON in any case."""

    def select_parser(self, request: Request, parsers: Iterable[Any]) -> Any:
        return next(iter(parsers), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, first.media_type


class CampaignExport(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "exports:read"}
    throttle = "transfers"
    content_negotiation_class = AsAsked

    @extend_schema(
        parameters=[OpenApiParameter("kind", location="path", enum=list(exports.KINDS)), ExportRequest],
        responses={(200, content_type.split(";")[0]): OpenApiTypes.BINARY for content_type in CONTENT_TYPES},
    )
    def get(self, request: Request, slug: str, kind: str) -> HttpResponseBase:
        """A campaign's judgments, for managers: for DPO, KTO, as edited triples, as rationales, or raw."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        if kind not in exports.KINDS:
            raise Http404
        asked = ExportRequest(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        options = dict(asked.validated_data)
        format = options.pop("format")
        chunks, content_type = exports_files.write(exports.KINDS[kind], format, campaign, Options(**options))
        response = StreamingHttpResponse(exports_files.asynchronously(chunks), content_type=content_type)
        response.headers["Content-Disposition"] = f'attachment; filename="{campaign.slug}-{kind}.{format}"'
        return response
