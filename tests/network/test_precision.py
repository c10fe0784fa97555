"""`fastddpm.precision`: what it sets in torch and puts back, for whom, and networks in other dtypes."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from networks import TINY, make_unet
from tolerances import BF16_PASS, FP16_PASS, SAME_OPS, TF32_PASS

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.precision import DTYPES, described, dtype_of, forced
from fastddpm.turn import Turns, computing_in
from fastddpm_bench.emulation import EmulatedTF32, rounded

CPU = torch.device("cpu")
REQUEST = {"seeds": [3, 2**32 + 5], "class_labels": [0, 3], "progress": False}


def settings():
    """All of torch's switches as they read, the older ones too."""
    backends, cudnn, cuda = torch.backends, torch.backends.cudnn, torch.backends.cuda
    places = [backends, cudnn, cudnn.conv, cudnn.rnn, cuda.matmul]
    places += [backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul]
    return [place.fp32_precision for place in places] + [
        read_or_error(older)
        for older in (
            lambda: cudnn.allow_tf32,
            lambda: cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision,
        )
    ]


def read_or_error(read):
    try:
        return read()
    except RuntimeError:
        return "RuntimeError"


# One evaluation, of an image that is still mostly there.
ONE = {"method": "ddim", "num_inference_steps": None, "timesteps": [200], "clip_sample_range": None}


def sampler(model=None, **options):
    """A short chain of the small network."""
    defaults = {"num_inference_steps": 4, "clip_sample_range": 1.0, "shape": (3, 16, 16)}
    return Sampler(model or make_unet(TINY), NoiseSchedule.linear(), **{**defaults, **options})


class Recording(torch.nn.Module):
    """A network that notes torch's settings and what it was given, at each call."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.seen = []

    def forward(self, x, t):
        self.seen.append((settings(), x.dtype, self.network.weight.dtype))
        return self.network(x)

    def __deepcopy__(self, memo):
        copied = Recording()
        copied.network, copied.seen = copy.deepcopy(self.network), self.seen
        return copied


# ------------------------------------------------------------------ torch's settings

STATES = {
    "as torch comes": "",
    "allow_tf32 of cuDNN, older": "torch.backends.cudnn.allow_tf32 = False",
    "allow_tf32 of products, older": "torch.backends.cuda.matmul.allow_tf32 = True",
    "set_float32_matmul_precision, older": "torch.set_float32_matmul_precision('medium')",
    "convolutions, newer": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "products, newer": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "everything, newer": "torch.backends.fp32_precision = 'tf32'",
    "cuDNN, newer": "torch.backends.cudnn.fp32_precision = 'ieee'",
    "oneDNN, newer": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "both kinds": (
        "torch.backends.cudnn.allow_tf32 = True; torch.backends.cudnn.conv.fp32_precision = 'ieee'; "
        "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'"
    ),
}
# Each state is looked at in a process of its own, forked from one that has loaded torch: by what is read, and
# by what is read when parents change, which tells a value of its own from one that is followed.
LOOK = """
import os, sys
sys.path[:0] = {path!r}
import torch
from test_precision import STATES, settings
from fastddpm.precision import forced

def look(state, through):
    exec(state, {{"torch": torch}})
    before = settings()
    for name, wanted in (("highest", "ieee"), ("tf32", "tf32")) if through else ():
        with forced(name):
            inside = settings()
            assert inside[2:5] == [wanted] * 3, inside
            assert inside[5:8] == ["ieee"] * 3, inside
        assert settings() == before, (settings(), before)
    found = [before]
    for parent in (torch.backends, torch.backends.cudnn):
        for value in ("ieee", "tf32", "none"):
            parent.fp32_precision = value
            found.append(settings())
    return found

