"""What a model is given by name, held to loops of others: diffusers' with its scheduler, and the paper's."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from networks import make_unet
from replay import RecordingBackend
from tolerances import ACROSS_BATCHES, DROP_IN, SAME_OPS
from torch import nn

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, executors
from fastddpm.repaint import repaint
from fastddpm_bench.peers.guided_unet import UNetModel
from fastddpm_kernels import normal

QUIET = {"progress": False}
SEEDS = [3, 2**40 + 1, 8]
LINEAR = NoiseSchedule.linear(1000)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def text_unet() -> UNet2DConditionModel:
    """Of diffusers: cross-attention to states (B, L, 6), with a mask, and labels that are vectors of 3."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=3,
    ).eval()


def theirs(unet, steps: int, scale: float, *, given, without) -> torch.Tensor:
    """DDIM as diffusers' scheduler has it, guided as its pipelines do it: one pass a half."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, steps_offset=0)
    scheduler.set_timesteps(steps)
    x = normal(torch.tensor(SEEDS), 0, (1, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            m = unet(x, t, **given).sample
            if scale != 1:
                unconditional = unet(x, t, **without).sample
                m = unconditional + scale * (m - unconditional)
            x = scheduler.step(m, t, x).prev_sample
    return x


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_text_masks_and_vector_labels_of_diffusers_network(text_unet, scale):
    states, labels = drawn(3, 5, 6), drawn(3, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1]], dtype=torch.bool)
    given = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    # One row for all is as good as one each.
    without = {"encoder_hidden_states": drawn(1, 5, 6, seed=2), "encoder_attention_mask": mask[1:2]}
    null = torch.zeros(1, 3)
    wanted = theirs(
        text_unet,
        10,
        scale,
        given={**given, "class_labels": labels},
        without={name: value.expand(3, *value.shape[1:]) for name, value in without.items()}
        | {"class_labels": null.expand(3, 3)},
    )
    sampler = Sampler(
        text_unet, LINEAR, method="ddim", num_inference_steps=10, shape=(1, 8, 8), engine="eager"
    )
    call = {"seeds": SEEDS, "cond": given, "class_labels": labels, "guidance_scale": scale, **QUIET}
    call["uncond"] = {**without, "class_labels": null}
    images = sampler.sample(**call)
    assert (images - wanted).abs().max() <= DROP_IN * wanted.abs().max()
    # Cut into batches, of which the last is padded; every row with its own.
    cut = sampler.sample(**call, max_batch=2)
    assert (cut - images).abs().max() <= ACROSS_BATCHES
    alone = sampler.sample(
        **{**call, "seeds": SEEDS[2:], "class_labels": labels[2:]}
        | {"cond": {name: value[2:] for name, value in given.items()}}
    )
    assert (alone - images[2:]).abs().max() <= ACROSS_BATCHES
    trajectory = sampler.sample_trajectory(**call)
    assert torch.equal(trajectory[-1], images)
    other = sampler.sample(**{**call, "cond": {**given, "encoder_hidden_states": -states}})
    assert (other - images).abs().max() > 1e-3 * images.abs().max()


def test_classes_as_y_of_guided_diffusion():
    """Algorithm 2 of Ho et al. 2020 around a network that calls its classes y."""
    torch.manual_seed(0)
    network = UNetModel(1, 1, attention=(), classes=4).eval()
    schedule, y = NoiseSchedule.linear(12, 1e-3, 0.2), torch.tensor([3, 0, 2])
    x = normal(torch.tensor(SEEDS), 0, (1, 8, 8)).double()
    for k, t in enumerate(reversed(range(12))):
        beta, abar = schedule.betas[t], float(np.prod(1 - schedule.betas[: t + 1]))
        before = float(np.prod(1 - schedule.betas[:t]))
        with torch.no_grad():
            eps = network(x.float(), torch.full((3,), t), y).double()
        x = (x - beta / math.sqrt(1 - abar) * eps) / math.sqrt(1 - beta)
        if t > 0:
            sigma = math.sqrt(beta * (1 - before) / (1 - abar))
            x = x + sigma * normal(torch.tensor(SEEDS), k + 1, (1, 8, 8)).double()
    sampler = Sampler(network, schedule, shape=(1, 8, 8), engine="eager")
    images = sampler.sample(seeds=SEEDS, cond={"y": y}, **QUIET)
    assert (images - x).abs().max() <= 1e-5 * x.abs().max()
    with pytest.raises(
        ValueError, match=r"class_labels: labels for UNetModel, which takes y, given, cond=.'y'"
    ):
        sampler.sample(seeds=SEEDS, class_labels=y, **QUIET)


class Named(nn.Module):
    """Adds what it is given by name, and notes in what kinds it came."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.1, -0.2, 0.3]))
        self.kinds: set[tuple[torch.dtype, ...]] = set()

    def forward(self, x, t, states, codes, *, keep=None, class_labels=None):
        if not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            self.kinds.add((x.dtype, states.dtype, codes.dtype, *([] if keep is None else [keep.dtype])))
        scale, *rest = self.weight
        added = rest[0] * states.mean((1, 2)) + rest[1] * codes.to(x.dtype).tanh()
        if keep is not None:
            added = torch.where(keep, added, -added)
        if class_labels is not None:
            added = added + rest[2] * class_labels.to(x.dtype)
        return scale * x + added[:, None, None, None]


