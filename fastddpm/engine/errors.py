"""What an engine says that cannot do what was asked of it."""


class EngineUnavailable(RuntimeError):
    """An engine was asked for by name that this machine or model cannot run."""

    argument = "engine"
