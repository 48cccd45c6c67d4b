"""Asks a public database whether a locked package has a known weakness (`make audit`).

pip-audit does the asking, pinned, in a folder of its own that is gone afterwards: it is no part of what is run.
Exit codes: 0 none known; 1 some are, each named; 4 the database, or pip-audit itself, cannot be reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from infra.environment import CODE_ROOT
from validation.errors import RetrainError, Unreachable

PIP_AUDIT = "pip-audit==2.10.1"
# Each package is asked for by itself.
SECONDS = 900.0


def audit(lock: Path) -> list[str]:
    """Return the known weaknesses of a lock, a line each.

    Raises:
        Unreachable: when nothing could be asked; that is no good news.
    """
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        environment = Path(folder) / "environment"
        _run([sys.executable, "-m", "venv", str(environment)], "an environment for pip-audit cannot be made")
        python = str(environment / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP_AUDIT]
        _run(install, f"{PIP_AUDIT} cannot be installed")
        answer = Path(folder) / "answer.json"
        ask = [python, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--no-deps", "--disable-pip"]
        options = ["--progress-spinner=off", "--format=json", f"--output={answer}"]
        done = _run([*ask, *options], "the database cannot be reached", may_find=True)
        if not answer.exists():
            raise Unreachable(
                f"nothing was audited: {_last_line(done)}", "run it where the database (pypi.org) can be reached"
            )
        return findings(json.loads(answer.read_text()))


def findings(answer: Any) -> list[str]:
    """Return what pip-audit's answer names, a line each: also what it could not ask about.

    Raises:
        Unreachable: when it could not ask about anything: a mirror of packages answers, but has no weaknesses to tell.
    """
    packages = answer["dependencies"]
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        first = skipped[0] if skipped else "the lock names no package"
        raise Unreachable(
            f"nothing was audited: the database knows none of {len(packages)} packages: {first}",
            "run it where the database (pypi.org) can be reached",
        )
    lines = []
    for package in answer["dependencies"]:
        if "skip_reason" in package:
            lines.append(f"{package['name']}: not audited: {package['skip_reason']}")
        for weakness in package.get("vulns", []):
            names = ", ".join([weakness["id"], *weakness["aliases"]])
            mended = ", ".join(weakness["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {names}; mended in {mended}")
    return lines


def _run(command: list[str], problem: str, *, may_find: bool = False) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, cwd=CODE_ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"nothing was audited: {problem} within {SECONDS:g} s", "is there a network?") from None
    if done.returncode and not may_find:
        raise Unreachable(f"nothing was audited: {problem}: {_last_line(done)}", "is there a package index?")
    return done


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def main() -> None:
    """Audit this checkout's lock."""
    try:
        found = audit(CODE_ROOT / "requirements.txt")
    except RetrainError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write("".join(f"{line}\n" for line in found) or "no known weakness in any locked package\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
