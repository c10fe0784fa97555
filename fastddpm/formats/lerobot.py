"""LeRobot's folders of a diffusion policy: network, encoder, statistics, scheduler. LeRobot is not imported.

Since 0.4 statistics lie beside the model, with the steps of ``policy_preprocessor.json`` and
``policy_postprocessor.json``; before, they were buffers in model.safetensors.
Source: lerobot 0.4.4, policies/diffusion/ and processor/.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastddpm.checks import BadArgument, check_number, shortened
from fastddpm.formats._diffusers.betas import noise_schedule
from fastddpm.formats._diffusers.schedulers import sampler_options
from fastddpm.formats.files import CheckpointError, check_finite, read_json, read_tensors
from fastddpm.formats.loaded import Loaded, known
from fastddpm.inputs import Fields, InputError, Json, member
from fastddpm.options import SamplerOptions
from fastddpm.plans.scheduler import SCHEDULER
from fastddpm.policy.config import ACTION, Feature, PolicyConfig
from fastddpm.policy.normalisation import EPS, PAIRS, Normalisation
from fastddpm.unet1d import UNet1D, names
from fastddpm.wrappers import without_wrappers

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
UNET, ENCODER = "diffusion.unet.", "diffusion.rgb_encoder."
_FINAL_GROUPS = 8
"""Of the norm before the last convolution, whatever n_groups says."""
_OLDER = re.compile(r"(?P<part>normalize_inputs|unnormalize_outputs|normalize_targets)\.buffer_(?P<rest>.+)")
_PASSED = ("to_batch_processor", "device_processor", "rename_observations_processor")
"""Steps of processors that change no number."""


@dataclasses.dataclass(frozen=True)
class PolicyFolder:
    """What is in such a folder.

    Attributes:
        config: of the policy.
        unet: the network.
        encoder: tensors of the images' encoder by LeRobot's names; none without images.
        inputs: of features that are normalised, how.
        outputs: likewise of actions.
    """

    config: PolicyConfig
    unet: UNet1D
    encoder: dict[str, Tensor]
    inputs: dict[str, Normalisation]
    outputs: dict[str, Normalisation]


def recognises(folder: Path) -> bool:
    """Whether a folder says that it is a policy of LeRobot."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    try:
        fields = read_json(path)
    except CheckpointError:  # whoever reads it says what is wrong
        return False
    return isinstance(fields.get("type"), str) and "_class_name" not in fields and "n_obs_steps" in fields


def read(folder: Path, given: Fields) -> Loaded:
    """The denoiser of a policy, with which `Sampler` draws normalised actions ``(B, horizon, A)``.

    Raises:
        CheckpointError: as of :func:`read_folder`.
    """
    known(given, ())
    held = read_folder(folder)
    config = held.config
    options = sampler_options(config.scheduler)
    if options.get("method") == "ddim" and config.scheduler["clip_sample"]:
        # With the network's eps, as there: ours would compute it anew from the clipped x0.
        options = {"method": SCHEDULER, "scheduler": config.scheduler}
    own: SamplerOptions = {
        "num_inference_steps": config.num_inference_steps,
        "shape": [config.horizon, config.action.shape[0]],
    }
    return Loaded(held.unet, noise_schedule(config.scheduler), {**options, **own})


