"""Chains of denoising-diffusion-pytorch's GaussianDiffusion in every layout, and of its drop-in."""

SUBJECT = "lucidrains"


def test_lucidrains(benchmark, entry):
    entry.run(benchmark)
