"""Checkpoints: everything needed to go on as if nothing had happened, bit for bit with the same number of threads."""

import copy
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.ml import files, optim, parallel
from training.ml.watch import Watch

if TYPE_CHECKING:
    from training.ml.loop import Learner

KEEP = 2


@dataclass(frozen=True)
class Good:
    """Where a run can return to: copies, untouched by what is done after."""

    step: int  # finished when it was taken
    parameters: list[torch.Tensor]
    optimizer: dict[str, Any]


def remember(learner: "Learner") -> Good:
    parameters = [parameter.detach().clone() for parameter in learner.parameters]
    return Good(learner.step, parameters, copy.deepcopy(learner.optimizer.state_dict()))


def go_back(learner: "Learner", good: Good) -> None:
    """Parameters and optimizer, not the step: the pairs in between are not seen again."""
    _put(learner, good.parameters, copy.deepcopy(good.optimizer))


def _put(learner: "Learner", parameters: list[torch.Tensor], optimizer: dict[str, Any]) -> None:
    with torch.no_grad():
        for parameter, value in zip(learner.parameters, parameters, strict=True):
            parameter.copy_(value)
    learner.optimizer.load_state_dict(optimizer)


def save(folder: Path, learner: "Learner", identity: dict[str, Any], watch: Watch) -> None:
    """Writes folder/checkpoint-<step> whole and durable, then removes all but the newest KEEP.

    The order of the pairs is a function of the step, so the step is the position in the data. Nothing is removed once
    another attempt can have begun, which was told to go on from what was the newest then.
    """
    if not parallel.is_first():
        return
    state = {
        "identity": identity,
        "step": learner.step,
        "budget": learner.budget,
        "n_skipped": learner.n_skipped,
        "n_non_finite": learner.n_non_finite,
        "stopped": learner.stopped,
        "monitor": learner.monitor.state_dict(),
        "good": vars(learner.good) if learner.good else None,
        "metrics": learner.metrics,
        "parameters": optim.resumable(learner.optimizer, learner.parameters),
        "optimizer": learner.optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    with watch.shielded():
        with files.new_folder(folder / f"checkpoint-{learner.step}") as part:
            torch.save(state, part / "state.pt")
        old = kept(folder)[:-KEEP]
        for path in old if watch.is_alone() else []:
            shutil.rmtree(path)


def kept(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def resume(newest: Path, learner: "Learner", identity: dict[str, Any]) -> bool:
    """Puts the learner where `newest` was or, if that is unusable, one beside it; the steps in between are taken again.
    False, and the learner untouched, if none is usable."""
    beside = kept(newest.parent)
    older = beside[: beside.index(newest)] if newest in beside else beside
    return any(load(path, learner, identity) for path in (newest, *reversed(older)))


def load(path: Path, learner: "Learner", identity: dict[str, Any]) -> bool:
    """Puts the learner where the checkpoint was. False, and the learner untouched, if it is unusable or of other work:
    beginning again costs minutes, refusing to costs the run."""
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location=learner.model.device)
        if state["identity"] != identity:
            raise ValueError("it belongs to other data, parameters or model")
    except Exception as error:  # torch.load raises whatever a damaged archive makes it raise
        print(f"not resuming from {path}: {error}", flush=True)
        return False
    _put(learner, state["parameters"], state["optimizer"])
    torch.set_rng_state(state["rng"].cpu())
    learner.step, learner.budget = state["step"], state["budget"]
    learner.metrics, learner.stopped = state["metrics"], state["stopped"]
    learner.n_skipped, learner.n_non_finite = state["n_skipped"], state["n_non_finite"]
    learner.monitor.load_state_dict(state["monitor"])
    learner.good = Good(**state["good"]) if state["good"] else None
    return True