def read_folder(folder: Path) -> PolicyFolder:
    """Reads all of a policy.

    Raises:
        CheckpointError: another policy than the diffusion policy; a field, tensor or step of a processor that
            is missing, wrong or not repeated here.
    """
    path = folder / CONFIG
    fields = read_json(path)
    if fields.get("type") != "diffusion":
        given = shortened(repr(fields.get("type")))
        raise CheckpointError(f"{path}: type={given} given, LeRobot's 'diffusion' policy accepted")
    try:
        config = PolicyConfig.from_dict(fields)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights = folder / WEIGHTS
    state = {without_wrappers(name): value for name, value in read_tensors(weights).items()}
    check_finite(
        {name: value for name, value in state.items() if name.startswith((UNET, ENCODER))}, str(weights)
    )
    unet = _unet(_below(state, UNET), config, str(weights))
    try:
        inputs, outputs = _normalisations(folder, config, state)
    except (InputError, BadArgument) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return PolicyFolder(config, unet, _below(state, ENCODER), inputs, outputs)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _unet(state: Mapping[str, Tensor], config: PolicyConfig, where: str) -> UNet1D:
    if not names.recognises(state):
        raise CheckpointError(f"{where}: no network of a diffusion policy ({UNET}...) in it")
    try:
        unet = names.from_state(
            names.state_dict(state), num_groups=config.num_groups, final_groups=_FINAL_GROUPS
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    told = {"cond_dim": config.cond_dim, "action_dim": config.action.shape[0]}
    for name, wanted in told.items():
        shown = getattr(unet.config, name)
        if shown != wanted:
            raise CheckpointError(f"{where}: a network of {name} {shown}, {wanted} by {CONFIG}")
    multiple = unet.config.length_multiple
    if config.horizon % multiple:
        raise CheckpointError(
            f"{where}: a network of lengths that {multiple} divides, {config.horizon} asked for"
        )
    return unet


def _normalisations(
    folder: Path, config: PolicyConfig, state: Mapping[str, Tensor]
) -> tuple[dict[str, Normalisation], dict[str, Normalisation]]:
    """How observations and actions are normalised, by name."""
    features = {one.name: one for one in (*config.inputs, config.action)}
    if (folder / BEFORE).is_file() and (folder / AFTER).is_file():
        inputs = _of_processor(folder / BEFORE, "normalizer_processor", features)
        outputs = _of_processor(folder / AFTER, "unnormalizer_processor", features)
    else:
        older = _of_buffers(state, features)
        inputs = {name: one for name, one in older.items() if name != ACTION}
        outputs = {name: one for name, one in older.items() if name == ACTION}
        missing = [one.name for one in features.values() if one.mode in PAIRS and one.name not in older]
        if missing:
            raise BadArgument(
                "statistics",
                f"none of {', '.join(missing)}",
                f"{BEFORE} and {AFTER}, or buffers in {WEIGHTS},",
            )
    inputs.pop(ACTION, None)
    return inputs, {name: one for name, one in outputs.items() if name == ACTION}


def _of_processor(path: Path, wanted: str, features: Mapping[str, Feature]) -> dict[str, Normalisation]:
    """Of the one step of a processor that changes numbers. What it has no statistics of stays as it is."""
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise BadArgument(path.name, "no list of steps", "one")
    found: dict[str, Normalisation] = {}
    for step in steps:
        name, options = step.get("registry_name"), step.get("config") or {}
        if name == wanted:
            found |= _of_step(path, step, options, features)
        elif name not in _PASSED or not isinstance(options, dict) or options.get("rename_map"):
            given = shortened(repr(name if name not in _PASSED else options))
            raise BadArgument(path.name, f"the step {given}", f"{wanted}, {', '.join(_PASSED)}")
    return found


def _of_step(
    path: Path, step: Json, options: Json, features: Mapping[str, Feature]
) -> dict[str, Normalisation]:
    modes, only = options.get("norm_map"), options.get("normalize_observation_keys")
    for name, one in features.items():
        told = modes.get(one.kind, "IDENTITY") if isinstance(modes, dict) else one.mode
        if told != one.mode:
            given = f"{shortened(repr(told))} of {name}"
            raise BadArgument(f"norm_map of {path.name}", given, f"{one.mode}, as by {CONFIG}")
    if only is not None:
        raise BadArgument(f"normalize_observation_keys of {path.name}", shortened(repr(only)), "none")
    file = step.get("state_file")
    if file is None:
        return {}
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        raise BadArgument(
            f"state_file of {path.name}", shortened(repr(file)), "a .safetensors file beside it"
        )
    eps = check_number("eps", options.get("eps", EPS), above=0, high=1)
    held = read_tensors(member(path.parent, file))
    found = {}
    for name, one in features.items():
        statistics = _below(held, f"{name}.")
        if one.mode in PAIRS and statistics:
            found[name] = _made(one, statistics, eps=eps)
    return found


def _of_buffers(state: Mapping[str, Tensor], features: Mapping[str, Feature]) -> dict[str, Normalisation]:
    """Of buffers in the model's file, in whose names dots of the feature's are underscores."""
    held: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if part := _OLDER.fullmatch(name):
            feature, _, statistic = part["rest"].rpartition(".")
            held.setdefault(feature, {})[statistic] = value
    found = {}
    for name, one in features.items():
        statistics = held.get(name.replace(".", "_"))
        if one.mode in PAIRS and statistics is not None:
            found[name] = _made(one, statistics, eps=EPS, adds=True)
    return found


def _made(one: Feature, statistics: Mapping[str, Tensor], *, eps: float, adds: bool = False) -> Normalisation:
    pair = []
    for name in PAIRS[one.mode]:
        value = statistics.get(name)
        if value is None:
            raise BadArgument(f"statistics of {one.name}", f"no {name}", f"{' and '.join(PAIRS[one.mode])}")
        spreads = value.ndim <= len(one.shape) and all(
            given in (1, side) for given, side in zip(value.shape[::-1], one.shape[::-1], strict=False)
        )
        if not spreads or not bool(value.isfinite().all()):
            given = f"{name} of shape {tuple(value.shape)}" if not spreads else f"{name} with NaN or infinity"
            raise BadArgument(
                f"statistics of {one.name}", given, f"finite numbers that spread to {one.shape}"
            )
        pair.append(value.float())
    return Normalisation(one.mode, *pair, eps=eps, adds=adds)
