"""Whole chains: diffusers' pipelines in every layout, a plain loop, ONNX Runtime, and ours, at one seed."""

SUBJECT = "pipelines"


def test_pipelines(benchmark, entry):
    entry.run(benchmark)
