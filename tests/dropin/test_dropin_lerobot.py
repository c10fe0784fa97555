"""LeRobot's own DiffusionPolicy, where it is installed: its drop-in, and its folders as it writes them.

Elsewhere restatements stand for it (test_dropin_policies.py, tests/files/test_formats_lerobot.py). Versions:
before 0.4 the policy normalises, since then processors beside it do.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from tolerances import ACTIONS

import fastddpm

pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion")
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion import modeling_diffusion as modeling
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

try:
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
except ImportError:  # before 0.4
    make_diffusion_pre_post_processors = None

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
STATES = {STATE: ("STATE", (3,)), ENVIRONMENT: ("ENV", (4,))}
TOP, SIDE = "observation.images.top", "observation.images.side"
CAMERA = ("VISUAL", (3, 40, 48))
KINDS = {
    "states": (STATES, {}),
    "DDIM, no scale": (
        STATES,
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "use_film_scale_modulation": False},
    ),
    "x0, one level": (
        STATES,
        {
            "prediction_type": "sample",
            "down_dims": (24,),
            "kernel_size": 3,
            "horizon": 6,
            "n_action_steps": 5,
        },
    ),
    "other norms": (
        STATES,
        {
            "normalization_mapping": {
                "STATE": NormalizationMode.MEAN_STD,
                "ENV": getattr(NormalizationMode, "QUANTILES", NormalizationMode.MIN_MAX),
                "ACTION": NormalizationMode.MEAN_STD,
            },
            "num_inference_steps": 10,
        },
    ),
    "a camera": (
        {STATE: ("STATE", (3,)), "observation.image": CAMERA},
        {"crop_shape": (33, 35), "num_inference_steps": 20},
    ),
    "an encoder each": (
        {**STATES, TOP: CAMERA, SIDE: CAMERA},
        {
            "use_separate_rgb_encoder_per_camera": True,
            "use_group_norm": False,
            "n_obs_steps": 3,
            "num_inference_steps": 10,
        },
    ),
}


def policy(kind, **changes):
    """Of a configuration, with its statistics; and what processes observations and actions around it."""
    features, options = KINDS[kind]
    small = {
        "down_dims": (16, 24),
        "n_groups": 4,
        "diffusion_step_embed_dim": 12,
        "spatial_softmax_num_keypoints": 4,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
        "crop_shape": None,
        "horizon": 16,
        "n_action_steps": 8,
        "device": "cpu",
        "input_features": {n: PolicyFeature(FeatureType[k], shape) for n, (k, shape) in features.items()},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
    }
    config = DiffusionConfig(**small | options | changes)
    torch.manual_seed(0)
    normalises = "dataset_stats" in inspect.signature(modeling.DiffusionPolicy.__init__).parameters
    given = {"dataset_stats": statistics(config)} if normalises else {}
    made = modeling.DiffusionPolicy(config, **given).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    if normalises:
        return made, None
    return made, make_diffusion_pre_post_processors(config, statistics(config))


def statistics(config):
    """Of every feature, all that a data set of LeRobot's has."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, one in {**config.input_features, **config.output_features}.items():
        shape = (one.shape[0], 1, 1) if one.type is FeatureType.VISUAL else one.shape
        low, width = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) + 0.5
        found[name] = {"min": low, "max": low + width, "mean": low + 0.4 * width, "std": 0.3 * width}
        found[name] |= {"q01": low + 0.1 * width, "q99": low + 0.8 * width}
    return found


def observed(config, time):
    """Two robots at one time."""
    generator = torch.Generator().manual_seed(100 + time)
    return {
        name: torch.rand(2, *one.shape, generator=generator) for name, one in config.input_features.items()
    }


def acted(made, processors, count, seed=7):
    """Actions of a run of times from a seed, in the robot's numbers."""
    before, after = processors or (dict, lambda drawn: drawn)
    made.reset()
    torch.manual_seed(seed)
    actions = [after(made.select_action(before(observed(made.config, time)))) for time in range(count)]
    return torch.stack(actions), torch.get_rng_state()


@pytest.mark.parametrize("network", ["ours", "original"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_actions(kind, network):
    made, processors = policy(kind)
    fast = fastddpm.optimize(made, network=network)
    assert type(fast) is modeling.DiffusionPolicy
    count = made.config.n_action_steps + 2  # two chunks
    wanted, state = acted(made, processors, count)
    actions, after = acted(fast, processors, count)
    assert wanted.std() > 0.05
    assert (actions - wanted).abs().max() <= ACTIONS
    assert torch.equal(after, state)
    assert "its conditional_sample alone" in str(fast.report())


@pytest.mark.parametrize("kind", KINDS)
def test_its_folders(kind, tmp_path):
    made, processors = policy(kind)
    folder = tmp_path / "policy"
    made.save_pretrained(folder)
    for name, one in zip(("policy_preprocessor", "policy_postprocessor"), processors or (), strict=False):
        one.save_pretrained(folder, config_filename=f"{name}.json")
    ours = fastddpm.load_policy(folder)
    steps, chunk = made.config.n_obs_steps, made.config.n_action_steps
    times = [observed(made.config, time) for time in range(steps)]
    together = {name: torch.stack([one[name] for one in times], dim=1) for name in times[0]}
    before, after = processors or (dict, lambda drawn: drawn)
    made.reset()
    for one in times[:-1]:  # which are seen, while an action is left of a chunk
        made._queues[ACTION].append(torch.zeros(2, 2))
        made.select_action(before(one))
    torch.manual_seed(5)
    wanted = [after(made.select_action(before(times[-1]))) for _ in range(chunk)]
    generator = torch.Generator().manual_seed(5)
    actions = ours.act(together, noise="torch", generator=generator)
    assert actions.shape == (2, chunk, 2)
    assert (actions - torch.stack(wanted, dim=1)).abs().max() <= ACTIONS


def test_a_compiled_network_runs_as_the_one_inside():
    if "compile_model" not in inspect.signature(DiffusionConfig.__init__).parameters:
        pytest.skip("before compile_model")
    made, processors = policy("states", num_inference_steps=5)
    wanted, _ = acted(made, processors, 3)
    made.diffusion.unet = torch.compile(made.diffusion.unet, backend="eager")  # as compile_model does
    fast = fastddpm.optimize(made)
    assert "our UNet with its weights" in fast.report().network
    assert (acted(fast, processors, 3)[0] - wanted).abs().max() <= ACTIONS
