"""What the tests of all corrections have: an empty account of moto, with a correction and without it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from moto import mock_aws

REGION = "eu-central-1"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty account of moto, in this process."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


@pytest.fixture(params=[False, True], ids=["moto", "corrected"])
def corrected(request: pytest.FixtureRequest) -> bool:
    """Whether the correction of a test is applied."""
    return bool(request.param)


def use(correction: ModuleType, corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply a correction, or leave moto as it is."""
    if corrected:
        correction.apply(monkeypatch)
