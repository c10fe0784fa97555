"""Checkpoints of other libraries, read into our network, a schedule and the options of a sampler.

One module a format: `abarankab`, `sr3`, `diffusers`. Each says whether a state dict or folder is its own
(``recognises``) and reads it (``read``) into a `Loaded`; `fastddpm.checkpoint.load` picks one. Files are
read by `torch.load(weights_only=True)` or as safetensors: nothing in them is executed.
"""
