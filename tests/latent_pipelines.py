"""diffusers' pipelines of latents, tiny, with random weights, and what every drop-in of one is held to."""

from __future__ import annotations

import json

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import fastddpm

TOLERANCE = 1e-4
"""Largest difference of two latents over a whole chain in float32."""
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""Stable Diffusion's."""


def ddim(**config):
    return DDIMScheduler(**{**BETAS, "clip_sample": False, "set_alpha_to_one": False, **config})


def solver(**config):
    return DPMSolverMultistepScheduler(**{**BETAS, **config})


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def autoencoder():
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=2,
    ).eval()


def quantizer():
    torch.manual_seed(1)
    return VQModel(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=3,
        norm_num_groups=2,
        num_vq_embeddings=16,
    ).eval()


def pixel_unet(channels=3, out_channels=3):
    torch.manual_seed(2)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).eval()


def text_unet(**options):
    """diffusers' own dummy of its tests, of fewer layers."""
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        **options,
    ).eval()


def text_encoder():
    torch.manual_seed(4)
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=100,
    )
    return CLIPTextModel(config).eval()


def tokenizer(folder):
    """One that knows the letters and a cat, written into a folder."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{one}</w>" for one in letters),
        "ca",
        "cat</w>",
    ]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    options = {"model_max_length": 7, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return CLIPTokenizer.from_pretrained(folder)


def text_pipeline(cls=StableDiffusionPipeline, scheduler=None, *, unet=None, words=None, **parts):
    return quiet(
        cls(
            vae=autoencoder(),
            text_encoder=text_encoder(),
            tokenizer=words,
            unet=unet or text_unet(),
            scheduler=scheduler or ddim(),
            **{"safety_checker": None, "feature_extractor": None, **parts},
            requires_safety_checker=False,
        )
    )


def embeds(count=2, seed=0):
    """What a text encoder may have made of prompts and of negative ones."""
    generator = torch.Generator().manual_seed(seed)
    given, negative = (torch.randn(count, 7, 32, generator=generator) for _ in range(2))
    return {"prompt_embeds": given, "negative_prompt_embeds": negative}


def tensor(images):
    """Images of any output type as one float64 tensor."""
    if isinstance(images, list):
        images = np.stack([np.asarray(image, np.float64) for image in images])
    return torch.as_tensor(images).double()


def drawn(each, seed=5, generator=1, **call):
    """Images, and the states of both generators afterwards."""
    torch.manual_seed(seed)
    given = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator()
    images = each(generator=given, **call).images
    held = given if isinstance(given, list) else [given]
    return images, [torch.get_rng_state(), *(one.get_state() for one in held if one is not None)]


def hold(pipeline, fast=None, tolerance=TOLERANCE, **call):
    """The same images or latents, and the same states of the generators afterwards; the images."""
    fast = fast or fastddpm.optimize(pipeline)
    expected, theirs = drawn(pipeline, **call)
    got, ours = drawn(fast, **call)
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True)), "the random stream differs"
    assert type(got) is type(expected)
    assert getattr(got, "dtype", None) == getattr(expected, "dtype", None)
    ours, theirs = tensor(got), tensor(expected)
    assert ours.shape == theirs.shape
    assert theirs.isfinite().all()
    assert theirs.std() > 0.01
    assert (ours - theirs).abs().max() <= tolerance
    return got


def forbid_steps(monkeypatch, *schedulers):
    """No call of a scheduler's step."""

    def forbidden(*args, **kwargs):
        raise AssertionError("the scheduler's step was called")

    for scheduler in schedulers:
        monkeypatch.setattr(type(scheduler), "step", forbidden)


def remembered(pipeline):
    """Everything of a pipeline that a call could change."""
    scheduler = {
        k: v.tolist() if torch.is_tensor(v) else repr(v) for k, v in vars(pipeline.scheduler).items()
    }
    return repr(scheduler), {k: id(v) for k, v in vars(pipeline).items()}, repr(dict(pipeline.config))
