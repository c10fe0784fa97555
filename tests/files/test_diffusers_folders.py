"""Folders as diffusers writes them: variants, shards, averages, old names, and what draws no pictures."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import NETWORK

import fastddpm
from fastddpm import CheckpointError, load
from fastddpm.unet import diffusers as dialect

diffusers = pytest.importorskip("diffusers")

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
FOREIGN = {"downsample_type": "resnet", "upsample_type": "resnet"}
X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
WEIGHTS = "diffusion_pytorch_model"


def network(seed=0, **options):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(**{**TINY, **options}).eval()


def pipeline(folder, unet=None, **options):
    diffusers.DDPMPipeline(unet or network(), diffusers.DDPMScheduler()).save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def difference(model, unet):
    out = model(X, T)
    return (getattr(out, "sample", out) - unet.float()(X, T).sample).abs().max()


def refused(folder, *words, **options):
    """The one line that a folder is refused with, which holds all the words."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, **options)
    message = str(caught.value).replace(str(folder), ".")
    assert "\n" not in message, message
    assert len(message) < 300, message
    for word in words:
        assert word in message, message
    return message


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("variant", "safe", "size", "alone"),
    [*itertools.product([None, "fp16"], [True, False], ["10GB", "40KB"], [True, False])],
)
def test_weights_under_every_name_that_diffusers_gives_them(tmp_path, variant, safe, size, alone):
    unet = network()
    if variant:
        unet.half()
    options = {"variant": variant, "safe_serialization": safe, "max_shard_size": size}
    if alone:
        unet.save_pretrained(tmp_path, **options)
    else:
        pipeline(tmp_path, unet, **options)
    config = {"scheduler": {"_class_name": "DDPMScheduler"}}
    model = load(tmp_path, config=config).model
    assert difference(model, unet) <= NETWORK
    assert difference(load(tmp_path, variant=variant, config=config).model, unet) <= NETWORK


@pytest.mark.parametrize(
    "name", [f"{WEIGHTS}.{kind}" for kind in ("safetensors.fp16.index", "fp16.safetensors.index")]
)
def test_indices_as_earlier_versions_named_them(tmp_path, name):
    unet = network()
    unet.save_pretrained(tmp_path, variant="fp16", max_shard_size="40KB")
    (tmp_path / f"{WEIGHTS}.safetensors.index.fp16.json").rename(tmp_path / f"{name}.json")
    model = load(tmp_path, config={"scheduler": {"_class_name": "DDPMScheduler"}}).model
    assert difference(model, unet) <= NETWORK


def test_which_of_several_variants(tmp_path):
    nets = {variant: network(seed) for seed, variant in enumerate(("fp16", "bf16", None))}
    for variant in ("fp16", "bf16"):
        pipeline(tmp_path, nets[variant], variant=variant)
    refused(tmp_path, "config: variant not given", '"bf16" or "fp16"')
    for variant in ("fp16", "bf16"):
        assert difference(load(tmp_path, variant=variant).model, nets[variant]) <= NETWORK
    pipeline(tmp_path, nets[None])
    assert difference(load(tmp_path).model, nets[None]) <= NETWORK
    assert difference(load(tmp_path, config={"variant": "fp16"}).model, nets["fp16"]) <= NETWORK
    refused(tmp_path, f"{WEIGHTS}.ema.safetensors: not found", f"{WEIGHTS}.bf16.safetensors", variant="ema")
    refused(tmp_path, "config: variant=3 given", variant=3)


def test_what_is_there_instead_is_listed(tmp_path):
    weights = pipeline(tmp_path) / "unet" / f"{WEIGHTS}.safetensors"
    weights.rename(weights.with_name("model.safetensors"))
    refused(tmp_path, f"{WEIGHTS}.safetensors: not found", "there is model.safetensors")
    weights.with_name("model.safetensors").unlink()
    refused(tmp_path, "there is no file of weights")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "holds list"),
        (None, "holds NoneType"),
        ({}, "no weight_map given"),
        ({"weight_map": ["a"]}, "no weight_map given"),
        ({"weight_map": {"a": 1}}, "1 given, names of .safetensors files"),
        ({"weight_map": {"a": "config.json"}}, "'config.json' given, names of"),
        ({"weight_map": {"a": "x" * 9000 + ".safetensors"}}, "... given as the name of a file"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "'../outside.safetensors' given as the name"),
        ({"weight_map": {"a": "/outside.safetensors"}}, "given as the name of a file"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors: not found"),
    ],
)
def test_a_wrong_index_opens_nothing(tmp_path, monkeypatch, index, message):
    folder = pipeline(tmp_path) / "unet"
    shutil.copy(folder / f"{WEIGHTS}.safetensors", tmp_path / "outside.safetensors")
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))
    if "gone" not in message:
        monkeypatch.setattr(
            "fastddpm.formats._diffusers.folder.read_tensors", lambda path: pytest.fail(str(path))
        )
    refused(tmp_path, message)


