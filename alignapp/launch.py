"""`python launch.py PARENT_PID COMMAND…`: becomes COMMAND, and is killed by the kernel when the parent dies.

Linux only; elsewhere it just becomes COMMAND. A small process of its own, because running Python code between fork and
exec (`preexec_fn`) may deadlock in a parent that has threads. Started with `-I -S`: a few milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process, whatever it becomes by exec, when `parent` ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.platform == "linux":
        die_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  the supervisor's own command line
