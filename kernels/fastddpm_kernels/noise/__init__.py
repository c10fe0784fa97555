"""Counter-based normal noise, the same number for the same (seed, step, stream, repeat, element) everywhere.

reference.py (NumPy) defines it; torch_twin.py and kernel.py (Triton) repeat it, the words bit for bit.
"""

from .torch_twin import normal, words

__all__ = ["normal", "words"]
