"""Great Expectations' Data Docs as one self-contained page.

Its own site loads style sheets and scripts from a dozen hosts. This page keeps its renderer's text on each expectation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

TITLES = {"images": "Every accepted image", "batch": "The batch as a whole"}

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ok: #1a7f4b; --bad: #b42318; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ok: #56d08c; --bad: #ff8f85; --warn: #e6b450; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; border-bottom: 1px solid var(--line); margin-top: 2.5rem }
h5 { font-size: 1rem; margin: 1.5rem 0 .25rem } h6 { font-size: .9rem; margin: .75rem 0 .25rem }
table { border-collapse: collapse; width: 100%; overflow-wrap: anywhere }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line) }
.fa-check-circle::before { content: "\\2713 met"; color: var(--ok) }
.fa-times::before { content: "\\2717 not met"; color: var(--bad) }
.fa-exclamation-triangle::before { content: "! error"; color: var(--bad) }
i { font-style: normal; white-space: nowrap }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def data_docs_page(results: Mapping[str, Any], *, title: str) -> bytes:
    """Return one HTML page on Great Expectations' results by table (BatchChecks.results)."""
    sections = "".join(
        f'<section id="{escape(name)}"><h2>{escape(TITLES[name])}</h2>{_rendered(name, result)}</section>'
        for name, result in results.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1><p>Great Expectations' Data Docs: what was expected of tonight's "
        f"batch, and what was found.</p>{sections}</main></body></html>"
    ).encode()


def _rendered(name: str, result: Any) -> str:
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta.setdefault("run_id", {"run_name": name, "run_time": result.meta.get("validation_time", "")})
    page: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    start = page.index('<div id="section-1"')
    body = re.sub(r"<script.*?</script>", "", page[start : page.index("<footer", start)], flags=re.DOTALL)
    body = re.sub(r"<a [^>]*>\s*Show more info\.\.\.\s*</a>", "", body)
    # Its links lead to a site that does not exist here; ids must differ from those of the other table.
    body = re.sub(r"<a [^>]*>(.*?)</a>", r"\1", body, flags=re.DOTALL)
    body = re.sub(r'\s(?:on\w+|style|class="(?!fa)[^"]*"|data-[\w-]+)(?:="[^"]*")?', " ", body)
    return re.sub(r'id="section', f'id="{name}-section', body)
