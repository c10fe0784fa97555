"""The engines on a card: each gives the eager image. Needs CUDA; `pytest -m gpu`."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from networks import TINY, make_unet
from tolerances import BF16_PASS, FP16_PASS, SAME_KERNELS, TF32_PASS

from fastddpm import NoiseSchedule, Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# The same kernels on the same device; "compile" and "max" compile the network, which sums in another order.
TOLERANCE = {"cudagraph": SAME_KERNELS, "auto": SAME_KERNELS, "compile": 1e-3, "max": 1e-3}
METHODS = {
    "ddpm": {"method": "ddpm"},
    "ddim": {"method": "ddim"},
    "ddim_eta": {"method": "ddim", "eta": 0.7},
    "dpmpp_2m": {"method": "dpmpp_2m"},
    "unipc": {"method": "unipc", "solver_order": 3, "timestep_spacing": "karras"},
    "heun": {"method": "heun"},
}
SEEDS = [3, 2**32 + 5]


def samplers(engine, *, seed=0, device="cuda", dtype=torch.float32, **options):
    """An eager sampler and one of the engine, on one network."""
    unet = make_unet(TINY, seed).to(device, dtype).to(memory_format=torch.channels_last)
    defaults = {"num_inference_steps": 20, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    made = [
        Sampler(unet, NoiseSchedule.linear(), engine=e, **{**defaults, **options}) for e in ("eager", engine)
    ]
    return (*made, unet)


def assert_same(image, expected, engine):
    assert expected.isfinite().all()
    assert expected.std() > 0.05
    assert (image - expected).abs().max().item() <= TOLERANCE[engine]


@pytest.fixture(autouse=True)
def _no_fallback():
    """A capture that fails is a failure here, not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("engine", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_methods(engine, method, guidance_scale):
    eager, fast, _ = samplers(engine, **METHODS[method])
    for seeds, labels in ((SEEDS, [0, 3]), ([7, 8], [2, 1])):
        call = {"seeds": seeds, "class_labels": labels, "guidance_scale": guidance_scale, "progress": False}
        assert_same(fast.sample(**call), eager.sample(**call), engine)
    assert fast.engine == ("cudagraph" if engine == "auto" else engine)


@pytest.mark.parametrize("engine", ["cudagraph", "compile", "max"])
def test_more_steps_than_one_graph_holds(engine):
    eager, fast, _ = samplers(engine, num_inference_steps=130)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    assert_same(fast.sample(**call), eager.sample(**call), engine)


@pytest.mark.parametrize("host", [True, False])
def test_torch_noise(host):
    eager, fast, _ = samplers("cudagraph", num_inference_steps=130)
    images = []
    for one in (eager, fast):
        generator = torch.Generator("cpu" if host else "cuda").manual_seed(5)
        images.append(one.sample(2, class_labels=1, noise="torch", generator=generator, progress=False))
    assert_same(images[1], images[0], "cudagraph")


def test_changed_weights_under_autocast_too():
    eager, fast, unet = samplers("cudagraph")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for seed in (0, 1):
        unet.load_state_dict(make_unet(TINY, seed).state_dict())
        assert_same(fast.sample(**call), eager.sample(**call), "cudagraph")
        with torch.autocast("cuda", torch.bfloat16):
            replayed = fast.sample(**call)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            assert (replayed - eager.sample(**call)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_networks(dtype):
    eager, fast, _ = samplers("cudagraph", dtype=dtype)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    assert_same(fast.sample(**call), eager.sample(**call), "cudagraph")


def test_trajectories_callbacks_and_other_plans():
    eager, fast, _ = samplers("cudagraph")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for predicted in (True, False):
        frames = [one.sample_trajectory(predicted=predicted, **call) for one in (eager, fast)]
        assert_same(frames[1], frames[0], "cudagraph")
    seen = []
    fast.sample(callback=lambda k, t, x: seen.append(k), **call)
    assert seen == list(range(20))
    fast.plan = eager.replace(num_inference_steps=7).plan
    assert_same(fast.sample(**call), eager.replace(num_inference_steps=7).sample(**call), "cudagraph")


def test_a_model_that_cannot_be_captured_falls_back():
    unet = make_unet(TINY).to("cuda")

    def reads_on_the_host(x, t):
        return unet(x, t, torch.full((len(x),), int(t[0].item() % 4), device=x.device))

    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    eager, auto, strict = (
        Sampler(reads_on_the_host, NoiseSchedule.linear(), engine=engine, **options)
        for engine in ("eager", "auto", "cudagraph")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(RuntimeWarning, match="cannot be captured"):
            image = auto.sample(seeds=SEEDS, progress=False)
    assert_same(image, eager.sample(seeds=SEEDS, progress=False), "auto")
    assert torch.randn(3, device="cuda").isfinite().all()  # the generator is out of capture
    with pytest.raises(RuntimeError):
        strict.sample(seeds=SEEDS, progress=False)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("engine", ["eager", "cudagraph"])
def test_the_second_card(engine):
    _, first, _ = samplers(engine, device="cuda:0")
    _, second, _ = samplers(engine, device="cuda:1")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    assert (first.sample(**call).cpu() - second.sample(**call).cpu()).abs().max() <= 1e-5


def test_callbacks_every_few_steps_and_memory_of_graphs():
    eager, fast, _ = samplers("cudagraph")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    states = []
    for one in (eager, fast):
        for _ in range(2):
            states.append([])
            one.sample(callback=lambda k, t, x: states[-1].append(x.clone()), callback_every=6, **call)
    for seen in states[1:]:
        assert len(seen) == 4
        for state, expected in zip(seen, states[0], strict=True):
            assert_same(state, expected, "cudagraph")
    (loop,) = fast.runner.loops._loops.values()
    assert loop._executor.memory() > 0
    frames = [one.sample_trajectory(frames=3, **call) for one in (eager, fast)]
    assert_same(frames[1], frames[0], "cudagraph")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_condition_images_and_noise_levels(dtype):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(6, 3, 3, padding=1).to("cuda", dtype)

    def model(x, level):
        return torch.tanh(network(x)) * (1 + level[:, None, None, None].to(x.dtype))

    options = {"num_inference_steps": 20, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    eager, fast = (
        Sampler(model, NoiseSchedule.linear(), time_input="noise_level", engine=engine, **options)
        for engine in ("eager", "cudagraph")
    )
    for _ in range(2):
        call = {"seeds": SEEDS, "condition": torch.randn(2, 3, 16, 16), "progress": False}
        assert_same(fast.sample(**call), eager.sample(**call), "cudagraph")


def test_both_switches_of_tf32_have_loops_of_their_own():
    eager, fast, _ = samplers("cudagraph")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            assert_same(fast.sample(**call), eager.sample(**call), "cudagraph")
        finally:
            torch.set_float32_matmul_precision("highest")
    assert len(fast.runner.loops) == 2


@pytest.mark.parametrize("operation", ["item", "mask", "copy to the host", "index on the host"])
def test_what_check_capturable_names_a_capture_refuses(operation):
    from fastddpm.engine import check_capturable

    offence = {
        "item": lambda x: x * x[0, 0, 0, 0].item(),
        "mask": lambda x: x + x[x > 0].sum(),
        "copy to the host": lambda x: x * x.cpu().mean().item(),
        "index on the host": lambda x: x[torch.tensor([0, 1])],
    }[operation]
    network = torch.nn.Conv2d(3, 3, 3, padding=1).cuda()
    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    model = {"fine": lambda x, t: network(x), "offender": lambda x, t: offence(network(x))}
    assert check_capturable(model["fine"], (3, 16, 16)).ok
    assert not check_capturable(model["offender"], (3, 16, 16)).ok
    fine, refused = (
        Sampler(model[name], NoiseSchedule.linear(), engine="cudagraph", **options) for name in model
    )
    fine.sample(seeds=SEEDS, progress=False)
    with pytest.raises(RuntimeError):
        refused.sample(seeds=SEEDS, progress=False)


class Reading(torch.nn.Module):
    """A network that reads a value on the host while it is told to."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.reads = True

    def forward(self, x, t):
        x = torch.tanh(self.conv(x))
        return x * (1 + 0 * t[0].item()) if self.reads else x


def test_a_failed_capture_leaves_nothing_behind():
    """In one process: a capture fails, then the same and another model are captured and sampled."""
    model, state = Reading().cuda(), torch.cuda.get_rng_state()
    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    eager, strict = (
        Sampler(model, NoiseSchedule.linear(), engine=engine, **options) for engine in ("eager", "cudagraph")
    )
    current = torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="captur"):
            strict.sample(seeds=SEEDS, progress=False)
        assert torch.cuda.current_stream() == current
        assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.randn(1000, device="cuda").isfinite().all()
    model.reads = False
    for _ in range(3):
        assert_same(
            strict.sample(seeds=SEEDS, progress=False), eager.sample(seeds=SEEDS, progress=False), "cudagraph"
        )
    eager, fast, _ = samplers("cudagraph")
    call = {"class_labels": 1, "progress": False}
    for noise in ({"seeds": SEEDS}, {"noise": "torch", "generator": torch.Generator("cuda").manual_seed(5)}):
        images = []
        for one in (fast, eager):
            if "generator" in noise:
                noise["generator"].manual_seed(5)
            images.append(one.sample(2, **noise, **call))
        assert_same(*images, "cudagraph")


def test_auto_does_not_capture_what_it_knows_to_be_refused():
    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    model = Reading().cuda()
    eager, auto = (
        Sampler(model, NoiseSchedule.linear(), engine=engine, **options) for engine in ("eager", "auto")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(RuntimeWarning, match="_local_scalar_dense in Reading: a value is read"):
            image = auto.sample(seeds=SEEDS, progress=False)
    assert_same(image, eager.sample(seeds=SEEDS, progress=False), "auto")


@pytest.mark.parametrize("engine", ["eager", "cudagraph"])
def test_two_threads_on_two_streams_take_turns(engine):
    """Their chains use the same buffers: the work of one waits for that of the other, in any stream."""
    eager, fast, _ = samplers(engine, num_inference_steps=50)
    call = {"class_labels": 1, "progress": False}
    expected = {seed: eager.sample(seeds=[seed] * 8, **call) for seed in (1, 2)}
    fast.sample(seeds=[1] * 8, **call)
    torch.cuda.synchronize()
    wrong = []

    def draw(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            images = [fast.sample(seeds=[seed] * 8, **call) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
            wrong.extend(seed for image in images if (image - expected[seed]).abs().max() > 1e-5)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_calls_follow_each_other_without_a_wait():
    """Seeds, labels and guidance of many calls are queued at once, and each chain has its own."""
    eager, fast, _ = samplers("cudagraph", method="ddim")
    options = {"guidance_scale": 2.0, "progress": False}
    calls = [{"seeds": [k, k + 100], "class_labels": [k % 4, 1], **options} for k in range(12)]
    expected = [eager.sample(**call) for call in calls]
    for _ in range(3):
        fast.sample(**calls[0])
    torch.cuda.synchronize()
    images = [fast.sample(**call) for call in calls]
    for image, other in zip(images, expected, strict=True):
        assert_same(image, other, "cudagraph")


@pytest.mark.parametrize("engine", ["eager", "cudagraph", "compile", "max"])
@pytest.mark.parametrize(("name", "limit"), [("tf32", TF32_PASS), ("bf16", BF16_PASS), ("fp16", FP16_PASS)])
def test_precisions(engine, name, limit):
    """One evaluation in each against float32, a loop for each, and nothing set afterwards."""
    one = {"method": "ddim", "num_inference_steps": None, "timesteps": [200], "clip_sample_range": None}
    full, other, _ = samplers(engine, **one)
    call = {"seeds": SEEDS, "class_labels": [0, 3], "progress": False}
    expected = full.replace(engine="eager", precision="highest").sample(**call)
    found = other.replace(precision=name).sample(**call)
    difference = (found - expected).abs().max() / expected.abs().max()
    assert 0 < difference <= limit
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_a_precision_of_a_captured_loop_is_that_of_eager_steps():
    eager, fast, _ = samplers("cudagraph")
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for name in ("tf32", "bf16", "fp16"):
        images = [one.replace(precision=name).sample(**call) for one in (eager, fast)]
        assert_same(images[1], images[0], "cudagraph")
