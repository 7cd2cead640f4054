"""How programs get in: by a key in the Authorization header, held to its scopes. Browsers have their session."""

from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from serving import keys
from serving.models import ApiKey

SCHEME = "Bearer"


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer align_…`. Without the header it is up to the session; a bad key is an error."""

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        header = get_authorization_header(request).split()
        if not header or header[0].lower() != SCHEME.lower().encode():
            return None
        if len(header) != 2:
            raise AuthenticationFailed(_("The header must be: Authorization: Bearer, a space, and the key."))
        key = keys.find(header[1].decode("latin-1"), timezone.now())
        if key is None:
            raise AuthenticationFailed(
                _("This key is unknown, expired or revoked. Make a new one on the page of keys.")
            )
        return key.owner, key

    def authenticate_header(self, request: Request) -> str:
        return SCHEME


class HasScope(BasePermission):
    """A key may what the view's `scopes` (method → scope) names and the key has; a session is not limited by scopes.

    A view that names no scope for a method is closed to keys.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not isinstance(request.auth, ApiKey) or request.method == "OPTIONS":
            return True
        needed = _scope_of(request, view)
        if needed is None:
            raise PermissionDenied(_("Keys do not work here. Log in, and use the page."))
        if needed not in request.auth.scopes:
            raise PermissionDenied(_("This key lacks the scope %(scope)s. Make one that has it.") % {"scope": needed})
        return True


def _scope_of(request: Request, view: Any) -> str | None:
    method = "GET" if request.method == "HEAD" else request.method
    return getattr(view, "scopes", {}).get(method)
