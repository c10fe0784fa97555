"""`fastddpm.export_onnx` of tiny networks: every kind of network, run in ONNX Runtime against PyTorch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import make_unet
from torch import nn

pytest.importorskip("onnxruntime")
import onnx

import fastddpm
from fastddpm import NoiseSchedule, Sampler, UNetConfig
from fastddpm.export import ExportError, folder, verify
from fastddpm.export.verify import session
from fastddpm.plans import make_plan
from fastddpm.plans.registry import formulas
from fastddpm_kernels.noise import reference

# One set of float32 sums against another; in chains, the goal set for exports.
NETWORK, CHAIN = 1e-5, 1e-3
SCHEDULE = NoiseSchedule.linear(200)


class Plain(nn.Module):
    """A network of somebody else's: 2C channels, told the time as a number."""

    def __init__(self, channels=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.SiLU())
        self.out = nn.Conv2d(8, 2 * channels, 1)

    def forward(self, x, t):
        h = self.layers(x) * torch.cos(t.float() / 100)[:, None, None, None]
        return (self.out(h),)


def guided(**options):
    """Class-conditional with a null label, 3 channels, not square, 3*12*20 = 720 numbers: not 64ths."""
    defaults = {"method": "ddim", "num_inference_steps": 8, "eta": 0.7, "shape": (3, 12, 20)}
    options = {**defaults, "prediction_type": "v_prediction", **options}
    return Sampler(make_unet(), SCHEDULE, **options)


def sr3():
    """A condition of 3 channels in front, told sqrt(alphas_cumprod), scale and shift, no time activation."""
    config = UNetConfig(
        in_channels=6,
        out_channels=3,
        base_channels=8,
        channel_mults=(1, 2),
        num_groups=4,
        time_dim=8,
        time_hidden=32,
        time_activation=False,
        time_conditioning="affine",
        initial_pad=1,
    )
    options = {"num_inference_steps": 10, "clip_sample_range": 1.0, "time_input": "noise_level"}
    return Sampler(make_unet(config, seed=1), SCHEDULE, shape=(3, 10, 14), **options)


def plain():
    torch.manual_seed(0)
    options = {"variance_type": "learned_range", "num_inference_steps": 12, "clip_sample_range": 1.0}
    return Sampler(Plain(), NoiseSchedule.cosine(100), shape=(2, 5, 7), **options)


def theirs():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=5,
    )
    return Sampler(network, SCHEDULE, shape=(1, 8, 8), method="dpmpp_2m", num_inference_steps=7)


def conditional():
    """A condition and classes with guidance; the class joins the time embedding, ahead of the blocks.

    It is told alphas_cumprod.
    """
    config = UNetConfig(
        in_channels=3,
        out_channels=1,
        base_channels=8,
        channel_mults=(1, 2),
        num_groups=4,
        time_dim=16,
        time_scale=100.0,
        num_classes=3,
        null_class=True,
        class_conditioning="embedding",
        time_conditioning="scale_shift",
        time_cosine_first=True,
        attention_head_dim=4,
        center_input=True,
        resblock_updown=True,
    )
    options = {"num_inference_steps": np.int64(9), "timestep_spacing": "trailing", "clip_sample_range": 1.0}
    schedule = NoiseSchedule.cosine(100)
    options |= {"prediction_type": "sample", "variance_type": "fixed_large", "shape": (1, 6, 10)}
    return Sampler(make_unet(config, seed=2), schedule, time_input="alphas_cumprod", **options)


CASES = {"guided": guided, "sr3": sr3, "plain": plain, "diffusers": theirs, "conditional": conditional}
OTHERS = ("diffusers", "conditional")
PARAMETERS = [pytest.param(case, marks=pytest.mark.slow if case in OTHERS else ()) for case in CASES]


