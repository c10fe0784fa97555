"""One forward pass of a network: diffusers' module, ONNX Runtime, and our UNet with the same weights."""

SUBJECT = "unet"


def test_unet(benchmark, entry):
    entry.run(benchmark)
