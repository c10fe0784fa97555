"""Names of classes: kept with a model, taken for labels wherever these are given, and listed in errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from onnx_exports import CLASS_NAMES, exported
from PIL import Image

import fastddpm
from fastddpm import BadArgument, NoiseSchedule, Sampler
from fastddpm.class_names import LONGEST_LIST, MAX_NAMES, class_names, listed
from fastddpm.cli.ranges import parse_class, parse_classes
from fastddpm.onnx import OnnxSampler
from fastddpm.training import TrainConfig, Trainer

SHAPE = (3, 8, 8)
OPTIONS = {"method": "ddim", "num_inference_steps": 2, "clip_sample_range": 1.0, "shape": list(SHAPE)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder whose four classes have names."""
    folder = tmp_path_factory.mktemp("named") / "model"
    options = {**OPTIONS, "class_names": CLASS_NAMES}
    return fastddpm.save_folder(folder, make_unet(), NoiseSchedule.linear(20), options)


@pytest.fixture(scope="module")
def named(model):
    return fastddpm.load(model)


@pytest.mark.parametrize("labels", [["dog", "cat", 2], ("dog", 0, "3"), np.array(["dog", "cat", "3"])])
def test_a_name_draws_what_its_number_draws(named, labels):
    expected = named.sample(seeds=[1, 2, 3], class_labels=[1, 0, 2], progress=False)
    assert torch.equal(named.sample(seeds=[1, 2, 3], class_labels=labels, progress=False), expected)
    one = named.sample(seeds=[1, 2, 3], class_labels="T-shirt, top", progress=False)
    assert torch.equal(one, named.sample(seeds=[1, 2, 3], class_labels=3, progress=False))
    assert not torch.equal(one, expected)


def test_names_stay_with_what_is_made_of_a_sampler(named, tmp_path):
    again = fastddpm.save_folder(tmp_path, named.model, named.schedule, named.replace(eta=0.5).options)
    assert fastddpm.load(again).class_names == named.class_names == tuple(CLASS_NAMES)
    given = Sampler.from_plan(named.model, named.schedule, named.plan, class_names=CLASS_NAMES, shape=SHAPE)
    assert given.replace(null_label=4).facts.class_names == tuple(CLASS_NAMES)


def test_an_unknown_name_is_said_with_those_there_are(named):
    accepted = "cat, dog, 3, T-shirt, top, or numbers, accepted"
    for labels in ("horse", ["cat", "horse"]):
        with pytest.raises(
            BadArgument, match=f"class_labels: 'horse', the name of no class, given, {accepted}"
        ):
            named.sample(seeds=[1, 2], class_labels=labels, progress=False)
    with pytest.raises(BadArgument, match="class_labels: 'cat' to a model without class names given"):
        named.replace(class_names=None).sample(seeds=[1], class_labels="cat", progress=False)


def test_a_list_of_names_is_bounded():
    names = tuple(f"name number {i}" for i in range(1000))
    said = listed(names)
    shown = said.count("name number")
    assert len(said) <= LONGEST_LIST
    assert said.endswith(f"and {1000 - shown} more")
    assert listed(names[:3]) == "name number 0, name number 1, name number 2"
    assert len(listed(("x" * 255,) * 2)) < LONGEST_LIST


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cat", "'cat' given, a list of 1 to 65,536 names"),
        ([], "0 names given"),
        (["a"] * (MAX_NAMES + 1), "65537 names given"),
        (["a", "b", "c"], "3 for 4 classes given, one each accepted"),
        (["a", "b", "c", "a"], "'a' for two classes given"),
        (["a", "b", "c", 3], "3 given, text of 1 to 255 printable characters each"),
        (["a", "b", "c", ""], "'' given, text"),
        (["a", "b", "c", "x\ny"], "given, text"),
        (["a", "b", "c", "x" * 256], "given, text"),
    ],
)
def test_other_names_are_refused_by_sampler_and_folder(model, named, tmp_path, names, said):
    with pytest.raises(BadArgument, match="class_names: "):
        class_names(names, 4)
    with pytest.raises(BadArgument, match=said):
        named.replace(class_names=names)
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    document = {**json.loads((model / "sampler.json").read_text()), "class_names": names}
    (tmp_path / "sampler.json").write_text(json.dumps(document))
    with pytest.raises(fastddpm.CheckpointError, match=r"sampler\.json: class_names: "):
        fastddpm.load(tmp_path)


