"""The engines: each gives the eager image, follows changed weights, and replays bake nothing in."""

from __future__ import annotations

import warnings

import pytest
import torch
from networks import TINY, make_unet
from replay import RecordingBackend
from tolerances import EAGER_VS_COMPILED, SAME_OPS

from fastddpm import EngineUnavailable, NoiseSchedule, Sampler, ddim_plan
from fastddpm.engine import Loops, executors, resolve_engine

SEEDS = [3, 2**32 + 5]
METHODS = {
    "ddpm": {"method": "ddpm"},
    "ddpm_large_unclipped": {"method": "ddpm", "variance_type": "fixed_large", "clip_sample_range": None},
    "ddim": {"method": "ddim"},
    "ddim_eta": {"method": "ddim", "eta": 0.7},
    "dpmpp_2m": {"method": "dpmpp_2m"},
    "unipc": {"method": "unipc", "solver_order": 3, "timestep_spacing": "karras"},
    "lms": {"method": "lms"},
}


@pytest.fixture
def recorded(monkeypatch):
    """Makes a sampler use the captured loop with the recording backend in place of CUDA graphs."""
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)

    def convert(sampler: Sampler, **options) -> Sampler:
        captured = sampler.replace()
        captured.runner.loops = Loops("cudagraph", **options)
        return captured

    return convert


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.isfinite().all()
    assert b.std() > 0.05
    return (a - b).abs().max().item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_replayed_ops_give_the_eager_image(sampler, recorded, method, guidance_scale):
    eager = sampler.replace(**METHODS[method])
    captured = recorded(eager)
    for seeds, labels in ((SEEDS, [0, 3]), ([7, 8], [2, 1])):
        call = {"seeds": seeds, "class_labels": labels, "guidance_scale": guidance_scale, "progress": False}
        assert difference(captured.sample(**call), eager.sample(**call)) <= SAME_OPS
    assert RecordingBackend.captures == 1


def test_replay_runs_no_python_of_the_model(sampler, recorded, unet):
    calls = []
    unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    captured = recorded(sampler)
    captured.sample(seeds=SEEDS, class_labels=1, progress=False)
    after_capture = len(calls)
    captured.sample(seeds=SEEDS, class_labels=2, progress=False)
    assert after_capture > 0
    assert len(calls) == after_capture


def test_replay_with_another_plan_and_another_number_of_steps(sampler, recorded):
    captured = recorded(sampler)
    captured.sample(seeds=SEEDS, class_labels=1, progress=False)
    for steps in (10, 7, 23):
        eager = sampler.replace(num_inference_steps=steps)
        captured.plan = eager.plan
        call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
        assert difference(captured.sample(**call), eager.sample(**call)) <= SAME_OPS
    # Ten steps in one graph, one more graph for the odd steps.
    assert RecordingBackend.captures == 2


@pytest.mark.parametrize("steps_per_graph", [1, 4, 10])
def test_steps_per_graph_changes_nothing(sampler, recorded, steps_per_graph):
    captured = recorded(sampler, steps_per_graph=steps_per_graph)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    assert difference(captured.sample(**call), sampler.sample(**call)) <= SAME_OPS


def test_replay_with_torch_noise_in_a_short_ring(sampler, recorded, monkeypatch):
    monkeypatch.setattr("fastddpm.runner.ring_length", lambda shape, steps: 3)
    captured = recorded(sampler)
    images = []
    for one in (captured, sampler):
        generator = torch.Generator().manual_seed(5)
        images.append(one.sample(2, class_labels=1, noise="torch", generator=generator, progress=False))
    assert difference(*images) <= SAME_OPS


def test_replay_of_a_trajectory_and_a_callback(sampler, recorded):
    captured = recorded(sampler)
    for predicted in (False, True):
        call = {"seeds": SEEDS, "class_labels": 1, "predicted": predicted, "progress": False}
        assert difference(captured.sample_trajectory(**call), sampler.sample_trajectory(**call)) <= SAME_OPS
    seen = []
    captured.sample(seeds=SEEDS, class_labels=1, callback=lambda k, t, x: seen.append((k, t)), progress=False)
    assert seen == list(enumerate(sampler.plan.timesteps))


