"""One DDPM step of a batch (clip, noise): the operator, the formula, and diffusers' scheduler."""

SUBJECT = "reverse_step"


def test_reverse_step(benchmark, entry):
    entry.run(benchmark)
