"""Chains of abarankab/DDPM and of the SR3 repository, which are no packages, and of their drop-ins."""

SUBJECT = "restated"


def test_restated(benchmark, entry):
    entry.run(benchmark)