def test_new_weights_are_used_by_eager_and_replayed_loops(sampler, recorded, unet):
    captured = recorded(sampler)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    before = [captured.sample(**call), sampler.sample(**call)]
    unet.load_state_dict(make_unet(TINY, seed=1).state_dict())
    fresh = Sampler(make_unet(TINY, seed=1), sampler.schedule, **{**sampler.options, "engine": "eager"})
    expected = fresh.sample(**call)
    assert (before[1] - expected).abs().max() > 0.1
    for one in (captured, sampler):
        assert difference(one.sample(**call), expected) <= SAME_OPS
    assert RecordingBackend.captures == 1
    with torch.no_grad():
        unet.time_mlp[0].weight.mul_(1.5)
    changed = sampler.sample(**call)
    assert (changed - expected).abs().max() > 1e-3
    assert difference(captured.sample(**call), changed) <= SAME_OPS


def test_max_captures_the_compiled_network(sampler, recorded, monkeypatch, unet):
    """The wiring of engine `max`; Inductor's part is the same torch.compile as in the test below."""
    compiled, compile_ = [], torch.compile

    def counting(function, *, mode, dynamic, isolate_recompiles):
        compiled.append((mode, dynamic, isolate_recompiles))
        return compile_(function, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", counting)
    captured = recorded(sampler)
    captured.runner.loops = Loops("max")
    for seed in (0, 1):
        unet.load_state_dict(make_unet(TINY, seed=seed).state_dict())
        call = {"seeds": SEEDS, "class_labels": 1, "guidance_scale": 2.0, "progress": False}
        assert difference(captured.sample(**call), sampler.sample(**call)) <= SAME_OPS
    assert compiled == [("max-autotune-no-cudagraphs", False, True)]


def test_weights_at_other_addresses_are_captured_again(sampler, recorded, unet):
    captured = recorded(sampler)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    captured.sample(**call)
    unet.load_state_dict(make_unet(TINY, seed=1).state_dict(), assign=True)
    assert difference(captured.sample(**call), sampler.sample(**call)) <= SAME_OPS
    assert RecordingBackend.captures == 2


def test_the_cache_of_loops_is_bounded_and_says_what_it_holds(sampler, recorded):
    captured = recorded(sampler, limit=2)
    for batch in (1, 2, 3):
        captured.sample(batch, class_labels=1, progress=False)
    assert len(captured.runner.loops) == 2
    state = 3 * 3 * 8 * 8 * 4
    assert captured.memory() > state
    captured.clear()
    assert captured.memory() == 0


def test_auto_falls_back_when_capture_fails(unet, monkeypatch):
    class Refusing(RecordingBackend):
        def capture(self, run):
            run()
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(executors, "CudaGraphBackend", Refusing)
    options = {"num_inference_steps": 6, "clip_sample_range": 1.0, "shape": (3, 8, 8)}
    eager = Sampler(unet, NoiseSchedule.linear(), **options)
    auto = Sampler(unet, NoiseSchedule.linear(), **options)
    auto.runner.loops = Loops("cudagraph", may_fall_back=True)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    with pytest.warns(RuntimeWarning, match=r"cannot be captured.*\(operation not .*check_capturable names"):
        image = auto.sample(**call)
    assert difference(image, eager.sample(**call)) <= SAME_OPS
    assert auto.engine == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(auto.sample(**call), image) <= SAME_OPS

    asked_for = Sampler(unet, NoiseSchedule.linear(), **options)
    asked_for.runner.loops = Loops("cudagraph")
    with pytest.raises(RuntimeError, match="capturing"):
        asked_for.sample(**call)


def test_auto_falls_back_in_the_middle_of_a_chain(unet, monkeypatch):
    """The large graph is captured, the one for the odd steps is not: what was done is kept."""

    class RefusingSingleSteps(RecordingBackend):
        def capture(self, run):
            if RecordingBackend.captures:
                raise RuntimeError("operation not permitted when stream is capturing")
            RecordingBackend.captures += 1
            return super().capture(run)

    monkeypatch.setattr(RecordingBackend, "captures", 0)
    monkeypatch.setattr(executors, "CudaGraphBackend", RefusingSingleSteps)
    options = {"num_inference_steps": 7, "clip_sample_range": 1.0, "shape": (3, 8, 8)}
    eager = Sampler(unet, NoiseSchedule.linear(), **options)
    auto = Sampler(unet, NoiseSchedule.linear(), **options)
    auto.runner.loops = Loops("cudagraph", may_fall_back=True, steps_per_graph=3)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        image = auto.sample(**call)
    assert difference(image, eager.sample(**call)) <= SAME_OPS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto.sample(seeds=[1], class_labels=1, progress=False)  # a new loop does not try again


def test_running_out_of_memory_is_not_called_a_failed_capture(sampler, recorded, monkeypatch):
    def capture(self, run):
        raise torch.OutOfMemoryError("CUDA out of memory")

    captured = recorded(sampler)
    captured.runner.loops = Loops("cudagraph", may_fall_back=True)
    monkeypatch.setattr(RecordingBackend, "capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        captured.sample(seeds=SEEDS, class_labels=1, progress=False)


def test_weights_changed_under_autocast_are_used(sampler, recorded, unet):
    """Autocast keeps the cast weights; a graph captured with that cache would go on reading them."""
    captured = recorded(sampler)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    for seed in (0, 1):
        unet.load_state_dict(make_unet(TINY, seed=seed).state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            replayed = captured.sample(**call)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            expected = sampler.sample(**call)
        assert difference(replayed, expected) <= SAME_OPS


def test_a_callback_leaves_the_size_of_graphs_alone(sampler, recorded):
    captured = recorded(sampler)
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    captured.sample(callback=lambda *_: None, **call)
    captured.sample(**call)
    (loop,) = captured.runner.loops._loops.values()
    assert sorted(loop._executor._replays) == [1, 10]


@pytest.mark.parametrize(
    "setting",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.float16),
        lambda: torch.backends.cudnn.flags(deterministic=True),
        lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ],
)
def test_settings_that_choose_kernels_are_in_the_key(setting):
    from fastddpm.engine.loops import _global_key

    before = _global_key()
    with setting():
        within = _global_key()
    assert before != within
    assert _global_key() == before


def test_autocast_dtypes_have_loops_of_their_own():
    from fastddpm.engine.loops import _global_key

    keys = set()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            keys.add(_global_key())
    assert len(keys) == 2


def test_many_shapes_stay_compiled(monkeypatch):
    """torch.compile gives up on a function after eight variants, silently: of any network."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="eager", **options))

    class Shallow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, t):
            return self.layer(x) + t[:, None, None, None]

    options = {"num_inference_steps": 1, "clip_sample_range": 1.0, "timestep_spacing": "trailing"}
    compiled = Sampler(Shallow(), NoiseSchedule.linear(), engine="compile", **options)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for size in range(1, 10):
        shape = (3, 8, 2 * size)
        compiled.sample(seeds=[1], shape=shape, progress=False)
    assert graphs["unique_graphs"] - before == 9


@pytest.mark.parametrize("name", ["dpmpp_2m", "ddpm_large_unclipped"])
def test_compile_gives_the_eager_image_with_other_methods(sampler, name, traced):
    eager = sampler.replace(**METHODS[name])
    compiled = eager.replace(engine="compile")
    images = []
    for one in (compiled, eager):
        generator = torch.Generator().manual_seed(5)
        images.append(one.sample(2, class_labels=1, noise="torch", generator=generator, progress=False))
    scale = max(1.0, images[1].abs().max().item())
    assert difference(*images) <= EAGER_VS_COMPILED * scale


@pytest.mark.slow
@pytest.mark.every_torch
def test_compile_gives_the_eager_image_and_follows_the_weights(sampler, unet):
    compiled = sampler.replace(engine="compile")
    calls = [
        {"seeds": SEEDS, "class_labels": [0, 3], "guidance_scale": 2.0, "progress": False},
        {"seeds": [1, 2], "class_labels": [2, 1], "guidance_scale": 3.0, "progress": False},
    ]
    for call in calls:
        assert difference(compiled.sample(**call), sampler.sample(**call)) <= EAGER_VS_COMPILED
    unet.load_state_dict(make_unet(TINY, seed=1).state_dict())
    for call in calls:
        assert difference(compiled.sample(**call), sampler.sample(**call)) <= EAGER_VS_COMPILED


def test_engines_are_checked_against_the_device(unet):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_engine("auto", cpu) == "eager"
    assert resolve_engine("auto", cuda) == "cudagraph"
    for engine in ("cudagraph", "max"):
        assert resolve_engine(engine, cuda) == engine
        with pytest.raises(EngineUnavailable, match=r"needs a CUDA device.*auto, eager or compile"):
            Sampler(unet, NoiseSchedule.linear(), engine=engine)
    with pytest.raises(ValueError, match="'fast' given, one of auto, eager"):
        resolve_engine("fast", cpu)


def test_a_plan_from_elsewhere(unet, sampler):
    plan = ddim_plan(sampler.schedule, 10, clip_sample_range=1.0, use_clipped_model_output=True)
    given = Sampler.from_plan(unet, sampler.schedule, plan, shape=(3, 8, 8))
    call = {"seeds": SEEDS, "class_labels": 1, "progress": False}
    expected = sampler.replace(method="ddim").sample(**call)
    assert difference(given.sample(**call), expected) <= SAME_OPS
