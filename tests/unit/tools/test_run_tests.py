"""What a run of the tests runs, and what a failed one says at its end."""

from __future__ import annotations

from tools.run_tests import Outcome, causes, choose

MOLECULE = """\
\x1b[36mINFO    \x1b[0m default ➜ side_effect: Executing
  \x1b[2m│\x1b[0m TASK [Provoke it] ***
  \x1b[2m│\x1b[0m fatal: [provoked]: FAILED! =>
  \x1b[2m│\x1b[0m     msg: on purpose
  \x1b[2m│\x1b[0m TASK [Ask it at once] ***
  \x1b[2m│\x1b[0m 15:25:49 +0000
  \x1b[2m│\x1b[0m fatal: [host]: FAILED! =>
  \x1b[2m│\x1b[0m     msg: Status code was 502
  \x1b[2m│\x1b[0m PLAY RECAP ***
CRITICAL Ansible return code was 2
default ➜ destroy: Executed: Successful
"""


def test_the_last_failure_is_told_with_its_task() -> None:
    assert causes(MOLECULE, most=2) == [
        "TASK [Ask it at once] ***",
        "fatal: [host]: FAILED! =>",
        "    msg: Status code was 502",
    ]


def test_of_pytest_its_own_summary_is_told() -> None:
    output = "Traceback (most recent call last)\nFAILED tests/a.py::test_b - assert 1 == 2\n=== 1 failed ===\n"
    assert causes(output) == ["FAILED tests/a.py::test_b - assert 1 == 2"]


def test_what_says_nothing_known_is_told_by_its_end() -> None:
    assert causes("a\nb\n\nc" + "d" * 300, most=2, width=5) == ["b", "cdddd"]


def test_a_second_run_that_changes_something_is_a_cause() -> None:
    output = (
        "fatal: [refused]: FAILED! =>\n  msg: on purpose\nCRITICAL Idempotence test failed because of the tasks:\n* a\n"
    )
    assert causes(output)[-2:] == ["CRITICAL Idempotence test failed because of the tasks:", "* a"]


def test_what_two_lanes_came_to_is_counted_together() -> None:
    both = Outcome("molecule", 2, 1, 0, 30.0, ["a"], ["why"]) + Outcome("molecule", 3, 1, 1, 20.0, ["b"], ["because"])
    assert both == Outcome("molecule", 5, 2, 1, 30.0, ["a", "b"], ["why", "because"])


def test_part_that_takes_long_runs_when_it_is_named() -> None:
    assert "topologies" not in [part.name for part in choose([])]
    assert [part.name for part in choose(["topologies"])] == ["topologies"]
