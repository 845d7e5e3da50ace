"""How the balancer asks for health, and what it asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from mlflow_service import health

ROLE = Path(__file__).resolve().parents[3] / "roles/aws_balancer"
TOPOLOGIES = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__aws_balancer_topologies"]


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_balancer_hears_which_database_is_away_before_it_gives_up(topology: dict[str, int]) -> None:
    assert health.PATIENCE < topology["timeout"] < topology["interval"]


def test_dead_host_is_out_in_seconds_and_a_task_outlasts_a_failover() -> None:
    lasts = {name: topology["interval"] * topology["unhealthy"] for name, topology in TOPOLOGIES.items()}
    assert lasts["fleet"] <= 10
    assert lasts["fargate"] >= 100
