"""Campaigns as managers run them: published guidelines, members and their roles, the end of a campaign."""

from datetime import datetime

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Count, ProtectedError
from django.utils.translation import gettext as _

from labeling import judgments
from labeling.errors import Frozen, Refused
from labeling.models import Campaign, Guidelines, Invitation, Judgment, Membership


class LastManager(Refused):
    """A campaign keeps a manager."""

    code = "last_manager"


class AlreadyMember(Refused):
    code = "already_member"


class SlugTaken(Refused):
    code = "slug_taken"


def create(campaign: Campaign, guidelines: str, by: User, now: datetime) -> Campaign:
    """Stores a campaign that was checked, with its first guidelines; whoever makes it manages it. Raises SlugTaken."""
    try:
        with transaction.atomic():
            campaign.save(force_insert=True)
            Membership.objects.create(campaign=campaign, user=by, role=Membership.Role.MANAGER)
            publish_guidelines(campaign, guidelines, by, now)
    except IntegrityError as error:
        raise SlugTaken(_("There is a campaign “%(slug)s” already. Choose another slug.") % vars(campaign)) from error
    return campaign


# What a campaign holds besides its settings: each is written by a function of its own, perhaps at this moment.
NO_SETTINGS = ("id", "created_at", "guidelines", "guidelines_version", "plan_wanted_at", "planned_at")


def change(campaign: Campaign) -> None:
    """Stores a campaign's settings that were checked; what is open follows from them."""
    with transaction.atomic():
        old = Campaign.objects.select_for_update(of=("self",)).get(pk=campaign.pk)
        campaign.save(update_fields={field.name for field in Campaign._meta.concrete_fields} - {*NO_SETTINGS})
        if (old.overlap, old.max_overlap) != (campaign.overlap, campaign.max_overlap):
            judgments.reopen(campaign)


def publish_guidelines(campaign: Campaign, text: str, by: User | None, now: datetime) -> Guidelines:
    """Makes `text` the campaign's guidelines, as the next version; unchanged, the newest version is returned.

    A campaign's first version is number 1. What a person had read follows from their judgments' `guidelines_version`.
    """
    with transaction.atomic():
        locked = Campaign.objects.select_for_update(of=("self",)).get(pk=campaign.pk)
        newest = locked.guidelines_versions.first()
        if newest and newest.text == text:
            published = newest
        else:
            number = newest.number + 1 if newest else 1
            published = Guidelines.objects.create(
                campaign=locked, number=number, text=text, created_by=by, created_at=now
            )
        locked.guidelines, locked.guidelines_version = published.text, published.number
        locked.save(update_fields=["guidelines", "guidelines_version"])
    campaign.guidelines, campaign.guidelines_version = published.text, published.number
    return published


def add_member(campaign: Campaign, username: str, role: str) -> Membership:
    """Gives somebody who has an account a role. Raises AlreadyMember, and User.DoesNotExist for a name nobody has."""
    user = User.objects.get(username=username, is_active=True)
    membership, is_new = Membership.objects.get_or_create(campaign=campaign, user=user, defaults={"role": role})
    if not is_new:
        raise AlreadyMember(_("%(name)s is a member already. Change the role in the list.") % {"name": user})
    return membership


@transaction.atomic
def set_role(membership: Membership, role: str) -> None:
    """Raises LastManager when nobody would be left to manage the campaign."""
    if role != Membership.Role.MANAGER:
        _check_not_last(membership)
    membership.role = role
    membership.save(update_fields=["role"])


@transaction.atomic
def remove_member(membership: Membership) -> None:
    """Takes away the access; what the person judged stays. Raises LastManager."""
    _check_not_last(membership)
    membership.delete()


def _check_not_last(membership: Membership) -> None:
    Campaign.objects.select_for_update(of=("self",)).get(pk=membership.campaign_id)  # two who leave at once wait
    managers = Membership.objects.filter(campaign=membership.campaign_id, role=Membership.Role.MANAGER)
    if membership.role == Membership.Role.MANAGER and not managers.exclude(pk=membership.pk).exists():
        raise LastManager(_("This is the campaign’s only manager. Make somebody else a manager first."))


def pause_member(membership: Membership, now: datetime) -> None:
    """From now on this person is given no pairs; those on their screen can still be judged."""
    Membership.objects.filter(pk=membership.pk, paused_at=None).update(paused_at=now)


def resume_member(membership: Membership) -> None:
    Membership.objects.filter(pk=membership.pk).update(paused_at=None)


def delete(campaign: Campaign) -> None:
    """Deletes the campaign with everything in it. Raises Frozen when training has used any of it: what a model learned
    from must stay to be looked up.
    """
    with transaction.atomic():
        said = Judgment.objects.filter(comparison__campaign=campaign)
        if said.filter(frozen_at__isnull=False).exists():
            raise Frozen(_refusal(campaign))
        # A link into no campaign at all would lead into every one.
        Invitation.objects.filter(pk__in=_links_into_alone(campaign)).delete()
        said.update(supersedes=None)  # chains of revisions protect themselves
        said.delete()
        try:
            campaign.delete()
        except ProtectedError as error:
            raise Frozen(_refusal(campaign)) from error


def _links_into_alone(campaign: Campaign) -> list[int]:
    counted = Invitation.objects.annotate(n_campaigns=Count("campaigns")).filter(n_campaigns=1)
    return list(counted.filter(pk__in=campaign.invitation_set.values("pk")).values_list("pk", flat=True))


def _refusal(campaign: Campaign) -> str:
    return _(
        "“%(name)s” cannot be deleted: models were trained on its judgments, and what they learned from is kept. "
        "Close the campaign instead."
    ) % {"name": campaign.name}
