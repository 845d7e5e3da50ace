"""Replacing attributes of moto, so that a test can undo it."""

from __future__ import annotations

from typing import Any, Protocol


class Patcher(Protocol):
    """What a correction needs; pytest's monkeypatch is one too."""

    def setattr(self, target: Any, name: str, value: Any, /, raising: bool = True) -> None:
        """Replace an attribute; with raising, one that must exist."""


class Permanent:
    """Replaces attributes for the life of the process."""

    def setattr(self, target: Any, name: str, value: Any, /, raising: bool = True) -> None:
        if raising and not hasattr(target, name):
            raise AttributeError(f"{target!r} has no attribute {name!r}: moto changed, look at the correction again")
        setattr(target, name, value)
