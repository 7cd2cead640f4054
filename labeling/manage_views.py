"""Pages by which a manager runs a campaign: settings, guidelines, members. Managers need no access to the admin."""

from typing import Any, cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labeling import access, accounts, campaigns
from labeling.campaign_forms import (
    BaseCriteriaFormSet,
    CampaignInvitationForm,
    CriteriaFormSet,
    GuidelinesForm,
    MemberForm,
    SettingsForm,
)
from labeling.campaign_pages import frame
from labeling.errors import Refused
from labeling.models import Campaign, Invitation, Judgment, Membership
from serving.rendering import to_html

PER_PAGE = 50


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def campaign_settings(request: HttpRequest, slug: str) -> HttpResponse:
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    form = SettingsForm(request.POST or None, instance=campaign)
    criteria = cast(
        BaseCriteriaFormSet, CriteriaFormSet(request.POST or None, prefix="criteria", initial=campaign.criteria)
    )
    if request.method == "POST" and form.is_valid() and criteria.is_valid():
        _save(form, criteria.criteria())
        messages.success(request, _("Saved. People who label see it with their next pair."))
        return redirect("campaign_settings", campaign.slug)
    context = {
        **frame(person, Campaign.objects.get(pk=campaign.pk), "campaign_settings"),  # as stored, not as mistyped
        "form": form,
        "criteria": criteria,
        "may_delete": access.is_administrator(person),
    }
    return render(request, "labeling/settings.html", context, status=422 if form.errors or criteria.errors else 200)


def _save(form: SettingsForm, criteria: list[dict[str, str]]) -> None:
    form.instance.criteria = criteria
    campaigns.change(form.save(commit=False))


@require_POST
@login_required
def campaign_delete(request: HttpRequest, slug: str) -> HttpResponse:
    """For administrators, who have to type the campaign's name."""
    person = access.person(request)
    campaign = access.get_campaign(person, slug)
    if not access.is_administrator(person):
        raise PermissionDenied
    if request.POST.get("name") != campaign.name:
        messages.error(request, _("Nothing was deleted: the name that you typed is another one."))
        return redirect("campaign_settings", slug)
    try:
        campaigns.delete(campaign)
    except Refused as error:
        messages.error(request, str(error))
        return redirect("campaign_settings", slug)
    messages.success(request, _("“%(name)s” was deleted.") % {"name": campaign.name})
    return redirect("home")


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def campaign_guidelines(request: HttpRequest, slug: str) -> HttpResponse:
    """The newest guidelines, to be changed, and every version before them."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    form = GuidelinesForm(request.POST or None, initial={"text": campaign.guidelines})
    if request.method == "POST" and form.is_valid():
        published = campaigns.publish_guidelines(campaign, form.cleaned_data["text"], person, timezone.now())
        messages.success(request, _("Version %(n)d is what people see now.") % {"n": published.number})
        return redirect("campaign_guidelines", slug)
    said = Judgment.objects.filter(comparison__campaign=campaign).values("guidelines_version")
    n_judged = dict(said.annotate(n=Count("pk")).order_by().values_list("guidelines_version", "n"))
    versions = Paginator(campaign.guidelines_versions.select_related("created_by"), PER_PAGE)
    page = versions.get_page(request.GET.get("page"))
    context = {
        **frame(person, campaign, "campaign_guidelines"),
        "form": form,
        "versions": [(version, n_judged.get(version.number, 0)) for version in page],
        "page_obj": page,
    }
    return render(request, "labeling/guidelines.html", context)


@require_http_methods(["GET", "HEAD"])
@login_required
@never_cache
def guidelines_version(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    version = get_object_or_404(campaign.guidelines_versions.select_related("created_by"), number=number)
    context = {"version": version, "html": to_html(version.text)}
    return render(
        request, "labeling/guidelines_version.html", {**frame(person, campaign, "campaign_guidelines"), **context}
    )


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def campaign_members(request: HttpRequest, slug: str) -> HttpResponse:
    """Who is in the campaign; adds somebody who has an account."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    form = MemberForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and _add_member(campaign, form):
        messages.success(request, _("%(name)s is a member now.") % {"name": form.cleaned_data["username"]})
        return redirect("campaign_members", slug)
    return _members_page(request, person, campaign, form, CampaignInvitationForm())


