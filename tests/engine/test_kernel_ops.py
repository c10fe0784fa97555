"""The operators as torch sees them: registration, fake CUDA tensors, tracing, compilation. No GPU takes part.

opcheck's schema and autograd checks run the kernel, so they stand in interpreter/test_ops.py; its checks
with fake tensors move data to the device and need a GPU (the last test here).
"""

import itertools
import subprocess
import sys

import pytest
import step_cases
import torch
from functorch.compile import make_boxed_func
from kernel_build import TARGETS, pretended
from step_cases import CASES, SHAPES
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm.unet1d import UNet1D, UNet1DConfig
from fastddpm_kernels import q_sample, reverse_step

COMPILED_CASES = [case for case in CASES if case.name in ("linear", "clip", "ring", "everything")]


@pytest.fixture
def fake_cuda():
    """Tensors on 'cuda' without data, and a Triton that compiles for sm_90."""
    torch._dynamo.reset()
    with pretended(TARGETS["sm_90"]), FakeTensorMode():
        yield
    torch._dynamo.reset()


def fake(given):
    """The same arguments, as fake CUDA tensors when the fixture is active."""
    return {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }


def fake_q_sample_arguments(noise):
    x_0, t, table = (
        (4, 3, 8, 8),
        torch.empty(4, dtype=torch.int64, device="cuda"),
        torch.empty(9, device="cuda"),
    )
    options = {"noise": torch.empty(x_0, device="cuda")} if noise else {"seeds": t, "ordinals": t}
    return (torch.empty(x_0, device="cuda"), t, table, table), options


class Recorder(TorchDispatchMode):
    """Keeps the names of the operators that run, and whether any had a tensor off the device."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.devices = set()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        leaves = torch.utils._pytree.tree_leaves((arguments, options, result))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        self.names.append(operator.name())
        return result


def traced_kernels(function, *arguments, **options):
    """Compiles the function; the Triton launches in its graph, as (arguments, tensors that are written)."""
    launches = []

    def keep(graph, inputs):
        for node in graph.graph.nodes:
            if "triton_kernel_wrapper" in str(node.target):
                launches.append((node.kwargs["kwargs"], node.kwargs["tensors_to_clone"]))
        return make_boxed_func(graph.forward)

    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*arguments, **options)
    return launches


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_is_one_operator_and_no_host_traffic(case):
    given = fake(step_cases.arguments(case, SHAPES[3072]))
    with Recorder() as recorder:
        assert reverse_step(**given) is None
    assert recorder.names == ["fastddpm::reverse_step"]
    assert recorder.devices == {"cuda"}


@pytest.mark.parametrize("case", COMPILED_CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("fake_cuda")
def test_a_step_traces_to_its_operator(case):
    given = fake(step_cases.arguments(case, SHAPES[3072]))
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in given.items() if name not in tensors}
    graph = make_fx(lambda tensors: reverse_step(**tensors, **others), tracing_mode="fake")(tensors)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets == ["fastddpm.reverse_step.default"]


@pytest.mark.parametrize("case", COMPILED_CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("fake_cuda")
def test_a_compiled_step_is_one_launch_that_writes_what_it_keeps_alone(case):
    """A tensor taken for written would be cloned on every step."""
    given = fake(step_cases.arguments(case, SHAPES[3072], channels_last=True))
    [(arguments, written)] = traced_kernels(reverse_step, **given)
    assert written == ["x_ptr", *["x0_ptr"] * case.x0, *["kept_ptr"] * (case.kept > 0)]
    assert arguments["CHANNELS_LAST"] is True
    assert arguments["CLIP"] is case.clip
    assert arguments["LEARNED_RANGE"] is case.learned_range


@pytest.mark.usefixtures("fake_cuda")
def test_the_network_of_actions_has_its_norms_and_mish_in_one():
    with torch.device("cuda"):
        model = UNet1D(UNet1DConfig(3, 6, (16, 32), num_groups=4, time_dim=8)).requires_grad_(False)
        x, bias = torch.empty(2, 8, 3), torch.empty(2, model.bias_width)
    graph = make_fx(lambda *given: model.forward_biased(*given), tracing_mode="fake")(x, bias)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count("fastddpm.group_norm_mish.default") == 2 * len(model.blocks()) + 1
    plain = [name for name in targets if not name.startswith("fastddpm")]
    assert not any("mish" in name or "group_norm" in name for name in plain)


@pytest.mark.parametrize("noise", [False, True], ids=["drawn", "given"])
@pytest.mark.usefixtures("fake_cuda")
def test_q_sample_on_fake_tensors_and_compiled(noise):
    positional, options = fake_q_sample_arguments(noise)
    x_t, z = q_sample(*positional, **options, return_noise=True)
    assert x_t.shape == z.shape == positional[0].shape
    assert x_t.device.type == z.device.type == "cuda"
    [(_, written)] = traced_kernels(q_sample, *positional, **options)
    assert written == ["x_t_ptr"]


@pytest.mark.usefixtures("fake_cuda")
def test_a_sample_too_large_for_a_grid_is_an_error():
    positional, _ = fake_q_sample_arguments(noise=False)
    huge = torch.empty(4, 2**26, device="cuda")
    with pytest.raises(ValueError, match="x_0 has 67108864 elements per sample; accepted"):
        q_sample(huge, *positional[1:], seeds=positional[1], ordinals=positional[1])


@pytest.mark.parametrize(
    ("operator", "kernels"),
    {
        "reverse_step": ["reverse_step_kernel"],
        "q_sample": ["q_sample_kernel"],
        "noise_mse": ["loss_kernel"],
        "pad_sum": ["pad_sum_kernel"],
        "noise_mse_backward": ["gradient_kernel"],
        "group_norm_silu": ["group_norm_silu_kernel", "statistics_kernel"],
        "group_norm_mish": ["group_norm_silu_kernel", "statistics_kernel"],
        "add_group_norm_silu": ["group_norm_silu_kernel", "statistics_kernel"],
        "cat_group_norm_silu": ["group_norm_silu_kernel", "statistics_kernel"],
        "group_norm_silu_backward": ["backward_kernel"],
    }.items(),
)
def test_torch_knows_the_kernels_of_an_operator(operator, kernels):
    """It keeps compiled code by their source, and finds them by name when the operator is registered."""
    import fastddpm_kernels.group_norm_silu.launches
    import fastddpm_kernels.noise_mse.kernel
    import fastddpm_kernels.pad_sum.kernel
    import fastddpm_kernels.q_sample.kernel
    import fastddpm_kernels.reverse_step.kernel  # noqa: F401

    known = torch._library.triton.get_triton_kernels_for_op(f"fastddpm::{operator}")
    assert sorted(kernel.fn.__name__ for kernel in known) == kernels


def test_importing_needs_neither_triton_nor_a_gpu():
    code = """
