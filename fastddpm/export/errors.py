"""What an export can fail with."""


class ExportError(ValueError):
    """A network that cannot be exported, or files that do not compute what PyTorch computes."""
