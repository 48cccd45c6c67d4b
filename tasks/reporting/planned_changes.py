"""The planned changes: what may change without a new approval, by which protocol, and what is told to whom.

Regulators call it a predetermined change control plan (FDA, Health Canada, MHRA: guiding principles, 2023). Its words
are in ``templates/planned_changes.html.j2``; what varies in them comes from the settings alone.
"""

from __future__ import annotations

import re

from infra.settings.settings import Settings
from tasks.reporting.flow import intended_use
from tasks.reporting.format import count
from tasks.reporting.page import page_environment

# The groups of settings whose values are part of the plan, and those in them that change no outcome.
GROUPS = ("data", "gate", "promotion", "training")
_ELSEWHERE = ("training.where", "training.deployment_timeout_seconds", "training.unusable_gpu")


def render_plan(settings: Settings) -> str:
    """Return the page; the same settings give the same bytes."""
    return page_environment().get_template("planned_changes.html.j2").render(
        s=settings,
        plan=settings.fingerprint()[:12],
        intended_use=intended_use(settings.printable()),
        count=count,
        percent=lambda share: f"{100 * share:g}%",
        points=lambda share: f"{100 * share:g} point{'s' * (share != 0.01)}",
        settings=[
            # A description is Markdown: without its links and marks.
            (name, value, re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", meaning).replace("`", ""))
            for name, value, _, _, meaning in settings.described()
            if name.split(".")[0] in GROUPS and name not in _ELSEWHERE
        ],
    ) + "\n"  # fmt: skip
