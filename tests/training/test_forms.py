"""The forms read the catalog: a new method or parameter needs no line here."""

from dataclasses import fields
from typing import Any

import pytest

from tests.training.rows import add_campaign
from training import catalog
from training.forms import PolicyForm, RunForm, label_of
from training.models import Policy
from training.rules import Rules

pytestmark = pytest.mark.django_db


def data_of(form: RunForm) -> dict[str, Any]:
    return {field.name: field.value() for field in form if field.value() is not False}


@pytest.mark.parametrize("method", catalog.METHODS)
def test_it_has_a_field_with_default_and_sentence_for_every_parameter(method: str) -> None:
    form = RunForm(method, initial={"campaign": add_campaign().pk})
    for parameter in fields(catalog.METHODS[method].params):
        field = form.fields[parameter.name]
        assert field.initial == parameter.default
        assert str(field.help_text).startswith(parameter.metadata["help"])
    shown = [f.name for f in (form["campaign"], form["method"], *form.first(), *form.own(), *form.rest())]
    assert sorted(shown) == sorted(form.fields), "each field once"
    bound = RunForm(method, data_of(form))
    assert bound.is_valid(), bound.errors
    assert catalog.parse(method, bound.parameters()) == catalog.METHODS[method].params()


@pytest.mark.parametrize("method", catalog.METHODS)
def test_it_keeps_every_bound_of_the_catalog(method: str) -> None:
    campaign = add_campaign()
    for parameter in fields(catalog.METHODS[method].params):
        low, high = parameter.metadata["low"], parameter.metadata["high"]
        for value in [low - 1, high + 1, "nan", "x", ""] if low is not None else []:
            data = data_of(RunForm(method, initial={"campaign": campaign.pk})) | {parameter.name: value}
            assert parameter.name in RunForm(method, data).errors, value


def test_it_labels_a_parameter_as_people_write_it() -> None:
    assert [label_of(name) for name in ("max_grad_norm", "lora_rank", "rslora", "beta")] == [
        "Max grad norm",
        "LoRA rank",
        "rsLoRA",
        "Beta",
    ]


@pytest.mark.parametrize(
    ("params", "is_valid"),
    [('{"beta": 0.2}', True), ("", True), ("{}", True), ('{"beta": -1}', False), ("[1]", False), ("{", False)],
)
def test_it_checks_a_policys_parameters(params: str, is_valid: bool) -> None:
    data = {"campaign": add_campaign().pk, "every_n": 5, "method": "dpo", "params": params, "min_heldout_pairs": 20}
    form = PolicyForm(data)
    assert form.is_valid() is is_valid
    assert set(form.errors) == (set() if is_valid else {"params"})


def test_it_stores_the_rules_of_the_gate_that_differ_from_the_defaults() -> None:
    data = {"campaign": add_campaign().pk, "every_n": 5, "method": "dpo", "params": "", "min_heldout_pairs": 20}
    asked = {rule.name: rule.default for rule in fields(Rules)}
    form = PolicyForm(data | asked | {"max_repetition": 0.25, "max_kl": ""})
    assert form.is_valid(), form.errors
    stored = form.save()
    assert stored.rules == {"max_repetition": 0.25}
    assert PolicyForm(instance=stored).initial["max_repetition"] == 0.25
    for rule in fields(Rules):
        for value in (rule.metadata["low"] - 1, rule.metadata["high"] + 1, "nan"):
            assert rule.name in PolicyForm(data | asked | {rule.name: value}).errors


def test_it_opens_a_policy_with_a_rule_that_is_out_of_bounds_by_now() -> None:
    policy = Policy.objects.create(campaign=add_campaign(), rules={"max_length_ratio": 0.5, "max_kl": 0.2})
    shown = PolicyForm(instance=policy).initial
    assert (shown["max_length_ratio"], shown["max_kl"]) == (Rules().max_length_ratio, 0.2)
