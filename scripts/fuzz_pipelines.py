"""Random pipelines of diffusers, ours in the original's place: `python scripts/fuzz_pipelines.py --cases 99`.

Tiny networks with random weights under the schedulers of `scripts/fuzz_schedulers.py`, called with arguments
drawn by the case's seed. Wrong is what is wrong there, images of another type, and a call of the original's
step.
"""

from __future__ import annotations

import functools
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import diffusers
import latent_pipelines as tiny  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from drawn_schedulers import KINDS, configuration, made  # type: ignore[import-not-found, unused-ignore]
from fuzz_schedulers import Outcome, attempt, judged, run, shown
from PIL import Image

import fastddpm

PIPELINES = (
    "DDPM",
    "DDIM",
    "PNDM",
    "LDM",
    "LDMSuperResolution",
    "DiT",
    "StableDiffusion",
    "StableDiffusionImg2Img",
)
PIPELINES += ("RePaint", "KarrasVe", "ScoreSdeVe")
STEPS = ("step", "step_pred", "step_correct")
TOLERANCE = 1e-4
Case = tuple[Any, dict[str, Any], str]


def one(seed: int, names: tuple[str, ...]) -> Outcome:
    """A case."""
    source = random.Random(seed)
    name = source.choice(names)
    prepared, error = attempt(lambda: _MADE.get(name, functools.partial(_of_texts, name))(source))
    if error is not None:
        return Outcome("no such case", name, repr(error))
    pipeline, call, words = prepared
    count = source.choice([0, 1, 1, call.get("batch_size", 1)])
    tiny.quiet(pipeline)
    case = f"{name} {words} {_described(call)} generators={count}"
    expected, theirs = attempt(lambda: _drawn(pipeline, call, count))
    with _Counted(type(pipeline.scheduler)) as counted:
        fast, refused = attempt(lambda: fastddpm.optimize(pipeline))
        got, ours = (None, refused) if refused else attempt(lambda: _drawn(fast, call, count))
    early = judged(expected, theirs, ours, lambda: bool(tiny.tensor(expected[0]).isfinite().all()))
    if early:
        return Outcome(early, case, repr(ours or theirs))
    if counted.steps:
        return Outcome("THE ORIGINAL'S STEP IS CALLED", case, f"{counted.steps} times")
    wrong, detail = _compared(expected, got)
    return Outcome(wrong, case, detail)


class _Counted:
    """Calls of a scheduler's steps meanwhile."""

    def __init__(self, scheduler: type) -> None:
        self.steps = 0
        self._scheduler = scheduler
        self._methods = {name: getattr(scheduler, name) for name in STEPS if hasattr(scheduler, name)}

    def __enter__(self) -> _Counted:
        for name, method in self._methods.items():
            setattr(self._scheduler, name, self._counting(method))
        return self

    def __exit__(self, *error: object) -> None:
        for name, method in self._methods.items():
            setattr(self._scheduler, name, method)

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counting(*args: Any, **options: Any) -> Any:
            self.steps += 1
            return method(*args, **options)

        return counting


def _drawn(pipeline: Any, call: dict[str, Any], count: int) -> tuple[Any, list[torch.Tensor]]:
    """(images, states of the generators)."""
    torch.manual_seed(5)
    generators = [torch.Generator().manual_seed(number) for number in range(count)]
    given: Any = generators if count > 1 else (generators or [None])[0]
    call = {name: value.clone() if torch.is_tensor(value) else value for name, value in call.items()}
    images = pipeline(generator=given, **call)[0]
    return images, [torch.get_rng_state(), *(one.get_state() for one in generators)]