def test_a_tensor_in_two_shards(tmp_path):
    folder = pipeline(tmp_path, max_shard_size="40KB") / "unet"
    first, second = sorted(folder.glob(f"{WEIGHTS}-*.safetensors"))[:2]
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: value}, second)
    refused(tmp_path, f"{name} given, which another shard has")


# ------------------------------------------------------------------ training's folders


def test_checkpoints_of_the_training_script(tmp_path):
    """accelerate's hooks in examples/unconditional_image_generation write these two folders."""
    raw, averaged = network(0), network(1)
    average = diffusers.training_utils.EMAModel(
        averaged.parameters(),
        decay=0.99,
        use_ema_warmup=True,
        model_cls=diffusers.UNet2DModel,
        model_config=raw.config,
    )
    folder = tmp_path / "checkpoint-500"
    raw.save_pretrained(folder / "unet")
    average.save_pretrained(folder / "unet_ema")
    assert "optimization_step" in json.loads((folder / "unet_ema" / "config.json").read_text())
    refused(folder, "config: scheduler not given")
    config = {"scheduler": {"_class_name": "DDPMScheduler"}}
    sampler = load(folder, config=config)
    assert isinstance(sampler.model, fastddpm.UNet)
    assert difference(sampler.model, averaged) <= NETWORK
    assert difference(load(folder, config=config, ema=False).model, raw) <= NETWORK
    assert difference(load(folder / "unet_ema", config=config).model, averaged) <= NETWORK
    live = diffusers.UNet2DModel.from_pretrained(folder / "unet_ema").eval()
    assert dialect.from_module(live) is not None


# ------------------------------------------------------------------ names of attention


@pytest.mark.filterwarnings("ignore:diffusers' own UNet2DModel")
@pytest.mark.parametrize("options", [{}, FOREIGN], ids=["ours", "theirs"])
def test_old_names_of_attention(tmp_path, options):
    unet = network(**options)
    weights = pipeline(tmp_path, unet) / "unet" / f"{WEIGHTS}.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, value in unet.state_dict().items():
        for new, former in old.items():
            name = name.replace(new, former)
        state[name] = value.contiguous()
    save_file(state, weights, metadata={"format": "pt"})
    peer = diffusers.DDPMPipeline.from_pretrained(tmp_path).unet.eval()
    assert difference(load(tmp_path).model, peer) <= NETWORK


@pytest.mark.filterwarnings("ignore:diffusers' own UNet2DModel")
def test_tensors_that_their_network_has_not_are_named(tmp_path):
    weights = pipeline(tmp_path, network(**FOREIGN)) / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(weights)
    save_file({**state, "extra": torch.ones(2)}, weights)
    refused(tmp_path, "extra has shape (2,), no such tensor expected")
    del state["conv_in.bias"]
    save_file(state, weights)
    refused(tmp_path, "conv_in.bias has shape none (missing), (16,) expected")


# ------------------------------------------------------------------ classes


def conditional():
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DConditionModel(sample_size=8, **blocks, **sizes).eval()


def coder():
    return diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, sample_size=8, num_vq_embeddings=8)


def transformer():
    return diffusers.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=1,
        sample_size=8,
        norm_num_groups=4,
    )


OTHERS = {"UNet2DConditionModel": conditional, "VQModel": coder, "Transformer2DModel": transformer}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("place", ["pipeline", "alone"])
def test_other_networks_are_named(tmp_path, name, place):
    other = OTHERS[name]()
    if place == "alone":
        other.save_pretrained(tmp_path)
        refused(tmp_path, name, "UNet2DModel accepted")
        return
    made = diffusers.DDPMPipeline(other, diffusers.DDPMScheduler())
    made.save_pretrained(tmp_path)
    refused(tmp_path, name)
    with pytest.raises(ValueError, match=f"unet: {name}, which"):
        fastddpm.optimize(made)


def test_a_network_that_wants_more_is_named_by_what_it_wants():
    class Wants(torch.nn.Module):
        def forward(self, sample, timestep, prompt):
            return sample

    made = diffusers.DDPMPipeline(network(), diffusers.DDPMScheduler())
    made.unet = Wants()
    with pytest.raises(ValueError, match=r"unet: Wants, called as unet.*'prompt'"):
        fastddpm.optimize(made)


