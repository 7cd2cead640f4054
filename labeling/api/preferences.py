"""How one person likes to work."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, preferences
from labeling.api.base import Endpoint, Strict, parse
from labeling.models import Preferences


class PreferencesShown(serializers.ModelSerializer):
    keys = serializers.DictField(child=serializers.CharField(), help_text="action → key, where not the default")

    class Meta:
        model = Preferences
        fields = ("keys", "break_minutes", "chat_consent_at")


class PreferencesRequest(Strict):
    keys = serializers.DictField(child=serializers.CharField(max_length=20), required=False)
    break_minutes = serializers.IntegerField(
        min_value=0, max_value=preferences.MAX_BREAK_MINUTES, required=False, help_text="0 = never"
    )


class OwnPreferences(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "labels:read", "PATCH": "labels:write"}

    @extend_schema(responses=PreferencesShown)
    def get(self, request: Request) -> Response:
        """Your keys and breaks on the comparison screen, and since when chat may be learned from."""
        return Response(_shown(preferences.preferences_of(access.person(request))))

    @extend_schema(request=PreferencesRequest, responses=PreferencesShown)
    def patch(self, request: Request) -> Response:
        """Changes what is given."""
        person = access.person(request)
        now, given = preferences.preferences_of(person), parse(PreferencesRequest, request)
        keys, minutes = given.get("keys", now.keys), given.get("break_minutes", now.break_minutes)
        return Response(_shown(preferences.store_preferences(person, keys, minutes)))


def _shown(row: Preferences) -> dict[str, Any]:
    return PreferencesShown(row).data
