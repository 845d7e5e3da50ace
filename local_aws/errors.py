"""Errors that a user reads."""


class LocalAwsError(Exception):
    """A condition that the user can mend; its text says what is wrong and what to do, in one sentence."""
