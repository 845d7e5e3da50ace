"""The contracts of docs/architecture.md that a machine can check on a role: each rule returns what breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleUndefinedVariable
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from tools import role_docs

SECRET = re.compile(r"(^|_)(password|passphrase|secret|token|(?<!public_)key)$")
DERIVED = re.compile(r"\bderived from\b", re.IGNORECASE)
ACTION = re.compile(r"\b[a-z0-9-]+:[A-Z][A-Za-z]+\b")
FORBIDDEN = re.compile(r"local[_-]?aws|\bmoto(_server)?\b|ministack|localstack|ignore_errors", re.IGNORECASE)
NO_DEFAULT = object()


def _load(path: Path) -> Any:
    return DataLoader().load_from_file(str(path), cache="none", trusted_as_template=True) if path.is_file() else None


def _defaults(role: Path) -> dict[str, Any]:
    return _load(role / "defaults/main.yml") or {}


def _options(role: Path) -> dict[str, dict[str, Any]]:
    """The inputs of all entry points; @role has one set of defaults for all of them."""
    spec = _load(role / "meta/argument_specs.yml") or {"argument_specs": {}}
    return {
        name: option
        for entry_point in spec["argument_specs"].values()
        for name, option in (entry_point.get("options") or {}).items()
    }


def _described(option: Mapping[str, Any]) -> str:
    description = option.get("description") or ""
    return description if isinstance(description, str) else " ".join(description)


def _same(left: Any, right: Any) -> bool:
    # Through JSON, where 1, true and "1" differ as they do in a template, and Ansible's tagged strings do not.
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def the_spec_exists(role: Path) -> Iterator[str]:
    if not (role / "meta/argument_specs.yml").is_file():
        yield "meta/argument_specs.yml is missing"
    elif "main" not in _load(role / "meta/argument_specs.yml")["argument_specs"]:
        yield "meta/argument_specs.yml has no entry point main"


def keys_agree(role: Path) -> Iterator[str]:
    """What defaults/main.yml sets and what the spec says is optional are the same."""
    defaults, options = _defaults(role), _options(role)
    for name in sorted(set(defaults) - set(options)):
        yield f"{name} has a default, and no entry in the spec"
    for name, option in sorted(options.items()):
        if option.get("required") and name in defaults:
            yield f"{name} is required, and has a default"
        if not option.get("required") and name not in defaults:
            yield f"{name} is optional in the spec, and has no default"


def default_values_agree(role: Path) -> Iterator[str]:
    """The default in the spec is what Ansible makes of the default when the user has set nothing.

    Where that depends on something without a default, as every name depends on the stack's, the spec states none and
    its description says from what it is derived.
    """
    defaults, options = _defaults(role), _options(role)
    templar = Templar(loader=DataLoader(), variables=dict(defaults))
    for name in sorted(set(defaults) & set(options)):
        stated = options[name].get("default", NO_DEFAULT)
        templated = isinstance(defaults[name], str) and templar.is_template(defaults[name])
        try:
            value = templar.template(defaults[name])
        except AnsibleUndefinedVariable:
            value = NO_DEFAULT
        if stated is NO_DEFAULT:
            if not templated:
                yield f"{name} is {json.dumps(defaults[name])} in the defaults, and the spec states no default"
            elif not DERIVED.search(_described(options[name])):
                yield f'{name} has no default in the spec, and its description does not say "derived from"'
        elif value is NO_DEFAULT:
            yield f"{name} depends on what has no default, and the spec states {json.dumps(stated)}"
        elif not _same(value, stated):
            yield f"{name} is {json.dumps(value)} in the defaults and {json.dumps(stated)} in the spec"


def inputs_are_described(role: Path) -> Iterator[str]:
    for name, option in sorted(_options(role).items()):
        for key in ("type", "description"):
            if not option.get(key):
                yield f"{name} has no {key} in the spec"
        if option.get("type") == "list" and not option.get("elements"):
            yield f"{name} is a list of what?"


def secrets_stay_secret(role: Path) -> Iterator[str]:
    defaults = _defaults(role)
    for name, option in sorted(_options(role).items()):
        if SECRET.search(name):
            if option.get("no_log") is not True:
                yield f"{name} is a secret, and the spec does not say no_log: true"
            if option.get("default") or (defaults.get(name) and "{{" not in str(defaults[name])):
                yield f"{name} is a secret with a default value"


def inputs_have_the_roles_prefix(role: Path) -> Iterator[str]:
    for name in sorted(set(_defaults(role)) | set(_options(role))):
        if not name.startswith(f"{role.name}_"):
            yield f"{name} is an input, and does not start with {role.name}_"


def _tasks(items: Any) -> Iterator[dict[str, Any]]:
    for item in items or []:
        yield item
        for key in ("block", "rescue", "always"):
            yield from _tasks(item.get(key))


def _internal_names(task: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What @task names: pairs of the keyword and the name."""
    if task.get("register"):
        yield "register", task["register"]
    for key in ("loop_var", "index_var"):
        if (task.get("loop_control") or {}).get(key):
            yield key, task["loop_control"][key]
    for module in ("ansible.builtin.set_fact", "set_fact"):
        for name in set(task.get(module) or {}) - {"cacheable"}:
            yield "set_fact", name
    # What another role is given are that role's inputs.
    if not any(key.split(".")[-1] in ("include_role", "import_role") for key in task):
        for name in task.get("vars") or {}:
            yield "vars", name


