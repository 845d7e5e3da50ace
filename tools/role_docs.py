"""Writes each role's table of variables into its README, from meta/argument_specs.yml.

antsibull-docs makes whole pages of reStructuredText from the same specs, but no table for a README; its parser of
Ansible's markup (O(), V(), C(), ...) serves here.

    python -m tools.role_docs           writes the tables
    python -m tools.role_docs --check   writes nothing; exits with 1 and the names of the stale READMEs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from antsibull_docs_parser import dom
from antsibull_docs_parser.format import Formatter, format_paragraphs
from antsibull_docs_parser.parser import Context, parse

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- variables:begin -->", "<!-- variables:end -->"


class RoleDocsError(Exception):
    """A README or a spec that no table can be made for; the message says which file and what to do."""


class _Markdown(Formatter):
    """Markdown that people can also read as it is; antsibull's own escapes every hyphen and dot."""

    def format_error(self, part: dom.ErrorPart) -> str:
        raise RoleDocsError(part.message)

    def format_bold(self, part: dom.BoldPart) -> str:
        return f"**{part.text}**"

    def format_code(self, part: dom.CodePart) -> str:
        return _code(part.text)

    def format_horizontal_line(self, part: dom.HorizontalLinePart) -> str:
        return "<hr>"

    def format_italic(self, part: dom.ItalicPart) -> str:
        return f"*{part.text}*"

    def format_link(self, part: dom.LinkPart) -> str:
        return f"[{part.text}]({part.url})"

    def format_module(self, part: dom.ModulePart, url: str | None) -> str:
        return _code(part.fqcn)

    def format_rst_ref(self, part: dom.RSTRefPart) -> str:
        return part.text

    def format_url(self, part: dom.URLPart) -> str:
        return f"<{part.url}>"

    def format_text(self, part: dom.TextPart) -> str:
        return _text(part.text)

    def format_env_variable(self, part: dom.EnvVariablePart) -> str:
        return _code(part.name)

    def format_option_name(self, part: dom.OptionNamePart, url: str | None) -> str:
        return _code(part.name if part.value is None else f"{part.name}={part.value}")

    def format_option_value(self, part: dom.OptionValuePart) -> str:
        return _code(part.value)

    def format_plugin(self, part: dom.PluginPart, url: str | None) -> str:
        return _code(part.plugin.fqcn)

    def format_return_value(self, part: dom.ReturnValuePart, url: str | None) -> str:
        return _code(part.name if part.value is None else f"{part.name}={part.value}")


def _text(text: str) -> str:
    """@text inside a cell: what Markdown would take for a column, an HTML tag or emphasis is escaped."""
    for character in "\\|<*`":
        text = text.replace(character, f"\\{character}")
    return text


def _code(text: str) -> str:
    """@text as code inside a cell; a bar ends a cell even there, and backticks need a longer fence."""
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|") if text else ""


def markdown(description: str | list[str]) -> str:
    """Ansible's markup as Markdown for one cell; several paragraphs follow one another."""
    paragraphs = [description] if isinstance(description, str) else description
    parsed = [paragraph for text in paragraphs for paragraph in parse(" ".join(str(text).split()), Context())]
    return format_paragraphs(parsed, formatter=_Markdown(), par_start="", par_end="", par_sep=" ", par_empty="")


def _default(option: Mapping[str, Any]) -> str:
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return "derived"
    value = option["default"]
    return _code(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))


def _type(option: Mapping[str, Any]) -> str:
    return f"list of {option['elements']}" if option.get("elements") else str(option.get("type", "str"))


def _rows(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, option in options.items():
        description = markdown(option.get("description", ""))
        if option.get("choices"):
            description += f" One of {', '.join(_code(str(choice)) for choice in option['choices'])}."
        cells = (_code(f"{prefix}{name}"), _type(option), _default(option), description)
        yield f"| {' | '.join(cells)} |"
        if option.get("options"):
            yield from _rows(option["options"], f"{prefix}{name}[]." if option.get("elements") else f"{prefix}{name}.")


def table(spec: Mapping[str, Any]) -> str:
    """The Markdown for all entry points of @spec; a heading stands over each when there are several."""
    blocks = []
    for entry_point, content in spec.items():
        rows = list(_rows(content.get("options") or {}))
        lines = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else ["None."]
        heading = [f"### `tasks_from: {entry_point}`", ""] if len(spec) > 1 else []
        blocks.append("\n".join([*heading, *lines]))
    return "\n\n".join(blocks)


def filled(role: Path) -> str:
    """The README of @role with its table up to date."""
    readme, spec = role / "README.md", role / "meta" / "argument_specs.yml"
    for path in (readme, spec):
        if not path.is_file():
            raise RoleDocsError(f"{path} is missing. Every role has one.")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RoleDocsError(f"{readme} needs the lines {BEGIN} and {END}, once each; the table goes between them.")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    try:
        content = table(yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"])
    except RoleDocsError as error:
        raise RoleDocsError(f"{spec} has markup that cannot be read: {error}") from error
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: list[str] | None = None, roles: Path = ROOT / "roles") -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.role_docs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a table is stale")
    check = parser.parse_args(arguments).check
    failures = 0
    for role in sorted(path for path in roles.iterdir() if path.is_dir()):
        readme = role / "README.md"
        try:
            text = filled(role)
        except RoleDocsError as error:
            failures += 1
            print(error, file=sys.stderr)
            continue
        if text == readme.read_text(encoding="utf-8"):
            continue
        if check:
            failures += 1
            print(f"{readme}: the table of variables is stale. Run python -m tools.role_docs.", file=sys.stderr)
        else:
            readme.write_text(text, encoding="utf-8")
            print(f"{readme}: written")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
