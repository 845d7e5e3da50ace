"""The fixtures of corrected_moto, for the tests that ask for them."""

from corrected_moto import account, corrected

__all__ = ["account", "corrected"]
