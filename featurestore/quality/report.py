"""Data Docs of one result as a single page: the sections that Great Expectations renders, in a frame of our own.

Its own frame loads style sheets, scripts and a logo from seven hosts, so it reads badly offline and tells them who
looks; and it puts values into HTML as they are, so they are escaped before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from html import escape

from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaSectionView

#: Where a site of Great Expectations has the suite's page.
_SUITE_PAGE = re.compile(r'href="[^"#]*/expectations/[^"]*"')

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>Made by featurestore with Great Expectations.</p>
<nav>{contents}</nav>
<main>{sections}</main>
</body>
</html>
"""

# What the sections' classes mean in Bootstrap and Font Awesome, as far as they stand here; nothing unfolds, so that
# all is shown.
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h5, h6 { font-size: 1.05rem; margin: 0; }
nav a { display: inline-block; margin: 0 .9rem .3rem 0; overflow-wrap: anywhere; }
.alert { background: #e9ecef; border-radius: .3rem; padding: .6rem .8rem; margin: 1.4rem 0 .5rem; }
table { border-collapse: collapse; margin: .4rem 0; } .table { width: 100%; }
th, td { border: 1px solid #d0d7de; padding: .35rem .6rem; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
thead[hidden], a[data-toggle=collapse] { display: none; }
.badge { background: #e9ecef; border-radius: .25rem; padding: 0 .35rem; font-family: ui-monospace, monospace; }
.text-danger { color: #b42318; } .text-success { color: #18794e; } .text-warning { color: #8a5a00; }
i.fas { font-style: normal; font-weight: 700; }
i.fa-check-circle::before { content: "\\2713 kept"; } i.fa-times::before { content: "\\2717 broken"; }
i.fa-exclamation-triangle::before { content: "! not judged"; }
@media (prefers-color-scheme: dark) {
  body { background: #14171a; color: #e6e8ea; } a { color: #7cb7ff; }
  .alert, .badge { background: #2a2f35; } th, td { border-color: #3d444d; }
  .text-danger { color: #ff8a80; } .text-success { color: #6fd8a4; }
}
"""


def page(result: ExpectationSuiteValidationResult, title: str, suite: str) -> str:
    """The result as one HTML page that asks no server for anything; `suite` is the file that it links to."""
    document = ValidationResultsPageRenderer().render(_escaped(result))
    sections = [section.to_json_dict() for section in document.sections]
    view = DefaultJinjaSectionView()
    rendered = [
        view.render({"section": section, "section_loop": {"index": number}})
        for number, section in enumerate(sections, start=1)
    ]
    names = [section["section_name"] or "Overview" for section in sections]
    contents = [f'<a href="#section-{number}">{escape(name)}</a>' for number, name in enumerate(names, start=1)]
    shown = _SUITE_PAGE.sub(f'href="{suite}"', "".join(rendered))
    return _PAGE.format(title=escape(title), style=_STYLE, contents="".join(contents), sections=shown)


def _escaped(result: ExpectationSuiteValidationResult) -> ExpectationSuiteValidationResult:
    safe = deepcopy(result)
    for one in safe.results:
        one.result["partial_unexpected_list"] = list(_texts(one.result.get("partial_unexpected_list", [])))
        config = one.expectation_config
        if config.description is not None:
            config.description = escape(config.description)
    return safe


def _texts(values: list[object]) -> Iterator[str]:
    yield from (escape(str(value)) for value in values)
