"""`check_capturable`: our networks pass, and each thing that a capture forbids is caught and named."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import TINY, make_unet
from torch import nn

from fastddpm.engine import check_capturable
from fastddpm.unet import UNet

pytestmark = pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")


class Offender(nn.Module):
    """A network whose inner module does something to the image."""

    def __init__(self, offence):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.inner = Inner(offence)

    def forward(self, x, t):
        return self.inner(self.conv(x), t)


class Inner(nn.Module):
    def __init__(self, offence):
        super().__init__()
        self.offence = offence
        self.plain = torch.ones(3, 1, 1)  # not a buffer: .to() leaves it where it is

    def forward(self, x, t):
        return self.offence(self, x, t)


def only_read(x):
    """Reads t through NumPy, which is no operator of torch."""
    return x.numpy()


READ, SHAPE, HOST = "read on the host", "shape of its result depends", "of the host"
# name -> (operator, part of the reason, what the module does)
OFFENDERS = {
    "item": ("aten::_local_scalar_dense", READ, lambda self, x, t: x * t[0].item()),
    "int": ("aten::_local_scalar_dense", READ, lambda self, x, t: x * int(t[0])),
    "tolist": ("aten::_local_scalar_dense", READ, lambda self, x, t: x * sum(t.tolist())),
    "branch": ("aten::_local_scalar_dense", READ, lambda self, x, t: x if (t > 0).any() else -x),
    "equal": ("aten::equal", READ, lambda self, x, t: x if torch.equal(x, x + 1) else -x),
    "nonzero": ("aten::nonzero", SHAPE, lambda self, x, t: x + (x > 0).nonzero().shape[0]),
    "mask": ("aten::index.Tensor", SHAPE, lambda self, x, t: x + x[x > 0].sum()),
    "unique": ("aten::_unique2", SHAPE, lambda self, x, t: x + t.unique().sum()),
    "repeat": ("aten::repeat_interleave.Tensor", SHAPE, lambda self, x, t: x + t.repeat_interleave(t).sum()),
    "cpu": ("aten::_to_copy", "copied to the host", lambda self, x, t: x * t.cpu()[0]),
    "numpy": ("", "", lambda self, x, t: x * only_read(t)[0]),
    "cpu index": ("aten::index.Tensor", HOST, lambda self, x, t: x[torch.tensor([1, 0])]),
    "list index": ("aten::_to_copy", HOST, lambda self, x, t: x[[1, 0]]),
    "made on the host": ("", HOST, lambda self, x, t: x + torch.tensor([2.0], device=x.device)),
    "noise of the host": (
        "aten::_to_copy",
        "copied to the card",
        lambda self, x, t: x + torch.randn(x.shape).to(x.device),
    ),
    "held on the host": ("aten::mul.Tensor", HOST, lambda self, x, t: x * self.plain),
    "own generator": (
        "aten::randn.generator",
        "generator of its own",
        lambda self, x, t: x + torch.randn(x.shape, generator=torch.Generator()).mean(),
    ),
    "synchronize": (
        "torch.cuda.synchronize",
        "waits for the card",
        lambda self, x, t: (torch.cuda.synchronize(), x)[1],
    ),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_known_offenders_are_caught_and_named(name):
    operator, reason, offence = OFFENDERS[name]
    model = Offender(offence)
    before = {key: (value, value.data_ptr()) for key, value in model.state_dict(keep_vars=True).items()}
    report = check_capturable(model, (3, 8, 8))
    assert not report.ok
    found = report.offences[0]
    assert operator in found.operator
    assert reason in found.reason
    assert found.module == "inner"
    assert "test_capturable.py" in found.place
    if name != "numpy":
        assert "lambda" in found.place
    for part in (found.operator, "inner", found.place):
        assert part in str(report)
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is value and value.data_ptr() == place for key, (value, place) in before.items())


HARMLESS = {
    "where": lambda self, x, t: torch.where(t > 0, 1.0, 0.0)[:, None, None, None] * x,
    "noise of the card": lambda self, x, t: x + torch.randn_like(x),
    "made on the card": lambda self, x, t: x + torch.arange(8, device=x.device) + x.new_full((1,), 2.0),
    "one number": lambda self, x, t: x * torch.tensor(0.5),
    "shape": lambda self, x, t: x.reshape(x.shape[0], -1).reshape(x.shape),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_capture_allows_is_not_reported(name):
    report = check_capturable(Offender(HARMLESS[name]), (3, 8, 8))
    assert report.ok, str(report)
    assert str(report).startswith("nothing found")


@pytest.mark.parametrize("guided", [False, True])
def test_our_networks_pass(guided):
    report = check_capturable(make_unet(), (3, 8, 8), guided=guided)
    assert report.ok, str(report)
    no_classes = {"in_channels": 6, "out_channels": 3, "num_classes": None, "null_class": False}
    conditioned = UNet(dataclasses.replace(TINY, **no_classes))
    report = check_capturable(conditioned.bfloat16(), (3, 8, 8), condition_channels=3)
    assert report.ok, str(report)


def test_functions_with_labels_and_noise_levels():
    seen = {}
    unet = make_unet()

    def model(x, t, class_labels):
        seen.update(x=x, t=t, labels=class_labels)
        return unet(x, t.to(torch.int64), class_labels)

    report = check_capturable(
        model, (3, 8, 8), batch_size=3, class_labels=True, time_input="noise_level", dtype=torch.float32
    )
    assert report.ok, str(report)
    assert (tuple(seen["x"].shape), seen["t"].dtype, len(seen["labels"])) == ((3, 3, 8, 8), torch.float32, 3)
    assert all(value.device.type == "cuda" for value in seen.values())


def test_a_value_of_the_host_ends_the_check_and_is_said_to_be_harmless():
    (found,) = check_capturable(Offender(lambda self, x, t: x * torch.rand(1).item()), (3, 8, 8)).offences
    assert "a graph would keep it as a constant" in found.reason


def test_an_error_of_the_model_is_reported_with_its_place():
    def breaks(self, x, t):
        raise KeyError("no such layer")

    (found,) = check_capturable(Offender(breaks), (3, 8, 8)).offences
    assert (found.operator, found.module) == ("KeyError", "inner")
    assert "no such layer" in found.reason
    assert 'raise KeyError("no such layer")' in found.place


def test_arguments_are_checked(monkeypatch):
    with pytest.raises(ValueError, match=r"shape: \(8, 8\) given, three positive integers \(C, H, W\)"):
        check_capturable(make_unet(), (8, 8))
    with pytest.raises(ValueError, match="time_input"):
        check_capturable(make_unet(), (3, 8, 8), time_input="sigma")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="built without CUDA; a CUDA build accepted, with or without"):
        check_capturable(make_unet(), (3, 8, 8))


def test_conditions_are_given_by_name():
    class Named(nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.weight, self.reads = nn.Parameter(torch.ones(())), reads

        def forward(self, x, t, *, states):
            assert states.shape == (4, 5)
            assert states.is_cuda
            shift = float(states.sum()) if self.reads else states.mean(1)[:, None, None, None]
            return self.weight * x + shift

    given = {"cond": {"states": torch.zeros(1, 5)}, "guided": True}
    assert check_capturable(Named(False), (1, 4, 4), **given).ok
    (offence,) = check_capturable(Named(True), (1, 4, 4), **given).offences
    assert "read on the host" in offence.reason
