"""Pages of people who label: home, the comparison screen, their preferences, the invitation."""

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from labeling import access, accounts, progress, screen
from labeling.forms import InvitationForm
from labeling.preferences import PreferencesForm, preferences_of, store_preferences
from serving.rendering import to_html

REFRESH_BUSY, REFRESH_IDLE = 4, 60  # seconds


@require_safe
@login_required
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """The campaigns of this person, and what is waiting in each. htmx asks for the list alone while responses are written."""
    shown = progress.overview(access.person(request), timezone.now())
    is_busy = any(entry.progress.n_writing for entry in shown)
    template = "labeling/_campaigns.html" if "HX-Request" in request.headers else "labeling/home.html"
    context = {"page": "home", "shown": shown, "refresh_seconds": REFRESH_BUSY if is_busy else REFRESH_IDLE}
    return render(request, template, context)


@require_safe
@login_required
@never_cache
def label(request: HttpRequest, slug: str) -> HttpResponse:
    """The comparison screen; pairs come by the API."""
    person = access.person(request)
    campaign = access.get_campaign(person, slug)
    context = {
        "page": "label",
        "guidelines": to_html(campaign.guidelines) if campaign.guidelines else "",
        "progress": progress.of_campaign(campaign, person),
        **screen.context(campaign, person, preferences_of(person)),
    }
    return render(request, "labeling/label.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def preferences(request: HttpRequest) -> HttpResponse:
    """Keys of the comparison screen, and breaks."""
    person = access.person(request)
    form = PreferencesForm(preferences_of(person), request.POST or None)
    if request.method == "POST" and form.is_valid():
        store_preferences(person, form.keys, form.cleaned_data["break_minutes"])
        messages.success(request, _("Saved. Your keys work from the next pair on."))
        return redirect("preferences")
    return render(request, "labeling/preferences.html", {"page": "preferences", "form": form})


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_post_parameters("password1", "password2")
@never_cache
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Makes an account from an invitation link and logs the person in."""
    if request.user.is_authenticated:
        return render(request, "labeling/invitation_signed_in.html", status=409)
    found = accounts.find(token, timezone.now())
    if found is None:
        return render(request, "labeling/invitation_used.html", status=404)
    form = InvitationForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        return render(request, "labeling/invitation.html", {"form": form, "invitation": found})
    try:
        user = accounts.accept(token, form.cleaned_data["username"], form.cleaned_data["password1"], timezone.now())
    except accounts.InvitationUsed:
        return render(request, "labeling/invitation_used.html", status=404)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")
