"""Cold start: from the start of Python to the first image of the model in the box on disk."""

SUBJECT = "cold_start"


def test_cold_start(benchmark, entry):
    entry.run(benchmark)
