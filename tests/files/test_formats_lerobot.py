"""Folders of LeRobot's diffusion policy, against the policy restated around torchvision's ResNet."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import ACTIONS, DROP_IN

import fastddpm
from fastddpm.cli import app as cli
from fastddpm.jobs import Job, TorchDrawer
from fastddpm.onnx import OnnxSampler

pytest.importorskip("torchvision")
from fastddpm_bench.peers import lerobot_policy as peers

STATE = {"observation.state": ("STATE", (3,))}
CAMERA = ("VISUAL", (3, 40, 48))
ENVIRONMENT = {"observation.environment_state": ("ENV", (5,))}
KINDS = {
    "states": (STATE | ENVIRONMENT, {}),
    "DDIM, another norm": (
        STATE | ENVIRONMENT,
        {
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 10,
            "normalization_mapping": {"STATE": "MEAN_STD", "ENV": "QUANTILES", "ACTION": "MEAN_STD"},
        },
    ),
    "a camera, cropped": ({"observation.image": CAMERA} | STATE, {"crop_shape": (33, 35)}),
    "two, an encoder each": (
        STATE | {"observation.images.top": CAMERA, "observation.images.side": CAMERA} | ENVIRONMENT,
        {
            "use_separate_rgb_encoder_per_camera": True,
            "use_group_norm": False,
            "resize_shape": (36, 40),
            "crop_ratio": 0.9,
            "crop_shape": (32, 36),
            "num_inference_steps": 10,
        },
    ),
    "two, one encoder": (
        STATE | {"observation.images.top": CAMERA, "observation.images.side": CAMERA},
        {"n_obs_steps": 3, "vision_backbone": "resnet34", "num_inference_steps": 10, "n_action_steps": 14},
    ),
}


def policy(kind, **changes):
    torch.manual_seed(0)
    inputs, options = KINDS[kind]
    made = peers.DiffusionPolicy(peers.config(inputs, 2, **options | changes)).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return made


def statistics(made):
    """Of every feature, all that LeRobot's data sets have."""
    torch.manual_seed(1)
    found = {}
    features = {**made.config.input_features, **made.config.output_features}
    for name, one in features.items():
        shape = (one.shape[0], 1, 1) if one.type == "VISUAL" else one.shape
        low, width = torch.randn(shape), torch.rand(shape) + 0.5
        found[name] = {"min": low, "max": low + width, "mean": low + 0.4 * width, "std": 0.3 * width}
        found[name] |= {"q01": low + 0.1 * width, "q99": low + 0.8 * width}
    found["observation.state"]["max"][0] = found["observation.state"]["min"][0]  # a joint that never moves
    return found


def observed(made, count=2):
    torch.manual_seed(2)
    steps = made.config.n_obs_steps
    features = made.config.input_features.items()
    given = {name: torch.rand(count, steps, *one.shape) for name, one in features}
    if "observation.state" in given:
        given["observation.state"][..., 0] = statistics(made)["observation.state"]["min"][0]
    return given


def normalised(made, batch, inverse=False):
    """LeRobot's arithmetic, by the modes of the configuration."""
    held, out = statistics(made), {}
    kinds = {
        name: one.type for name, one in (made.config.input_features | made.config.output_features).items()
    }
    for name, value in batch.items():
        mode, of = made.config.normalization_mapping.get(kinds[name], "IDENTITY"), held[name]
        if mode == "MEAN_STD":
            out[name] = (
                value * of["std"] + of["mean"] if inverse else (value - of["mean"]) / (of["std"] + 1e-8)
            )
        elif mode in ("MIN_MAX", "QUANTILES"):
            low, high = (of[one] for one in (("min", "max") if mode == "MIN_MAX" else ("q01", "q99")))
            width = torch.where(high == low, torch.tensor(1e-8), high - low)
            out[name] = (value + 1) / 2 * width + low if inverse else 2 * (value - low) / width - 1
        else:
            out[name] = value
    return out


