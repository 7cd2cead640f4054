"""docs/methods.md, made from the catalog and the losses' docstrings: `python -m training.methods_page` writes it."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from training import catalog

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
LOSSES = [Path(__file__).parent / "ml" / name for name in ("losses.py", "reward_head.py")]

HEAD = """# Training methods

<!-- Made by `python -m training.methods_page` from training/catalog.py and the losses' docstrings; edit those. -->

A method is what a run learns from and the loss that it lowers; everything else is the same for all of them: one loop,
one packing of rows, one adapter. Choose by what people gave you:

| you have | begin with | and if |
|---|---|---|
| preferences between two responses | `dpo` | the chosen responses become unlikely: `rpo`, or any method with an `anchor` |
| people who disagree or make mistakes | `cdpo` | the rate of mistakes is known and high: `robust` |
| few judgments | `ipo` | or `dpo` with a higher `beta` |
| many ties | `rao_kupper` | far gaps should weigh less: `davidson` |
| responses of very different lengths | `dpo_norm` | |
| thumbs from the chat page | `kto` | the good responses are better than what the model writes: `apo_zero` |
| responses that people improved or wrote | `sft` | they are also pairs (edited over original), which `dpo` learns from |

In the formulas π is the policy, ref the reference (always the base model, with the adapter off), σ the logistic function,
c the chosen and r the rejected response, |y| a response's length in tokens, its end of turn included. h is the log-ratio
gap log π/ref(c) − log π/ref(r), p the label, β `beta`. All logarithms are natural; log-probabilities are sums over a
response's tokens in nats.
"""

TAIL = """## What labels, weights, grades and ties do

- **Soft labels.** A line of a snapshot says how probable it is that `chosen` is better (`label`, p). Every loss on pairs is
  linear in p: seven of ten votes have the loss of the ten votes one by one. Exchanging the two responses and p with 1 − p
  changes nothing. That also holds of the NLL in RPO, ORPO and the anchor.
- **Weights.** Each example's loss is multiplied by its weight, then the step takes the mean over its examples, whatever
  they weigh and however they are packed into passes.
- **Grades.** With `margin_scale` δ, a pair that was graded m (0 to 3) towards `chosen` is asked for a reward gap that is δm
  wider: ODPO's offset, which is Llama 2's margin. It shifts the gap within the likelihood, so soft labels stay labels.
- **Ties.** Methods that learn from pairs leave out pairs whose label is exactly ½, and the run counts them. The tie-aware
  methods learn from them, by the share of votes that were ties (`tie_share`): a tie pulls the gap towards 0. A label counts
  a tie as half a vote for each side, so the votes are (p − t/2, t, 1 − p − t/2); where a model of the people made the label
  and these do not fit, they are cut at 0 and made to sum to 1.
- **Flip rate.** −1 takes `flip_rate` from the snapshot's card: how often people contradict gold checks and themselves, at
  most 0.4. When nobody answered either, the run is refused: a guess would pass for a measurement. Labels that are already
  soft because a model of the people made them hold their doubt once; a flip rate on top counts it twice.
- **Anchor.** `anchor` adds that much of the preferred responses' NLL per token to any loss. It starts where the parameter
  says; the monitor adds to it when the chosen responses become unlikely while the gap grows.

## Rewards and probabilities

A trained policy's reward of a response is β times its log-ratio: the sum over tokens, or for losses that are per token
(`dpo_norm`, `simpo`, `ipo` with `per_token`) the mean. σ of the gap between two rewards is the probability that people choose
so; margins in the curves, the monitor's held-out probabilities and the gate's Brier score are of it. SimPO's own reward has
no reference; here the base's part is taken off, so that only what was learned counts. ORPO and SFT have no β and claim no
probability: they rank by the mean log-ratio, and the gate asks them for choices only.

## Single responses

KTO and APO-zero learn from thumbs. With `splits_pairs` they learn from pairs too, as a good and a bad response of weight
2p − 1. The good and bad sides of these losses add up to a constant, so that is what the votes one by one would give, as
long as both sides weigh the same. Where they weigh g and b (`good_weight`, `bad_weight`, and `is_balanced`, which weighs
the two sides alike, up to a factor of 4), the votes would give the preferred response p·g − (1 − p)·b, which a narrow
majority can make negative; here what most people prefer stays good.

KTO's KL is estimated from responses to other prompts, scored without gradient once per optimizer step, over the whole step:
packing and accumulation do not change it. Each example's other response is the next one of the run that answers another
prompt, so that the reference scores it once for all epochs; TRL rotates within a batch.

## Where this differs from TRL 1.16

The tests take the same step as TRL's own trainers, loss and gradient, for all that both have, except:

| | here | TRL |
|---|---|---|
| IPO | per response, as in the paper; `per_token` for TRL's | per token |
| NLL of RPO and SFT | mean over responses of each one's mean over tokens, as in the paper | mean over all tokens of the batch |
| NLL of ORPO | of the response | of prompt and response |
| cDPO, soft labels, weights, ties | yes | no |

## Adding one

One line in `METHODS` of `training/catalog.py` and one function of the same name in `training/ml/losses.py`, with formula and
paper in its docstring; a dataclass if no method has the same parameters. The form, the API, this page and the tests that
run over the whole catalog follow; the formula by hand goes into `tests/training/ml/formulas.py`.
"""


def render() -> str:
    """The page."""
    formulas = dict(_docstrings())
    methods = "\n".join(_method(method, formulas[method.name]) for method in catalog.METHODS.values())
    common = "## Parameters of every method\n\n" + _table(list(fields(catalog.Common)))
    return "\n".join([HEAD, methods, common, _presets(), TAIL])


def _docstrings() -> Iterator[tuple[str, str]]:
    """Name and docstring of every function of the losses' modules, without importing them: they load torch."""
    for path in LOSSES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                yield node.name, inspect.cleandoc(ast.get_docstring(node) or "")


def _method(method: catalog.Method, formula: str) -> str:
    common = {f.name: f.default for f in fields(catalog.Common)}
    own = [f for f in fields(method.params) if f.name not in common or f.default != common[f.name]]
    made = method.output.replace("_", " ")
    parts = [
        f"## {method.label}: `{method.name}`\n",
        f"{method.use} Learns from {catalog.SOURCES[method.source]}; makes {_article(made)}.\n",
        f"{formula}\n",
    ]
    return "\n".join([*parts, _table(own)] if own else parts)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _table(parameters: "list[Field[Any]]") -> str:
    lines = ["| parameter | default | allowed | |", "|---|---|---|---|"]
    for f in parameters:
        lines.append(f"| `{f.name}` | {_show(f.default)} | {_allowed(f)} | {f.metadata['help']} |")
    return "\n".join(lines) + "\n"


def _allowed(f: "Field[Any]") -> str:
    meta = f.metadata
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    return "yes or no" if isinstance(f.default, bool) else f"{_show(meta['low'])} to {_show(meta['high'])}"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.12g}" if isinstance(value, int | float) else f"`{value}`"


def _presets() -> str:
    lines = ["## Presets\n", "| preset | sets | |", "|---|---|---|"]
    for preset in catalog.PRESETS.values():
        values = ", ".join(f"`{name}` {_show(value)}" for name, value in preset.params.items()) or "nothing"
        lines.append(f"| {preset.label} (`{preset.name}`) | {values} | {preset.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
