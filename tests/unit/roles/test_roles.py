"""Every role keeps the contracts; and each rule catches a role that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import role_rules

from tools import role_docs

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def test_there_are_roles() -> None:
    assert ROLES


@pytest.mark.parametrize("rule", role_rules.RULES)
@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_role(role: Path, rule: str) -> None:
    assert list(role_rules.RULES[rule](role)) == []


def test_nothing_that_is_shipped_knows_the_local_cloud() -> None:
    assert list(role_rules.forbidden_words(ROOT)) == []


# -- the tests' tests --------------------------------------------------------------------------------------------------

GOOD = {
    "defaults/main.yml": """\
---
aws_thing_state: present
aws_thing_stack: "{{ mlflow_stack }}"
aws_thing_name: "mlflow-{{ aws_thing_stack }}"
aws_thing_size: "{{ mlflow_size | default(20) }}"
aws_thing_zones: "{{ mlflow_zones | default([]) }}"
aws_thing_public_key: literal
aws_thing_password: ""
""",
    "meta/argument_specs.yml": """\
---
argument_specs:
  main:
    short_description: A thing
    options:
      aws_thing_state: {description: Is it there., type: str, choices: [present, absent], default: present}
      aws_thing_stack: {description: Derived from C(mlflow_stack)., type: str}
      aws_thing_name: {description: Derived from the stack., type: str}
      aws_thing_size: {description: How big., type: int, default: 20}
      aws_thing_zones: {description: Where., type: list, elements: str, default: []}
      aws_thing_public_key: {description: Known., type: str, default: literal}
      aws_thing_password: {description: Unknown., type: str, default: "", no_log: true}
      aws_thing_owner: {description: Whose., type: str, required: true}
""",
    "meta/main.yml": "---\ngalaxy_info: {}\ndependencies: []\n",
    "tasks/main.yml": """\
---
- name: Main | Bring it to its state
  ansible.builtin.include_tasks: "{{ aws_thing_state }}.yml"
""",
    "tasks/present.yml": """\
---
- name: Present | Do it
  vars:
    __aws_thing_x: 1
  block:
    - name: Present | Ask
      amazon.aws.aws_caller_info:
      register: __aws_thing_caller
      loop: [1]
      loop_control:
        loop_var: __aws_thing_item
    - name: Present | Publish the outputs
      ansible.builtin.set_fact:
        aws_thing_outputs: {}
""",
    "tasks/absent.yml": "---\n[]\n",
    "vars/main.yml": "---\n__aws_thing_y: 1\n",
    "README.md": """\
