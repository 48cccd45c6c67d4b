"""Great Expectations' Data Docs as one self-contained page.

Its own site loads style sheets and scripts from a dozen hosts. This page has its sentences on each expectation and on
what was found, as its renderer gives them: a template and values, not HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from string import Template
from typing import Any

TITLES = {"images": "Every accepted image", "batch": "The batch as a whole"}
# Of the values that did not fit, in the order in which they came.
EXAMPLES = 10

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ok: #1a7f4b; --bad: #b42318 }
@media (prefers-color-scheme: dark) { :root { --ok: #56d08c; --bad: #ff8f85 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem }
table { border-collapse: collapse; width: 100%; overflow-wrap: anywhere }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line) }
.met { color: var(--ok); white-space: nowrap } .not-met { color: var(--bad); white-space: nowrap }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STATUS = {True: '<td class="met">\u2713 met</td>', False: '<td class="not-met">\u2717 not met</td>'}


def data_docs_page(results: Mapping[str, Any], *, title: str) -> bytes:
    """Return one HTML page on Great Expectations' results by table (BatchChecks.results)."""
    sections = "".join(
        f'<section id="{escape(name)}"><h2>{escape(TITLES[name])}</h2>{_table(result)}</section>'
        for name, result in results.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head>'
        f'<body><main><p><a href="../reports/index.html">All decisions</a></p>'
        f"<h1>{escape(title)}</h1><p>Great Expectations' Data Docs: what was expected of tonight's "
        f"batch, and what was found.</p>{sections}</main></body></html>"
    ).encode()


def _table(result: Any) -> str:
    rows = "".join(_row(one) for one in result.results)
    met = sum(bool(one.success) for one in result.results)
    return (
        f"<p>{met} of {len(result.results)} expectations are met.</p><table><thead><tr><th>Status</th>"
        f"<th>Expectation</th><th>Observed</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(one: Any) -> str:
    one.render()
    expected = " ".join(_sentences(one.expectation_config.rendered_content))
    observed = " ".join([*_sentences(one.rendered_content), *_examples(one.result)])
    return f"<tr>{_STATUS[bool(one.success)]}<td>{escape(expected)}</td><td>{escape(observed)}</td></tr>"


def _sentences(rendered: Any) -> Iterator[str]:
    """Yield the renderer's sentences as plain text."""
    for content in rendered or ():
        values = {name: param["value"] for name, param in (content.value.params or {}).items()}
        yield Template(content.value.template or "").safe_substitute(values)


def _examples(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many values did not fit, and the first of them."""
    if count := found.get("unexpected_count"):
        some = ", ".join(dict.fromkeys(str(value) for value in found.get("partial_unexpected_list", ())[:EXAMPLES]))
        yield f"({count:,} of {found['element_count']:,}: {some}{', ...' if count > EXAMPLES else ''})"
