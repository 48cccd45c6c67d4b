"""Where a change comes from: the person at this machine, and the revision of the code that runs."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"


def person() -> str:
    """Return who runs this process, as user@host. The environment is not asked: anybody can set it."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user often has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True)
class Revision:
    """The Git commit of the code, and whether it was changed since; ``unknown`` where there is no checkout."""

    commit: str
    dirty: str


def code_revision(root: Path = ROOT) -> Revision:
    """Return the revision of the checkout that this code lies in."""
    top = _git(root, "rev-parse", "--show-toplevel")
    # Installed into an environment that lies inside somebody else's checkout, that one's revision says nothing.
    if top is None or Path(top).resolve() != root.resolve():
        return Revision(UNKNOWN, UNKNOWN)
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    dirty = UNKNOWN if changes is None else str(bool(changes)).lower()
    return Revision(commit or UNKNOWN, dirty)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        # No optional locks: looking must not get into the way of somebody who is committing.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
