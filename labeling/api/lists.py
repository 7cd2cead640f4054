"""Lists: a page at a time by cursor, with filters and orders from a whitelist; anything else is a 400 that says what is known."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from django import forms
from django.db.models import Model, QuerySet
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from django_filters.fields import IsoDateTimeField
from rest_framework import exceptions
from rest_framework.generics import GenericAPIView
from rest_framework.mixins import ListModelMixin
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import ValidationError
from rest_framework.views import APIView

from labeling.api.base import Endpoint

MAX_PAGE = 200
MAX_ID = 2**63 - 1
PAGING = ("cursor", "limit", "ordering", "format")


class Pages(CursorPagination):
    """Rows are ordered by id, which never changes: what is added or changed meanwhile moves nothing to another page."""

    page_size = 50
    max_page_size = MAX_PAGE
    page_size_query_param = "limit"
    ORDERINGS = ("-id", "id")

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        ordering = request.query_params.get("ordering", getattr(view, "ordering", "-id"))
        if ordering not in self.ORDERINGS:
            raise ValidationError({"ordering": [_("One of: %(known)s.") % {"known": ", ".join(self.ORDERINGS)}]})
        return (ordering,)

    def get_page_size(self, request: Request) -> int:
        limit = request.query_params.get("limit", str(self.page_size))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE):
            raise ValidationError({"limit": [_("A number from 1 to %(most)d.") % {"most": MAX_PAGE}]})
        return int(limit)

    def decode_cursor(self, request: Request) -> Any:
        try:
            cursor = super().decode_cursor(request)
        except exceptions.NotFound:
            raise _bad_cursor() from None
        if cursor is not None and cursor.position is not None and not _is_id(str(cursor.position)):
            raise _bad_cursor()
        return cursor

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        cursor = {"type": "string", "description": "from the `next` of the page before"}
        limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": self.page_size}
        ordering = {"type": "string", "enum": list(self.ORDERINGS), "default": getattr(view, "ordering", "-id")}
        shapes = {"cursor": cursor, "limit": limit, "ordering": ordering}
        return [{"name": name, "in": "query", "required": False, "schema": shape} for name, shape in shapes.items()]


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MAX_ID


def _bad_cursor() -> ValidationError:
    return ValidationError(
        {"cursor": [_("This is no cursor of ours. Take it from the next of a page, or leave it out.")]}
    )


class IntegerFilter(filters.Filter):
    """Ids and counts; what no column can hold is refused."""

    field_class = forms.IntegerField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, min_value=0, max_value=MAX_ID, **kwargs)


class _MomentField(IsoDateTimeField):
    """In UTC, for a database takes fewer offsets than Python does."""

    def clean(self, value: Any) -> datetime | None:
        moment = super().clean(value)
        try:
            return moment.astimezone(UTC) if moment else None
        except OverflowError as error:
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid") from error


class MomentFilter(filters.Filter):
    """An instant in ISO 8601."""

    field_class = _MomentField


class KnownFilters(filters.DjangoFilterBackend):
    """Refuses parameters that the list does not have: a misspelt filter would otherwise show everything."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: APIView) -> QuerySet[Any]:
        filterset = self.get_filterset_class(view, queryset)
        known = [*(filterset.base_filters if filterset else ()), *PAGING]
        if unknown := sorted(set(request.query_params) - set(known)):
            message = _("There is no such parameter here. There are: %(known)s.") % {"known": ", ".join(known)}
            raise ValidationError({name: [message] for name in unknown})
        return super().filter_queryset(request, queryset, view)


class ListEndpoint(Endpoint, ListModelMixin, GenericAPIView):
    """A list: `rows()` are those that this person may see, `serializer_class` their JSON."""

    filter_backends = [KnownFilters]
    pagination_class = Pages
    filterset_class: ClassVar[type[filters.FilterSet] | None] = None

    def rows(self) -> QuerySet[Any]:
        raise NotImplementedError

    def get_queryset(self) -> QuerySet[Any]:
        if getattr(self, "swagger_fake_view", False):  # the schema is written without a request
            model: type[Model] = self.get_serializer_class().Meta.model  # type: ignore[attr-defined]
            return model._default_manager.none()
        return self.rows()

    def listed(self) -> Response:
        """The page that the request asks for (the mixin tells the schema that it is a list)."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)
