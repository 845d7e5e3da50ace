"""The fixtures of service_machine, for every test beside it."""

from service_machine import machine, release, shared, store

__all__ = ["machine", "release", "shared", "store"]
