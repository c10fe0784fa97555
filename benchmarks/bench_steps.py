"""Cost against steps: the time of an image of the model in the box, by the number of its DDIM steps."""

SUBJECT = "steps"


def test_steps(benchmark, entry):
    entry.run(benchmark)