def _compared(expected: Any, got: Any) -> tuple[str, str]:
    (a, theirs), (b, ours) = expected, got
    if type(a) is not type(b) or getattr(a, "dtype", None) != getattr(b, "dtype", None):
        return "IMAGES OF ANOTHER TYPE", f"{type(b)} {getattr(b, 'dtype', '')}"
    first, second = tiny.tensor(a), tiny.tensor(b)
    if first.shape != second.shape:
        return "IMAGES OF ANOTHER SHAPE", str(second.shape)
    if not all(x.equal(y) for x, y in zip(theirs, ours, strict=True)):
        return "ANOTHER RANDOM STREAM", ""
    off = float((first - second).abs().max())
    is_pictures = isinstance(a, list)
    largest = float(first.abs().max().clamp(min=1))
    within = off <= (1 if is_pictures else TOLERANCE * largest)
    return ("same", "") if within else ("DIFFERS", f"by {off:.2g} of {largest:.2g}")


def _described(call: dict[str, Any]) -> dict[str, Any]:
    return shown({name: tuple(v.shape) if torch.is_tensor(v) else v for name, v in call.items()})


def _scheduler(source: random.Random, *kinds: str) -> tuple[Any, str]:
    kind = source.choice(kinds or KINDS)
    config = configuration(source, kind)
    if source.random() < 0.8:
        config.pop("variance_type", None)
    if source.random() < 0.7:
        config.pop("thresholding", None)
    return made(kind, config), f"{kind} {shown(config)}"


def _common(source: random.Random, *output_types: str) -> dict[str, Any]:
    call = {"num_inference_steps": source.choice([1, 2, 3, 4, 5, 7, 10, 13])}
    return {**call, "output_type": source.choice(output_types)}


def _pixels(name: str, source: random.Random) -> Case:
    kinds = KINDS if source.random() < 0.5 and name != "DDIM" else (name,)
    scheduler, words = _scheduler(source, *kinds)
    learns = name == "DDPM" and scheduler.config.get("variance_type") in ("learned", "learned_range")
    network = tiny.pixel_unet(3, 6 if learns else 3)
    pipeline = getattr(diffusers, f"{name}Pipeline")(network, getattr(diffusers, f"{name}Scheduler")())
    pipeline.scheduler = scheduler  # the pipeline's maker changes some
    call = {**_common(source, "np", "pil"), "batch_size": source.choice([1, 2, 3])}
    if name == "DDIM":
        call |= {"eta": source.choice([0.0, 0.5, 1.0]), "use_clipped_model_output": source.random() < 0.3}
    return pipeline, call, words


def _ldm(source: random.Random) -> Case:
    scheduler, words = _scheduler(source)
    pipeline = diffusers.LDMPipeline(tiny.quantizer(), tiny.pixel_unet(), scheduler)
    call = {
        **_common(source, "np", "pil"),
        "batch_size": source.choice([1, 2, 3]),
        "eta": source.choice([0.0, 0.5]),
    }
    return pipeline, call, words


def _super_resolution(source: random.Random) -> Case:
    scheduler, words = _scheduler(source)
    pipeline = diffusers.LDMSuperResolutionPipeline(tiny.quantizer(), tiny.pixel_unet(6, 3), scheduler)
    low = torch.randn(source.choice([1, 2]), 3, 8, 8, generator=torch.Generator().manual_seed(8))
    image = low if source.random() < 0.5 else _picture(source.choice([32, 64]))
    call = {**_common(source, "np", "pil", "pt"), "image": image, "eta": source.choice([0.0, 0.5])}
    return pipeline, call, words


def _dit(source: random.Random) -> Case:
    torch.manual_seed(2)
    network = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=source.choice([8, 8, 4]),
        num_embeds_ada_norm=1000,
    ).eval()
    scheduler, words = _scheduler(source)
    call = {**_common(source, "np", "pil", "pt"), "class_labels": source.choice([[1], [1, 207], [3, 3, 999]])}
    call["guidance_scale"] = source.choice([4.0, 1.0, 1.5, 0.5])
    return diffusers.DiTPipeline(network, tiny.autoencoder(), scheduler), call, words


