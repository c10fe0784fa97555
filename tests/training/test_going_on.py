"""What a run may go on to: more steps, and what it may begin with: another model's weights."""

from __future__ import annotations

import json
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from training_cases import MODEL, SAMPLER, SCHEDULE, trainer

from fastddpm import BadArgument, CheckpointError, Sampler, UNet, UNetConfig, load, save_folder
from fastddpm.training import checkpoints, report, results
from fastddpm.training import trainer as training
from fastddpm.training.interruption import Interrupted

pytestmark = pytest.mark.usefixtures("one_drawn")


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def weights(run, step):
    return checkpoints.read(run, step)[0]["model"]


def test_more_steps_go_on_and_fewer_do_not(tmp_path, monkeypatch):
    """At a constant rate the first steps of a longer run are those of a shorter one."""
    monkeypatch.setattr(report, "draw", lambda *given: None)
    one, other = tmp_path / "one", tmp_path / "other"
    trainer(one, steps=20, lr_schedule="constant").train(progress=False)
    trainer(one, steps=30, lr_schedule="constant").train(progress=False)
    trainer(other, steps=30, lr_schedule="constant").train(progress=False)
    assert all(torch.equal(tensor, weights(other, 30)[name]) for name, tensor in weights(one, 30).items())
    assert json.loads((one / "train.json").read_text())["train"]["steps"] == 30
    for steps in (20, 29):
        with pytest.raises(
            BadArgument, match=f"steps: {steps} for the run in .* with 30, given, the same, or more, or an"
        ):
            trainer(one, steps=steps, lr_schedule="constant").train(progress=False)
    trainer(one, steps=30, lr_schedule="constant").train(progress=False)


def test_the_model_is_there_from_the_first_checkpoint_on(tmp_path, monkeypatch):
    """Whole at any time, with the average's weights of the last checkpoint; a run stands for it."""
    seen = []
    save = results.save_folder

    def saving(folder, *given):
        if seen:
            assert load(tmp_path).model.config == MODEL
        save(folder, *given)
        expected = checkpoints.read(tmp_path, checkpoints.steps(tmp_path)[-1])[0]["ema"]
        found = load(tmp_path).model.state_dict()
        seen.append(all(torch.equal(tensor, found[name]) for name, tensor in expected.items()))

    monkeypatch.setattr(results, "save_folder", saving)
    monkeypatch.setattr(report, "draw", lambda *given: None)
    one = trainer(tmp_path)
    one.train(progress=False)
    assert seen == [True, True, True]  # after 10 and 20 steps, and at the end


def test_a_reader_has_a_whole_model_while_another_takes_its_place(tmp_path, monkeypatch):
    """The names that a folder of the same network, schedule and options loses for a moment: none."""
    network = UNet(MODEL)
    save_folder(tmp_path, network, SCHEDULE, SAMPLER)
    unlinked = []
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, **given: unlinked.append(path.name))
    save_folder(tmp_path, network, SCHEDULE, SAMPLER)
    assert "config.json" not in unlinked
    save_folder(tmp_path, network, SCHEDULE, {**SAMPLER, "num_inference_steps": 4})
    assert "config.json" in unlinked


def test_a_run_without_a_model_says_what_there_is(run, tmp_path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a run without a checkpoint so far, which has no model"):
        load(tmp_path)
    (tmp_path / "checkpoints" / "step_00000003").mkdir(parents=True)
    for words in (["sample", tmp_path], ["super-resolve", tmp_path, "x.png", "--model", tmp_path]):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "a run without a model, whose last checkpoint is checkpoints/step_00000003" in err


def test_a_run_is_sampled_while_it_trains(run, pictures, tmp_path):
    words = ["train", "--data", pictures, "--out", tmp_path / "run", "--base-channels", "8", "--mults", "1,2"]
    assert run(*words, "--steps", "2", "--batch", "4")[0] == 0
    words = ["--seeds", "1", "--steps", "2", "--class", "red", "--out", tmp_path / "a.npz"]
    assert run("sample", tmp_path / "run", *words)[0] == 0
    assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == [1]


def test_without_matplotlib_no_step_is_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match="training goes on without loss.png") as said:
        trainer(tmp_path).train(progress=False)
    assert sum("loss.png" in str(one.message) for one in said) == 1
    assert checkpoints.steps(tmp_path) == [10, 20]
    assert (tmp_path / "samples" / "step_00000020.png").exists()


def test_a_checkpoint_is_written_before_its_pictures(tmp_path, monkeypatch):
    def draw(*given):
        raise RuntimeError("no more")

    monkeypatch.setattr(report, "draw", draw)
    with pytest.raises(RuntimeError, match="no more"):
        trainer(tmp_path).train(progress=False)
    assert checkpoints.steps(tmp_path) == [10]
    assert load(tmp_path).model.config == MODEL


