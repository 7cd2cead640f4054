"""The API's description: as OpenAPI for programs, and as a page for people, both made from the code."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from labeling.api.base import ErrorShown
from serving import keys

METHODS = ("get", "post", "put", "patch", "delete")
# What every operation may answer besides its own answers.
ERRORS = {
    "400": "The request is wrong; the message says how.",
    "401": "No session and no valid key.",
    "403": "This person, or this key, may not.",
    "404": "There is nothing that this person may see.",
    "405": "There is no such method here.",
    "406": "Only JSON is spoken here.",
    "409": "It does not go with what was done before; code says why.",
    "413": "The body is too large.",
    "415": "Send JSON.",
    "429": "Too many requests; Retry-After says when to come back.",
}
REFERENCE = {"$ref": f"#/components/schemas/{ErrorShown.__name__}"}


class KeyScheme(OpenApiAuthenticationExtension):
    """Tells the schema how keys are sent."""

    target_class = "serving.authentication.KeyAuthentication"
    name = "key"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A key made on the page of API keys."}


class Operations(AutoSchema):
    """Every operation with the scope that a key needs."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation = super().get_operation(*args, **kwargs)
        scope = getattr(self.view, "scopes", {}).get(self.method)
        if operation is not None and scope:
            operation["x-scope"] = scope
        return operation


def add_errors(result: dict[str, Any], generator: SchemaGenerator, **kwargs: Any) -> dict[str, Any]:
    """Every operation answers errors in the one format (a hook of drf-spectacular)."""
    problem = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": {"type": "string", "description": "for programs"},
            "message": {"type": "string", "description": "for people: what is wrong, and what to do"},
            "fields": {"description": "which values are wrong, and why"},
        },
    }
    shape = {"type": "object", "required": ["error"], "properties": {"error": problem}}
    result["components"].setdefault("schemas", {})[ErrorShown.__name__] = shape
    for path in result["paths"].values():
        for method in METHODS:
            for status, words in ERRORS.items() if method in path else ():
                content = {"application/json": {"schema": REFERENCE}}
                path[method]["responses"].setdefault(status, {"description": words, "content": content})
    return result


@login_required
@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """Every operation by subject: what it does, the scope it needs, what it takes and answers."""
    schema = SchemaGenerator().get_schema(request=None, public=True)
    context = {"page": "api", "groups": _groups(schema), "scopes": keys.SCOPES}
    return render(request, "api_docs.html", context)


def _groups(schema: dict[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                groups.setdefault(operation["tags"][0], []).append(_shown(schema, path, method, operation))
    return [{"name": name, "operations": operations} for name, operations in sorted(groups.items())]


def _shown(schema: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    first, _blank, rest = operation.get("description", "").partition("\n\n")
    answers = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": first,
        "more": rest,
        "scope": operation.get("x-scope", ""),
        "parameters": [
            {"name": one["name"], "in": one["in"], "is_required": one.get("required", False), **_described(schema, one)}
            for one in operation.get("parameters", [])
        ],
        "fields": _fields(schema, _content(operation.get("requestBody", {}))),
        "answers": [
            {"status": status, "fields": _fields(schema, _content(answer))} for status, answer in answers.items()
        ],
    }


def _content(body: dict[str, Any]) -> dict[str, Any]:
    contents: list[dict[str, Any]] = list(body.get("content", {}).values())
    return contents[0].get("schema", {}) if contents else {}


def _resolved(schema: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """The shape that a reference stands for; of several, merged ones."""
    if "$ref" in shape:
        return schema["components"]["schemas"][shape["$ref"].rsplit("/", 1)[1]]
    for part in shape.get("allOf", []):
        shape = {**_resolved(schema, part), **shape}
    return shape


def _fields(schema: dict[str, Any], shape: dict[str, Any]) -> list[dict[str, Any]]:
    resolved = _resolved(schema, shape)
    required = resolved.get("required", [])
    return [
        {"name": name, "is_required": name in required, **_described(schema, {"schema": field, **field})}
        for name, field in resolved.get("properties", {}).items()
    ]


def _described(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, str]:
    shape = _resolved(schema, field.get("schema", {}))
    inner = _resolved(schema, shape.get("items", {}))
    kind = _kind(shape)
    if kind == "array":
        kind = _("list of %(what)s") % {"what": _kind(inner)}
    return {"kind": kind, "words": field.get("description") or shape.get("description", "")}


def _kind(shape: dict[str, Any]) -> str:
    if "enum" in shape:
        return " | ".join(str(value) for value in shape["enum"] if value not in (None, ""))
    return str(shape.get("format") or shape.get("type") or _("any"))
