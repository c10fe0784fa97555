"""Batch sweep: the cost of an image of the model in the box, by the size of its batch."""

SUBJECT = "batch"


def test_batch(benchmark, entry):
    entry.run(benchmark)
