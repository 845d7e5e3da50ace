"""The tables of variables in the roles' READMEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import role_docs

OPTIONS: dict[str, Any] = {
    "thing_state": {
        "type": "str",
        "choices": ["present", "absent"],
        "default": "present",
        "description": "Is it there.",
    },
    "thing_name": {"type": "str", "description": "Derived from C(mlflow_stack) | and O(thing_size=1)."},
    "thing_size": {"type": "int", "default": 1, "description": ["First.", "See U(https://example.com) and V(<x>)."]},
    "thing_hosts": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "description": "<Which> *ones*.",
        "options": {"name": {"type": "str", "required": True, "description": "B(Its) name."}},
    },
    "thing_note": {"type": "str", "default": "", "description": "A `tick`."},
}
TABLE = r"""| variable | type | default | meaning |
| --- | --- | --- | --- |
| `thing_state` | str | `present` | Is it there. One of `present`, `absent`. |
| `thing_name` | str | derived | Derived from `mlflow_stack` \| and `thing_size=1`. |
| `thing_size` | int | `1` | First. See <https://example.com> and `<x>`. |
| `thing_hosts` | list of dict | **required** | \<Which> \*ones\*. |
| `thing_hosts[].name` | str | **required** | **Its** name. |
| `thing_note` | str | `""` | A \`tick\`. |"""


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    role = tmp_path / "roles" / "thing"
    (role / "meta").mkdir(parents=True)
    (role / "meta/argument_specs.yml").write_text(
        yaml.safe_dump({"argument_specs": {"main": {"options": OPTIONS}}}, sort_keys=False)
    )
    (role / "README.md").write_text(f"# thing\n\n{role_docs.BEGIN}\n{role_docs.END}\n\nMore.\n")
    return tmp_path / "roles"


def test_the_table(roles: Path) -> None:
    assert role_docs.main([], roles) == 0
    assert (
        roles / "thing/README.md"
    ).read_text() == f"# thing\n\n{role_docs.BEGIN}\n{TABLE}\n{role_docs.END}\n\nMore.\n"


def test_writing_twice_changes_nothing(roles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    role_docs.main([], roles)
    first, _ = (roles / "thing/README.md").read_text(), capsys.readouterr()
    assert role_docs.main([], roles) == 0
    assert ((roles / "thing/README.md").read_text(), capsys.readouterr().out) == (first, "")


def test_check_fails_when_stale_and_writes_nothing(roles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (roles / "thing/README.md").read_text()
    assert role_docs.main(["--check"], roles) == 1
    assert "stale" in capsys.readouterr().err
    assert (roles / "thing/README.md").read_text() == before
    role_docs.main([], roles)
    assert role_docs.main(["--check"], roles) == 0


def test_several_entry_points_have_headings() -> None:
    text = role_docs.table({"main": {"options": {}}, "ca": {"options": {"x": {"description": "X."}}}})
    assert text.startswith("### `tasks_from: main`\n\nNone.\n\n### `tasks_from: ca`\n\n| variable |")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("README.md", None, "README.md is missing"),
        ("meta/argument_specs.yml", None, "argument_specs.yml is missing"),
        ("README.md", "no markers", "needs the lines"),
        ("README.md", f"{role_docs.END}\n{role_docs.BEGIN}", "needs the lines"),
        (
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {x: {description: 'O(x'}}}}",
            "markup that cannot",
        ),
    ],
)
def test_what_cannot_be_filled_is_an_error(
    roles: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    path = roles / "thing" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert role_docs.main([], roles) == 1
    assert message in capsys.readouterr().err
