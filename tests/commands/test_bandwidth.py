"""What the kernels' bandwidth is measured on, and how: bytes, addresses, the table. Times need a card."""

from __future__ import annotations

import json
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastddpm_kernels
from fastddpm import UNet
from fastddpm.cli.doctor import _show
from fastddpm.doctor import bandwidth, chains, environment, examine, kernels, movements
from fastddpm.timing import Effort, Times
from fastddpm.unet import diffusers

CPU = torch.device("cpu")
SHAPE = (4, 3, 16, 16)
ELEMENTS = 4 * 3 * 16 * 16
CEILINGS = json.loads((Path(__file__).parents[1] / "gpu_proofs" / "ceilings.json").read_text())
OPERATORS = ("reverse_step", "q_sample", "noise_mse", "group_norm_silu")


def named(found, words):
    (one,) = [movement for movement in found if movement.name.startswith(words)]
    return one


@pytest.fixture
def visited(monkeypatch):
    """The images and maps that operators were given or gave back, by their addresses, with their bytes."""
    seen = []

    def watched(name):
        operator = getattr(fastddpm_kernels, name)

        def call(*arguments, **options):
            result = operator(*arguments, **options)
            tensors = [*arguments, *options.values(), result]
            images = [t for t in tensors if isinstance(t, torch.Tensor) and t.dim() >= 4]
            seen.append({t.data_ptr(): t.numel() * t.element_size() for t in images})
            return result

        return call

    replaced = {name: watched(name) for name in OPERATORS}
    monkeypatch.setattr(movements, "fastddpm_kernels", types.SimpleNamespace(**replaced))
    return seen


def every(device=CPU):
    maps = ((64, 8), (32, 4))
    return [
        *movements.steps(SHAPE, device),
        *movements.training(SHAPE, device),
        *movements.norms(maps, 2, device),
        *movements.plain_norms(maps, 2, device),
    ]


def test_bytes_are_those_that_the_interpreter_counts():
    """Of a float32 state or map, as often as proof f says that the kernels move one."""
    steps, training = movements.steps(SHAPE, CPU), movements.training(SHAPE, CPU)
    float32 = {
        "DDPM step": named(steps, "reverse_step, m float32, ddpm,"),
        "DDIM step": named(steps, "reverse_step, m float32, ddim, 4x"),
        "step with guidance": named(steps, "reverse_step, m float32, guidance"),
        "2M step": named(steps, "reverse_step, m float32, dpmpp_2m"),
        "q_sample, noise drawn": named(training, "q_sample"),
        "noise_mse, forward": named(training, "noise_mse float32, forward"),
        "noise_mse, backward": named(training, "noise_mse float32, backward"),
    }
    counted = CEILINGS["tensors_moved"]
    for name, movement in float32.items():
        assert movement.n_bytes == counted[name] * 4 * ELEMENTS, name
    # Half of the tensors' bytes in half precision: those of the output alone in a step.
    assert named(steps, "reverse_step, m bfloat16 channels_last, guidance").n_bytes == 12 * ELEMENTS
    assert named(training, "noise_mse bfloat16, forward").n_bytes == 2 * ELEMENTS
    for norm in movements.norms(((64, 8),), 2, CPU):
        assert norm.n_bytes == counted["group_norm_silu, one pass"] * 2 * (2 * 64 * 8 * 8)
    assert movements.copy(1000, CPU).n_bytes == 1000


@pytest.mark.parametrize("movement", every(), ids=lambda movement: movement.name)
def test_a_rotation_visits_as_many_bytes_before_one_is_visited_again(movement, visited):
    together = 10 * movement.footprint - 1
    run, count = bandwidth.rotation(movement, together)
    assert count == 10
    outputs = run()
    assert len(outputs) == count
    made = [tensor for tensor in tree_leaves(outputs) if tensor is not None and tensor.dim() == 4]
    assert len({tensor.data_ptr() for tensor in made}) == len(made)
    if "backward" in movement.name or movement.name.startswith("torch's"):
        assert len(made) == 10  # what they read goes through no operator that is watched
        return
    addresses = {address: size for one in visited for address, size in one.items()}
    assert sum(addresses.values()) == 10 * movement.footprint > together
    assert all(sum(one.values()) == movement.footprint for one in visited)
    run()
    assert len(visited) == 20


