"""One optimiser step on a batch: noise it, predict, mean squared error, backward, AdamW."""

SUBJECT = "training"


def test_training(benchmark, entry):
    entry.run(benchmark)
