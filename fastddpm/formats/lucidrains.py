"""denoising-diffusion-pytorch (lucidrains): state dicts of its Unet, alone or within its GaussianDiffusion.

Our UNet has no such blocks (RMSNorm, linear attention with memory), so the network is the library's own, with
the tensors given. Source: denoising-diffusion-pytorch 2.3.4, denoising_diffusion_pytorch.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.formats.files import CheckpointError, ConfigError
from fastddpm.formats.loaded import SHARED, Loaded, ask, known, schedule_of, square
from fastddpm.inputs import Fields
from fastddpm.plans.lucidrains import OBJECTIVES
from fastddpm.unet.config import MAX_LEVELS

ANCHOR = "downs.0.0.block1.proj.weight"
_INSTEAD = "fastddpm.optimize(diffusion), with the object that its own code builds, takes it"


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is that of one of its Unets."""
    return ANCHOR in state and "init_conv.weight" in state


def read(state: Mapping[str, Tensor], buffers: Mapping[str, Tensor], given: Fields) -> Loaded:
    """Reads a state dict.

    Args:
        state: of a Unet.
        buffers: of the GaussianDiffusion that held it, whose betas are the schedule and whose loss_weight
            shows the objective; or none.
        given: ``image_size``; ``schedule`` and ``objective`` (pred_noise, pred_x0 or pred_v) where no buffers
            show them; ``theta`` where its sinusoidal_pos_emb_theta is not 10000.

    Raises:
        CheckpointError: naming what is missing, or a network that is not its Unet of images.
    """
    known(given, ("objective", "theta", *SHARED))
    asked = {"image_size": "a side in pixels or (H, W)"}
    objective, schedule = given.get("objective") or _objective(buffers), given.get("schedule")
    if schedule is None and "betas" in buffers:
        schedule = buffers["betas"].detach().cpu().double().numpy()
    if objective is None:
        asked["objective"] = ", ".join(OBJECTIVES)
    if schedule is None:
        asked["schedule"] = "a NoiseSchedule or its betas"
    ask(given, asked, "a state dict of lucidrains")
    if objective not in tuple(OBJECTIVES):
        raise ConfigError(f"objective={objective!r} given, one of {', '.join(OBJECTIVES)} accepted")
    noise_schedule, (height, width) = schedule_of(schedule), square(given["image_size"])
    model = _network(state, given.get("theta", 10000))
    # Its sampling: x0 clipped, the posterior's variance.
    return Loaded(
        model,
        noise_schedule,
        {
            "method": "ddpm",
            "prediction_type": OBJECTIVES[str(objective)],
            "clip_sample_range": 1.0,
            "shape": [state["init_conv.weight"].shape[1], height, width],
        },
    )


def _objective(buffers: Mapping[str, Tensor]) -> str | None:
    """What the network was trained to predict, by the weight of its loss; None where that is not to be seen.

    Where the signal is weaker than the noise, min_snr_loss_weight leaves the weight as it is.
    """
    if not {"loss_weight", "alphas_cumprod"} <= buffers.keys():
        return None
    kept, weight = (
        buffers[name].detach().cpu().double().numpy() for name in ("alphas_cumprod", "loss_weight")
    )
    if kept.shape != weight.shape:
        return None
    with np.errstate(all="ignore"):
        ratio = kept / (1 - kept)
    weak = ratio < 1
    expected = {"pred_noise": np.ones_like(ratio), "pred_x0": ratio, "pred_v": ratio / (ratio + 1)}
    fitting = [
        name for name, one in expected.items() if np.allclose(weight[weak], one[weak], rtol=1e-3, atol=1e-6)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _network(state: Mapping[str, Tensor], theta: object) -> nn.Module:
    try:
        from denoising_diffusion_pytorch import Unet  # type: ignore[import-untyped]
    except ImportError as error:
        raise CheckpointError(
            "state dict: of denoising-diffusion-pytorch, whose own Unet runs it: pip install that package"
        ) from error
    try:
        options = _options(state)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"state dict: no Unet of denoising-diffusion-pytorch ({error})") from error
    try:
        with torch.device("meta"):  # nothing is allocated for sizes that the tensors do not have
            model: nn.Module = Unet(**options, sinusoidal_pos_emb_theta=theta)
        model.load_state_dict(dict(state), assign=True)
    except Exception as error:  # the constructor checks little, and raises what a bad option trips it over
        reason = " ".join((str(error) or type(error).__name__).split())[:150]
        raise CheckpointError(
            f"state dict: not a Unet of denoising-diffusion-pytorch 2.3 ({reason})"
        ) from error
    return model.requires_grad_(False).eval()


def _options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of its Unet, as the shapes of a state dict show them."""
    if "null_classes_emb" in state or "classes_emb.weight" in state:
        raise ValueError(f"the one for classifier-free guidance; {_INSTEAD}")
    first, last = state["init_conv.weight"], state["final_conv.weight"]
    if first.ndim != 4:
        raise ValueError(f"its weights have {first.ndim - 2} dimensions; {_INSTEAD}")
    channels, out = first.shape[1], last.shape[0]
    if channels != out:
        what = "self-conditioned" if channels == 2 * out else f"{channels} channels in, {out} out"
        raise ValueError(f"{what}; {_INSTEAD}")
    dim = state["time_mlp.3.weight"].shape[0] // 4
    levels = sum(f"downs.{level}.0.block1.proj.weight" in state for level in range(MAX_LEVELS))
    widths, heads, head_dims, full = [], [], [], []
    for level in range(levels):
        at = f"downs.{level}"
        down = state[f"{at}.3.weight" if f"{at}.3.weight" in state else f"{at}.3.1.weight"]
        memory, is_full = state[f"{at}.2.mem_kv"], f"{at}.2.to_out.weight" in state
        widths.append(down.shape[0])
        heads.append(memory.shape[1])
        head_dims.append(memory.shape[3 if is_full else 2])
        full.append(is_full)
    if not dim or any(width % dim for width in widths):
        raise ValueError(f"widths {widths}, multiples of {dim} accepted")
    options = {
        "dim": dim,
        "init_dim": first.shape[0],
        "dim_mults": tuple(width // dim for width in widths),
        "channels": channels,
        "full_attn": tuple(full),
        "attn_heads": tuple(heads),
        "attn_dim_head": tuple(head_dims),
    }
    frequencies = state.get("time_mlp.0.weights")
    if frequencies is not None:
        options |= {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 2 * len(frequencies)}
    return options