for state in STATES.values():
    for through in (False, True):
        if os.fork() == 0:
            print(look(state, through), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0, state
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_whatever_was_set_is_there_again():
    command = [sys.executable, "-W", "ignore", "-c", LOOK.format(path=sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(STATES)
    assert len(set(lines)) > 5  # the states are not all read alike
    for name, plain, through in zip(STATES, lines[::2], lines[1::2], strict=True):
        assert through == plain, name


def test_the_older_switch_of_products_can_be_read_inside():
    """Engine `max` does: torch asks it while autotuning, and refuses where it and the newer one disagree."""
    for name, older in (("tf32", "high"), ("highest", "highest")):
        with forced(name):
            assert torch.get_float32_matmul_precision() == older
            # torch.compile sets the product's own value in passing.
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.fp32_precision == "none"


def test_an_error_inside_restores_too():
    before = settings()
    with pytest.raises(KeyError), forced("highest"):
        raise KeyError
    with pytest.raises(KeyError), computing_in("tf32", CPU):
        raise KeyError
    assert settings() == before


# ------------------------------------------------------------------ scoped to the loop


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_the_network_runs_inside_and_the_caller_outside(engine, monkeypatch):
    model, outside = Recording(), settings()
    fast = sampler(model, precision="highest")
    if engine == "captured":
        use_captures_on_the_cpu(monkeypatch, fast)
    between = []
    fast.sample(seeds=[1, 2], progress=False, callback=lambda *state: between.append(settings()))
    assert len(model.seen) >= 4
    assert {tuple(seen[5:8]) for seen, _, _ in model.seen} == {("ieee",) * 3}
    assert between == [outside] * 4
    assert settings() == outside


def use_captures_on_the_cpu(monkeypatch, fast):
    """Engine `cudagraph`, with the backend of tests that records and replays on the CPU."""
    from replay import RecordingBackend

    from fastddpm.engine import Loops, executors

    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    fast.runner.loops = Loops("cudagraph")


def test_a_loop_for_each_precision_and_the_same_images_where_nothing_differs():
    one = sampler()
    expected = one.sample(**REQUEST)
    for name in ("highest", "tf32"):
        other = one.replace(precision=name)
        assert (other.sample(**REQUEST) - expected).abs().max() <= SAME_OPS
        assert other.precision == other.options["precision"] == name
    # The process's own settings are a key as ever.
    one.sample(**REQUEST)
    torch.set_float32_matmul_precision("high")
    try:
        one.sample(**REQUEST)
    finally:
        torch.set_float32_matmul_precision("highest")
        for place in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            place.fp32_precision = "none"
    assert len(one.runner.loops) == 2


def test_two_threads_with_different_precisions_take_turns():
    turns, errors, inside, before = Turns(), [], [], settings()

    def run(name, wanted):
        for _ in range(50):
            with turns.taken(name, torch.device("cuda")):
                inside.append(name)
                if wanted and torch.backends.cudnn.conv.fp32_precision != wanted:
                    errors.append((name, settings()))

    threads = [
        threading.Thread(target=run, args=given)
        for given in (
            ("highest", "ieee"),
            ("tf32", "tf32"),
            ("highest", "ieee"),
            (None, None),
            ("bf16", None),
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert len(inside) == 250
    assert settings() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_has_no_other_thread_to_wait_for():
    turns, before = Turns(), settings()
    inside, done = threading.Event(), threading.Event()

    def hold():
        with turns.taken("highest", CPU):
            inside.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        is_right = settings() == before
        with turns.taken("tf32", torch.device("cuda")):
            is_right &= torch.backends.cudnn.conv.fp32_precision == "tf32"
        os._exit(0 if is_right and settings() == before else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
    assert settings() == before


def test_a_network_that_samples_does_not_wait_for_itself():
    inner = sampler(precision="highest")

    def model(x, t):
        return inner.sample(seeds=[1] * len(x), class_labels=0, progress=False)

    image = sampler(model, num_inference_steps=2).sample(seeds=[1], progress=False)
    assert image.isfinite().all()


# ------------------------------------------------------------------ bfloat16 and float16


@pytest.mark.parametrize(("name", "limit"), [("bf16", BF16_PASS), ("fp16", FP16_PASS)])
def test_a_copy_in_the_dtype_and_the_original_untouched(name, limit):
    unet = make_unet(TINY)
    weights = copy.deepcopy(unet.state_dict())
    full = sampler(unet, **ONE).sample(**REQUEST)
    fast = sampler(unet, **ONE, precision=name)
    found = fast.sample(**REQUEST)
    assert found.dtype == torch.float32
    assert limit / 20 < (found - full).abs().max() / full.abs().max() <= limit
    assert all(torch.equal(weights[key], value) for key, value in unet.state_dict().items())
    assert {value.dtype for value in unet.state_dict().values()} == {torch.float32}
    # The same as a network whose weights were cast by hand.
    cast = sampler(copy.deepcopy(unet).to(DTYPES[name]), **ONE)
    assert torch.equal(cast.sample(**REQUEST), found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_our_network_is_a_precision(dtype):
    """Given x in another dtype than its weights, it would stop at its first convolution."""
    unet = make_unet(TINY)
    full = sampler(unet, **ONE)
    cast = full.replace(dtype=dtype)
    by_hand = sampler(copy.deepcopy(unet).to(dtype), **ONE)
    assert torch.equal(cast.sample(**REQUEST), by_hand.sample(**REQUEST))
    assert torch.equal(cast.replace(dtype=None).sample(**REQUEST), full.sample(**REQUEST))
    with pytest.raises(ValueError, match="float32 for a network in"):
        by_hand.replace(dtype=torch.float32)


@pytest.mark.parametrize("change", ["in place", "load_state_dict", "assign", "buffer"])
def test_weights_changed_between_calls_are_used(change):
    unet = make_unet(TINY)
    unet.register_buffer("unused", torch.zeros(3), persistent=False)
    fast = sampler(unet, precision="bf16")
    first = fast.sample(**REQUEST)
    other = make_unet(TINY, 1)
    with torch.no_grad():
        if change == "in place":
            for parameter in unet.parameters():
                parameter.mul_(1.25)
        elif change == "load_state_dict":
            unet.load_state_dict(other.state_dict())
        elif change == "assign":
            unet.load_state_dict(other.state_dict(), assign=True)
        else:
            unet.unused.fill_(2)
    second = fast.sample(**REQUEST)
    fresh = sampler(copy.deepcopy(unet).to(torch.bfloat16)).sample(**REQUEST)
    assert torch.equal(second, fresh)
    assert torch.equal(first, second) == (change == "buffer")
    if change == "buffer":
        assert torch.equal(fast.runner.model.unused, torch.full((3,), 2, dtype=torch.bfloat16))


def test_what_the_network_is_given_and_has():
    model = Recording()
    sampler(model, precision="bf16").sample(seeds=[1], progress=False)
    assert {seen[1:] for seen in model.seen} == {(torch.bfloat16, torch.bfloat16)}
    assert model.network.weight.dtype == torch.float32


# ------------------------------------------------------------------ TF32, emulated


def test_rounding_is_to_ten_bits_of_mantissa():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2**11
    # To the nearest, ties away from zero; and toward zero.
    nearest = torch.ldexp((scaled.abs() + 0.5).floor() * scaled.sign(), exponent - 11)
    assert torch.equal(rounded(x).double(), nearest)
    assert torch.equal(rounded(x, "truncated").double(), torch.ldexp(scaled.trunc(), exponent - 11))
    ties = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, 0.0, float("inf")])
    assert rounded(ties).tolist() == [1 + 2**-10, -1 - 2**-10, 1 + 2**-9, 0.0, float("inf")]
    assert rounded(x.bfloat16()).dtype == torch.bfloat16


def test_products_are_those_of_rounded_inputs():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(3, 4, 3, 3, generator=generator)
    q, k, v = torch.randn(3, 2, 1, 16, 8, generator=generator)
    with EmulatedTF32():
        convolved = torch.nn.functional.conv2d(x, w)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        linear = torch.nn.functional.linear(q, k[0, 0], v[0, 0, :, 0])
    wide = [rounded(one).double() for one in (x, w, q, k, v)]
    expected = torch.nn.functional.conv2d(wide[0], wide[1])
    torch.testing.assert_close(convolved.double(), expected, atol=1e-5, rtol=0)
    expected = wide[2] @ wide[3][0, 0].T + v[0, 0, :, 0].double()
    torch.testing.assert_close(linear.double(), expected, atol=1e-5, rtol=0)
    weights = (wide[2] @ wide[3].transpose(-2, -1) * 8**-0.5).softmax(-1)
    # A weight of attention near a tie may round the other way in float64.
    torch.testing.assert_close(attended.double(), weights @ wide[4], atol=2e-3, rtol=0)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert 1e-5 < (attended - plain).abs().max() < 1e-2


@pytest.mark.parametrize("rounding", ["nearest", "truncated"])
def test_limits_of_checks_in_tf32_are_twice_what_the_emulation_gives(rounding):
    one = sampler(**ONE)
    expected = one.sample(**REQUEST)
    with EmulatedTF32(rounding):
        found = one.sample(**REQUEST)
    assert TF32_PASS / 20 < (found - expected).abs().max() / expected.abs().max() <= TF32_PASS / 2


@pytest.mark.gpu
def test_tests_for_a_card_run_with_tf32_off():
    assert settings()[2:5] == ["ieee"] * 3


# ------------------------------------------------------------------ what is refused and what is said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "half"}, "precision: 'half' given, one of highest, tf32, bf16, fp16, int8 accepted"),
        ({"precision": "bf16", "dtype": torch.float32}, "dtype: torch.float32 with precision 'bf16' given"),
        ({"precision": "highest", "dtype": torch.bfloat16}, "None or torch.float32 accepted"),
        (
            {"precision": "bf16", "model": lambda x, t: x},
            "precision: 'bf16' for a model that is no torch",
        ),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        sampler(**options)


@pytest.mark.parametrize("name", ["highest", "tf32", "fp16"])
def test_weights_of_another_dtype_are_refused(name):
    with pytest.raises(ValueError, match=f"precision: '{name}' for .*bfloat16.* given, .*accepted"):
        sampler(make_unet(TINY).to(torch.bfloat16), precision=name)


def test_weights_of_the_dtype_itself_are_not_copied():
    unet = make_unet(TINY).to(torch.bfloat16)
    with sampler(unet, precision="bf16").running() as runner:
        assert runner.model is unet


def test_a_model_put_in_the_place_of_one_that_was_copied_runs_itself():
    one, other = sampler(precision="bf16"), make_unet(TINY).to(torch.bfloat16)
    with one.running() as runner:
        assert runner.copies is not None
    one.model = other
    with one.running() as runner:
        assert runner.model is other
        assert runner.copies is None


@pytest.mark.parametrize(
    ("name", "dtype", "device", "words"),
    [
        (None, torch.float32, "cpu", "float32"),
        ("tf32", torch.float32, "cpu", "float32"),
        ("highest", torch.float32, "cuda", "float32, TF32 off"),
        ("tf32", torch.float32, "cuda", "float32, TF32 in convolutions and products"),
        (None, torch.float32, "cuda", "float32, TF32 as torch is set: in convolutions"),
        ("bf16", torch.bfloat16, "cuda", "bfloat16"),
    ],
)
def test_words(name, dtype, device, words):
    assert described(name, dtype, torch.device(device)) == words


def test_both_options_name_one_dtype():
    assert dtype_of("bf16", None) == dtype_of("bf16", torch.bfloat16) == torch.bfloat16
    assert dtype_of("highest", None) is None
    assert dtype_of(None, torch.float16) == torch.float16


# ------------------------------------------------------------------ where it can be given


def test_load_and_saved_folders_have_it(tmp_path):
    one = fastddpm.load(precision="bf16", num_inference_steps=2)
    assert (one.precision, one.dtype) == ("bf16", torch.bfloat16)
    assert one.model.dtype == torch.float32
    assert "bfloat16" in repr(one)
    fastddpm.save_folder(tmp_path, one.model, one.schedule, {"shape": [1, 28, 28], "precision": "highest"})
    assert fastddpm.load(tmp_path).precision == "highest"
    with pytest.raises(ValueError, match="'highest' for a network in torch"):
        fastddpm.load(dtype=torch.bfloat16, precision="highest")


def test_optimize_takes_it_and_reports_it():
    unet = make_unet(TINY)
    schedule = NoiseSchedule.linear()
    fast = fastddpm.optimize(unet, schedule=schedule, precision="fp16", shape=(3, 16, 16))
    assert (fast.precision, fast.dtype) == ("fp16", torch.float16)
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
    )
    pipeline = diffusers.DDIMPipeline(theirs, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "np", "batch_size": 2}

    def draw(**options):
        fast = fastddpm.optimize(pipeline, **options)
        return fast(generator=torch.Generator().manual_seed(1), **call).images, str(fast.report())

    images, report = draw(precision="bf16")
    assert "precision bfloat16" in report
    assert (images == draw(dtype=torch.bfloat16)[0]).all()
    assert "precision float32" in draw(precision="highest")[1]
    with pytest.raises(ValueError, match=re.escape("dtype: torch.float16 with precision 'bf16' given")):
        fastddpm.optimize(pipeline, precision="bf16", dtype=torch.float16)
    with pytest.raises(ValueError, match="precision: 'bf16' for a scheduler alone given, None accepted"):
        fastddpm.optimize(pipeline.scheduler, precision="bf16")
    pipeline.to(torch.bfloat16)
    with pytest.raises(ValueError, match="'highest' for a network in torch"):
        draw(precision="highest")


def test_a_drop_in_under_autocast_says_so():
    pytest.importorskip("denoising_diffusion_pytorch")
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    original = GaussianDiffusion(Unet(8, dim_mults=(1,), flash_attn=False), image_size=8, timesteps=4)
    fast = fastddpm.optimize(original.eval(), precision="bf16")
    assert "precision bfloat16" in str(fast.report())
    assert fast.sample(1).isfinite().all()


def test_the_command_line(monkeypatch, capsys, tmp_path):
    from fastddpm.cli import app

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", "sample", "--steps", "2", "--seeds", "0-1", *words])
        try:
            code = app.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    out = str(tmp_path / "x.png")
    code, said, _ = run("--precision", "bf16", "--out", out, "--device", "cpu")
    assert (code or 0) == 0
    assert "in bfloat16" in said
    code, _, error = run("--precision", "half", "--out", out)
    assert code == 2
    assert error.count("\n") == 1
    assert "--precision" in error
    code, _, error = run("--precision", "highest", "--dtype", "bfloat16", "--out", out, "--device", "cpu")
    assert code == 2
    assert "float32 weights accepted" in error
