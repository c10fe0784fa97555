"""LeRobot's DiffusionPolicy of images, restated around torchvision's own ResNet; and its files.

Sources: lerobot 0.4.4, policies/diffusion/modeling_diffusion.py, processor/normalize_processor.py and
processor/pipeline.py; before 0.4, policies/normalize.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from fastddpm_bench.peers import diffusion_policy
from fastddpm_bench.peers.policy_unets import DiffusionConditionalUnet1d

Statistics = dict[str, dict[str, Tensor]]


class SpatialSoftmax(nn.Module):
    def __init__(self, input_shape: torch.Size, num_kp: int) -> None:
        super().__init__()
        channels, self.height, self.width = input_shape
        self.nets = nn.Conv2d(channels, num_kp, kernel_size=1)
        x, y = np.meshgrid(np.linspace(-1.0, 1.0, self.width), np.linspace(-1.0, 1.0, self.height))
        columns = [torch.from_numpy(one.reshape(-1, 1)).float() for one in (x, y)]
        self.register_buffer("pos_grid", torch.cat(columns, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        features = self.nets(features)
        attention = torch.softmax(features.reshape(-1, self.height * self.width), dim=-1)
        grid: Any = self.pos_grid
        return (attention @ grid).view(-1, features.shape[1], 2)


class RgbEncoder(nn.Module):
    """``DiffusionRgbEncoder`` in eval mode."""

    def __init__(self, config: Any) -> None:
        import torchvision  # type: ignore[import-untyped]

        super().__init__()
        transforms = torchvision.transforms
        self.resize = transforms.Resize(config.resize_shape) if config.resize_shape else nn.Identity()
        self.center_crop = transforms.CenterCrop(config.crop_shape) if config.crop_shape else nn.Identity()
        backbone = getattr(torchvision.models, config.vision_backbone)(weights=None)
        self.backbone = nn.Sequential(*list(backbone.children())[:-2])
        if config.use_group_norm:
            self._group(self.backbone)
        shape = next(iter(config.image_features.values())).shape
        size = config.crop_shape or config.resize_shape or shape[1:]
        with torch.no_grad():
            features = self.backbone(torch.zeros(1, shape[0], *size))
        self.pool = SpatialSoftmax(features.shape[1:], config.spatial_softmax_num_keypoints)
        self.feature_dim = 2 * config.spatial_softmax_num_keypoints
        self.out = nn.Linear(self.feature_dim, self.feature_dim)
        self.calls = 0

    def _group(self, module: nn.Module) -> None:
        for name, part in module.named_children():
            if isinstance(part, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(part.num_features // 16, part.num_features))
            else:
                self._group(part)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.center_crop(self.resize(x))
        return torch.relu(self.out(torch.flatten(self.pool(self.backbone(x)), start_dim=1)))


class DiffusionModel(diffusion_policy.DiffusionModel):
    """With its own encoding of states, images and the environment."""

    def __init__(self, config: Any) -> None:
        cameras = len(config.image_features)
        width = config.robot_state_feature.shape[0]
        encoder: nn.Module = nn.Identity()
        if cameras:
            encoders = [
                RgbEncoder(config)
                for _ in range(cameras if config.use_separate_rgb_encoder_per_camera else 1)
            ]
            width += encoders[0].feature_dim * cameras
            encoder = nn.ModuleList(encoders) if config.use_separate_rgb_encoder_per_camera else encoders[0]
        if config.env_state_feature:
            width += config.env_state_feature.shape[0]
        unet = DiffusionConditionalUnet1d(config, global_cond_dim=width * config.n_obs_steps)
        kind: Any = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[config.noise_scheduler_type]
        scheduler = kind(
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            clip_sample=config.clip_sample,
            clip_sample_range=config.clip_sample_range,
            prediction_type=config.prediction_type,
        )
        super().__init__(nn.Identity(), unet, scheduler, config)
        del self.encoder
        if cameras:
            self.rgb_encoder = encoder
        if config.num_inference_steps is None:
            self.num_inference_steps = config.num_train_timesteps

    def _prepare_global_conditioning(self, batch: dict[str, Tensor]) -> Tensor:
        state = batch["observation.state"]
        batch_size, steps = state.shape[:2]
        parts = [state]
        if self.config.image_features:
            images = batch["observation.images"]  # (B, S, N, C, H, W)
            if self.config.use_separate_rgb_encoder_per_camera:
                assert isinstance(self.rgb_encoder, nn.ModuleList)
                of_cameras = images.permute(2, 0, 1, 3, 4, 5).flatten(1, 2)
                features = [one(seen) for one, seen in zip(self.rgb_encoder, of_cameras, strict=True)]
                parts.append(torch.stack(features, dim=1).reshape(batch_size, steps, -1))
            else:
                parts.append(self.rgb_encoder(images.flatten(0, 2)).reshape(batch_size, steps, -1))
        if self.config.env_state_feature:
            parts.append(batch["observation.environment_state"])
        return torch.cat(parts, dim=-1).flatten(start_dim=1)

    def generate_actions(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        steps = self.config.n_obs_steps
        global_cond = self._prepare_global_conditioning(batch)
        actions = self.conditional_sample(
            len(global_cond), global_cond=global_cond, noise=noise, generator=generator
        )
        return actions[:, steps - 1 : steps - 1 + self.config.n_action_steps]


class DiffusionPolicy(nn.Module):
    """What is saved: the model as ``diffusion``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.diffusion = config, DiffusionModel(config)

    def predict_action_chunk(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Of the observations of a batch, as LeRobot stacks them."""
        batch = dict(batch)
        if self.config.image_features:
            images = [batch[name] for name in self.config.image_features]
            batch["observation.images"] = torch.stack(images, dim=-4)
        with torch.no_grad():
            return self.diffusion.generate_actions(batch, generator=generator)


def config(inputs: dict[str, tuple[str, tuple[int, ...]]], action: int, **changes: Any) -> SimpleNamespace:
    """``DiffusionConfig`` with small networks. ``inputs`` are types and shapes by name."""
    features = {name: SimpleNamespace(type=kind, shape=shape) for name, (kind, shape) in inputs.items()}
    outputs = {"action": SimpleNamespace(type="ACTION", shape=(action,))}
    chosen: dict[str, Any] = {
        "input_features": features,
        "output_features": outputs,
        "n_obs_steps": 2,
        "horizon": 16,
        "n_action_steps": 8,
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
        "vision_backbone": "resnet18",
        "resize_shape": None,
        "crop_ratio": 1.0,
        "crop_shape": None,
        "crop_is_random": True,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": 4,
        "use_separate_rgb_encoder_per_camera": False,
        "down_dims": (16, 24),
        "kernel_size": 5,
        "n_groups": 4,
        "diffusion_step_embed_dim": 12,
        "use_film_scale_modulation": True,
        "noise_scheduler_type": "DDPM",
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "num_inference_steps": None,
    }
    found = SimpleNamespace(**chosen | changes)
    found.image_features = {name: one for name, one in features.items() if one.type == "VISUAL"}
    found.robot_state_feature = features["observation.state"]
    found.env_state_feature = features.get("observation.environment_state")
    found.action_feature = outputs["action"]
    return found


def save(policy: DiffusionPolicy, folder: Path, statistics: Statistics, *, older: bool = False) -> Path:
    """As ``save_pretrained`` of the policy and its processors; ``older``: as before 0.4."""
    folder.mkdir()
    given = vars(policy.config)
    fields = {
        name: {key: {"type": one.type, "shape": list(one.shape)} for key, one in value.items()}
        if name in ("input_features", "output_features")
        else value
        for name, value in given.items()
        if not isinstance(value, SimpleNamespace) and name != "image_features"
    }
    document = {"type": "diffusion", **{name: value for name, value in fields.items() if value is not policy}}
    document.pop("env_state_feature", None)
    (folder / "config.json").write_text(json.dumps(document, indent=4))
    state = {name: value.contiguous() for name, value in policy.state_dict().items()}
    if older:
        for name, of in statistics.items():
            for part in (
                ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",)
            ):
                key = name.replace(".", "_")
                state |= {f"{part}.buffer_{key}.{one}": value.clone() for one, value in of.items()}
    save_file(state, folder / "model.safetensors")
    if older:
        return folder
    listed = {**fields["input_features"], **fields["output_features"]}
    own = {"eps": 1e-8, "norm_map": fields["normalization_mapping"]}
    flat = {f"{name}.{one}": value for name, of in statistics.items() for one, value in of.items()}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        {"registry_name": "normalizer_processor", "config": {**own, "features": listed}},
    ]
    after = [
        {"registry_name": "unnormalizer_processor", "config": {**own, "features": fields["output_features"]}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        for i, step in enumerate(steps):
            if "normalizer" in str(step["registry_name"]):
                step["state_file"] = f"{name}_step_{i}_{step['registry_name']}.safetensors"
                save_file(
                    {key: value.clone() for key, value in flat.items()}, folder / str(step["state_file"])
                )
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}, indent=2))
    return folder