def test_a_network_without_classes_has_no_names(named):
    plain = make_unet(fastddpm.UNetConfig(**{**TINY.to_dict(), "num_classes": None, "null_class": False}))
    with pytest.raises(BadArgument, match="class_names: 4 for 0 classes"):
        Sampler(plain, named.schedule, class_names=CLASS_NAMES)


def test_what_is_typed_is_a_name_before_it_is_a_number():
    names = ("1", "2", "10", "a-b")
    assert parse_classes("1", names) == [0]
    assert parse_classes("1-2,10,0", names) == [0, 1, 2, 0]
    assert parse_classes("a-b, 3", names) == [3, 3]
    assert parse_classes("cat,T-shirt", ("T-shirt", "cat")) == [1, 0]
    assert parse_classes("T-shirt, top", tuple(CLASS_NAMES)) == [3]
    assert parse_classes("0-3", None) == [0, 1, 2, 3]
    with pytest.raises(BadArgument, match="--class: '0-3', 4 classes, given, one accepted"):
        parse_class("0-3", None)
    with pytest.raises(BadArgument, match="'x', the name of no class, given, 1, 2, 10, a-b, or 0 to 3,"):
        parse_classes("1,x", names)


def test_every_command_with_a_class_takes_a_name(run, model, named, tmp_path):
    words = ["--seeds", "5-6", "--class", "dog,3"]
    assert run("sample", model, *words, "--out", tmp_path / "a.npz")[0] == 0
    assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == [2, 1]
    words += ["--batch", "2", "--outdir", tmp_path / "job", "--format", "npz"]
    assert run("sample", model, *words)[0] == 0
    assert np.load(next((tmp_path / "job").glob("*.npz")))["arr_1"].tolist() == [2, 1]
    code, _, err = run("sample", model, "--class", "horse")
    assert (code, err.count("\n")) == (2, 1)
    assert "--class: 'horse', the name of no class, given, cat, dog, 3, T-shirt, top, or 0 to 3," in err
    code, _, err = run("sample", model, "--class", "7")
    assert (code, "--class: 7 given, cat, dog, 3" in err) == (2, True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "mask.png")
    written = []
    for label in ("dog", "1", "cat"):
        words = ["--mask", tmp_path / "mask.png", "--model", model, "--class", label, "--steps", "2"]
        assert run("inpaint", tmp_path / "in.png", tmp_path / "out.png", *words)[0] == 0
        written.append((tmp_path / "out.png").read_bytes())
    assert written[0] == written[1] != written[2]


def test_an_export_keeps_them(run, tmp_path):
    folder = exported("learned")
    sampler = OnnxSampler(folder)
    assert sampler.folder.class_names == tuple(CLASS_NAMES)
    drawn = [sampler.sample(seeds=[3, 4], class_labels=of, progress=False) for of in (["dog", "3"], [1, 2])]
    np.testing.assert_array_equal(*drawn)
    with pytest.raises(BadArgument, match="'horse', the name of no class, given, cat, dog, 3, T-shirt, top"):
        sampler.sample(seeds=[3], class_labels="horse")
    assert "in this order cat, dog, 3, T-shirt, top" in (folder / "README.md").read_text()
    words = ["--backend", "onnx", "--seeds", "4,5", "--class", "cat,dog", "--out", tmp_path / "a.npz"]
    assert run("sample", folder, *words)[0] == 0
    assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == [0, 1]


def test_a_trained_model_has_the_names_of_its_data(tmp_path):
    class Data:
        class_names = ("bird", "fish")

        def __len__(self):
            return 4

        def batch(self, indices, ordinals=None, *, seed=0):
            return torch.zeros(len(indices), 1, 8, 8), indices % 2

    model = {"base_channels": 8, "channel_mults": (1, 2), "num_groups": 4, "time_dim": 16}
    config = fastddpm.UNetConfig(**model, num_classes=2, null_class=True)
    options = {**OPTIONS, "shape": [1, 8, 8]}
    train = TrainConfig(steps=1, batch_size=2)
    run = Trainer(train, config, NoiseSchedule.linear(20), Data(), tmp_path, sampler=options)
    assert fastddpm.load(run.train(progress=False)).class_names == ("bird", "fish")
    Data.class_names = ("bird", "bird")
    with pytest.raises(BadArgument, match="class_names: 'bird' for two classes"):
        Trainer(train, config, NoiseSchedule.linear(20), Data(), tmp_path)
