"""MkDocs hook: generate the reference from the code, and show pages of the repository that lie outside `docs/`.

A page of `docs/reference/` holds a line `<!-- generated: NAME -->`, which the build replaces by the text
that the function of that name in `GENERATED` returns.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent.parent

REPOSITORY = {
    "CONTRIBUTING.md": "repository/contributing.md",
    "CHANGELOG.md": "repository/changelog.md",
    "benchmarks/README.md": "repository/benchmarks.md",
    "pipelines/models/pocket/README.md": "repository/pocket.md",
}
"""Pages outside `docs/` -> where they stand in the site."""

LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository to the site."""
    from mkdocs.structure.files import File  # the extra `docs` alone has it

    for source, place in REPOSITORY.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put generated text in its place and turn links to files of the repository into links within the site."""
    place = page.file.src_uri
    sources = {inside: outside for outside, inside in REPOSITORY.items()}
    origin = sources.get(place, posixpath.join("docs", place))

    def within(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if re.match(r"\w+:", target):
            return match[0]
        return f"]({linked(origin, place, target)}{anchor})"

    markdown = LINK.sub(within, markdown)
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)


def linked(origin: str, place: str, target: str) -> str:
    """Return a relative link of the page at `place` in the site to a file that its source at `origin` links to."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if path == "README.md":
        path = "docs/index.md"
    inside = REPOSITORY.get(path) or path.removeprefix("docs/")
    return posixpath.relpath(inside, posixpath.dirname(place) or ".")


def cli() -> str:
    """Return every command with its flags, as its `--help` tells them."""
    from studio.cli import app

    text = app.generate_docs(output_format="markdown", recursive=True, include_hidden=False)
    return re.sub(r"\A# studio\n", "", text).replace("<", "&lt;")


def settings() -> str:
    """Return a table for each class of settings: what is asked of a picture, and how each method learns."""
    from pipelines.request.request import Box, ConceptUse, ExamplePair, Grounding, Guidance, InContext, Inpaint, Request
    from trainers.methods import configs
    from trainers.settings import DataConfig, Destination, TrainConfig

    asked = (Request, ConceptUse, Guidance, Box, Grounding, Inpaint, InContext, ExamplePair)
    shared = (DataConfig, TrainConfig, Destination)
    chapters = [
        ("What is asked of a picture", asked),
        ("What every training takes", shared),
        ("Each method", tuple(configs().values())),
    ]
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(map(table, kinds)) for title, kinds in chapters)


def table(kind: type[BaseModel]) -> str:
    """Return the fields of a class of settings as a Markdown table under its name."""
    schema = kind.model_json_schema()["properties"]
    rows = [
        f"| `{name}` | {cell(shape(schema.get(name, {})))} | {cell(default(field))} | {cell(field.description or '')} |"
        for name, field in kind.model_fields.items()
    ]
    head = ["| setting | values | default | what it does |", "|---|---|---|---|"]
    return "\n".join([f"### {kind.__name__}", "", (kind.__doc__ or "").split("\n\n")[0], "", *head, *rows])


def cell(text: str) -> str:
    """Return a text on one line that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def default(field: FieldInfo) -> str:
    """Return the default of a field, or that it has to be given."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "" if value is None else "its own defaults" if isinstance(value, BaseModel) else f"`{value}`"


def shape(schema: dict[str, Any]) -> str:
    """Return kind and range of a value that a JSON schema describes."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(shape(one) for one in choices if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    kind = str(schema.get("type", schema.get("const", "")))
    if kind == "array" and "items" in schema:
        kind = f"list of {shape(schema['items'])}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return " ".join([kind, *(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)])


def rest() -> str:
    """Return every route and the fields of every body, as the server describes them at `/api/v1/openapi.json`."""
    from tempfile import TemporaryDirectory

    from studio.api.app import rest as application
    from studio.jobs.jobs import Jobs

    with TemporaryDirectory() as folder:
        described = application(Jobs(Path(folder))).openapi()
    lines = ["## Routes", "", "| route | takes | what it does |", "|---|---|---|"]
    asked: set[str] = set()
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            text = route.get("description") or route.get("summary") or ""
            asked.update(re.findall(r"\w+", taken(route)))
            lines.append(f"| `{method.upper()} {path}` | {cell(taken(route))} | {cell(text)} |")
    schemas = described["components"]["schemas"]
    bodies = [fields(name, schemas[name]) for name in sorted(asked & set(schemas))]
    return "\n\n".join(["\n".join(lines), "## Bodies", *bodies])


def fields(name: str, schema: dict[str, Any]) -> str:
    """Return the fields of a body as a table under its name; settings of methods stand on the page of settings."""
    rows = [
        f"| `{key}` | {cell(shape(one))} | {cell(one.get('description', ''))} |"
        for key, one in schema.get("properties", {}).items()
    ]
    return "\n".join([f"### {name}", "", "| field | values | what it does |", "|---|---|---|", *rows])


def taken(route: dict[str, Any]) -> str:
    """Return what a route takes beside its path: names of the query and the kind of its body."""
    asked = [f"`?{one['name']}`" for one in route.get("parameters", []) if one["in"] == "query"]
    for kind, body in route.get("requestBody", {}).get("content", {}).items():
        asked.append(shape(body["schema"]) if kind == "application/json" else f"`{kind}`")
    return ", ".join(asked)


GENERATED = {"cli": cli, "settings": settings, "rest": rest}
