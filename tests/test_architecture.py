"""The rules of docs/architecture.md hold, and each rule sees what it is there to see."""

from pathlib import Path

import pytest

from tests import rules

ROOT = Path(__file__).resolve().parent.parent
TREE = rules.read(ROOT)
CATCH = "def f():\n    try:\n        g()\n    except "
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 50

PLANTED = [
    (rules.imports_point_left, "serving/a.py", "from labeling.models import Campaign"),
    (rules.imports_point_left, "labeling/a.py", "import training.runs"),
    (rules.imports_point_left, "training/a.py", "from alignapp import settings"),
    (rules.imports_are_at_the_top, "serving/a.py", "def f():\n    import json"),
    (rules.imports_are_at_the_top, "tests/test_a.py", "async def f():\n    from json import loads"),
    (rules.torch_stays_in_its_place, "training/runs.py", "import torch"),
    (rules.torch_stays_in_its_place, "serving/adapters.py", "from safetensors.torch import load_file"),
    (rules.torch_stays_in_its_place, "alignapp/a.py", "from torch.nn import functional"),
    (rules.ml_knows_no_web, "serving/engine/a.py", "from django.conf import settings"),
    (rules.ml_knows_no_web, "training/ml/a.py", "import celery.signals"),
    (rules.ml_knows_no_web, "training/ml/a.py", "from training.models import Run"),
    (rules.modules_are_named_by_subject, "serving/utils.py", ""),
    (rules.modules_are_named_by_subject, "labeling/services/leases.py", ""),
    (rules.no_django_signals, "labeling/a.py", "from django.db.models.signals import post_save"),
    (rules.no_django_signals, "labeling/a.py", "from django.dispatch import receiver"),
    (rules.models_do_not_override_save, "labeling/models.py", "class A:\n    def save(self): ..."),
    (rules.one_writer_of_run_status, "training/tasks.py", "run.status = 'failed'"),
    (rules.one_writer_of_run_status, "training/a.py", "Run.objects.filter(pk=1).update(status='failed')"),
    (rules.one_writer_of_adapters, "serving/views.py", "Deployment.objects.filter(alias='x').update(adapter=a)"),
    (rules.one_writer_of_adapters, "serving/adapters.py", "DeploymentEvent.objects.create(alias='x')"),
    (rules.one_writer_of_adapters, "serving/aliases.py", "Adapter.objects.filter(pk=1).update(status='ready')"),
    (rules.one_writer_of_adapters, "training/a.py", "Adapter.objects.create(name='x')"),
    (rules.one_writer_of_adapters, "training/a.py", "row = Adapter(name='x')"),
    (rules.one_writer_of_adapters, "training/a.py", "adapter.save()"),
    (rules.exceptions_are_named, "serving/a.py", f"{CATCH}Exception:\n        pass"),
    (rules.exceptions_are_named, "serving/a.py", f"{CATCH[:-1]}:\n        pass"),
    (rules.exceptions_are_named, "serving/a.py", f"{CATCH}(ValueError, BaseException):\n        pass"),
    (rules.files_are_short, "serving/a.py", "x = 1\n" * 401),
    (rules.functions_are_short, "serving/a.py", LONG_FUNCTION),
    (rules.functions_are_short, "tests/test_a.py", LONG_FUNCTION),
    (rules.methods_are_data, "training/ml/a.py", "if method == 'dpo':\n    pass"),
    (rules.methods_are_data, "training/a.py", "if run.method in ('dpo', 'kto'):\n    pass"),
    (rules.methods_are_data, "training/a.py", "match config.method:\n    case 'dpo':\n        pass"),
    (rules.names_say_what_is_tested, "tests/test_a.py", "def test_things(): ..."),
    (rules.nothing_is_skipped_or_mocked, "tests/test_a.py", "from unittest.mock import patch"),
    (rules.nothing_is_skipped_or_mocked, "tests/test_a.py", "@pytest.mark.skipif(True)\ndef test_it_does(): ..."),
    (rules.templates_have_no_inline_code, "templates/a.html", "<script>alert(1)</script>"),
    (rules.templates_have_no_inline_code, "templates/a.html", '<p class="x" style="color: red">'),
    (rules.templates_have_no_inline_code, "templates/a.html", '<button onclick="f()">'),
    (rules.templates_have_no_inline_code, "templates/a.html", "<style>p {}</style>"),
    (rules.templates_load_nothing_from_others, "templates/a.html", '<script src="https://cdn.example/x.js">'),
    (rules.templates_load_nothing_from_others, "templates/admin/a.html", '<link href="//fonts.example/x.css">'),
    (rules.templates_can_be_translated, "templates/a.html", "<p>Hello there</p>"),
    (rules.templates_can_be_translated, "templates/a.html", '<input placeholder="Your name">'),
]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_it_keeps_the_rule(rule: rules.Rule) -> None:
    assert rule(TREE) == []


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_it_catches_a_planted_violation(rule: rules.Rule, path: str, text: str) -> None:
    assert rule({path: text})


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_it_has_a_planted_violation_for_each_rule(rule: rules.Rule) -> None:
    assert rule in [planted for planted, _, _ in PLANTED]


def test_it_lets_harmless_code_pass() -> None:
    tree = {
        "training/a.py": "import json\nfrom serving.models import Adapter\nif request.method == 'POST':\n    x = 1\n",
        "training/ml/a.py": "import torch\nfrom training import catalog\n"
        + f"{CATCH}Exception as error:\n        raise Refused from error\n",
        "templates/a.html": '{% load i18n %}<script src="/static/a.js"></script><p>{% translate "Hello" %}</p>',
    }
    assert [violation for rule in rules.RULES for violation in rule(tree)] == []


def test_it_reads_the_whole_tree() -> None:
    assert {"alignapp/settings.py", "serving/models.py", "templates/base.html"} <= TREE.keys()


def test_it_defends_only_what_exists() -> None:
    for name in rules.DEFENDED | rules.PROCESS_LOOPS:
        path, _, function = name.partition(":")
        assert f"def {function}(" in TREE[path] if function else path in TREE
