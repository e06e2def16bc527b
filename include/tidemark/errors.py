"""Errors a person can act on, each with the exit code it ends the command line with."""


class TidemarkError(Exception):
    """Something failed (exit 1). The message is one line and names what to do about it."""

    exit_code = 1


class UsageError(TidemarkError):
    """The caller asked for something that makes no sense (exit 2)."""

    exit_code = 2


class Refused(TidemarkError):
    """A guard said no (exit 3): the request is understood and must not be carried out."""

    exit_code = 3
