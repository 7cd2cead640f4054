"""The page where a person makes, changes and revokes their own API keys."""

from datetime import timedelta
from typing import cast

from django import forms
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from serving import keys, limits, requests
from serving.models import ApiKey

LIFETIMES = [("30", _("30 days")), ("90", _("90 days")), ("365", _("one year")), ("0", _("never"))]


class KeyForm(forms.Form):
    name = forms.CharField(
        label=_("Name"),
        max_length=80,
        help_text=_("What it is for, like “nightly import”."),
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )
    scopes = forms.MultipleChoiceField(
        label=_("It may"), choices=list(keys.SCOPES.items()), widget=forms.CheckboxSelectMultiple
    )
    days = forms.ChoiceField(label=_("Expires"), choices=LIFETIMES, initial="90")


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def api_keys(request: HttpRequest) -> HttpResponse:
    """The list, the form, and once, after it was sent, the new key."""
    form = KeyForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        return _page(request, form)
    now, days = timezone.now(), int(form.cleaned_data["days"])
    expires_at = now + timedelta(days=days) if days else None
    try:
        key, text = keys.create(_user(request), form.cleaned_data["name"], form.cleaned_data["scopes"], now, expires_at)
    except keys.Refused as error:
        form.add_error(None, str(error))
        return _page(request, form)
    return _page(request, KeyForm(), made=key, text=text)


@login_required
@never_cache
@require_POST
def api_key_rotate(request: HttpRequest, pk: int) -> HttpResponse:
    """A new key in the place of an old one, which stops working at once."""
    try:
        key, text = keys.rotate(_own(request, pk), timezone.now())
    except keys.Refused:
        return redirect("api_keys")
    return _page(request, KeyForm(), made=key, text=text)


@login_required
@require_POST
def api_key_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    keys.revoke(_own(request, pk), timezone.now())
    return redirect("api_keys")


def _page(request: HttpRequest, form: KeyForm, made: ApiKey | None = None, text: str = "") -> HttpResponse:
    owned, now = ApiKey.objects.filter(owner=_user(request)), timezone.now()
    in_force = keys.in_force(_user(request), now)
    use = requests.used_today(in_force, now)
    context = {
        "page": "keys",
        "form": form,
        "made": made,
        "text": text,
        "in_force": [(key, limits.of(key), use[key.pk]) for key in in_force],
        "ended": owned.exclude(pk__in=in_force)[:20],
    }
    return render(request, "serving/keys.html", context)


def _own(request: HttpRequest, pk: int) -> ApiKey:
    return get_object_or_404(ApiKey.objects.select_related("owner"), pk=pk, owner=_user(request))


def _user(request: HttpRequest) -> User:
    return cast(User, request.user)  # login_required lets nobody else in