GIVEN = {
    "states": drawn(3, 4, 2),
    "codes": torch.tensor([1, 5, 2]),
    "keep": torch.tensor([True, False, True]),
}
WITHOUT = {"states": torch.zeros(1, 4, 2), "codes": torch.zeros(3, dtype=torch.int64), "keep": GIVEN["keep"]}
GUIDED = {"cond": GIVEN, "uncond": WITHOUT, "guidance_scale": 2.5, "seeds": SEEDS, **QUIET}


def named(model=None, **options) -> Sampler:
    chosen = {"method": "ddim", "num_inference_steps": 20, "shape": (1, 4, 4), "engine": "eager"} | options
    return Sampler(Named() if model is None else model, LINEAR, **chosen)


def by_closure(unguided: bool = False) -> torch.Tensor:
    """The same images by a model that is asked for nothing: its conditions are in a closure."""
    network = Named()

    def model(x, t):
        with_it = network(x, t, **GIVEN)
        without = network(x, t, **{**WITHOUT, "states": WITHOUT["states"].expand(3, 4, 2)})
        return with_it if unguided else without + 2.5 * (with_it - without)

    return named(model).sample(seeds=SEEDS, **QUIET)


def test_floats_integers_and_bools_with_guidance_and_without():
    wanted = by_closure()
    assert (named().sample(**GUIDED) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    unguided = {**GUIDED, "guidance_scale": 1.0}
    for call in (unguided, {**unguided, "uncond": None}):
        assert torch.equal(named().sample(**call), by_closure(unguided=True))
    as_arrays = {**GUIDED, "cond": {name: value.numpy() for name, value in GIVEN.items()}}
    assert torch.equal(named().sample(**as_arrays), named().sample(**GUIDED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floating_ones_come_in_the_models_dtype_and_others_as_they_are(dtype):
    model = Named().to(dtype)
    named(model).sample(**{**GUIDED, "cond": {**GIVEN, "states": GIVEN["states"].double()}})
    assert model.kinds == {(dtype, dtype, torch.int64, torch.bool)}


def test_captured_loops_hold_none_of_the_first_calls_values(monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    fast, eager = named(), named()
    fast.runner.loops = Loops("cudagraph")
    images = []
    for factor in (1, -2):
        call = {
            **GUIDED,
            "cond": {**GIVEN, "states": factor * GIVEN["states"], "keep": GIVEN["keep"].roll(factor)},
        }
        images.append(fast.sample(**call))
        assert (images[-1] - eager.sample(**call)).abs().max() <= SAME_OPS
    assert RecordingBackend.captures == 1
    assert (images[0] - images[1]).abs().max() > 0.05


def test_onnx_runtime_takes_them():
    wanted = named().sample(**GUIDED)
    images = named(engine="onnxruntime").sample(**GUIDED)
    assert (images - wanted).abs().max() <= DROP_IN * wanted.abs().max()


def test_labels_of_classes_go_on_beside_them():
    """The null label where there is one; floating labels for networks that measure them."""
    network = Named()

    def closed(labels, null):
        def model(x, t):
            rows = {name: value.expand(3, *value.shape[1:]) for name, value in WITHOUT.items()}
            without = network(x, t, **rows, class_labels=null)
            return without + 2.5 * (network(x, t, **GIVEN, class_labels=labels) - without)

        return named(model).sample(seeds=SEEDS, **QUIET)

    classes = torch.tensor([4, 0, 1])
    images = named(null_label=7).sample(**GUIDED, class_labels=classes)
    assert (images - closed(classes, torch.full((3,), 7))).abs().max() <= 1e-5 * images.abs().max()
    for labels in ([0.5, -1.25, 3.0], torch.tensor([0.5, -1.25, 3.0])):
        call = {**GUIDED, "uncond": {**WITHOUT, "class_labels": torch.zeros(1)}, "class_labels": labels}
        images = named().sample(**call)
        wanted = closed(torch.tensor([0.5, -1.25, 3.0]), torch.zeros(3))
        assert (images - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_variations_rows_of_images_and_repaint_take_them():
    sampler, start = named(), drawn(3, 1, 4, 4, seed=3)
    images = sampler.sample_from(start, 999, **GUIDED)
    other = sampler.sample_from(start, 999, **{**GUIDED, "cond": {**GIVEN, "codes": -GIVEN["codes"]}})
    assert (images - other).abs().max() > 0.05
    cond = {name: value[:1] for name, value in GIVEN.items()}
    row = sampler.interpolate(start[0], start[1], 600, steps=3, cond=cond, progress=False)
    ends = [
        sampler.sample_from(start[i : i + 1], 600, seeds=[0], cond=cond, progress=False) for i in range(2)
    ]
    assert (row[[0, 2]] - torch.cat(ends)).abs().max() <= ACROSS_BATCHES
    # Nothing is known: RePaint without resampling is the chain itself.
    unknown = {"mask": torch.ones(1, 1, 4, 4), "jump": 1, "resample": 1}
    painted = repaint(sampler, torch.zeros(1, 1, 4, 4), **unknown, **GUIDED)
    assert (painted - sampler.sample(**GUIDED)).abs().max() <= 1e-5 * painted.abs().max()


def test_the_signature_is_seen_through_wrappers():
    for model in (
        torch.compile(Named(), backend="eager"),
        nn.DataParallel(Named()),
        functools.partial(Named(), keep=None),
        lambda x, t, **given: Named()(x, t, **given),
    ):
        call = {**GUIDED, "cond": {**GIVEN}, "uncond": {**WITHOUT}}
        if isinstance(model, functools.partial) or not isinstance(model, nn.Module):
            del call["cond"]["keep"], call["uncond"]["keep"]
        assert named(model).sample(**call).shape == (3, 1, 4, 4)
    with pytest.raises(
        ValueError, match="'z', which Named does not take, given, states, codes, keep, class_l"
    ):
        named(nn.DataParallel(Named())).sample(seeds=SEEDS, cond={**GIVEN, "z": GIVEN["codes"]}, **QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cond": None},
            r"cond: no 'states', which Named needs, given, cond=\{'states': a tensor \(B, ...\)\}",
        ),
        ({"cond": {"states": GIVEN["states"]}}, "no 'codes', which Named needs"),
        (
            {"cond": {**GIVEN, "text": GIVEN["codes"]}},
            "cond: 'text', which Named does not take, given, states, co",
        ),
        ({"cond": {**GIVEN, "x": GIVEN["codes"]}}, "cond: 'x', which Named does not take"),
        ({"cond": {**GIVEN, "class_labels": GIVEN["codes"]}}, "cond: 'class_labels' given, class_labels="),
        ({"cond": [GIVEN["codes"]]}, "cond: list given, a mapping or None accepted"),
        ({"cond": {**GIVEN, "codes": [1, 2, 3]}}, r"cond\['codes'\]: list given, a tensor \(3 or 1, ...\)"),
        ({"cond": {**GIVEN, "codes": torch.tensor(1)}}, r"cond\['codes'\]: shape \(\) given"),
        ({"cond": {**GIVEN, "codes": GIVEN["codes"][:2]}}, r"cond\['codes'\]: shape \(2,\) given"),
        (
            {"cond": {**GIVEN, "states": torch.zeros(3, 0)}},
            r"cond\['states'\]: torch.float32 of shape \(3, 0\)",
        ),
        ({"cond": {**GIVEN, "states": GIVEN["states"] / 0}}, r"cond\['states'\]: NaN or infinity"),
        (
            {"uncond": None},
            r"guidance_scale: a number .* without uncond of states, codes, keep given, 1, or unc",
        ),
        ({"uncond": {**WITHOUT, "text": GIVEN["codes"]}}, "uncond: 'text', which is not in cond, given"),
        (
            {"uncond": {**WITHOUT, "states": torch.zeros(1, 5, 2)}},
            r"uncond\['states'\]: .*\(3, 5, 2\) given, .*cond",
        ),
        (
            {"uncond": {**WITHOUT, "codes": torch.zeros(3)}},
            r"uncond\['codes'\]: torch.float32 of shape \(3,\)",
        ),
        ({"class_labels": [0.5, 1.5, 2.5]}, "without uncond of class_labels given"),
        (
            {"class_labels": torch.zeros(2, 4)},
            r"class_labels: shape \(2, 4\) given, a tensor \(3 or 1, ...\)",
        ),
    ],
)
def test_what_is_refused_before_any_work(changes, message):
    calls = []
    model = Named()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        named(model).sample(**{**GUIDED, **changes})
    assert calls == []


def test_our_network_takes_labels_alone():
    sampler = Sampler(make_unet(), LINEAR, num_inference_steps=2, shape=(3, 8, 8))
    with pytest.raises(ValueError, match="cond: 'y', which UNet does not take, given, class_labels accepted"):
        sampler.sample(seeds=SEEDS, cond={"y": GIVEN["codes"]}, **QUIET)
    with pytest.raises(ValueError, match=r"class_labels: 0\.5 given, integers"):
        sampler.sample(seeds=SEEDS, class_labels=[0.5, 1.0, 2.0], **QUIET)


def test_the_python_of_the_document_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "conditions.md").read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    assert names["images"].shape == (3, 1, 8, 8)
    assert np.load("texts/00001.npz")["arr_0"].shape == (4, 8, 8, 1)


def test_a_condition_by_its_own_name_is_told_where_it_goes():
    sampler = Sampler(lambda x, t, y: x + y, NoiseSchedule.linear(10), shape=(2,), num_inference_steps=2)
    with pytest.raises(TypeError, match=re.escape("is given as cond={'y': ...}")):
        sampler.sample(seeds=[0], y=torch.zeros(1, 2), progress=False)
    assert sampler.sample(seeds=[0], cond={"y": torch.zeros(1, 2)}, progress=False).shape == (1, 2)
    inverse, y = sampler.replace(method="ddim"), torch.zeros(2, 2)
    for name, call in {
        "sample_trajectory": lambda **given: sampler.sample_trajectory(seeds=[0, 1], **given),
        "sample_from": lambda **given: sampler.sample_from(y, 5, **given),
        "interpolate": lambda **given: sampler.interpolate(y[0], y[1], 5, steps=2, **given),
        "invert": lambda **given: inverse.invert(y, **given),
    }.items():
        words = (
            f"{name}() got an unexpected keyword argument 'y'; what the model takes by that name is given as"
        )
        with pytest.raises(TypeError, match=re.escape(words)):
            call(y=y, progress=False)
        assert call(cond={"y": y}, progress=False).shape[-2:] == (2, 2)
        with pytest.raises(ValueError, match=r"(x_T|images): an argument that is none here"):
            call(**({"images": y} if name == "sample_trajectory" else {"x_T": y}))