def test_latents_are_not_drawn_as_pixels(tmp_path):
    whole = tmp_path / "ldm"
    vqvae = coder()
    diffusers.LDMPipeline(vqvae=vqvae, unet=network(), scheduler=diffusers.DDIMScheduler()).save_pretrained(
        whole
    )
    refused(whole, "'LDMPipeline' with a VQModel given, which draws latents")
    assert "LDMPipeline" in fastddpm.optimize(diffusers.LDMPipeline.from_pretrained(whole)).report().peer
    # Nor where its network alone is given.
    refused(whole / "unet", "'LDMPipeline' with a VQModel given, which draws latents")
    (whole / "model_index.json").unlink()
    refused(whole, "vqvae: a coder beside the network given, which draws latents")
    refused(whole / "unet", "vqvae: a coder beside the network given, which draws latents")
    # Of a run that trains it, a checkpoint.
    shutil.copytree(whole / "unet", whole / "checkpoint-500" / "unet_ema")
    for part in ("checkpoint-500", "checkpoint-500/unet_ema"):
        refused(whole / part, "vqvae: a coder beside the network given, which draws latents")
    given = {"scheduler": {"_class_name": "DDPMScheduler"}}
    renamed = shutil.copytree(whole / "unet", whole / "network")
    assert load(renamed, config=given).shape == (1, 8, 8)  # of another name, it is no part of anything


@pytest.mark.parametrize("place", ["checkpoint-500", "checkpoint-500/unet_ema", "unet"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_the_scheduler_of_the_run(tmp_path, monkeypatch, place, is_relative):
    """The training script saves the pipeline beside its checkpoints, which have none."""
    unet = network()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=77, prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "run")
    for name in ("unet", "unet_ema"):
        shutil.copytree(tmp_path / "run" / "unet", tmp_path / "run" / "checkpoint-500" / name)
    folder = tmp_path / "run" / place
    if is_relative:
        monkeypatch.chdir(folder)
        folder = "."
    sampler = load(folder)
    assert (len(sampler.schedule), sampler.plan.prediction_type) == (77, "v_prediction")
    assert difference(sampler.model, unet) <= NETWORK
    changed = load(folder, config={"scheduler": {"prediction_type": "epsilon"}})
    assert (len(changed.schedule), changed.plan.prediction_type) == (77, "epsilon")
    own = tmp_path / "run" / place / "scheduler"
    diffusers.DDIMScheduler(num_train_timesteps=88).save_pretrained(own)
    assert len(load(folder).schedule) == 88


def index_of(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "LDMPipeline"}, "'LDMPipeline' given, which draws latents"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "with a AutoencoderKL given, which draws latents"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "with text_encoder (CLIPTextModel) given"),
        ({"unet": [None, None]}, "without a unet given"),
        ({"unet": ["diffusers", 3]}, "unet=['diffusers', 3] given, [library, class] accepted"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel by model_index.json"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "DDIMScheduler by model_index.json"),
    ],
)
def test_the_index_is_read_first(tmp_path, changes, message):
    index_of(pipeline(tmp_path), **changes)
    (tmp_path / "unet" / f"{WEIGHTS}.safetensors").unlink()
    refused(tmp_path, message)


def test_parts_that_are_not_there_change_nothing(tmp_path):
    unet = network()
    index_of(
        pipeline(tmp_path, unet), vqvae=[None, None], _class_name="MyPipeline", requires_safety_checker=False
    )
    assert difference(load(tmp_path).model, unet) <= NETWORK


# ------------------------------------------------------------------ wrong configurations


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_out_channels", []),
        ("block_out_channels", [16, 10**12]),
        ("block_out_channels", [16, 1.5]),
        ("down_block_types", ["DownBlock2D"]),
        ("block_out_channels", "16"),
        ("layers_per_block", 1e9),
        ("layers_per_block", 10**9),
        ("layers_per_block", None),
        ("down_block_types", [1, 2]),
        ("in_channels", 10**12),
        ("num_class_embeds", 10**12),
        ("norm_num_groups", 0),
        ("norm_eps", "x"),
        ("freq_shift", "x"),
        ("time_embedding_dim", 10**12),
        ("attention_head_dim", -1),
        ("downsample_padding", None),
        ("mid_block_scale_factor", 0),
        ("dropout", 2),
        ("add_attention", "yes"),
        ("act_fn", "x" * 5000),
        ("sample_size", "x" * 5000),
        ("_class_name", 3),
    ],
)
@pytest.mark.filterwarnings("ignore:diffusers' own UNet2DModel")
def test_a_wrong_network_is_refused_before_it_is_built(tmp_path, monkeypatch, name, value):
    path = pipeline(tmp_path) / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    if name != "act_fn":  # which is diffusers' to refuse
        monkeypatch.setattr("fastddpm.formats.diffusers.build", lambda *_: pytest.fail("built"))
        (tmp_path / "unet" / f"{WEIGHTS}.safetensors").unlink()
    words = {"act_fn": "no UNet2DModel can be built for it", "sample_size": "image_size"}
    refused(tmp_path, words.get(name, name))


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_what_is_given_is_a_mapping(tmp_path, name):
    refused(pipeline(tmp_path), f"config: {name}='ddim' given, a mapping", config={name: "ddim"})
