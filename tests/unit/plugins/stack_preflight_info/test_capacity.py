"""The arithmetic of connections, up to a hundred servers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _capacity as capacity

SCALING = Path(__file__).resolve().parents[4] / "docs/scaling.md"
GIB = 1024
T4G = {"db.t4g.micro": 1, "db.t4g.small": 2, "db.t4g.medium": 4, "db.t4g.large": 8, "db.t4g.xlarge": 16}
MEMORIES = {name: gib * GIB for name, gib in {**T4G, "db.t4g.2xlarge": 32}.items()}


@pytest.mark.parametrize(
    ("gib", "connections", "share"),
    [
        (0, 0, 0),
        (1, 79, 32),
        (2, 192, 88),
        (4, 417, 201),
        (8, 868, 426),
        (16, 1769, 877),
        (32, 3571, 1778),
        (64, 5000, 2492),  # RDS gives no more
        (1024, 5000, 2492),
    ],
)
def test_what_rds_gives(gib: int, connections: int, share: int) -> None:
    assert (capacity.max_connections(gib * GIB), capacity.share_of(gib * GIB)) == (connections, share)


@pytest.mark.parametrize(
    ("size", "min_tasks", "servers"),
    [(1, 1, 2), (4, 1, 8), (2, 2, 3), (3, 2, 4), (4, 2, 6), (5, 3, 7), (100, 2, 150)],
)
def test_a_deployment_runs_more_tasks_than_serve(size: int, min_tasks: int, servers: int) -> None:
    assert capacity.servers_at_once("fargate", size, min_tasks) == servers
    assert capacity.servers_at_once("fleet", size) == size


@pytest.mark.parametrize("topology", ["host", "fleet", "fargate"])
@pytest.mark.parametrize("min_tasks", [1, 2])
@pytest.mark.parametrize("gib", sorted({*MEMORIES.values(), 300, 301}))
def test_two_topologies_never_hold_more_than_the_database_has(topology: str, min_tasks: int, gib: int) -> None:
    """And the largest size that is told fits, while one more does not."""
    for size in range(1, 101) if topology != "host" else (1,):
        found = capacity.capacity(topology, capacity.servers_at_once(topology, size, min_tasks), gib)
        if found.fits:
            assert found.per_server >= capacity.NEEDED[topology]
            assert 2 * found.servers * found.per_server <= found.usable <= found.maximum - 15
        if topology != "host":
            assert found.fits is (size <= capacity.largest_size(topology, found.share, min_tasks))


@pytest.mark.parametrize(
    ("topology", "size", "fitting"),
    [
        ("fleet", 2, "db.t4g.micro"),
        ("fleet", 3, "db.t4g.small"),
        ("fleet", 7, "db.t4g.small"),
        ("fleet", 16, "db.t4g.medium"),
        ("fleet", 35, "db.t4g.large"),
        ("fleet", 73, "db.t4g.xlarge"),
        ("fleet", 100, "db.t4g.2xlarge"),
        ("fargate", 3, "db.t4g.micro"),
        ("fargate", 4, "db.t4g.small"),
        ("fargate", 100, "db.t4g.2xlarge"),
    ],
)
def test_the_smallest_class_that_carries_them(topology: str, size: int, fitting: str) -> None:
    assert capacity.smallest_that_fits(topology, capacity.servers_at_once(topology, size, 2), MEMORIES) == fitting


def test_no_class_carries_too_many() -> None:
    assert capacity.smallest_that_fits("fleet", 100, {name: MEMORIES[name] for name in T4G}) == ""
    assert capacity.smallest_that_fits("fleet", 1, {}) == ""


def test_what_a_user_gives_counts_within_what_there_is() -> None:
    assert capacity.capacity("fleet", 5, GIB, 60).per_server == 12
    assert capacity.capacity("fleet", 5, GIB, 60).fits
    assert not capacity.capacity("fleet", 6, GIB, 60).fits
    assert not capacity.capacity("fleet", 5, GIB, 65).fits  # of 79, fifteen are not for servers


@pytest.mark.parametrize("gib", [1, 2, 4, 8, 16, 32, 64, 1024])
@pytest.mark.parametrize("given", [0, 10, 32])
def test_a_proxy_never_opens_more_than_the_database_has(gib: int, given: int) -> None:
    """Neither alone nor beside servers that hold their direct share, as when it has just been built."""
    maximum, mib = capacity.max_connections(gib * GIB), gib * GIB
    alone, beside = (maximum * percent // 100 for percent in capacity.proxy_percents(mib, given))
    assert 0 < beside <= alone <= maximum - capacity.RESERVED - capacity.DIRECT
    assert beside + (given or capacity.share_of(mib)) <= maximum - capacity.RESERVED - capacity.DIRECT
    if given:
        assert alone <= max(given, maximum // 100)  # RDS takes whole percents, and no 0


def test_a_class_that_nobody_knows_leaves_a_quarter() -> None:
    assert capacity.proxy_percents(0) == (75, 37)


@pytest.mark.parametrize(
    ("topology", "vcpus", "held"),
    [("host", 1, 84), ("host", 2, 125), ("fleet", 8, 371), ("fleet", 64, 371), ("fargate", 0, 43), ("fargate", 4, 166)],
)
def test_behind_a_proxy_each_vcpu_has_a_worker_with_room_for_its_requests(topology: str, vcpus: int, held: int) -> None:
    assert capacity.pooled_per_server(topology, vcpus) == held


def test_the_documented_table_of_the_proxy_is_the_arithmetic() -> None:
    rows = re.findall(
        r"^\| (\d+) GiB[^|]*\| (\d+) \| (\d+) % \| (\d+) \| (\d+) % \|(.*)\|$", SCALING.read_text(), re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    for memory, maximum, alone, opens, beside, lent in rows:
        mib = int(memory) * GIB
        assert int(maximum) == capacity.max_connections(mib)
        assert (int(alone), int(beside)) == capacity.proxy_percents(mib)
        assert int(opens) == int(maximum) * int(alone) // 100
        assert [cell.strip() for cell in lent.split("|")] == [
            f"{int(opens) / n:.1f}" for n in (2, 4, 8, 16, 32, 64, 100)
        ]


def test_the_documented_table_is_the_arithmetic() -> None:
    rows = re.findall(r"^\| (\d+) GiB[^|]*\| `db\S+ \|(.*)\|$", SCALING.read_text(), re.MULTILINE)
    assert [int(memory) for memory, _ in rows] == [1, 2, 4, 8, 16, 32, 64]
    for memory, cells in rows:
        maximum, usable, share, *columns = [cell.strip() for cell in cells.split("|")]
        mib = int(memory) * GIB
        found = [capacity.capacity("fleet", size, mib) for size in (2, 4, 8, 16, 32, 64, 100)]
        assert (int(maximum), int(usable), int(share)) == (found[0].maximum, found[0].usable, found[0].share)
        assert columns[:-2] == [str(entry.per_server) if entry.fits else "no" for entry in found]
        most = [capacity.largest_size(topology, found[0].share, 2) for topology in ("fleet", "fargate")]
        assert [int(column) for column in columns[-2:]] == [min(size, 100) for size in most]
