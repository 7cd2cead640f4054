"""What a run is asked to do: config.json, checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import catalog
from training.ml import lines
from training.ml.errors import TrainingError


@dataclass(frozen=True)
class Job:
    folder: Path  # RUN_DIR/attempt-n: everything is written below it
    run: int
    attempt: int
    token: int  # fencing token
    method: str
    params: catalog.Common
    model: Path
    snapshot: Path
    snapshot_sha256: str
    cache: Path  # of log-probabilities, shared between runs
    incumbent: Path | None
    incumbent_name: str | None
    resume: Path | None
    threads: int  # 0: torch decides
    nice: int
    budget_halvings: int = 0  # attempts that were lost: the kernel ends what takes too much memory without a word
    reward_model: Path | None = None  # of the campaign: to be compared with, or to judge by

    @property
    def is_continuing(self) -> bool:
        """Without an incumbent there is nothing to continue: the first run of a campaign begins from the base."""
        return self.params.start == "incumbent" and self.incumbent is not None


def read(folder: Path) -> Job:
    """The job in folder/config.json. Raises TrainingError when a key is missing or a parameter unknown."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Job(
            folder=folder,
            run=config["run"],
            attempt=config["attempt"],
            token=config["token"],
            method=config["method"],
            params=catalog.measure(
                catalog.parse(config["method"], config["params"]), lines.card(Path(config["snapshot"]))
            ),
            model=Path(config["model"]),
            snapshot=Path(config["snapshot"]),
            snapshot_sha256=config["snapshot_sha256"],
            cache=Path(config["cache"]),
            incumbent=_path(config["incumbent"]),
            incumbent_name=config["incumbent_name"],
            resume=_path(config["resume"]),
            threads=config.get("threads", 0),
            nice=config.get("nice", 0),
            budget_halvings=config.get("budget_halvings", 0),
            reward_model=_path(config.get("reward_model")),
        )
    except catalog.ParameterError as error:
        raise TrainingError(str(error), "config") from None
    except KeyError as error:
        raise TrainingError(f"config.json of the run lacks {error}; start a new run.", "config") from None
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"config.json of the run cannot be read ({error}); start a new run.", "config") from None


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None
