"""Proofs e and g: the launches and bytes of a whole step, and cubins of all that Inductor generates for it.

The network is the UNet2DModel of 2.8 million parameters in bfloat16, channels_last, 4 images of 3x32x32,
lowered for sm_90 as engine `compile` compiles it; captured as it is, that of google/ddpm-cifar10-32 too.
"""

from __future__ import annotations

import fake_gpu
import pytest

fake_gpu.skip_unless_pinned()

from diffusers import UNet2DModel  # noqa: E402
from fake_gpu import fake_card  # noqa: E402
from kernel_build import spilled_bytes  # noqa: E402
from lowering import STEP_LAUNCHES, captured_operators, compile_kernel, is_copy, lower  # noqa: E402

from fastddpm.fusion import fuse_norms  # noqa: E402
from fastddpm.unet import diffusers  # noqa: E402

# By one process, which lowers each network once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lowering")]
TARGET = "sm_90"


def theirs():
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(64, 128),
        norm_num_groups=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def ours():
    unet = diffusers.from_module(theirs())
    assert unet is not None
    return unet


def cifar10():
    """Of the shapes of google/ddpm-cifar10-32."""
    unet = diffusers.from_module(
        UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(128, 256, 256, 256),
            norm_num_groups=32,
            attention_head_dim=None,
            downsample_padding=0,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    )
    assert unet is not None
    return unet


def fused():
    """Their network with its norms switched to our kernels."""
    unet = theirs()
    assert fuse_norms(unet).replaced
    return unet


NETWORKS = {"diffusers": theirs, "diffusers, fuse_norms": fused, "ours": ours}
"""The first is what torch.compile does alone."""


@pytest.fixture(scope="module")
def lowered():
    """Generated code by network, each made once."""
    made = {}

    def get(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                made[name] = lower(NETWORKS[name], patch, TARGET)
        return made[name]

    return get


@pytest.mark.parametrize("name", NETWORKS)
def test_launches_of_a_step(name, lowered, proof, ceilings):
    code = lowered(name)
    launches, most = code.launches + STEP_LAUNCHES, ceilings["launches"][name]
    n_bytes, most_bytes = code.n_bytes / 2**20, ceilings["megabytes"][name]
    proof(
        "e",
        name,
        launches=f"{launches} of {most}",
        generated=len(code.triton),
        library=code.library.total(),
        attention=code.attentions,
        **{"layout copies": len(code.layout_copies), "MiB": f"{n_bytes:.1f} of {most_bytes}"},
    )
    assert code.attentions == 4, "one kernel for each attention"
    # The phases of an upsampling are put in order where others double the map: one pass too.
    assert len(code.layout_copies) == (1 if name == "ours" else 0)
    assert launches <= most
    assert n_bytes <= most_bytes


@pytest.mark.parametrize(("name", "make"), [("ours", ours), ("CIFAR-10", cifar10)])
def test_launches_of_a_captured_step(name, make, proof, ceilings, monkeypatch):
    """Biases and residuals are operators of their own only before halving, doubling and concatenation."""
    counts = captured_operators(make, monkeypatch)
    operators = counts.launched
    # The last convolution has its bias with it, which cuDNN leaves to another kernel.
    launches, most = len(operators) + 1 + STEP_LAUNCHES - 1, ceilings["captured"][name]
    library = sum("convolution" in name or "mm" in name or "attention" in name for name in operators)
    norms = sum("group_norm_silu" in name for name in operators)
    counted = {"launches": f"{launches} of {most}", "library": library, "group_norm_silu": norms}
    bytes_over_least, most_over = counts.over_least, ceilings["bytes_over_least"][name]
    counted["bytes over the library's"] = f"{bytes_over_least:.2f} of {most_over}"
    proof("e", f"{name}, captured as it is", **counted)
    assert launches <= most
    assert bytes_over_least <= most_over


@pytest.mark.parametrize("name", ["diffusers", "ours"])
def test_every_generated_kernel_compiles_without_spills(name, lowered, proof, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernels = lowered(name).kernels
    assert len(kernels) > (5 if name == "ours" else 20)
    with fake_card(TARGET):
        builds = {kernel: compile_kernel(kernel, source, tmp_path) for kernel, source in kernels.items()}
    spilled = {kernel: spilled_bytes(build, TARGET, tmp_path) for kernel, build in builds.items()}
    spilled = {kernel: n_bytes for kernel, n_bytes in spilled.items() if n_bytes}
    proof("g", f"{name}, {TARGET}", kernels=len(builds), spilled=len(spilled))
    assert spilled == {}


def test_what_counts_as_a_layout_copy():
    head = "triton_meta={'signature': {'in_ptr0': '*bf16', 'out_ptr0': '*SECOND'}}\n@triton.jit\n"
    body = (
        "def triton_poi_copy(in_ptr0, out_ptr0, xnumel):\n"
        "    tmp0 = tl.load(in_ptr0 + (x0), xmask).to(tl.float32)\n"
        "    LINE\n"
        "    tl.store(out_ptr0 + (x1), tmp0, xmask)\n"
    )
    assert is_copy((head + body).replace("SECOND", "bf16").replace("    LINE\n", ""))
    assert not is_copy((head + body).replace("SECOND", "fp32").replace("    LINE\n", ""))
    assert not is_copy((head + body).replace("SECOND", "bf16").replace("LINE", "tmp1 = tmp0 + 1.0"))