class Operators(TorchDispatchMode):
    """How often each of our operators was dispatched."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator.namespace == "fastddpm":
            self.counts[operator._opname] += 1
        return operator(*arguments, **(options or {}))


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
def test_on_a_card_each_is_one_of_our_operators(fake_cuda):
    """On fake CUDA tensors; beside it only the mean of the loss over the batch is left."""
    with fake_cuda:
        found = every(fake_cuda)
        rotations = [bandwidth.rotation(movement, 3 * movement.footprint) for movement in found]
        for movement, (run, count) in zip(found, rotations, strict=True):
            with Operators() as operators:
                run()
            assert sum(operators.counts.values()) == (0 if movement.name.startswith("torch's") else count)


def test_layouts_and_kinds_of_steps(visited, monkeypatch):
    given = []

    def step(x, m, table, counter, **options):
        given.append((m, options, table[counter[0, 0]]))

    monkeypatch.setattr(movements.fastddpm_kernels, "reverse_step", step)
    for movement in movements.steps(SHAPE, CPU):
        movement.make()()
    assert len(given) == 10
    for m, options, row in given[:5]:
        assert (m.dtype, m.is_contiguous(), options["clip"]) == (torch.float32, True, True)
        assert row.any()
    for m, _, _ in given[5:]:
        assert m.dtype == torch.bfloat16
        assert m.is_contiguous(memory_format=torch.channels_last)
    noisy = [options["noise"] is not None for _, options, _ in given[:5]]
    assert noisy == [True, False, True, True, False]
    assert [len(m) for m, _, _ in given[:5]] == [4, 4, 4, 8, 4]
    assert [options["kept"] is not None for _, options, _ in given[:5]] == [False] * 4 + [True]
    assert given[4][1]["kept"].shape == (1, *given[4][0].shape)


@pytest.mark.parametrize(
    ("maps", "side", "changes"),
    [
        (movements.CIFAR10_MAPS, 32, {}),
        (
            movements.LARGE_MAPS,
            256,
            {
                "block_out_channels": [128, 128, 256, 256, 512, 512],
                "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
            },
        ),
    ],
    ids=["CIFAR-10", "256x256"],
)
def test_maps_are_all_that_the_networks_normalise(maps, side, changes, monkeypatch):
    config = {
        "sample_size": side,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        **changes,
    }
    seen, norm = set(), F.group_norm

    def group_norm(x, num_groups, *arguments, **options):
        assert num_groups == movements.NUM_GROUPS
        seen.add(tuple(x.shape[1:]))
        return norm(x, num_groups, *arguments, **options)

    monkeypatch.setattr(F, "group_norm", group_norm)
    with torch.device("meta"), torch.no_grad():
        unet = UNet(diffusers.config(config)).eval()
        unet(torch.randn(1, 3, side, side), torch.zeros(1, dtype=torch.int64))
    assert seen == {(channels, side, side) for channels, side in maps}
    assert len(maps) == len(seen)


def test_the_working_set_is_larger_than_any_cache(monkeypatch):
    held = types.SimpleNamespace(L2_cache_size=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: held)
    cuda = torch.device("cuda")
    assert bandwidth.working_set(CPU) == bandwidth.working_set(cuda) == 256 * 2**20
    assert bandwidth.working_set(cuda) > 2 * 126e6  # a B200's
    held.L2_cache_size = 200 * 2**20
    assert bandwidth.working_set(cuda) == 400 * 2**20
    del held.L2_cache_size
    assert bandwidth.working_set(cuda) == 256 * 2**20


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_share_is_that_of_a_copy_of_as_many_bytes(kind, monkeypatch):
    """Each divided by the calls of its own rotation: a step visits less than it moves. A card replays."""
    copied, replays = movements.copy, []

    def replayed(run, warm_up):
        replays.append(run)
        return run

    monkeypatch.setattr(bandwidth, "replayed", replayed)
    monkeypatch.setattr(movements, "copy", lambda n_bytes, device: copied(n_bytes, CPU))
    movement = named(movements.steps(SHAPE, CPU), "reverse_step, m float32, ddpm,")
    together = 12 * 4 * ELEMENTS
    ran = []

    def interleaved(runs, clock, effort):
        ran.extend(len(run()) for run in runs.values())
        assert list(runs) == ["kernel", "copy"]
        return {"kernel": Times(wall=[7.0, 60.0, 6.0]), "copy": Times(wall=[4.0, 2.0, 9.0])}

    monkeypatch.setattr(bandwidth, "interleaved", interleaved)
    rate = bandwidth.measure(movement, torch.device(kind), together)
    assert ran == [6, 4]
    assert len(replays) == (2 if kind == "cuda" else 0)
    assert (rate.seconds, rate.copied) == (7.0 / 6, 1.0)
    assert rate.share == pytest.approx(6 / 7)
    assert rate.bytes_per_second == pytest.approx(12 * ELEMENTS * 6 / 7)


def test_the_doctors_table_has_all_kernels(monkeypatch, capsys):
    """On a card's way through, small and on the CPU."""
    whole = [movement.name for movement in bandwidth.examined(torch.device("meta"))]
    assert whole[0] == "copy, 96 MiB"
    assert {name.split(",")[0].split()[0] for name in whole} == {"copy", *OPERATORS}
    assert len([name for name in whole if name.startswith("group_norm_silu")]) == 2 * 11
    together, measure = 2**14, bandwidth.measure
    small = [movements.copy(4096, CPU), *movements.training((2, 3, 8, 8), CPU)]
    monkeypatch.setattr(bandwidth, "examined", lambda device: iter(small))
    monkeypatch.setattr(bandwidth, "working_set", lambda device: together)
    monkeypatch.setattr(
        bandwidth, "measure", lambda one, device, size: measure(one, CPU, size, Effort(0, least=1))
    )
    monkeypatch.setattr("fastddpm_kernels.compat.HAS_TRITON", True)
    monkeypatch.setattr(environment, "parts", list)
    for module in (chains, kernels):
        monkeypatch.setattr(module, "comparisons", lambda device: [])
    monkeypatch.setattr(kernels, "references", list)
    told = []
    found = examine(torch.device("cuda"), told.append)
    assert told == [name for name, _, _ in found.rates] == [movement.name for movement in small]
    assert all(rate > 0 and share > 0 for _, rate, share in found.rates)
    _show(found, Console(width=120))
    shown = capsys.readouterr().out
    assert "of a copy" in shown
    assert all(name in shown for name in told)
