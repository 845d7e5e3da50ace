"""The filter that holds Fargate's table, in a template."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template


@pytest.mark.parametrize(
    ("cpu", "smallest", "step", "largest", "how_many"),
    [
        (256, 512, 512, 2048, 3),
        (512, 1024, 1024, 4096, 4),
        ("1024", 2048, 1024, 8192, 7),
        (2048, 4096, 1024, 16384, 13),
        (4096, 8192, 1024, 30720, 23),
        (8192, 16384, 4096, 61440, 12),
        (16384, 32768, 8192, 122880, 12),
    ],
)
def test_the_table(cpu: Any, smallest: int, step: int, largest: int, how_many: int) -> None:
    found = sizes(cpu)
    assert (found[0], found[1] - found[0], found[-1], len(found)) == (smallest, step, largest, how_many)


@pytest.mark.parametrize("cpu", [0, 1, 300, 32768, "", "1 vCPU", 1024.5, None])
def test_what_fargate_does_not_offer_has_no_memory(cpu: Any) -> None:
    assert sizes(cpu) == []


def sizes(cpu: Any) -> list[int]:
    templar = Templar(loader=DataLoader(), variables={"cpu": cpu})
    found: list[int] = templar.template(trust_as_template("{{ cpu | mlops.mlflow_aws.fargate_memory }}"))
    return found
