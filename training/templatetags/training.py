"""How runs are shown: `{% load training %}`."""

from typing import Any

from django import template
from django.template import Context
from django.utils.translation import gettext as _

from training.models import Run

register = template.Library()

COLOURS = {
    Run.Status.QUEUED: "accent",
    Run.Status.RUNNING: "accent",
    Run.Status.SUCCEEDED: "ok",
    Run.Status.FAILED: "bad",
    Run.Status.CANCELLED: "warn",
}


@register.filter
def status_colour(run: Run) -> str:
    return COLOURS.get(Run.Status(run.status), "")


@register.filter
def percent(run: Run) -> int:
    """Steps done, 0 to 100."""
    return min(100, 100 * run.step // run.n_steps) if run.n_steps else 0


@register.filter
def duration(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 2 h 5 min; one decimal below 10 s."""
    if seconds is None:
        return ""
    if seconds < 10:
        return _("%s s") % f"{seconds:.1f}"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return _("%(h)d h %(m)d min") % {"h": hours, "m": left}
    return _("%(m)d min %(s)d s") % {"m": minutes, "s": rest} if minutes else _("%d s") % rest


@register.filter
def points(share: float | None) -> str:
    """A share from 0 to 1 in per cent with one decimal."""
    return f"{share * 100:.1f} %" if isinstance(share, int | float) else "–"


@register.filter
def signed_points(share: float | None) -> str:
    """A difference of shares in points, always with its sign."""
    return f"{share * 100:+.1f}".replace("-", "−") if isinstance(share, int | float) else "–"


@register.filter
def figure(value: Any) -> str:
    """A figure of any size in at most four digits; a dash for none, and for lists what they hold."""
    if isinstance(value, bool) or value is None:
        return {True: _("yes"), False: _("no"), None: "–"}[value]
    if isinstance(value, list | tuple):
        return " … ".join(figure(one) for one in value)
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


@register.filter
def took(run: Run) -> float | None:
    """Seconds from its first start to its end."""
    return (run.finished_at - run.started_at).total_seconds() if run.started_at and run.finished_at else None


@register.simple_tag
def replaced(rows: Any, key: Any) -> Any:
    """rows[key], where key is a variable; None without."""
    return rows.get(key)


@register.simple_tag(takes_context=True)
def other_page(context: Context, name: str, number: int) -> str:
    """The address of this page with another page of one of its lists, whose number goes by `name`."""
    asked = context["request"].GET.copy()
    asked[name] = str(number)
    return f"?{asked.urlencode()}"