def internal_names_are_hidden(role: Path) -> Iterator[str]:
    for folder in ("tasks", "handlers"):
        for path in sorted((role / folder).rglob("*.yml")):
            for task in _tasks(_load(path)):
                for keyword, name in _internal_names(task):
                    published = keyword == "set_fact" and name == f"{role.name}_outputs"
                    if not published and not name.startswith((f"__{role.name}_", "ansible_")):
                        yield f"{path.relative_to(role)}: {keyword} {name} does not start with __{role.name}_"
    for path in sorted((role / "vars").rglob("*.yml")):
        for name in _load(path) or {}:
            if not name.startswith(f"__{role.name}_"):
                yield f"{path.relative_to(role)}: {name} does not start with __{role.name}_"


def layers_come_and_go(role: Path) -> Iterator[str]:
    """A layer has present and absent side by side, and its main.yml chooses by the state."""
    if not role.name.startswith("aws_"):
        return
    state = f"{role.name}_state"
    for name in ("present", "absent"):
        if not (role / f"tasks/{name}.yml").is_file():
            yield f"tasks/{name}.yml is missing"
    if _options(role).get(state, {}).get("choices") != ["present", "absent"]:
        yield f"{state} is not one of present, absent"
    includes = [str(task.get("ansible.builtin.include_tasks")) for task in _tasks(_load(role / "tasks/main.yml"))]
    if not any(re.search(r"\{\{ *" + state + r" *\}\}\.yml", include) for include in includes):
        yield f"tasks/main.yml does not include the tasks file that {state} names"


def the_readme_is_complete(role: Path) -> Iterator[str]:
    readme = role / "README.md"
    if not readme.is_file():
        yield "README.md is missing"
        return
    text = readme.read_text(encoding="utf-8")
    try:
        if role_docs.filled(role) != text:
            yield "README.md: the table of variables is stale; run python -m tools.role_docs"
    except role_docs.RoleDocsError as error:
        yield str(error)
    for name in sorted(_options(role)):
        if name not in text:
            yield f"README.md does not mention {name}"
    if role.name.startswith("aws_"):
        section = re.search(r"^## IAM permissions$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if not section:
            yield 'README.md has no section "IAM permissions"'
        elif not ACTION.search(section[1]):
            yield "README.md names no action under IAM permissions"


def the_role_depends_on_no_other(role: Path) -> Iterator[str]:
    """Order is the playbook's business."""
    path = role / "meta/main.yml"
    if path.is_file() and (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("dependencies"):
        yield "meta/main.yml has dependencies"


RULES: dict[str, Callable[[Path], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        the_spec_exists,
        keys_agree,
        default_values_agree,
        inputs_are_described,
        secrets_stay_secret,
        inputs_have_the_roles_prefix,
        internal_names_are_hidden,
        layers_come_and_go,
        the_readme_is_complete,
        the_role_depends_on_no_other,
    )
}


def forbidden_words(root: Path) -> Iterator[str]:
    """Mentions of what nothing that is shipped may know, or do: file, line and word."""
    for folder in ("roles", "playbooks", "plugins"):
        for path in sorted((root / folder).rglob("*")):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            text = path.read_bytes().decode("utf-8", errors="replace")
            for number, line in enumerate(text.splitlines(), start=1):
                match = FORBIDDEN.search(line)
                if match:
                    yield f"{path.relative_to(root)}:{number}: {match[0]}"
