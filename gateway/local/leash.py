"""A leash: a command in a process group of its own that does not outlive the process that asked for it.

    python leash.py COMMAND [ARGUMENT ...]      (run by `engine`; standard library only)

The owner keeps the other end of this process's standard input. However the owner ends, kill -9 included, that end
closes, and the whole group is killed. PR_SET_PDEATHSIG would not do: it follows the *thread* that forked, and vLLM's
own children do not have it. The leash is not a member of the group, so that a group stopped by SIGSTOP dies as well.

The first line of standard output is the command's process id, which is also its group's id. The command's own output
goes to standard error. When the command ends by itself, what is left of its group is killed too, and its exit status is
passed on.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # orphaned descendants become our children, so that nobody leaves zombies, nor escapes
BURIAL_S_MAX = 10


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr, start_new_session=True
    )
    print(child.pid, flush=True)
    ended = os.pidfd_open(child.pid)
    select.select([sys.stdin.fileno(), ended], [], [])  # nothing is ever written to us: readable means closed
    # The child is not reaped yet, so its id cannot have been given to somebody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    bury()
    return status


def bury() -> None:
    """Kill and reap what is left below us, also what had left the group."""
    signal.alarm(BURIAL_S_MAX)
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.wait()


if __name__ == "__main__":
    for deaf_to in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # only the owner's end of the pipe counts
        signal.signal(deaf_to, lambda *_: None)  # unlike SIG_IGN, not inherited by the command
    sys.exit(main() & 0xFF)
