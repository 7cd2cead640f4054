"""A process that does not outlive the one that started it. Imports nothing heavy: it is called before all else."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ADOPTED = 1  # the parent's process id once the real one is gone, as a rule


def end_with_parent() -> None:
    """From now on the kernel kills this process when its parent ends, however that does; on Linux only.

    torchrun puts its workers into sessions of their own, where no signal to its group reaches them.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == ADOPTED:  # it was gone before
        os._exit(1)