import sys
sys.modules["triton"] = None
import torch
import fastddpm_kernels
assert not torch.cuda.is_initialized()
x = torch.zeros(1, 3, 4, 4)
counter = torch.zeros(1, 2, dtype=torch.int64)
fastddpm_kernels.reverse_step(x, x.clone(), torch.ones(1, 32), counter, clip=True)
fastddpm_kernels.q_sample(x, torch.tensor([0]), torch.ones(1), torch.ones(1), noise=x)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_does_not_load_triton():
    """It costs a second, and torch itself loads it only when it compiles."""
    code = """
import sys, torch
before = "triton" in sys.modules
import fastddpm_kernels
assert ("triton" in sys.modules) == before
assert "fastddpm_kernels.reverse_step.kernel" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_opcheck():
    from fastddpm_kernels.q_sample.kernel import q_sample_op
    from fastddpm_kernels.reverse_step.kernel import reverse_step_op

    for case, shape in itertools.product(CASES, (SHAPES[33], SHAPES[3072])):
        given = step_cases.clone(step_cases.arguments(case, shape), "cuda")
        opcheck(reverse_step_op, tuple(given.values()))
    x_0 = torch.randn(2, 3, 8, 8, device="cuda", requires_grad=True)
    t, table = torch.tensor([1, 2], device="cuda"), torch.rand(9, device="cuda")
    noise = torch.randn_like(x_0, requires_grad=True)
    opcheck(q_sample_op, (x_0, t, table, table.clone(), noise, None, None, False))
    opcheck(q_sample_op, (x_0, t, table, table.clone(), None, t, t.clone(), True))
