"""The rules of the design as functions: each takes a source tree and returns a sentence per violation.

A tree maps a path (relative to the repository, with slashes) to the file's text.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Tree = dict[str, str]
Rule = Callable[[Tree], list[str]]

ORDER = ("serving", "labeling", "training", "alignapp")  # a package imports only itself and what stands before it
TORCH = {"torch", "transformers", "peft", "safetensors.torch"}
WEB = {"django", "celery", "kombu", "rest_framework"}
ML = ("serving/engine/", "training/ml/")
SHARED_WITH_ML = ("serving.engine", "training.ml", "training.catalog", "training.implicit_reward")
VAGUE = {"services", "utils", "util", "helpers", "managers", "common", "misc"}
SAME_IN_EVERY_LANGUAGE = {"Alignapp", "sha"}
MAX_FILE, MAX_FUNCTION = 400, 50
WRITES = {"create", "get_or_create", "update_or_create", "bulk_create", "bulk_update", "update", "delete", "save"}
# By the name that a call begins with, the one module that may write such rows.
ROW_WRITERS = {
    "Adapter": "serving/versions.py",
    "adapter": "serving/versions.py",
    "Deployment": "serving/aliases.py",
    "deployment": "serving/aliases.py",
    "DeploymentEvent": "serving/events.py",
}

# Longer than the limit, and why splitting would make it worse.
DEFENDED: dict[str, str] = {
    "labeling/models.py": "tables are read together: what is compared, who holds it, what was said of it",
    "tests/access.py": "the table of every address, and who may use it: one place to look",
}
# `except Exception` that goes on: process loops, which record what happened.
PROCESS_LOOPS: dict[str, str] = {
    "training/supervisor.py:supervise": "whatever goes wrong with a run is written on its row",
    "training/ml/train.py:main": "whatever goes wrong in a trainer is written into its error.json",
    "training/ml/score.py:main": "whatever goes wrong in a scoring is written into its error.json",
    "training/ml/checkpoint.py:load": "torch.load raises what a damaged archive makes it raise; an older checkpoint is next",
    "serving/openai/views.py:endpoint": "logged, and told in the format that programs can read",
    "serving/limits.py:_renew_while_held": "one thread renews all leases; the next round may go well",
    "serving/engine/scheduler.py:_work": "a failed step ends its own sequences; all others go on",
    "serving/engine/scheduler.py:_run": "a failed batch is tried sequence by sequence, to find the one at fault",
    "serving/engine/scheduler.py:_take": "a listener's fault ends its own request only",
    "serving/engine/scheduler.py:_run_out": "a listener's fault ends its own request only",
    "serving/engine/server.py:_in_background": "handed from the loader's thread to the request that waits for it",
}


def read(root: Path) -> Tree:
    """Every Python file and template of the repository, migrations left out."""
    tops = [*ORDER, "tests", "benchmarks", "templates"]
    files = [file for top in tops for pattern in ("*.py", "*.html") for file in (root / top).rglob(pattern)]
    paths = {file.relative_to(root).as_posix(): file for file in files}
    return {path: file.read_text() for path, file in sorted(paths.items()) if "/migrations/" not in path}


# --- what the rules look at ------------------------------------------------------------------------------------------
def _modules(tree: Tree, *tops: str) -> Iterator[tuple[str, ast.Module]]:
    for path, text in tree.items():
        if path.endswith(".py") and path.startswith(tuple(f"{top}/" for top in tops or ORDER)):
            yield path, _parsed(path, text)


@functools.cache
def _parsed(path: str, text: str) -> ast.Module:
    return ast.parse(text, path)


@functools.cache
def _walk(node: ast.AST) -> tuple[ast.AST, ...]:
    """ast.walk, once for all rules: it takes ten times as long as what they look for."""
    return tuple(ast.walk(node))


def _imported(module: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import; `from a import b` counts as a.b."""
    for node in _walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def _is_of(name: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _functions(module: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in _walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _root_name(node: ast.AST) -> str:
    """The name that a chain of attributes and calls begins with: Run.objects.filter(…).update → Run."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _assigned(module: ast.AST) -> Iterator[ast.Attribute]:
    """Attributes that something is assigned to."""
    for node in _walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


# --- packages --------------------------------------------------------------------------------------------------------
def imports_point_left(tree: Tree) -> list[str]:
    """serving ← labeling ← training ← alignapp."""
    found = []
    for path, module in _modules(tree):
        right = ORDER[ORDER.index(path.split("/")[0]) + 1 :]
        found += [f"{path}:{line} imports {name}" for line, name in _imported(module) if _is_of(name, right)]
    return found


def imports_are_at_the_top(tree: Tree) -> list[str]:
    """No import inside a function."""
    return [
        f"{path}:{line} imports {name} inside {function.name}"
        for path, module in _modules(tree, *ORDER, "tests", "benchmarks")
        for function in _functions(module)
        for line, name in _imported(function)
    ]


def torch_stays_in_its_place(tree: Tree) -> list[str]:
    """Only serving/engine and training/ml import torch, transformers, peft."""
    return [
        f"{path}:{line} imports {name}"
        for path, module in _modules(tree)
        if not path.startswith(ML)
        for line, name in _imported(module)
        if _is_of(name, TORCH)
    ]


def ml_knows_no_web(tree: Tree) -> list[str]:
    """serving/engine and training/ml import no Django, no Celery, and of ours only each other and the catalog's."""
    return [
        f"{path}:{line} imports {name}"
        for path, module in _modules(tree)
        if path.startswith(ML)
        for line, name in _imported(module)
        if _is_of(name, WEB) or (_is_of(name, ORDER) and not _is_of(name, SHARED_WITH_ML))
    ]


def modules_are_named_by_subject(tree: Tree) -> list[str]:
    """No services.py, utils.py, helpers.py, managers.py, nor folders of these names."""
    return [
        f"{path} is named after no subject"
        for path in tree
        if path.endswith(".py") and path.startswith(ORDER) and VAGUE & set(path.removesuffix(".py").split("/"))
    ]


# --- Django ----------------------------------------------------------------------------------------------------------
def no_django_signals(tree: Tree) -> list[str]:
    """What happens on a save is called by name."""
    signals = ("django.dispatch", "django.db.models.signals", "django.core.signals", "django.contrib.auth.signals")
    return [
        f"{path}:{line} imports {name}"
        for path, module in _modules(tree)
        for line, name in _imported(module)
        if _is_of(name, signals)
    ]


def models_do_not_override_save(tree: Tree) -> list[str]:
    """Models hold fields, constraints and values of one row."""
    return [
        f"{path}:{function.lineno} overrides {function.name}"
        for path, module in _modules(tree)
        if path.endswith("/models.py")
        for function in _functions(module)
        if function.name in {"save", "delete", "asave", "adelete"}
    ]


def one_writer_of_run_status(tree: Tree) -> list[str]:
    """Only training/runs.py writes Run.status."""
    found = []
    for path, module in _modules(tree, "training", "alignapp"):
        if path in {"training/runs.py", "training/models.py"} or path.startswith("training/ml/"):
            continue
        found += [f"{path}:{node.lineno} assigns a status" for node in _assigned(module) if node.attr == "status"]
        for call in (node for node in _walk(module) if isinstance(node, ast.Call)):
            is_write = isinstance(call.func, ast.Attribute) and call.func.attr in WRITES
            if is_write and any(keyword.arg == "status" for keyword in call.keywords):
                found.append(f"{path}:{call.lineno} writes a status")
    return found


def one_writer_of_adapters(tree: Tree) -> list[str]:
    """One module writes the rows of each: versions.py Adapter, aliases.py Deployment, events.py DeploymentEvent."""
    found = []
    for path, module in _modules(tree):
        if path.startswith(ML):
            continue
        for call in (node for node in _walk(module) if isinstance(node, ast.Call)):
            is_write = isinstance(call.func, ast.Attribute) and call.func.attr in WRITES
            written = ROW_WRITERS.get(_root_name(call), path)
            is_class = isinstance(call.func, ast.Name) and call.func.id[0].isupper()
            made = ROW_WRITERS.get(_root_name(call), path) if is_class else path
            if is_write and written != path:
                found.append(f"{path}:{call.lineno} writes a row")
            elif made != path:
                found.append(f"{path}:{call.lineno} makes a row")
    return found


# --- code ------------------------------------------------------------------------------------------------------------
def exceptions_are_named(tree: Tree) -> list[str]:
    """`except Exception` only in a process loop, which records it, or where what is not known is raised again."""
    return [
        f"{path}:{node.lineno} catches everything in {name or 'the module'}"
        for path, module in _modules(tree)
        for name, statement in _outermost(module)
        for node in _walk(statement)
        if isinstance(node, ast.ExceptHandler) and _catches_everything(node) and f"{path}:{name}" not in PROCESS_LOOPS
    ]


def _outermost(node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """The statements of a module and of its classes, functions with their names."""
    for statement in node.body:
        if isinstance(statement, ast.ClassDef):
            yield from _outermost(statement)
        else:
            yield getattr(statement, "name", ""), statement


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    if any(isinstance(node, ast.Raise) for node in _walk(handler)):
        return False
    names = {name.id for name in _walk(handler.type) if isinstance(name, ast.Name)} if handler.type else set()
    return handler.type is None or bool(names & {"Exception", "BaseException"})


def files_are_short(tree: Tree) -> list[str]:
    """400 lines at most."""
    lengths = {path: text.count("\n") for path, text in tree.items() if path.endswith(".py")}
    return [f"{path} has {n} lines" for path, n in lengths.items() if n > MAX_FILE and path not in DEFENDED]


def functions_are_short(tree: Tree) -> list[str]:
    """50 lines at most."""
    found = []
    for path, module in _modules(tree, *ORDER, "tests", "benchmarks"):
        for function in _functions(module):
            n_lines = (function.end_lineno or 0) - function.lineno + 1
            if n_lines > MAX_FUNCTION and f"{path}:{function.name}" not in DEFENDED:
                found.append(f"{path}:{function.lineno} {function.name} has {n_lines} lines")
    return found


def methods_are_data(tree: Tree) -> list[str]:
    """No branch on a training method's name: what differs between methods stands in training/catalog.py."""
    found = []
    for path, module in _modules(tree):
        for node in _walk(module):
            is_branch = (
                isinstance(node, ast.Compare) and _is_named(node) and any(map(_is_method, ast.iter_child_nodes(node)))
            )
            if path != "training/catalog.py" and (
                is_branch or (isinstance(node, ast.Match) and _is_method(node.subject))
            ):
                found.append(f"{path}:{node.lineno} branches on a method")  # type: ignore[attr-defined]
    return found


def _is_named(comparison: ast.Compare) -> bool:
    """Whether something is compared with a literal text, or with several."""
    return any(isinstance(node, ast.Constant) and isinstance(node.value, str) for node in _walk(comparison))


def _is_method(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        of_request = isinstance(node.value, ast.Name | ast.Attribute) and ast.unparse(node.value).endswith("request")
        return node.attr == "method" and not of_request
    return isinstance(node, ast.Name) and node.id == "method"


# --- tests -----------------------------------------------------------------------------------------------------------
def names_say_what_is_tested(tree: Tree) -> list[str]:
    """Test functions are named test_it_<does>."""
    return [
        f"{path}:{function.lineno} is named {function.name}"
        for path, module in _modules(tree, "tests")
        for function in _functions(module)
        if function.name.startswith("test") and not function.name.startswith("test_it_")
    ]


def nothing_is_skipped_or_mocked(tree: Tree) -> list[str]:
    """No skipped or expected-to-fail test, no mock."""
    found = []
    for path, module in _modules(tree, "tests"):
        found += [f"{path}:{line} imports {name}" for line, name in _imported(module) if "mock" in name.split(".")]
        for node in _walk(module):
            if isinstance(node, ast.Attribute) and node.attr in {"skip", "skipif", "xfail", "importorskip"}:
                found.append(f"{path}:{node.lineno} uses {node.attr}")
    return found


# --- templates -------------------------------------------------------------------------------------------------------
def _templates(tree: Tree) -> Iterator[tuple[str, str]]:
    for path, text in tree.items():
        if path.endswith(".html"):
            yield path, re.sub(r"{#.*?#}|{% comment.*?endcomment %}|<!--.*?-->", "", text, flags=re.DOTALL)


def templates_have_no_inline_code(tree: Tree) -> list[str]:
    """The content security policy forbids inline scripts, styles and handlers; the admin has a policy of its own."""
    forbidden = {
        "an inline script": r"<script(?![^>]*(\bsrc=|application/json))",
        "a style element": r"<style\b",
        "a style attribute": r"<[^>]*\sstyle\s*=",
        "a handler attribute": r"<[^>]*\son[a-z]+\s*=",
        "a javascript: address": r"javascript:",
    }
    return [
        f"{path} has {what}"
        for path, text in _templates(tree)
        if not path.startswith("templates/admin/")
        for what, pattern in forbidden.items()
        if re.search(pattern, text, re.IGNORECASE)
    ]


def templates_load_nothing_from_others(tree: Tree) -> list[str]:
    """No third-party host: the site works without the internet, and tells nobody who looks at it."""
    pattern = r"(?:src|href|action|srcset|data|poster)\s*=\s*[\"']?\s*(?:https?:)?//"
    return [f"{path} names another host" for path, text in _templates(tree) if re.search(pattern, text, re.IGNORECASE)]


def templates_can_be_translated(tree: Tree) -> list[str]:
    """Every word that is shown or read out stands in {% translate %} or {% blocktranslate %}."""
    found = []
    for path, text in _templates(tree):
        rest = re.sub(r"{% block \w+_class %}.*?{% endblock.*?%}", "", text)
        rest = re.sub(r"{% blocktrans.*?endblocktrans.*?%}", "", rest, flags=re.DOTALL)
        rest = re.sub(r"{%.*?%}|{{.*?}}", "", rest, flags=re.DOTALL)
        read_out = re.findall(r"\s(?:alt|title|placeholder|aria-label)=[\"'](.*?)[\"']", rest)
        shown = re.sub(r"<(script|style|svg|kbd|code)\b.*?</\1>|<[^>]*>|&\w+;", " ", rest, flags=re.DOTALL)
        words = re.findall(r"[^\W\d_]{2,}", " ".join([shown, *read_out]))
        words = [word for word in words if word not in SAME_IN_EVERY_LANGUAGE]
        if words:
            found.append(f"{path} has words that cannot be translated: {' '.join(words[:6])}")
    return found


RULES: tuple[Rule, ...] = (
    imports_point_left,
    imports_are_at_the_top,
    torch_stays_in_its_place,
    ml_knows_no_web,
    modules_are_named_by_subject,
    no_django_signals,
    models_do_not_override_save,
    one_writer_of_run_status,
    one_writer_of_adapters,
    exceptions_are_named,
    files_are_short,
    functions_are_short,
    methods_are_data,
    names_say_what_is_tested,
    nothing_is_skipped_or_mocked,
    templates_have_no_inline_code,
    templates_load_nothing_from_others,
    templates_can_be_translated,
)