def wanted(made, batch, seed=7):
    generator = torch.Generator().manual_seed(seed)
    drawn = made.predict_action_chunk(normalised(made, batch), generator=generator)
    return normalised(made, {"action": drawn}, inverse=True)["action"]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_actions(kind, older, tmp_path):
    if older and kind != "states":
        kind = "a camera, cropped" if kind.startswith("a camera") else pytest.skip("read alike")
    made = policy(kind)
    folder = peers.save(made, tmp_path / "policy", statistics(made), older=older)
    ours = fastddpm.load_policy(folder)
    batch = observed(made)
    expected = wanted(made, batch)
    actions = ours.act(
        {**batch, "next.reward": torch.zeros(2)},
        noise="torch",
        generator=torch.Generator().manual_seed(7),
    )
    assert expected.std() > 0.05
    assert actions.shape == (2, made.config.n_action_steps, 2)
    assert (actions - expected).abs().max() <= ACTIONS
    features = made.diffusion._prepare_global_conditioning(
        {
            **normalised(made, batch),
            **(
                {
                    "observation.images": torch.stack(
                        [normalised(made, batch)[n] for n in made.config.image_features], -4
                    )
                }
                if made.config.image_features
                else {}
            ),
        }
    )
    assert (ours.encode(batch) - features).abs().max() <= ACTIONS


def test_the_denoiser_alone_and_as_files(tmp_path):
    made = policy("states", num_inference_steps=6)
    folder = peers.save(made, tmp_path / "policy", statistics(made))
    ours, sampler = fastddpm.load_policy(folder), fastddpm.load(folder)
    assert sampler.shape == (16, 2)
    assert len(sampler.plan) == 6
    cond = {"global_cond": ours.encode(observed(made))}
    drawn = sampler.sample(seeds=[3, 4], cond=cond, progress=False)
    unnormalised = normalised(made, {"action": drawn[:, 1:9]}, inverse=True)["action"]
    assert (ours.act(observed(made), seeds=[3, 4]) - unnormalised).abs().max() <= ACTIONS
    fastddpm.export_onnx(ours.sampler, tmp_path / "files")  # which knows what the network is told
    given = {"global_cond": cond["global_cond"].numpy()}
    written = OnnxSampler(tmp_path / "files").sample(seeds=[3, 4], cond=given, progress=False)
    assert np.abs(written - drawn.numpy()).max() <= DROP_IN


def test_a_compiled_network_is_saved_under_its_wrappers_name(tmp_path):
    made = policy("states", num_inference_steps=4)
    folder = peers.save(made, tmp_path / "policy", statistics(made))
    batch = observed(made)
    before = fastddpm.load_policy(folder).act(batch, seeds=[1, 2])
    state = load_file(folder / "model.safetensors")
    renamed = {name.replace(".unet.", ".unet._orig_mod."): value for name, value in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "model.safetensors")
    assert torch.equal(fastddpm.load_policy(folder).act(batch, seeds=[1, 2]), before)


def changed(folder: Path, name: str, change) -> None:
    path = folder / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def first_step(document, **options):
    document["steps"].insert(0, {"registry_name": "delta_action_processor", "config": {}, **options})


