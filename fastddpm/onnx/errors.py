"""What can be wrong with a folder of ONNX files, or with what runs them."""

from fastddpm.checks import BadArgument


class OnnxFolderError(ValueError):
    """A folder that is not an export, is damaged, or was written for another version."""


class ProviderError(BadArgument):
    """An execution provider that is not here, does not start, or computes wrong noise."""
