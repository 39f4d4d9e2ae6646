"""OpenAPI as a page that needs nothing from elsewhere, and no script."""

import json
from html import escape
from typing import Any

from mien.faces.look import REPORT

_STYLE = f"""{REPORT}
code, pre {{ font: 14px/1.4 ui-monospace, monospace; background: var(--track); border-radius: 4px;
    padding: .1em .3em; }}
pre {{ padding: .8rem; overflow-x: auto; }} h2 {{ margin-top: 2.5rem; }} b {{ font-family: ui-monospace, monospace; }}
td, td:first-child {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }}
"""


def page(document: dict[str, Any]) -> str:
    """An HTML page of an OpenAPI document (FastAPI's own loads Swagger UI from somebody else's server)."""
    title = f"{escape(document['info']['title'])} {escape(document['info']['version'])}"
    routes = [
        _route(path, method, operation, document)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
<p>{escape(document["info"].get("description", ""))}</p>
<p>For programs: <a href="openapi.json">openapi.json</a></p>
<form action="v1/read" method="post" enctype="multipart/form-data">
<label>Try it, where no key is needed: <input type="file" name="pictures" multiple required></label>
<button>Read</button></form>
{"".join(routes)}
</body></html>
"""


def _route(path: str, method: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    parts = [f"<h2><b>{method.upper()} {escape(path)}</b></h2><p>{escape(operation.get('description', ''))}</p>"]
    if operation.get("security"):
        parts.append("<p>Needs a key: <code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>.</p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Send <code>{kind}</code>:</p>{_pre(_shape(content.get('schema', {}), document))}")
    rows = "".join(
        f"<tr><td><code>{status}</code></td><td>{escape(response.get('description', ''))}</td></tr>"
        for status, response in sorted(operation["responses"].items())
    )
    parts.append(f"<table>{rows}</table>")
    for kind, content in operation["responses"].get("200", {}).get("content", {}).items():
        parts.append(f"<p>Answers <code>{kind}</code>:</p>{_pre(_shape(content['schema'], document))}")
        if "example" in content:
            parts.append(f"<p>For example:</p>{_pre(content['example'])}")
    return "".join(parts)


def _pre(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _shape(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A schema as a value whose leaves say what belongs there."""
    if "$ref" in schema:
        return _shape(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        return _shape({**schema["anyOf"][0], "description": schema.get("description", "")}, document)
    if "properties" in schema:
        return {name: _shape(part, document) for name, part in schema["properties"].items()}
    if "items" in schema and not schema.get("description"):
        return [_shape(schema["items"], document)]
    kind = schema.get("format") or schema.get("type", "")
    return ": ".join(filter(None, (kind, schema.get("description"))))
