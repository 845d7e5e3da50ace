"""What is told of tasks: why they stopped, with which exit code, and what they wrote last."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.mlops.mlflow_aws.plugins.modules import ecs_tasks_info as module
from botocore.exceptions import ClientError

CLUSTER = "arn:aws:ecs:eu-central-1:123456789012:task/demo"
DEFINITION = "arn:aws:ecs:eu-central-1:123456789012:task-definition/demo:1"


def task(name: str, status: str = "STOPPED", **more: Any) -> dict[str, Any]:
    return {
        "taskArn": f"{CLUSTER}/{name}",
        "taskDefinitionArn": DEFINITION,
        "lastStatus": status,
        "containers": [{"name": "mlflow"}],
        **more,
    }


class Ecs:
    """Knows some tasks, as ECS would; what it does not know any more it leaves out."""

    def __init__(self, *tasks: dict[str, Any]) -> None:
        self.known = {one["taskArn"]: one for one in tasks}
        self.definitions_asked = 0

    def describe_tasks(self, cluster: str, tasks: list[str]) -> dict[str, Any]:
        assert cluster == "demo"
        assert 0 < len(tasks) <= 100
        return {"tasks": [self.known[arn] for arn in tasks if arn in self.known]}

    def describe_task_definition(self, taskDefinition: str) -> dict[str, Any]:  # noqa: N803
        assert taskDefinition == DEFINITION
        self.definitions_asked += 1
        options = {"awslogs-group": "/mlflow/demo", "awslogs-stream-prefix": "mlflow"}
        containers = [{"name": "mlflow", "logConfiguration": {"options": options}}, {"name": "silent"}]
        return {"taskDefinition": {"containerDefinitions": containers}}


class Logs:
    """Keeps streams as CloudWatch does."""

    def __init__(self, error: str = "ResourceNotFoundException", **streams: list[str]) -> None:
        self.streams, self.error = streams, error

    def get_log_events(self, **asked: Any) -> dict[str, Any]:
        assert (asked["logGroupName"], asked["startFromHead"]) == ("/mlflow/demo", False)
        prefix, container, name = asked["logStreamName"].split("/")
        assert (prefix, container) == ("mlflow", "mlflow")
        if name not in self.streams:
            raise ClientError({"Error": {"Code": self.error}}, "GetLogEvents")
        return {"events": [{"message": line} for line in self.streams[name][-asked["limit"] :]]}


def describe(ecs: Ecs, logs: Logs, lines: int = 2) -> list[dict[str, Any]]:
    return module.describe(ecs, logs, "demo", list(ecs.known), lines)


@pytest.mark.parametrize(
    ("status", "codes", "expected"),
    [
        ("STOPPED", [0], 0),
        ("STOPPED", [0, 3], 3),
        ("STOPPED", [137, 0], 137),
        ("STOPPED", [None], None),
        ("STOPPED", [None, 0], 0),
        ("RUNNING", [0], None),
        ("DEPROVISIONING", [1], None),
    ],
)
def test_the_exit_code_is_that_of_what_failed(status: str, codes: list[int | None], expected: int | None) -> None:
    containers = [{"exitCode": code} if code is not None else {} for code in codes]
    assert module.exit_code(task("a", status, containers=containers)) == expected


def test_the_reason_is_told_once() -> None:
    containers = [{"reason": "OutOfMemoryError"}, {"reason": "OutOfMemoryError"}, {}]
    stopped = task("a", stoppedReason="Essential container in task exited", containers=containers)
    assert module.reason(stopped) == "Essential container in task exited; OutOfMemoryError"


def test_stopped_tasks_say_their_last_lines_the_latest_first() -> None:
    ecs = Ecs(
        task("old", stoppedAt="2026-01-01 10:00", stoppedReason="x"),
        task("new", stoppedAt="2026-01-01 11:00", stoppedReason="y"),
        task("running", "RUNNING"),
    )
    told = describe(ecs, Logs(old=["1", "2", "3\n"], new=["4"], running=["5"]))
    assert [(one["arn"].rsplit("/", 1)[1], one["reason"], one["log"]) for one in told] == [
        ("new", "y", ["4"]),
        ("old", "x", ["2", "3"]),
        ("running", "", []),
    ]
    assert {one["task_definition"] for one in told} == {DEFINITION}
    assert ecs.definitions_asked == 1


def test_no_log_is_read_where_none_is_wanted() -> None:
    ecs = Ecs(task("a"))
    assert describe(ecs, Logs(a=["1"]), lines=0)[0]["log"] == []
    assert ecs.definitions_asked == 0


def test_what_never_started_wrote_nothing() -> None:
    assert describe(Ecs(task("a")), Logs())[0]["log"] == []


def test_a_log_that_may_not_be_read_is_an_error() -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        describe(Ecs(task("a")), Logs(error="AccessDenied"))


def test_many_tasks_are_asked_for_in_parts() -> None:
    ecs = Ecs(*(task(str(number), "RUNNING") for number in range(201)))
    assert len(describe(ecs, Logs())) == 201


def test_no_task_is_no_question() -> None:
    assert describe(Ecs(), Logs()) == []


def test_a_task_that_is_stopping_says_why_already() -> None:
    stopping = task("a", "DEACTIVATING", desiredStatus="STOPPED", stoppedReason="Task failed ELB health checks")
    (told,) = describe(Ecs(stopping), Logs(a=["1"]))
    assert (told["status"], told["reason"], told["log"]) == ("DEACTIVATING", "Task failed ELB health checks", ["1"])
