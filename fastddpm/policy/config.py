"""What LeRobot's config.json says of a diffusion policy.

Source: lerobot 0.4.4, policies/diffusion/configuration_diffusion.py and configs/policies.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from fastddpm.checks import BadArgument, check_choice, check_number, shortened, whole
from fastddpm.inputs import MAX_SIDE, Fields, Json, asked_shape
from fastddpm.policy.normalisation import MODES

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
KINDS = ("STATE", "ENV", "VISUAL", "ACTION")
"""Of features, those that a diffusion policy takes or gives."""
MAX_FEATURES = 64
MAX_OBSERVATIONS = 1024
_SCHEDULER: Json = {
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
"""Fields of its scheduler that it sets, with LeRobot's defaults; the rest is diffusers'."""
_MODES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}


@dataclasses.dataclass(frozen=True)
class Feature:
    """What is observed at one time, or one action.

    Attributes:
        name: as a batch of LeRobot's has it.
        kind: one of `KINDS`.
        shape: of one, ``(D,)`` or, of an image, ``(C, H, W)``.
        mode: how it is normalised, one of `MODES`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    mode: str


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """A policy's observations, actions, encoder and scheduler.

    Attributes:
        state: ``observation.state``.
        images: of the cameras, all of one shape; or none.
        environment: None without.
        action: what is drawn.
        n_obs_steps: observations, the present one last.
        horizon: actions drawn, the first at the time of the first observation.
        n_action_steps: of these, how many from the present on are given.
        num_groups: of GroupNorm in the network's blocks.
        backbone: of the images' encoder.
        group_norm: whether it has GroupNorm or BatchNorm.
        keypoints: of its spatial softmax.
        separate: whether each camera has an encoder.
        resize: height and width that images are brought to; None without.
        crop: of their middle; None without.
        scheduler: diffusers' configuration.
        num_inference_steps: steps.
    """

    state: Feature
    images: tuple[Feature, ...]
    environment: Feature | None
    action: Feature
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    num_groups: int
    backbone: str
    group_norm: bool
    keypoints: int
    separate: bool
    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    scheduler: Json
    num_inference_steps: int

    @classmethod
    def from_dict(cls, fields: Fields) -> PolicyConfig:
        """That of a config.json.

        Raises:
            ValueError: naming the field, what was given and what is accepted.
        """
        if "input_features" not in fields or "output_features" not in fields:
            raise BadArgument("input_features, output_features", "none, as before LeRobot 0.2", "both")
        modes = _mapping(fields, "normalization_mapping", _MODES)
        inputs = {one.name: one for one in _features(fields, "input_features", modes)}
        outputs = {one.name: one for one in _features(fields, "output_features", modes)}
        state, action = inputs.get(STATE), outputs.get(ACTION)
        if state is None or state.kind != "STATE" or len(state.shape) != 1:
            raise BadArgument("input_features", ", ".join(inputs) or "none", f"{STATE}, a vector, among them")
        if action is None or action.kind != "ACTION" or len(action.shape) != 1:
            raise BadArgument("output_features", ", ".join(outputs) or "none", f"{ACTION}, a vector")
        environment = next((one for one in inputs.values() if one.kind == "ENV"), None)
        if environment is not None and (environment.name != ENVIRONMENT or len(environment.shape) != 1):
            raise BadArgument("input_features", environment.name, f"{ENVIRONMENT}, a vector")
        images = tuple(one for one in inputs.values() if one.kind == "VISUAL")
        if any(len(one.shape) != 3 or one.shape != images[0].shape for one in images):
            raise BadArgument("input_features", "images of several shapes", "one shape (C, H, W) for all")
        counts = {
            name: whole(name, fields.get(name, default), least=1, most=MAX_OBSERVATIONS)
            for name, default in (("n_obs_steps", 2), ("horizon", 16), ("n_action_steps", 8))
        }
        if counts["n_obs_steps"] - 1 + counts["n_action_steps"] > counts["horizon"]:
            accepted = "n_obs_steps - 1 + n_action_steps at most"
            raise BadArgument("n_action_steps", f"more than the horizon {counts['horizon']} has", accepted)
        check_choice(
            "noise_scheduler_type", kind := fields.get("noise_scheduler_type", "DDPM"), ("DDPM", "DDIM")
        )
        scheduler: Json = {"_class_name": f"{kind}Scheduler"}
        scheduler |= {name: fields.get(name, value) for name, value in _SCHEDULER.items()}
        total, steps = scheduler["num_train_timesteps"], fields.get("num_inference_steps")
        resize, crop = _sizes(fields)
        return cls(
            state=state,
            images=images,
            environment=environment,
            action=action,
            **counts,
            num_groups=whole("n_groups", fields.get("n_groups", 8), least=1),
            backbone=str(fields.get("vision_backbone", "resnet18"))[:40],
            group_norm=bool(fields.get("use_group_norm", True)),
            keypoints=whole(
                "spatial_softmax_num_keypoints",
                fields.get("spatial_softmax_num_keypoints", 32),
                least=1,
                most=MAX_SIDE,
            ),
            separate=bool(fields.get("use_separate_rgb_encoder_per_camera", False)),
            resize=resize,
            crop=crop,
            scheduler=scheduler,
            num_inference_steps=whole("num_inference_steps", total if steps is None else steps, least=1),
        )

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """All that is observed."""
        return (self.state, *self.images, *(() if self.environment is None else (self.environment,)))

    @property
    def cond_dim(self) -> int:
        """Numbers that the network is told of all observations together."""
        vectors = [one for one in (self.state, self.environment) if one is not None]
        width = sum(one.shape[0] for one in vectors) + len(self.images) * 2 * self.keypoints
        return self.n_obs_steps * width

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of what of an image its encoder sees."""
        height, width = self.crop or self.resize or self.images[0].shape[1:]
        return height, width


def _features(fields: Fields, name: str, modes: Fields) -> Iterator[Feature]:
    listed = fields[name]
    if not isinstance(listed, dict) or len(listed) > MAX_FEATURES:
        raise BadArgument(name, shortened(repr(listed)), f"an object of up to {MAX_FEATURES} features")
    for key, one in listed.items():
        kind = one.get("type") if isinstance(one, dict) else None
        if kind not in KINDS:
            raise BadArgument(
                name, f"{shortened(repr(one))} as {key[:60]}", f"one of type {', '.join(KINDS)}"
            )
        mode = modes.get(kind, "IDENTITY")
        check_choice(f"normalization_mapping of {kind}", mode, MODES)
        shape = one.get("shape")
        if not isinstance(shape, list):
            raise BadArgument(f"shape of {key[:60]}", shortened(repr(shape)), "a list of sides")
        yield Feature(key, kind, tuple(asked_shape(shape)), mode)


def _mapping(fields: Fields, name: str, default: Json) -> Json:
    value = fields.get(name, default)
    if not isinstance(value, dict):
        raise BadArgument(name, shortened(repr(value)), "an object")
    return value


def _sizes(fields: Fields) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """What images are brought to and cropped to. With both, the ratio alone says the crop, as in LeRobot."""
    resize, crop = _pair(fields, "resize_shape"), _pair(fields, "crop_shape")
    if resize is None:
        return None, crop
    ratio = check_number("crop_ratio", fields.get("crop_ratio", 1.0), above=0, high=1)
    if math.isclose(ratio, 1.0):
        return resize, None
    return resize, (int(resize[0] * ratio), int(resize[1] * ratio))


def _pair(fields: Fields, name: str) -> tuple[int, int] | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise BadArgument(name, shortened(repr(value)), "height and width")
    height, width = (whole(name, side, least=1, most=MAX_SIDE) for side in value)
    return height, width
