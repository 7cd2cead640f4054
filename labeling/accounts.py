"""Accounts: there is no open sign-up. An invitation link makes one account; its token is stored only as a hash."""

import hashlib
import secrets
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import transaction

from labeling.errors import Refused
from labeling.models import Campaign, Invitation, Membership

VALID_FOR = timedelta(days=14)


class InvitationUsed(Refused):
    """The link was used, or has expired, or never existed; which of them is not told."""

    code = "invitation_used"
    status = 404


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def roles(user: User) -> list[Invitation.Role]:
    """What this person may promise: only a superuser makes another one."""
    return [role for role in Invitation.Role if role != Invitation.Role.ADMINISTRATOR or user.is_superuser]


def prepare(invitation: Invitation, created_by: User) -> str:
    """Gives an unsaved invitation its token's hash and its author; returns the token, which is not kept anywhere.

    Raises PermissionDenied for a role that its author may not promise.
    """
    if invitation.role not in roles(created_by):
        raise PermissionDenied
    token = secrets.token_urlsafe(32)  # 256 bits
    invitation.token_sha256 = digest(token)
    invitation.created_by = created_by
    return token


def find(token: str, now: datetime) -> Invitation | None:
    """The invitation of this link, while it is good."""
    return Invitation.objects.filter(token_sha256=digest(token), used_at=None, expires_at__gt=now).first()


@transaction.atomic
def accept(token: str, username: str, password: str, now: datetime) -> User:
    """Makes the account that the link promises. Of two people who use it at once, one gets InvitationUsed.

    The username and the password were checked by a form.
    """
    good = Invitation.objects.filter(token_sha256=digest(token), used_at=None, expires_at__gt=now)
    if not good.update(used_at=now):  # the one conditional update decides the race
        raise InvitationUsed("This invitation was used already, or has expired. Ask for a new one.")
    invitation = Invitation.objects.get(token_sha256=digest(token))
    is_administrator = invitation.role == Invitation.Role.ADMINISTRATOR
    user = User.objects.create_user(
        username=username, password=password, is_staff=is_administrator, is_superuser=is_administrator
    )
    if not is_administrator:
        _join(user, invitation)
    invitation.used_by = user
    invitation.save(update_fields=["used_by"])
    return user


def _join(user: User, invitation: Invitation) -> None:
    campaigns = invitation.campaigns.all() or Campaign.objects.filter(status=Campaign.Status.ACTIVE).exclude(
        slug="chat"
    )
    Membership.objects.bulk_create(
        Membership(campaign=campaign, user=user, role=invitation.role) for campaign in campaigns
    )
