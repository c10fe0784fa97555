"""What trainers hold is seen through to the diffusion object inside, or the part to give is named.

The images are held to those that the object inside draws itself.
"""

from __future__ import annotations

import itertools
import types

import pytest
import torch
from test_optimize import STRANGERS
from tolerances import DROP_IN
from torch import nn

import fastddpm
from fastddpm.dropin import Unrecognised
from fastddpm.dropin.wrapped import held, seen_through
from fastddpm_bench.peers import abarankab as peers_abarankab


class Recursive:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def diffusion():
    torch.manual_seed(0)
    lucidrains = pytest.importorskip("denoising_diffusion_pytorch")
    network = lucidrains.Unet(dim=8, dim_mults=(1, 2), flash_attn=False)
    return lucidrains.GaussianDiffusion(network, image_size=8, timesteps=6).eval()


def images(of, **options):
    torch.manual_seed(1)
    return of.sample(batch_size=1, **options)


class Averaged(nn.Module):
    """As ema_pytorch's EMA holds an average beside the network in training."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model, self.ema_model = nn.Linear(2, 2), model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda inside: torch.compile(inside, backend="eager"),
    "AveragedModel": lambda inside: torch.optim.swa_utils.AveragedModel(inside).eval(),
    "EMA": Averaged,
}


@pytest.mark.parametrize(
    "order", [*itertools.permutations(WRAPPERS, 1), *itertools.permutations(WRAPPERS, 2)]
)
def test_wrappers_are_seen_through_in_any_order(diffusion, order):
    wrapped = diffusion
    for name in order:
        wrapped = WRAPPERS[name](wrapped)
    fast = fastddpm.optimize(wrapped)
    assert float((images(fast, progress=False) - images(diffusion)).abs().max()) <= DROP_IN


def test_the_average_of_ema_pytorch(diffusion):
    ema = pytest.importorskip("ema_pytorch").EMA(diffusion)
    with torch.no_grad():
        for parameter in ema.ema_model.parameters():
            parameter.mul_(1.1)
    ema.ema_model.eval()
    fast = fastddpm.optimize(ema)
    assert fast.original is ema.ema_model
    assert float((images(fast, progress=False) - images(ema.ema_model)).abs().max()) <= DROP_IN
    assert float((images(fast, progress=False) - images(diffusion)).abs().max()) > 1e-2


def test_what_accelerate_prepares(diffusion):
    accelerate = pytest.importorskip("accelerate")
    prepared = accelerate.Accelerator(cpu=True).prepare(diffusion)
    fast = fastddpm.optimize(prepared)
    assert float((images(fast, progress=False) - images(diffusion)).abs().max()) <= DROP_IN


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without its distributed package")
def test_distributed_data_parallel(diffusion, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(diffusion)
        fast = fastddpm.optimize(wrapped)
        assert float((images(fast, progress=False) - images(diffusion)).abs().max()) <= DROP_IN
    finally:
        torch.distributed.destroy_process_group()


def test_a_trainer_of_lucidrains(diffusion, tmp_path):
    from PIL import Image

    lucidrains = pytest.importorskip("denoising_diffusion_pytorch")
    (tmp_path / "images").mkdir()
    for index in range(100):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{index}.png")
    trainer = lucidrains.Trainer(
        diffusion,
        str(tmp_path / "images"),
        train_batch_size=16,
        results_folder=str(tmp_path / "results"),
        calculate_fid=False,
        amp=False,
    )
    with pytest.raises(Unrecognised) as refused:
        fastddpm.optimize(trainer)
    message = str(refused.value)
    assert message == "obj: Trainer given, what it holds at .model or .ema.ema_model accepted"
    fast = fastddpm.optimize(trainer.ema.ema_model.eval())
    assert float((images(fast, progress=False) - images(trainer.ema.ema_model)).abs().max()) <= DROP_IN


def test_holders_of_other_kinds_are_named(diffusion):
    module = nn.Module()
    module.diffusion = diffusion
    trainer = types.SimpleNamespace(inner=types.SimpleNamespace(net=module))
    sr3 = types.SimpleNamespace(netG=nn.DataParallel(diffusion))
    for holder, place in ((module, ".diffusion"), (trainer, ".inner.net.diffusion"), (sr3, ".netG.module")):
        with pytest.raises(Unrecognised, match=rf"what it holds at \{place} accepted") as refused:
            fastddpm.optimize(holder)
        assert len(str(refused.value)) < 300


def test_a_known_object_is_not_looked_into():
    """abarankab's GaussianDiffusion has an ``ema_model``, which is a network."""
    betas = peers_abarankab.linear_betas(9)
    diffusion = peers_abarankab.Diffusion(peers_abarankab.Network(1, 4), (4, 4), 1, betas).eval()
    assert fastddpm.optimize(diffusion).original is diffusion
    assert fastddpm.optimize(nn.DataParallel(diffusion)).original is diffusion


def test_nothing_known_inside_is_the_general_error():
    loop = nn.Module()
    loop.module = nn.Linear(2, 2)
    inner = loop.module
    inner.module = nn.Linear(2, 2)
    for stranger in (loop, nn.DataParallel(nn.Linear(2, 2)), Recursive(), *STRANGERS.values()):
        with pytest.raises(Unrecognised, match="given; known are"):
            fastddpm.optimize(stranger)
        assert held(stranger, lambda one: False) == []
        assert seen_through(stranger, lambda one: False) is None
    endless = nn.Module()
    vars(endless)["_modules"]["module"] = endless
    with pytest.raises(Unrecognised, match="given; known are"):
        fastddpm.optimize(endless)
