"""What ends a job before its last image."""

from __future__ import annotations

from fastddpm.checks import BadArgument


class JobStopped(OSError):
    """A folder cannot be written. Run again, the job goes on."""

    argument = "outdir"


class OtherSettingsError(BadArgument):
    """A folder holds a job of other settings."""


class FirstProcessFailed(RuntimeError):
    """What the other processes raise where the first raised; the message is that of the cause."""
