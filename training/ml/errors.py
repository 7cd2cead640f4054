"""What ends a run before its time. Each maps to one exit code of the trainer."""

import errno

import torch


class TrainingError(Exception):
    """The run cannot succeed; the message is one sentence for people that says what to do."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Stopped(BaseException):
    """Asked to stop (SIGTERM). Not an Exception, so that no library swallows it."""

    exit_code = 3


class LeaseLost(Stopped):
    """The supervisor is gone or has started another attempt; nothing of ours will be read any more."""

    exit_code = 4


class PeerLost(Stopped):
    """Another process of this run is gone: this one cannot go on alone, but the run can, from its checkpoint."""

    exit_code = 5


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a failed allocation; torch reports one on the CPU as a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def describe(error: BaseException) -> tuple[str, str]:
    """(sentence for people, kind) of anything that ended a run."""
    if isinstance(error, TrainingError):
        return str(error), error.kind
    if is_out_of_memory(error):
        return (
            "There is not enough memory to train, even with one pair at a time; "
            "lower max_tokens or lora_rank, or use a machine with more memory.",
            "memory",
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "The disk is full; free some space and retry the run.", "disk"
    return f"The trainer failed: {type(error).__name__}: {error}", "internal"
