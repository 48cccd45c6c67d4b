"""Child processes that never outlive their parent, not even one that was killed with SIGKILL.

As a program, ``python -m infra.processes PARENT MODULE ARGUMENT ...`` runs MODULE like ``python -m``, tied to the
process PARENT.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time

EVERY_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """End this process within a second of the end of ``parent``, the process that started it.

    A thread asks who the parent is: an orphan is given another one. Linux would send a signal by itself
    (PR_SET_PDEATHSIG), but also when only the *thread* that started the child has ended, which kills the children of
    a flow that runs in a worker's thread.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