def _of_texts(name: str, source: random.Random) -> Case:
    scheduler, words = _scheduler(source)
    unet = tiny.text_unet(**({"time_cond_proj_dim": 32} if source.random() < 0.15 else {}))
    pipeline = tiny.text_pipeline(getattr(diffusers, f"{name}Pipeline"), scheduler, words=_words(), unet=unet)
    pipeline.scheduler = scheduler
    count = source.choice([1, 1, 2])
    call = _common(source, "latent", "latent", "np", "pil", "pt")
    call |= {"num_images_per_prompt": source.choice([1, 1, 2]), "eta": source.choice([0.0, 0.0, 0.5])}
    call["guidance_scale"] = source.choice([7.5, 5.0, 1.0, 0.5, 2.0, 0.0])
    if source.random() < 0.5:
        call["prompt"] = ["a cat", "b c d"][:count]
        call["negative_prompt"] = source.choice([None, ["dog", "x"][:count]])
    else:
        call |= tiny.embeds(count)
    if source.random() < 0.2:
        call["clip_skip"] = source.choice([1, 2])
    if name == "StableDiffusion":
        call["guidance_rescale"] = source.choice([0.0, 0.0, 0.0, 0.7])
        call["height"], call["width"] = source.choice([(None, None), (16, 32), (24, 16)])
    else:
        call["strength"] = source.choice([0.8, 0.5, 0.3, 1.0, 0.1, 0.99])
        latents = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        call["image"] = latents if source.random() < 0.5 else [_picture(16)] * count
    return pipeline, call, words


def _repaint(source: random.Random) -> Case:
    config = {
        "num_train_timesteps": source.choice([1000, 50]),
        "eta": source.choice([0.0, 0.5, 1.0]),
        "beta_schedule": source.choice(["linear", "squaredcos_cap_v2", "scaled_linear", "sigmoid"]),
        "clip_sample": source.choice([True, False]),
    }
    batch = source.choice([1, 2])
    image = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(8)).clamp(-1, 1)
    mask = torch.ones(batch, 1, 8, 8)
    mask[:, :, :4] = 0
    call = {
        **_common(source, "np", "pil"),
        "image": image,
        "mask_image": mask,
        "eta": source.choice([0.0, 0.5, 1.0]),
    }
    call |= {"jump_length": source.choice([1, 2, 3, 10]), "jump_n_sample": source.choice([1, 2, 3])}
    pipeline = diffusers.RePaintPipeline(tiny.pixel_unet(), diffusers.RePaintScheduler())
    pipeline.scheduler = diffusers.RePaintScheduler(**config)
    return pipeline, call, str(config)


def _exploding(name: str, source: random.Random) -> Case:
    values: dict[str, list[Any]] = {
        "KarrasVe": {
            "s_noise": [1.007, 1.0],
            "s_churn": [80, 0.0, 3.0],
            "s_min": [0.05, 0.0],
            "s_max": [50, 1.0],
        },
        "ScoreSdeVe": {
            "num_train_timesteps": [2000, 100],
            "snr": [0.15, 0.05],
            "correct_steps": [1, 1, 2, 0],
        },
    }[name]
    config = {option: source.choice(given) for option, given in values.items()}
    config |= {"sigma_min": source.choice([0.02, 0.1]), "sigma_max": source.choice([2.0, 100.0, 1348.0])}
    scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
    pipeline = getattr(diffusers, f"{name}Pipeline")(tiny.pixel_unet(), scheduler)
    return pipeline, {**_common(source, "np", "pil"), "batch_size": source.choice([1, 2])}, str(config)


def _picture(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 255, (size, 32, 3), dtype=np.uint8))


@functools.cache
def _words() -> Any:
    return tiny.tokenizer(Path(tempfile.mkdtemp(prefix="fastddpm-words-")))


_MADE: dict[str, Callable[[random.Random], Case]] = {
    **{name: functools.partial(_pixels, name) for name in ("DDPM", "DDIM", "PNDM")},
    "LDM": _ldm,
    "LDMSuperResolution": _super_resolution,
    "DiT": _dit,
    "RePaint": _repaint,
    **{name: functools.partial(_exploding, name) for name in ("KarrasVe", "ScoreSdeVe")},
}

if __name__ == "__main__":
    run(one, PIPELINES, "scripts/fuzz_pipelines.py", __doc__ or "")
