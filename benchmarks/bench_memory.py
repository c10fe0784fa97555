"""Peak memory of a chain of the model in the box: of its process on a CPU, of torch's allocator on a GPU."""

SUBJECT = "memory"


def test_memory(benchmark, entry):
    entry.run(benchmark)
