import errno

import pytest
import torch

from training.ml.errors import TrainingError, describe


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (TrainingError("Do this.", "data"), "data", "Do this."),
        (MemoryError(), "memory", "There is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory", "There is not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory",
            "There is not",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", "The disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk", "The disk is full"),
        (ZeroDivisionError("division by zero"), "internal", "The trainer failed: ZeroDivisionError"),
    ],
)
def test_it_says_what_happened_in_one_sentence(error: BaseException, kind: str, sentence: str) -> None:
    message, found = describe(error)
    assert found == kind
    assert message.startswith(sentence)
    assert "\n" not in message


def test_it_recognises_a_failed_allocation_as_torch_reports_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert describe(caught.value)[1] == "memory"
