"""The figures of a run as data: live, as curves, and all of them as files. Addresses and staff as in training.views."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from django.contrib.auth.decorators import permission_required
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from labeling import exports_files
from training import curves, live
from training.models import Run

BATCH_LINES = 500


@require_GET
@never_cache
@permission_required("training.view_run", raise_exception=True)
def run_live(request: HttpRequest, run_id: int) -> JsonResponse:
    """What changed since step `?after=`, for pages to which events do not get through. `log=0` leaves the log out."""
    run = get_object_or_404(Run, pk=run_id)
    answer = {**live.state_of(run), "metrics": live.lines_after(run.pk, _step(request.GET.get("after")))}
    if request.GET.get("log") != "0":
        answer["log"] = live.log_of(run)
    return JsonResponse(answer)


@require_GET
@permission_required("training.view_run", raise_exception=True)
def run_events(request: HttpRequest, run_id: int) -> HttpResponseBase:
    """The same as server-sent events, from step `?after=` on, or from where a browser that comes back had got.

    The view is synchronous: it asks for rights and is done. What follows is a coroutine, so a viewer costs no thread.
    Under WSGI each would: there it says “no content”, after which browsers do not ask again, and the page polls.
    """
    get_object_or_404(Run, pk=run_id)
    if not isinstance(request, ASGIRequest):
        return HttpResponse(status=204)
    after = _step(request.headers.get("Last-Event-ID") or request.GET.get("after"))
    response = StreamingHttpResponse(live.events(run_id, after), content_type="text/event-stream")
    response["Cache-Control"] = "no-cache, no-transform"
    response["X-Accel-Buffering"] = "no"  # nginx would hold the events back
    return response


@require_GET
@never_cache
@permission_required("training.view_run", raise_exception=True)
def run_curves(request: HttpRequest, run_id: int) -> JsonResponse:
    """Curves and alarms so far, thinned; see training.curves."""
    return JsonResponse(curves.of_run(get_object_or_404(Run, pk=run_id)))


@require_GET
@never_cache
@permission_required("training.view_run", raise_exception=True)
def run_metrics(request: HttpRequest, run_id: int, kind: str) -> HttpResponseBase:
    """Every metric of every step as a file: JSON Lines as the trainer wrote them, or CSV with a column for each name."""
    run = get_object_or_404(Run, pk=run_id)
    write, content_type = FILES[kind]
    response = StreamingHttpResponse(exports_files.asynchronously(write(run)), content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="run-{run.pk}-metrics.{kind}"'
    return response


def _jsonl(run: Run) -> Iterator[bytes]:
    return exports_files.jsonl(_batches(run))


def _csv(run: Run) -> Iterator[bytes]:
    """Two passes over the rows: which names there are, and their values."""
    found = {name for batch in _batches(run) for line in batch for name in line}
    names = sorted(found, key=lambda name: (name != "step", name))  # PostgreSQL keeps no order of a line's names
    whole = ([{name: line.get(name) for name in names} for line in batch] for batch in _batches(run))
    return exports_files.csv_table(whole, names)


def _batches(run: Run) -> Iterator[list[dict[str, Any]]]:
    lines = run.metrics.values_list("values", flat=True).iterator(chunk_size=BATCH_LINES)
    while batch := list(islice(lines, BATCH_LINES)):
        yield batch


FILES = {"csv": (_csv, "text/csv"), "jsonl": (_jsonl, "application/x-ndjson")}


def _step(text: str | None) -> int:
    """A step of at most 9 digits; 0 for what is none."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 10 else 0
