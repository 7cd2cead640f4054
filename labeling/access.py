"""Who may do what in which campaign. Whoever may not see a campaign gets 404: not even its existence is told."""

from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from rest_framework.request import Request

from labeling.models import Campaign, Judgment, Lease, Membership, Purpose

Person = User | AnonymousUser


def person(request: HttpRequest | Request) -> User:
    """Who is logged in. Views ask for a login before; PermissionDenied should one forget to."""
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user


def is_administrator(user: Person) -> bool:
    return user.is_active and (user.is_staff or user.is_superuser)


def campaigns(user: Person) -> QuerySet[Campaign]:
    """The campaigns that this person may see and label in: their own; for administrators, all."""
    if is_administrator(user):
        return Campaign.objects.all()
    if not isinstance(user, User):
        return Campaign.objects.none()
    return Campaign.objects.filter(memberships__user=user)


def managed_campaigns(user: User) -> QuerySet[Campaign]:
    """The campaigns in which this person may change everything."""
    if is_administrator(user):
        return Campaign.objects.all()
    return Campaign.objects.filter(memberships__user=user, memberships__role=Membership.Role.MANAGER)


def get_campaign(user: Person, slug: str) -> Campaign:
    """Raises Http404 unless this person may see it."""
    return get_object_or_404(campaigns(user), slug=slug)


def get_managed_campaign(user: User, slug: str) -> Campaign:
    """Raises Http404 unless this person may see it, PermissionDenied unless they may change what is in it."""
    campaign = get_campaign(user, slug)
    if role(user, campaign) == Membership.Role.MANAGER:
        return campaign
    raise PermissionDenied


def get_reviewed_campaign(user: User, slug: str) -> Campaign:
    """Raises Http404 unless this person may see it, PermissionDenied unless they may decide what others disagree on."""
    campaign = get_campaign(user, slug)
    if role(user, campaign) in (Membership.Role.REVIEWER, Membership.Role.MANAGER):
        return campaign
    raise PermissionDenied


def role(user: User, campaign: Campaign) -> str:
    """What this person is in a campaign that they may see; an administrator is a manager everywhere."""
    if is_administrator(user):
        return Membership.Role.MANAGER
    return campaign.memberships.values_list("role", flat=True).get(user=user)


def get_lease(user: User, pk: object) -> Lease:
    """A lease of this person in a campaign that they may (still) see; Http404 otherwise. PermissionDenied for the lease of
    a decision, of somebody who is no reviewer any more.
    """
    leases = Lease.objects.filter(annotator=user, comparison__campaign__in=campaigns(user))
    lease = get_object_or_404(leases, pk=pk)
    if lease.purpose == Purpose.ADJUDICATION:
        get_reviewed_campaign(user, lease.comparison.campaign.slug)
    return lease


def get_judgment(user: User, client_key: object) -> Judgment:
    """A judgment of this person; Http404 otherwise. Also of a campaign that they have left: it is theirs."""
    return get_object_or_404(Judgment, annotator=user, client_key=client_key)


def get_revisable_judgment(user: User, client_key: object) -> Judgment:
    """A judgment of this person in a campaign that they are still in; a decision only while they are a reviewer."""
    judgment = get_judgment(user, client_key)
    find = get_reviewed_campaign if judgment.purpose == Purpose.ADJUDICATION else get_campaign
    find(user, judgment.comparison.campaign.slug)
    return judgment


def may_create_campaigns(user: User) -> bool:
    """Administrators, and those who manage a campaign already."""
    return is_administrator(user) or managed_campaigns(user).exists()