# aws_thing
<!-- variables:begin -->
<!-- variables:end -->
## IAM permissions
ec2:DescribeVpcs
""",
}


@pytest.fixture
def role(tmp_path: Path) -> Path:
    role = tmp_path / "aws_thing"
    for name, text in GOOD.items():
        path = role / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (role / "README.md").write_text(role_docs.filled(role))
    return role


def replacing(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(role: Path) -> None:
        text = (role / file).read_text()
        assert old in text
        (role / file).write_text(text.replace(old, new))

    return change


def removing(file: str) -> Callable[[Path], None]:
    return lambda role: (role / file).unlink()


DEFAULTS, SPEC, PRESENT = "defaults/main.yml", "meta/argument_specs.yml", "tasks/present.yml"

BREAKS: list[tuple[str, Callable[[Path], None], str]] = [
    ("the_spec_exists", removing(SPEC), "is missing"),
    ("the_spec_exists", replacing(SPEC, "main:", "other:"), "no entry point main"),
    (
        "keys_agree",
        replacing(DEFAULTS, "aws_thing_size", "aws_thing_sise"),
        "aws_thing_sise has a default, and no entry",
    ),
    ("keys_agree", replacing(DEFAULTS, "aws_thing_size", "aws_thing_sise"), "aws_thing_size is optional"),
    ("keys_agree", replacing(SPEC, "default: 20", "required: true"), "aws_thing_size is required, and has a default"),
    ("default_values_agree", replacing(SPEC, "default: 20", "default: 21"), "is 20 in the defaults and 21 in the spec"),
    ("default_values_agree", replacing(SPEC, "default: 20", "default: '20'"), 'is 20 in the defaults and "20"'),
    ("default_values_agree", replacing(SPEC, "default: present", "default: absent"), 'is "present" in the defaults'),
    ("default_values_agree", replacing(SPEC, ", default: literal", ""), "and the spec states no default"),
    ("default_values_agree", replacing(SPEC, "default: []", "default: [a]"), 'is [] in the defaults and ["a"]'),
    (
        "default_values_agree",
        replacing(SPEC, "Derived from C(mlflow_stack)., type: str", "Its stack., type: str"),
        'aws_thing_stack has no default in the spec, and its description does not say "derived from"',
    ),
    (
        "default_values_agree",
        replacing(SPEC, "Derived from the stack., type: str", "Derived from the stack., type: str, default: mlflow-x"),
        "aws_thing_name depends on what has no default",
    ),
    ("inputs_are_described", replacing(SPEC, "description: How big., ", ""), "aws_thing_size has no description"),
    ("inputs_are_described", replacing(SPEC, "type: int, ", ""), "aws_thing_size has no type"),
    ("inputs_are_described", replacing(SPEC, "elements: str, ", ""), "aws_thing_zones is a list of what?"),
    ("secrets_stay_secret", replacing(SPEC, ", no_log: true", ""), "aws_thing_password is a secret, and the spec"),
    ("secrets_stay_secret", replacing(DEFAULTS, 'password: ""', "password: admin"), "a secret with a default value"),
    ("secrets_stay_secret", replacing(SPEC, 'default: "", no_log', "default: admin, no_log"), "with a default value"),
    ("inputs_have_the_roles_prefix", replacing(SPEC, "aws_thing_owner", "owner"), "owner is an input"),
    ("inputs_have_the_roles_prefix", replacing(DEFAULTS, "aws_thing_size", "thing_size"), "thing_size is an input"),
    (
        "internal_names_are_hidden",
        replacing(PRESENT, "__aws_thing_caller", "aws_thing_caller"),
        "register aws_thing_caller",
    ),
    ("internal_names_are_hidden", replacing(PRESENT, "__aws_thing_item", "item_"), "loop_var item_"),
    ("internal_names_are_hidden", replacing(PRESENT, "__aws_thing_x", "aws_thing_x"), "vars aws_thing_x"),
    ("internal_names_are_hidden", replacing(PRESENT, "aws_thing_outputs", "aws_thing_size"), "set_fact aws_thing_size"),
    ("internal_names_are_hidden", replacing("vars/main.yml", "__aws_thing_y", "y"), "vars/main.yml: y"),
    ("layers_come_and_go", removing("tasks/absent.yml"), "tasks/absent.yml is missing"),
    ("layers_come_and_go", replacing(SPEC, "[present, absent]", "[present]"), "is not one of present, absent"),
    ("layers_come_and_go", replacing("tasks/main.yml", "{{ aws_thing_state }}", "present"), "does not include"),
    ("the_readme_is_complete", removing("README.md"), "README.md is missing"),
    ("the_readme_is_complete", replacing("README.md", "How big.", "How small."), "is stale"),
    ("the_readme_is_complete", replacing("README.md", "<!-- variables:end -->", ""), "needs the lines"),
    (
        "the_readme_is_complete",
        replacing("README.md", "aws_thing_owner", "the owner"),
        "does not mention aws_thing_owner",
    ),
    ("the_readme_is_complete", replacing("README.md", "## IAM permissions", "## IAM"), 'no section "IAM permissions"'),
    ("the_readme_is_complete", replacing("README.md", "ec2:DescribeVpcs", "all"), "names no action"),
    ("the_role_depends_on_no_other", replacing("meta/main.yml", "[]", "[aws_network]"), "has dependencies"),
]


@pytest.mark.parametrize("rule", role_rules.RULES)
def test_a_good_role_passes(role: Path, rule: str) -> None:
    assert list(role_rules.RULES[rule](role)) == []


@pytest.mark.parametrize(
    ("rule", "change", "message"), BREAKS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_role_is_caught(role: Path, rule: str, change: Callable[[Path], None], message: str) -> None:
    change(role)
    problems = list(role_rules.RULES[rule](role))
    assert any(message in problem for problem in problems), problems


def test_each_rule_is_seen_to_fail() -> None:
    assert {rule for rule, _, _ in BREAKS} == set(role_rules.RULES)


@pytest.mark.parametrize(
    "word", ["local_aws", "localaws", "local-aws", "the moto server", "MOTO", "ignore_errors: true"]
)
@pytest.mark.parametrize("folder", ["roles/x/tasks", "playbooks", "plugins/modules"])
def test_a_forbidden_word_is_caught(tmp_path: Path, folder: str, word: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.yml").write_text(f"# fine\n# {word}\n")
    (found,) = role_rules.forbidden_words(tmp_path)
    assert found.startswith(f"{folder}/a.yml:2: ")


@pytest.mark.parametrize("word", ["remote", "promotor", "motor", "localhost", "aws_local", "ignore errors"])
def test_other_words_are_left_alone(tmp_path: Path, word: str) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks/a.yml").write_text(word)
    assert list(role_rules.forbidden_words(tmp_path)) == []