class Exported:
    """A sampler, its folder, and the inputs that sampler.onnx takes."""

    def __init__(self, sampler, path, **options):
        self.sampler = sampler
        self.folder = fastddpm.export_onnx(sampler, path, **options)
        self.about = json.loads((self.folder / "export.json").read_text())
        self.run = session(self.folder / "sampler.onnx")

    def cond(self, seeds):
        generator = np.random.default_rng(3)
        cond = {}
        if self.about["num_classes"]:
            cond["class_labels"] = np.array([seed % self.about["num_classes"] for seed in seeds])
        if self.about["condition_channels"]:
            _, height, width = self.about["image_shape"]
            image = generator.uniform(-1, 1, (1, self.about["condition_channels"], height, width))
            cond["condition"] = np.repeat(image, len(seeds), axis=0).astype(np.float32)
        return cond

    def images(self, seeds, plan=None, eta=None, scale=1.0):
        plan = self.sampler.plan if plan is None else plan
        feed = {
            "seeds": np.array(seeds, np.int64),
            "timesteps": plan.timesteps,
            "method": np.array(list(formulas()).index(plan.method)),
            "eta": np.array(self.about["defaults"]["eta"] if eta is None else eta, np.float32),
            **self.cond(seeds),
        }
        if self.about["null_label"] is not None:
            feed["guidance_scale"] = np.array(scale, np.float32)
        return self.run.run(None, feed)

    def wanted(self, seeds, plan=None, scale=1.0):
        sampler = self.sampler
        if plan is not None:
            null = self.about["null_label"]
            sampler = Sampler.from_plan(sampler.model, sampler.schedule, plan, null_label=null)
        cond = {name: torch.tensor(array) for name, array in self.cond(seeds).items()}
        shape = self.about["image_shape"]
        return sampler.sample(seeds=seeds, shape=shape, guidance_scale=scale, progress=False, **cond).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports each case once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Exported(CASES[name](), tmp_path_factory.mktemp("export") / name)
        return made[name]

    return get


