"""Checkpoints of other libraries, read into our network, a schedule and the options of a sampler.

One module a format, listed in `registry`: each says whether a state dict or folder is its own
(``recognises``) and reads it (``read``) into a `Loaded`. `wrapped` finds the state dict in what a training
script saved, `refused` names those that are not read; `fastddpm.checkpoint.load` puts them together. Files
are read by `torch.load(weights_only=True)` or as safetensors: nothing in them is executed.
"""
