"""Errors that a user reads."""


class LocalAwsError(Exception):
    """A condition that the user can mend; its text says what is wrong and what to do, in one sentence."""


class UnavailableError(LocalAwsError):
    """There is no base to build an image from on this machine."""
