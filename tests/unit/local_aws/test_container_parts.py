"""The parts of ECR, ECS and their scaling that need neither Docker nor a running daemon."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from moto.ecr.models import Repository

from local_aws.registry import find_image, record_push
from local_aws.scaling import Metric, metric_of, wanted_count
from local_aws.services import failures_allowed, limits, next_provider
from local_aws.tasks import container_options, granted, log_lines, secret_source

MIB = 1 << 20


# pushes


def repository(scan: bool = False) -> Repository:
    return Repository("123456789012", "eu-central-1", "app", None, None, {"scanOnPush": scan}, "MUTABLE")


def manifest(text: str) -> tuple[bytes, str]:
    data = json.dumps({"layers": [], "text": text}).encode()
    return data, "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_tag_moves_and_leaves_its_old_image_without_it() -> None:
    made, (first, first_digest), (second, second_digest) = repository(), manifest("1"), manifest("2")
    for content, tag in ((first, "a"), (first, "b"), (second, "a")):
        record_push(made, tag, content, "type")
    assert {image.image_digest: image.image_tags for image in made.images} == {
        first_digest: ["b"],
        second_digest: ["a"],
    }
    record_push(made, "b", second, "type")
    left = find_image(made, first_digest)
    assert left is not None
    assert (left.image_tags, left.image_tag) == ([], None)


def test_a_push_by_digest_has_no_tag() -> None:
    made, (content, digest) = repository(), manifest("1")
    assert record_push(made, digest, content, "type").image_tags == []


@pytest.mark.parametrize("scan", [True, False])
def test_only_a_repository_that_scans_has_scanned(scan: bool) -> None:
    image = record_push(repository(scan), "a", manifest("1")[0], "type")
    assert (image.last_scan is not None) == scan


# tasks


def options(definition: dict[str, Any], override: dict[str, Any] | None = None) -> dict[str, Any]:
    return container_options(definition, override or {}, 512, 1024, 2)


def test_a_container_may_take_what_its_task_has() -> None:
    made = options({"name": "app"})
    assert (made["nano_cpus"], made["mem_limit"], made["memswap_limit"]) == (500_000_000, 1024 * MIB, 1024 * MIB)
    assert made["healthcheck"]["Test"] == ["NONE"]
    assert "command" not in made
    assert "read_only" in made
    assert made["read_only"] is False


def test_no_more_processors_are_promised_than_there_are() -> None:
    assert container_options({}, {}, 4096, 8192, 2)["nano_cpus"] == 2_000_000_000


def test_no_limit_is_above_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _kind: (100, 4096))
    made = granted({"name": "nofile", "softLimit": 1024, "hardLimit": 65535})
    assert (made["Name"], made["Soft"], made["Hard"]) == ("nofile", 1024, 4096)


def test_an_override_wins_over_the_definition() -> None:
    definition = {"command": ["serve"], "memory": 256}
    assert options(definition)["command"] == ["serve"]
    made = options(definition, {"command": ["setup"], "memory": 512})
    assert (made["command"], made["mem_limit"]) == (["setup"], 512 * MIB)


def test_a_health_check_has_ecs_defaults() -> None:
    check = options({"healthCheck": {"command": ["CMD-SHELL", "true"], "startPeriod": 7}})["healthcheck"]
    assert (check["Test"], check["Interval"], check["Timeout"], check["Retries"], check["StartPeriod"]) == (
        ["CMD-SHELL", "true"],
        30 * 10**9,
        5 * 10**9,
        3,
        7 * 10**9,
    )


@pytest.mark.parametrize(
    ("suffix", "rest"),
    [
        ("", ("", "", "")),
        (":key::", ("key", "", "")),
        (":key:AWSPREVIOUS:", ("key", "AWSPREVIOUS", "")),
        ("::AWSCURRENT:", ("", "AWSCURRENT", "")),
        (":key::version", ("key", "", "version")),
    ],
)
def test_a_secret_is_named_in_every_form(suffix: str, rest: tuple[str, str, str]) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app-AbCdEf"
    assert secret_source(arn + suffix) == (arn, *rest)


def test_lines_of_a_log_survive_any_cut() -> None:
    raw = b"2026-11-21T19:34:26.864123456Z first\n2026-11-21T19:34:27.5Z  second\r\n2026-11-21T19:34:28Z last"
    whole = list(log_lines(iter([raw])))
    assert whole == [(1795289666864, "first"), (1795289667500, " second"), (1795289668000, "last")]
    for cut in range(len(raw)):
        assert list(log_lines(iter([raw[:cut], raw[cut:]]))) == whole


# services


@pytest.mark.parametrize(("desired", "allowed"), [(1, 3), (6, 3), (7, 4), (100, 50), (1000, 200)])
def test_the_circuit_breaks_after_half_of_the_tasks(desired: int, allowed: int) -> None:
    assert failures_allowed(desired) == allowed


@pytest.mark.parametrize(
    ("desired", "least", "most", "expected"),
    [(2, 100, 150, (2, 3)), (1, 100, 200, (1, 2)), (3, 50, 150, (2, 4)), (1, 0, 100, (0, 1)), (0, 100, 200, (0, 0))],
)
def test_limits_round_to_the_safe_side(desired: int, least: int, most: int, expected: tuple[int, int]) -> None:
    assert limits(desired, {"minimumHealthyPercent": least, "maximumPercent": most}) == expected


def test_a_strategy_fills_its_base_and_then_goes_by_weight() -> None:
    strategy = [
        {"capacityProvider": "FARGATE", "base": 2, "weight": 1},
        {"capacityProvider": "FARGATE_SPOT", "weight": 3},
    ]
    placed: list[str] = []
    for _ in range(10):
        placed.append(next_provider(strategy, placed))
    assert placed[:2] == ["FARGATE", "FARGATE"]
    assert (placed.count("FARGATE"), placed.count("FARGATE_SPOT")) == (4, 6)


# scaling


@pytest.mark.parametrize(
    ("current", "value", "expected"), [(2, 90.0, 3), (2, 60.0, 2), (2, 54.0, 2), (4, 30.0, 2), (1, 0.0, 0)]
)
def test_the_count_follows_the_metric(current: int, value: float, expected: int) -> None:
    assert wanted_count(current, value, 60.0) == expected


def test_a_predefined_type_names_a_metric() -> None:
    service = {"ClusterName": "c", "ServiceName": "s"}
    assert metric_of("service/c/s", {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"}) == Metric(
        "AWS/ECS", "CPUUtilization", service, "Average"
    )
    label = {"PredefinedMetricType": "ALBRequestCountPerTarget", "ResourceLabel": "app/lb/1/targetgroup/g/2"}
    assert metric_of("service/c/s", label) == Metric(
        "AWS/ApplicationELB", "RequestCountPerTarget", {"TargetGroup": "targetgroup/g/2"}, "Sum"
    )
    assert metric_of("service/c/s", {"PredefinedMetricType": "RDSReaderAverageCPUUtilization"}) is None