def test_a_signal_in_a_validation_saves_without_its_end(tmp_path, monkeypatch):
    """A scheduler does not wait for it: no loss is logged, and no checkpoint is the best by it."""
    monkeypatch.setattr("fastddpm.training.validation.VALIDATION_BATCH", 4)
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *given: drawn.append(given))
    measure = training.validation_loss

    def signalled(*given):
        assert callable(signal.getsignal(signal.SIGUSR1))  # or it would end pytest
        signal.raise_signal(signal.SIGUSR1)
        return measure(*given)

    monkeypatch.setattr(training, "validation_loss", signalled)
    with pytest.raises(Interrupted, match="stopped at step 10 of 20") as ended:
        trainer(tmp_path).train(progress=False)
    assert ended.value.signal == signal.SIGUSR1
    assert checkpoints.read(tmp_path, 10)[1]["best_loss"] == float("inf")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["step"], "validation_loss" in last, drawn) == (10, False, [])


def test_fine_tuning_begins_with_the_weights_of_a_model(tmp_path):
    torch.manual_seed(1)
    source = UNet(MODEL)
    one = trainer(tmp_path / "a", initial=source)
    found = one.unet.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in source.state_dict().items())
    average = one.ema.module.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in average.items())
    # With other classes everything but theirs.
    config = UNetConfig(**{**MODEL.to_dict(), "num_classes": 5, "dropout": 0.3})
    other = trainer(tmp_path / "b", model=config, initial=source).unet
    mine = other.state_dict()
    same = [mine[name].shape == found[name].shape and torch.equal(mine[name], found[name]) for name in mine]
    assert [name for name, is_same in zip(mine, same, strict=True) if not is_same] == [
        name for name in mine if "class_embed" in name
    ]
    assert mine["down.0.class_embed.weight"].shape[0] == 6  # with the null label's
    with pytest.raises(BadArgument, match="initial: a network of another architecture"):
        trainer(tmp_path / "c", model=UNetConfig(**{**MODEL.to_dict(), "base_channels": 16}), initial=source)


def test_the_command_fine_tunes_any_model_that_load_reads(run, pictures, tmp_path):
    torch.manual_seed(1)
    config = UNetConfig(in_channels=1, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=16)
    options = {"prediction_type": "sample", "shape": [1, 16, 16], "num_inference_steps": 2}
    model = save_folder(tmp_path / "model", UNet(config), SCHEDULE, options)
    words = ["train", "--data", pictures, "--out", tmp_path / "run", "--steps", "1", "--batch", "4"]
    words += ["--warmup", "0", "--lr", "1e-9", "--ema", "0"]
    code, _, err = run(*words, "--init-from", model)
    assert (code, err) == (0, "")
    tuned, source = load(tmp_path / "run"), load(model)
    assert tuned.class_names == ("blue", "red")
    assert tuned.method.prediction_type == "sample"
    assert tuned.schedule.to_dict() == SCHEDULE.to_dict()
    theirs = tuned.model.state_dict()
    for name, tensor in source.model.state_dict().items():
        assert (theirs[name] - tensor).abs().max() < 1e-6, name
    # The run knows what it began with, and the options that the model has are not given beside it.
    code, _, err = run(*words)
    assert (code, "for the run in" in err) == (2, True)
    assert run(*words, "--init-from", model)[0] == 0
    save_folder(tmp_path / "other", UNet(config), SCHEDULE, options)
    code, _, err = run(*words, "--init-from", tmp_path / "other")
    assert (code, "--init-from: 'weights" in err) == (2, True)
    for option in (["--schedule", "linear"], ["--base-channels", "8"], ["--no-mid-attention"]):
        code, _, err = run(*words, "--init-from", model, *option)
        assert (code, err.count("\n")) == (2, 1)
        assert "with --init-from, whose model has its own, given, no value accepted" in err
    code, _, err = run(*words, "--init-from", model, "--channels", "3")
    assert "--init-from: a model of 1 channels in and 1 out given, one of 3 in and 3 out" in err
    code, _, err = run(*words, "--init-from", tmp_path / "nothing")
    assert (code, err.startswith("fastddpm: error: --init-from: ")) == (2, True)


def test_a_model_of_another_library_is_named(tmp_path):
    from fastddpm.training.initial import fine_tuned

    sampler = Sampler(torch.nn.Conv2d(1, 1, 1), SCHEDULE)
    with pytest.raises(BadArgument, match="init_from: a model whose network is a Conv2d given"):
        fine_tuned(sampler, 1, None, None, 0.0)