def difference(given, wanted):
    return np.abs(given - wanted).max() / max(1.0, np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_folder_says_what_it_is(exported, case):
    made = exported(case)
    about, sampler = made.about, made.sampler
    assert (about["format"], about["version"], about["noise_spec"]) == ("fastddpm-onnx", 1, 1)
    assert about["image_shape"] == list(sampler.shape)
    assert about["network_dtype"] == "float32"
    names = {path.name for path in made.folder.iterdir()}
    models = {"denoiser.onnx", "step.onnx", "sampler.onnx", "noise.onnx"}
    models |= {"step_guided.onnx"} if case in ("guided", "conditional") else set()
    assert names == models | {"export.json", "README.md"}
    assert set(about["files"]) == models
    for name, file in about["files"].items():
        content = (made.folder / name).read_bytes()
        assert file == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert set(about["parity"]) == models
    assert all(m["max_abs_error"] <= m["limit"] for m in about["parity"].values())
    again = make_plan(NoiseSchedule.from_dict(about["schedule"]), **about["defaults"])
    np.testing.assert_array_equal(again.table, sampler.plan.table)
    assert about["time"] == {"sr3": "noise_level", "conditional": "alphas_cumprod"}.get(case, "index")
    assert about["learned_range"] == (case == "plain")
    assert about["condition_channels"] == {"sr3": 3, "conditional": 2}.get(case, 0)
    classes = {"guided": (4, 4), "diffusers": (5, None), "conditional": (3, 3)}
    assert (about["num_classes"], about["null_label"]) == classes.get(case, (None, None))
    multiple = {"guided": (2, 0), "sr3": (2, 2), "conditional": (2, 0)}
    assert (about["size_multiple"], about["size_padding"]) == multiple.get(case, (None, 0))
    test = about["self_test"]
    assert test["words"] == reference.words(test["seeds"], test["step"], 64)[:, :, 0].tolist()


@pytest.mark.parametrize("case", PARAMETERS)
def test_images_are_pytorchs_for_any_batch_steps_and_method(exported, case):
    made = exported(case)
    seeds = [11, 12, 2**62, 14, 11]
    images, pixels = made.images(seeds)
    wanted = made.wanted(seeds)
    assert difference(images, wanted) <= CHAIN
    assert images.dtype == np.float32
    assert images.std() > 0.05
    np.testing.assert_array_equal(images, made.images(seeds)[0])
    levels = np.rint((np.clip(images, -1, 1) + np.float32(1)) * np.float32(127.5))
    np.testing.assert_array_equal(pixels, levels.astype(np.uint8).transpose(0, 2, 3, 1))
    defaults = made.about["defaults"]
    names = ("prediction_type", "clip_sample_range", "variance_type")
    for method, steps in zip(formulas(), (4, 1, 3), strict=True):
        options = {name: defaults[name] for name in names}
        if method != "ddpm" and options["variance_type"] == "fixed_large":
            options["variance_type"] = "fixed_small"
        told = made.about["time"]
        time_input = "timestep" if told == "index" else told
        options |= {"method": method, "num_inference_steps": steps, "time_input": time_input}
        plan = make_plan(made.sampler.schedule, timestep_spacing="trailing", **options)
        images, _ = made.images(seeds[:2], plan, eta=0.0)
        assert difference(images, made.wanted(seeds[:2], plan)) <= CHAIN


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_seed_is_the_same_alone_and_in_a_batch(exported, case):
    made = exported(case)
    many, _ = made.images([21, 22, 23, 24, 25, 26, 27])
    alone, _ = made.images([24])
    assert difference(alone[0], many[3]) <= CHAIN
    assert np.abs(many[3] - many[4]).max() > 0.1


@pytest.mark.parametrize("case", PARAMETERS)
def test_the_network_alone_and_where_sizes_vary(exported, case):
    made = exported(case)
    run = session(made.folder / "denoiser.onnx")
    channels, height, width = made.about["image_shape"]
    channels += made.about["condition_channels"]
    torch.manual_seed(5)
    sizes = [(height, width)] + ([(height + 4, width - 4)] if made.about["size_multiple"] else [])
    for batch, (h, w) in zip((1, 4), sizes, strict=False):
        x = torch.randn(batch, channels, h, w)
        is_level = made.about["time"] != "index"
        t = torch.rand(batch) if is_level else torch.randint(0, 100, (batch,))
        feed, cond = {"x": x.numpy(), "t": t.numpy()}, {}
        if made.about["num_classes"]:
            cond["class_labels"] = torch.arange(batch)
            feed["class_labels"] = cond["class_labels"].numpy()
        (m,) = run.run(None, feed)
        with torch.no_grad():
            wanted = made.sampler.model.eval()(x, t, **cond)
        wanted = wanted[0] if isinstance(wanted, tuple) else getattr(wanted, "sample", wanted)
        assert difference(m, wanted.numpy()) <= NETWORK


@pytest.mark.parametrize(
    ("case", "scale"),
    [
        *(pytest.param(*case.values, 1.0, marks=case.marks) for case in PARAMETERS),
        ("guided", 2.5),
        pytest.param("conditional", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_loop_over_the_step_gives_the_samplers_images(exported, case, scale):
    made = exported(case)
    seeds, plan, shape = [7, 8], made.sampler.plan, made.about["image_shape"]
    run = session(made.folder / ("step.onnx" if scale == 1.0 else "step_guided.onnx"))
    x = reference.normal(seeds, 0, shape, dtype=np.float32)
    x0 = np.zeros_like(x)
    extra = (
        made.cond(seeds) if scale == 1.0 else {**made.cond(seeds), "guidance_scale": np.float32([scale])[0]}
    )
    extra = {name: np.asarray(array) for name, array in extra.items()}
    for k in range(len(plan)):
        z = reference.normal(seeds, k + 1, shape, dtype=np.float32)
        if plan.table[k, 7] == 0:
            z[:] = np.nan  # not read
        time = plan.model_time[k : k + 1].reshape(())
        feed = {"x": x, "row": plan.table[k, :16], "time": time, "noise": z, "x0_prev": x0, **extra}
        x, x0 = run.run(["x_next", "x0"], feed)
    assert difference(x, made.images(seeds, scale=scale)[0]) <= CHAIN
    assert difference(x, made.wanted(seeds, scale=scale)) <= CHAIN


@pytest.mark.parametrize("case", ["guided", pytest.param("conditional", marks=pytest.mark.slow)])
def test_guidance(exported, case):
    made = exported(case)
    unguided, _ = made.images([1, 2])
    for scale in (0.0, 3.0):
        images, _ = made.images([1, 2], scale=scale)
        assert difference(images, made.wanted([1, 2], scale=scale)) <= CHAIN
        assert np.abs(images - unguided).max() > 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": np.array([5, 5])},
        {"timesteps": np.array([5, 9])},
        {"timesteps": np.array([200])},
        {"timesteps": np.array([3, -1])},
        {"method": np.array(3)},
        {"method": np.array(-1)},
        {"eta": np.array(1.5, np.float32)},
        {"eta": np.array(np.nan, np.float32)},
        {"seeds": np.array([4, -4])},
        {"class_labels": np.array([0, 5])},
        {"class_labels": np.array([0, -1])},
    ],
    ids=str,
)
def test_inputs_out_of_range_are_errors(exported, wrong):
    made = exported("guided")
    feed = {"seeds": np.array([1, 2]), "timesteps": np.array([5, 3]), "method": np.array(1)}
    feed |= {"eta": np.array(0.0, np.float32), "class_labels": np.array([0, 1])}
    feed["guidance_scale"] = np.array(1.0, np.float32)
    assert made.run.run(None, feed)[0].shape == (2, 3, 12, 20)
    with pytest.raises(Exception, match="out of data bounds"):
        made.run.run(None, {**feed, **wrong})


def test_the_readmes_snippet_runs_without_torch(exported):
    made = exported("guided")
    text = (made.folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "torch" not in code
    done = subprocess.run([sys.executable, "-c", code], cwd=made.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(4, 3, 12, 20) (4, 12, 20, 3)\n"), done.stderr
    for name in made.about["files"]:
        graph = onnx.load(made.folder / name).graph
        for one in [*graph.input, *graph.output]:
            assert f"`{one.name}`" in text


@pytest.mark.parametrize("case", PARAMETERS)
def test_nothing_but_weights_is_stored(exported, case):
    made = exported(case)
    model = onnx.load(made.folder / "sampler.onnx")
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    (body,) = [attribute.g for attribute in loop.attribute if attribute.name == "body"]
    convolutions = {node.input[1] for node in body.node if node.op_type == "Conv"}
    assert convolutions
    assert convolutions <= {weight.name for weight in body.initializer}
    for node in [*model.graph.node, *body.node]:
        assert (node.doc_string, len(node.metadata_props)) == ("", 0)
    weights = sum(p.numel() * 4 for p in made.sampler.model.parameters())
    assert made.about["files"]["sampler.onnx"]["bytes"] <= 1.1 * weights + 300_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 5, "class_conditioning": "timestep", "norm": "in", "activation": "gelu"},
        {"norm": "bn", "activation": "relu", "mid_attention": "plain", "downsample_padding": 0},
    ],
    ids=["timestep", "bn"],
)
def test_other_options_of_our_unet(tmp_path, options):
    config = UNetConfig(base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=16, **options)
    sampler = Sampler(make_unet(config), SCHEDULE, shape=(1, 8, 8), num_inference_steps=3)
    made = Exported(sampler, tmp_path / "out")
    assert difference(made.images([4, 9])[0], made.wanted([4, 9])) <= CHAIN


def test_large_weights_go_to_a_file_beside_the_model(exported, tmp_path, monkeypatch):
    made = exported("guided")
    monkeypatch.setattr(folder, "EXTERNAL_ABOVE", 10_000)
    for name in ("denoiser.onnx", "sampler.onnx", "noise.onnx"):
        folder.save_model(onnx.load(made.folder / name), tmp_path / name)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"denoiser.onnx", "denoiser.onnx.data", "sampler.onnx", "sampler.onnx.data", "noise.onnx"}
    assert (tmp_path / "sampler.onnx").stat().st_size < 0.6 * (made.folder / "sampler.onnx").stat().st_size
    before, _ = made.images([1, 2])
    made.run, run = session(tmp_path / "sampler.onnx"), made.run
    after, _ = made.images([1, 2])
    made.run = run
    np.testing.assert_array_equal(after, before)


