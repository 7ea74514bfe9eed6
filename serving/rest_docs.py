"""The page at /docs: the OpenAPI document as HTML that asks no server for anything, neither scripts nor styles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Document = Mapping[str, Any]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1f24; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem; }} h2 code {{ background: #e9ecef; padding: .15rem .4rem; }}
h3 {{ font-size: .95rem; margin: 1rem 0 .2rem; }} table {{ border-collapse: collapse; margin: .3rem 0; }}
th, td {{ border: 1px solid #d0d7de; padding: .25rem .6rem; text-align: left; vertical-align: top; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{description} <a href="{openapi}">The same as an OpenAPI document.</a></p>
{operations}
<h1>Messages</h1>
{messages}
</body>
</html>
"""


def page(document: Document, openapi: str) -> str:
    """The operations and messages of an OpenAPI document, which is found at `openapi`."""
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    return _PAGE.format(
        title=escape(f"{document['info']['title']} {document['info']['version']}"),
        description=escape(document["info"].get("description", "")),
        openapi=escape(openapi),
        operations="\n".join(operations),
        messages="\n".join(_message(name, schemas[name]) for name in sorted(_reached(document["paths"], schemas))),
    )


def _operation(method: str, path: str, operation: Document) -> str:
    asked = operation.get("requestBody")
    body = f"<p>Takes {_content(asked)}.</p>" if asked else ""
    answers = [
        f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td><td>{_content(answer)}</td></tr>"
        for status, answer in operation["responses"].items()
    ]
    head = f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    return (
        f"{head}<p>{escape(operation.get('description', ''))}</p>{body}<table>"
        f"<tr><th>status</th><th>when</th><th>body</th></tr>{''.join(answers)}</table>"
    )


def _content(message: Document) -> str:
    return ", ".join(
        f"{_type(content.get('schema', {}))} as {escape(kind)}" for kind, content in message.get("content", {}).items()
    )


def _message(name: str, schema: Document) -> str:
    required = schema.get("required", ())
    members = [
        f"<tr><td><code>{escape(member)}</code></td><td>{_type(about)}</td>"
        f"<td>{'required' if member in required else _default(about)}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for member, about in schema.get("properties", {}).items()
    ]
    return (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        f"<table><tr><th>member</th><th>type</th><th></th><th></th></tr>{''.join(members)}</table>"
    )


def _default(about: Document) -> str:
    return escape(f"default {json.dumps(about['default'])}") if "default" in about else ""


def _type(schema: Document) -> str:
    """A type in words, messages as links."""
    if "$ref" in schema:
        name = escape(_name(schema["$ref"]))
        return f'<a href="#{name}">{name}</a>'
    if choices := schema.get("anyOf"):
        return " or ".join(map(_type, choices))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(escape(json.dumps(value)) for value in values)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return escape(kind)


def _reached(document: object, schemas: Document) -> set[str]:
    """The messages that operations name, and those that these name."""
    reached: set[str] = set()
    ahead = list(_references(document))
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += _references(schemas[name])
    return reached


def _references(document: object) -> Iterator[str]:
    if isinstance(document, dict):
        if isinstance(found := document.get("$ref"), str):
            yield _name(found)
        for value in document.values():
            yield from _references(value)
    elif isinstance(document, list):
        for value in document:
            yield from _references(value)


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]
