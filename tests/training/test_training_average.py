"""The moving average against torch's own, bit for bit, and training steps that read nothing of the device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import trainer

from fastddpm.training.average import MovingAverage

DECAY = 0.5


def average(averages, weights, n):
    decay = min(DECAY, (1 + int(n)) / (10 + int(n)))
    torch._foreach_lerp_(list(averages), list(weights), 1 - decay)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6).half())


def test_the_average_is_torchs():
    trained = network()
    ours, theirs = MovingAverage(trained, DECAY), AveragedModel(trained, multi_avg_fn=average)
    for n in range(12):
        for tensor in [*trained.parameters(), *trained.buffers()]:
            tensor.data.add_(1)
        ours.update(n)
        theirs.update_parameters(trained)
        for (name, mine), other in zip(
            ours.module.state_dict().items(), theirs.module.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, other), (n, name)
    assert not torch.equal(ours.module[0].weight, trained[0].weight)
    resumed = MovingAverage(copy.deepcopy(trained), DECAY)
    resumed.module.load_state_dict(ours.module.state_dict())
    for one in (ours, resumed):
        one.update(12)
    assert torch.equal(resumed.module[0].weight, ours.module[0].weight)


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
def test_the_average_reads_nothing_of_a_card(fake_cuda):
    """Fake tensors have no values: reading one raises."""
    kept = MovingAverage(nn.Linear(3, 3), DECAY)
    with fake_cuda:
        kept._parameters = [torch.empty(3, 3)], [torch.empty(3, 3)]
    for n in range(3):
        kept.update(n)
    assert kept._parameters[0][0].is_cuda


class Reads(TorchDispatchMode):
    """How often a value is read on the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.count += operator.name() in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")
        return operator(*arguments, **(options or {}))


class Stored:
    """Noise with labels, handed out without a look at it."""

    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 2

    def __len__(self):
        return 16

    def batch(self, indices, ordinals=None, *, seed=0):
        return self.images[indices], self.labels[indices]


def test_a_training_step_reads_no_value(tmp_path):
    """Adam's own count of steps aside, which it keeps on the host."""
    options = {"grad_clip": 1.0, "gradient_accumulation": 2, "class_dropout": 0.3}
    made = trainer(tmp_path, Stored(), **options)
    made.optimizer.step = lambda: None
    for _ in range(3):
        with Reads() as reads:
            made._optimize()
        made.step += 1
        assert reads.count == 0