@pytest.mark.slow
def test_float16_inside_float32_outside(tmp_path):
    sampler = guided(clip_sample_range=1.0)
    before = {name: tensor.clone() for name, tensor in sampler.model.state_dict().items()}
    sampler.model.train()
    made = Exported(sampler, tmp_path / "half", dtype="float16")
    assert sampler.model.training
    after = sampler.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert made.about["network_dtype"] == "float16"
    for name in ("denoiser.onnx", "step.onnx", "sampler.onnx"):
        graph = onnx.load(made.folder / name).graph
        kinds = {one.type.tensor_type.elem_type for one in [*graph.input, *graph.output]}
        assert onnx.TensorProto.FLOAT16 not in kinds
    weights = sum(p.numel() for p in sampler.model.parameters())
    assert made.about["files"]["denoiser.onnx"]["bytes"] < 2.2 * weights + 100_000
    images, _ = made.images([3, 4])
    error = difference(images, made.wanted([3, 4]))
    assert 1e-5 < error < verify.LIMITS["float16"]["sampler.onnx"]


def test_noise_that_differs_a_little_is_found(exported, monkeypatch):
    folder, normal = exported("plain").folder, verify.reference.normal
    verify._check_noise(folder)
    monkeypatch.setattr(verify.reference, "normal", lambda *given: normal(*given) + 1e-5)
    with pytest.raises(ExportError, match=r"noise.onnx does not give the noise"):
        verify._check_noise(folder)


def test_files_that_differ_from_pytorch_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("fastddpm.export.noise.KEY_INCREMENTS", (0x9E3779B8, 0xBB67AE85))
    with pytest.raises(ExportError, match=r"noise.onnx does not give the noise"):
        fastddpm.export_onnx(plain(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    original = verify.reverse_step
    off = lambda given: original(given._replace(m=1.001 * given.m))  # noqa: E731
    monkeypatch.setattr(verify, "reverse_step", off)
    with pytest.raises(ExportError, match=r"step.onnx differs from PyTorch by .*; at most 1e-05 accepted"):
        fastddpm.export_onnx(plain(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    path = fastddpm.export_onnx(plain(), tmp_path / "out", verify=False)
    assert json.loads((path / "export.json").read_text())["parity"] is None
    assert "not verified" in (path / "README.md").read_text()
