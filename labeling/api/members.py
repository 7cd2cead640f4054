"""Who works in a campaign, and by which guidelines."""

from typing import ClassVar

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from labeling import access, campaigns
from labeling.api.base import Endpoint, Strict, idempotent, parse
from labeling.api.lists import ListEndpoint
from labeling.models import Guidelines, Membership


class MemberShown(serializers.ModelSerializer):
    username = serializers.CharField(source="user.username")
    is_paused = serializers.SerializerMethodField()

    class Meta:
        model = Membership
        fields = ("username", "role", "practised_at", "is_paused")

    def get_is_paused(self, member: Membership) -> bool:
        return member.paused_at is not None


class MemberRequest(Strict):
    role = serializers.ChoiceField(choices=Membership.Role.choices)


class MemberList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read"}
    serializer_class = MemberShown

    def rows(self) -> QuerySet[Membership]:
        campaign = access.get_managed_campaign(access.person(self.request), self.kwargs["slug"])
        return Membership.objects.filter(campaign=campaign).select_related("user")

    def get(self, request: Request, slug: str) -> Response:
        """Members and their roles, for managers."""
        return self.listed()


class MemberDetail(Endpoint):
    scopes: ClassVar[dict[str, str]] = {"PUT": "campaigns:write", "DELETE": "campaigns:write"}

    @extend_schema(request=MemberRequest, responses={200: MemberShown, 201: MemberShown})
    def put(self, request: Request, slug: str, username: str) -> Response:
        """Gives somebody who has an account a role in the campaign."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        role = parse(MemberRequest, request)["role"]
        member = campaign.memberships.select_related("user").filter(user__username=username).first()
        if member:
            campaigns.set_role(member, role)
            return Response(MemberShown(member).data)
        if not User.objects.filter(username=username, is_active=True).exists():
            raise exceptions.ValidationError({"username": [_("Nobody here has this name. Send an invitation.")]})
        return Response(MemberShown(campaigns.add_member(campaign, username, role)).data, status=201)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, slug: str, username: str) -> Response:
        """Takes the access away; what the person judged stays."""
        campaign = access.get_managed_campaign(access.person(request), slug)
        campaigns.remove_member(get_object_or_404(campaign.memberships, user__username=username))
        return Response(status=204)


class GuidelinesShown(serializers.ModelSerializer):
    class Meta:
        model = Guidelines
        fields = ("number", "text", "created_at")


class GuidelinesRequest(Strict):
    text = serializers.CharField(allow_blank=True, max_length=50_000, help_text="Markdown")


class GuidelinesList(ListEndpoint):
    scopes: ClassVar[dict[str, str]] = {"GET": "campaigns:read", "POST": "campaigns:write"}
    serializer_class = GuidelinesShown

    def rows(self) -> QuerySet[Guidelines]:
        campaign = access.get_campaign(access.person(self.request), self.kwargs["slug"])
        return Guidelines.objects.filter(campaign=campaign)

    def get(self, request: Request, slug: str) -> Response:
        """Every version ever published, newest first."""
        return self.listed()

    @extend_schema(request=GuidelinesRequest, responses={201: GuidelinesShown})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Publishes a new version, for managers. People who label see it with their next pair."""
        person = access.person(request)
        campaign = access.get_managed_campaign(person, slug)
        text = parse(GuidelinesRequest, request)["text"]
        published = campaigns.publish_guidelines(campaign, text, person, timezone.now())
        return Response(GuidelinesShown(published).data, status=201)