def _add_member(campaign: Campaign, form: MemberForm) -> bool:
    try:
        campaigns.add_member(campaign, form.cleaned_data["username"], form.cleaned_data["role"])
    except User.DoesNotExist:
        form.add_error("username", _("Nobody has this user name. Send an invitation link instead."))
    except Refused as error:
        form.add_error("username", str(error))
    return form.is_valid()


def _members_page(
    request: HttpRequest, person: User, campaign: Campaign, form: MemberForm, invitation_form: CampaignInvitationForm
) -> HttpResponse:
    members = campaign.memberships.select_related("user").order_by("user__username")
    if asked := request.GET.get("q", "").strip():
        members = members.filter(user__username__icontains=asked)
    roles = dict(campaign.memberships.values_list("role").annotate(Count("pk")).order_by())
    open_links = Invitation.objects.filter(campaigns=campaign, used_at=None, expires_at__gt=timezone.now())
    context: dict[str, Any] = {
        **frame(person, campaign, "campaign_annotators"),
        "form": form,
        "invitation_form": invitation_form,
        "page_obj": Paginator(members, PER_PAGE).get_page(request.GET.get("page")),
        "query": asked,
        "roles": Membership.Role.choices,
        "counts": [(label, roles.get(value, 0)) for value, label in Membership.Role.choices],
        "invitations": open_links.select_related("created_by").order_by("-created_at")[:PER_PAGE],
    }
    is_wrong = bool(form.errors or invitation_form.errors)
    return render(request, "labeling/members.html", context, status=422 if is_wrong else 200)


@require_POST
@login_required
def member_change(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Another role, a pause, the end of a pause, or the end of a membership."""
    campaign = access.get_managed_campaign(access.person(request), slug)
    membership = get_object_or_404(campaign.memberships.select_related("user"), pk=pk)
    try:
        message = _change(membership, request.POST.get("action", ""), request.POST.get("role", ""))
    except Refused as error:
        messages.error(request, str(error))
    else:
        messages.success(request, message % {"name": membership.user})
    person_page = request.POST.get("from") == "annotator" and request.POST.get("action") != "remove"
    if person_page:
        return redirect("campaign_annotator", slug, membership.user_id)
    return redirect("campaign_members", slug)


def _change(membership: Membership, action: str, role: str) -> str:
    if action == "pause":
        campaigns.pause_member(membership, timezone.now())
        return _("%(name)s is given no pairs from now on. What %(name)s judged stays.")
    if action == "resume":
        campaigns.resume_member(membership)
        return _("%(name)s is given pairs again.")
    if action == "remove":
        campaigns.remove_member(membership)
        return _("%(name)s is no member any more. What %(name)s judged stays.")
    if action != "role" or role not in Membership.Role.values:
        raise Refused(_("There is no such change."))
    campaigns.set_role(membership, role)
    return _("The role of %(name)s is changed.")


@require_POST
@login_required
def member_invite(request: HttpRequest, slug: str) -> HttpResponse:
    """A link that makes one account in this campaign; it is shown once."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    form = CampaignInvitationForm(request.POST, instance=Invitation(expires_at=timezone.now() + accounts.VALID_FOR))
    if not form.is_valid():
        return _members_page(request, person, campaign, MemberForm(), form)
    invitation = form.save(commit=False)
    token = accounts.prepare(invitation, person)
    invitation.save()
    invitation.campaigns.set([campaign])
    link = request.build_absolute_uri(reverse("invitation", args=[token]))
    text = _("Send this link; it works once within 14 days, and is shown only now:")
    messages.warning(request, format_html("{} <code>{}</code>", text, link))
    return redirect("campaign_members", slug)


@require_POST
@login_required
def invitation_revoke(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Only links into this campaign alone: one into several is withdrawn in the admin."""
    campaign = access.get_managed_campaign(access.person(request), slug)
    mine = Invitation.objects.annotate(n_campaigns=Count("campaigns")).filter(n_campaigns=1, used_at=None)
    invitation = get_object_or_404(Invitation, Q(pk__in=mine.values("pk")), campaigns=campaign, pk=pk)
    invitation.delete()
    messages.success(request, _("The link no longer works."))
    return redirect("campaign_members", slug)
