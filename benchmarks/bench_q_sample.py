"""Noising a batch at random timesteps: the operator and the formula, with the noise given and drawn."""

SUBJECT = "q_sample"


def test_q_sample(benchmark, entry):
    entry.run(benchmark)