REFUSED = {
    "type='act' given, LeRobot's 'diffusion' policy accepted": (
        "config.json",
        lambda document: document.update(type="act"),
    ),
    "vision_backbone: 'resnet50' given, resnet18 or resnet34 accepted": (
        "config.json",
        lambda document: document.update(vision_backbone="resnet50"),
    ),
    "a network of cond_dim 22, 33 by config.json": (
        "config.json",
        lambda document: document.update(n_obs_steps=3),
    ),
    "normalization_mapping of STATE: 'LOG' given": (
        "config.json",
        lambda document: document["normalization_mapping"].update(STATE="LOG"),
    ),
    "input_features, output_features: none, as before LeRobot 0.2": (
        "config.json",
        lambda document: document.pop("input_features"),
    ),
    "norm_map of policy_postprocessor.json: 'MEAN_STD' of action given, MIN_MAX": (
        "policy_postprocessor.json",
        lambda document: document["steps"][0]["config"]["norm_map"].update(ACTION="MEAN_STD"),
    ),
    "policy_preprocessor.json: the step 'delta_action_processor' given": (
        "policy_preprocessor.json",
        first_step,
    ),
    "'../model.safetensors' given as the name of a file in it": (
        "policy_postprocessor.json",
        lambda document: document["steps"][0].update(state_file="../model.safetensors"),
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = policy("a camera, cropped")
    return peers.save(made, tmp_path_factory.mktemp("policy") / "policy", statistics(made))


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_not_repeated_is_named(says, written, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    for file in written.iterdir():
        (folder / file.name).hardlink_to(file)
    name, change = REFUSED[says]
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(document))
    with pytest.raises(fastddpm.CheckpointError) as error:
        fastddpm.load_policy(folder)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_statistics_that_are_not_there(written, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).hardlink_to(written / name)
    with pytest.raises(
        fastddpm.CheckpointError, match=r"statistics: none of observation\.state, observation\.im"
    ):
        fastddpm.load_policy(folder)
    with pytest.raises(fastddpm.CheckpointError, match="no folder of a policy of LeRobot"):
        fastddpm.load_policy("mnist")


def test_observations_that_do_not_fit(written):
    ours = fastddpm.load_policy(written)
    given = observed(policy("a camera, cropped"))
    with pytest.raises(
        ValueError, match=r"observations\['observation.image'\]: none given, a tensor \(B, 2, 3, 40, 48\) acc"
    ):
        ours.act({"observation.state": given["observation.state"]})
    with pytest.raises(
        ValueError, match=r"observations\['observation.image'\]: shape \(1, 2, 3, 40, 48\) given"
    ):
        ours.act({**given, "observation.image": given["observation.image"][:1]})


def test_seeds_of_another_number(written):
    ours = fastddpm.load_policy(written)
    given = observed(policy("a camera, cropped"))
    with pytest.raises(
        ValueError, match=r"^seeds: 3 rows given, 2, one for each of the observations accepted"
    ):
        ours.act(given, seeds=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^x_T: 1 rows given, 2, one for each"):
        ours.act(given, x_T=torch.zeros(1, 16, 2))


def test_a_job_of_a_policy(tmp_path):
    """A row of observations a seed, in whatever batches."""
    made = policy("states", num_inference_steps=4)
    ours = fastddpm.load_policy(peers.save(made, tmp_path / "policy", statistics(made)))
    encoded = ours.encode(observed(made, 5))
    job = Job(
        TorchDrawer(ours.sampler),
        range(5),
        tmp_path / "drawn",
        cond={"global_cond": encoded},
        batch_size=2,
        shard_size=2,
        format="npz",
    )
    job.run(progress=False)
    shards = sorted((tmp_path / "drawn").glob("*.npz"))
    rows = np.concatenate([np.load(shard)["arr_0"] for shard in shards])
    wanted = ours.sampler.sample(seeds=range(5), cond={"global_cond": encoded}, progress=False)
    assert np.abs(rows - wanted.numpy()).max() <= DROP_IN


def test_commands(tmp_path, monkeypatch, capsys):
    made = policy("states", num_inference_steps=4)
    folder = peers.save(made, tmp_path / "policy", statistics(made))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    code, error = run("sample", folder, "--seeds", "0-1", "--out", tmp_path / "drawn.npz")
    assert code == 2
    assert "a policy, whose actions depend on what it observes, given" in error
    code, error = run("serve", f"pusht={folder}", "--port", "0")
    assert code == 2
    assert "MODEL: pusht, whose states are (16, 2), given, images (C, H, W)" in error
    assert run("export", folder, "--no-verify", "--out", tmp_path / "files") == (0, "")
    given = {"global_cond": np.zeros((1, 16), dtype=np.float32)}
    drawn = OnnxSampler(tmp_path / "files").sample(seeds=[1], cond=given, progress=False)
    assert drawn.shape == (1, 16, 2)


def test_what_the_page_says_runs(tmp_path, monkeypatch):
    made = policy("states", num_inference_steps=4)
    folder = peers.save(made, tmp_path / "policy", statistics(made))
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    [block] = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "load_policy" in one]
    named = re.search(r'load_policy\("(.*?)"\)', block)[1]
    names = {"fastddpm": fastddpm, "observations": observed(made, 1)}
    exec(block.replace(named, str(folder)), names)
    assert names["actions"].shape == (1, 8, 2)
