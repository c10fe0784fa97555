"""The trainer: learns, resumes bit for bit, stops cleanly, and keeps good checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from training_cases import MODEL, SCHEDULE, Bars, Broken, config, trainer

from fastddpm import CheckpointError, NoiseSchedule, UNet, UNetConfig, load
from fastddpm.training import Objective, TrainConfig, Trainer, TrainingDiverged, checkpoints
from fastddpm.training.interruption import Interrupted
from fastddpm.training.objective import Noiser

DDIM = {"_class_name": "DDIMScheduler"}


def test_resuming_repeats_the_run_bit_for_bit(tmp_path):
    """60 steps are 30, a new process's worth of objects, and 30 more."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"steps": 60, "checkpoint_every": 30}
    trainer(whole, **options).train(progress=False)

    first = trainer(cut, **options)
    optimize, count = first._optimize, []

    def stopping():
        count.append(1)
        if len(count) == 31:
            raise RuntimeError("the power is gone")
        return optimize()

    first._optimize = stopping
    with pytest.raises(RuntimeError, match="power"):
        first.train(progress=False)
    assert checkpoints.steps(cut) == [30]
    torch.manual_seed(999)
    torch.rand(7)
    trainer(cut, **options).train(progress=False)

    for name in checkpoints.TENSOR_FILES:
        one, other = (checkpoints.read(run, 60)[0][name] for run in (whole, cut))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    losses = [
        [
            (e["step"], e["loss"], e.get("validation_loss"))
            for e in map(json.loads, (run / "log.jsonl").open())
        ]
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _, _ in losses[0]] == list(range(5, 61, 5))


@pytest.mark.slow
def test_it_learns_and_leaves_a_model(tmp_path):
    folder = trainer(tmp_path, steps=500, checkpoint_every=250, lr=3e-3).train(progress=False)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    assert log[-1]["validation_loss"] < log[49]["validation_loss"]
    sampler = load(folder)
    images = sampler.sample(seeds=range(32), class_labels=[i % 2 for i in range(32)], progress=False)
    # Bars run along their class's axis: the mean along the bar varies more than across it.
    along = images[:, 0].mean(dim=1).std(dim=1) - images[:, 0].mean(dim=2).std(dim=1)
    right = (along > 0) == (torch.arange(32) % 2 == 0)
    assert right.float().mean() > 0.85
    for name in ("loss.png", "samples/step_00000250.png", "samples/step_00000500.png"):
        assert (tmp_path / name).stat().st_size > 500


def test_resuming_goes_on_with_the_gradient_scaler(tmp_path):
    """That of fp16, whose scale grows after every three steps without an overflow."""
    from accelerate.optimizer import AcceleratedOptimizer

    def scaled(run):
        one = trainer(run, steps=8, checkpoint_every=4, grad_clip=None)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        one.accelerator.scaler = scaler
        one.optimizer = AcceleratedOptimizer(one.optimizer.optimizer, scaler=scaler)
        return one, scaler

    whole, scaler = scaled(tmp_path / "whole")
    whole.train(progress=False)
    assert scaler.get_scale() == 2.0**6
    cut, _ = scaled(tmp_path / "cut")
    optimize = cut._optimize

    def stopping():
        if cut.step == 4:
            raise RuntimeError("the power is gone")
        return optimize()

    cut._optimize = stopping
    with pytest.raises(RuntimeError, match="power"):
        cut.train(progress=False)
    resumed, second = scaled(tmp_path / "cut")
    resumed.train(progress=False)
    assert second.state_dict() == scaler.state_dict()
    for one, other in zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_average_is_the_recursion_of_its_definition(tmp_path):
    one = trainer(tmp_path, ema_decay=0.9)
    expected = None
    for n in range(30):
        one._optimize()
        one.step += 1
        weight = one.unet.conv_in.weight.detach().double()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert (one.ema.module.conv_in.weight - expected).abs().max() < 1e-6
    assert (one.unet.conv_in.weight - expected).abs().max() > 1e-4


def test_accumulated_micro_batches_are_the_batch(tmp_path):
    without = UNetConfig(**{**MODEL.to_dict(), "dropout": 0.0})
    gradients = []
    for parts in (1, 4):
        one = trainer(tmp_path / str(parts), model=without, gradient_accumulation=parts, grad_clip=None)
        one.optimizer.zero_grad = lambda: None
        one._optimize()
        gradients.append(one.unet.conv_in.weight.grad.clone())
    assert gradients[0].abs().max() > 1e-3
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5


def test_gradients_are_clipped_to_their_norm(tmp_path):
    one = trainer(tmp_path, grad_clip=1e-3)
    one.optimizer.zero_grad = lambda: None
    one._optimize()
    norms = torch.stack([parameter.grad.norm() for parameter in one.unet.parameters()])
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_validation_loss_is_the_averages_on_noise_of_its_own(tmp_path):
    """Without dropout, of units or of classes, and on ordinals that no run reaches."""
    one = trainer(tmp_path, class_dropout=0.9)
    for step in range(3):
        one.step = step
        one._optimize()
    found = one._validate(0.0)["validation_loss"]
    x_0, labels = Bars().batch(torch.arange(16))
    batch = Noiser(SCHEDULE, one.config.objective, seed=0)(x_0, labels, 2**48 + torch.arange(16))
    averaged = UNet(MODEL).eval()
    averaged.load_state_dict(one.ema.module.state_dict())
    with torch.no_grad():
        expected = torch.nn.functional.mse_loss(averaged(batch.x_t, batch.t, labels), batch.target)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_learning_rates():
    for kind, half in (("constant", 1e-3), ("linear", 5e-4), ("cosine", 5e-4)):
        one = config(lr_schedule=kind, warmup_steps=4, steps=100)
        assert one.learning_rate(0) == pytest.approx(2.5e-4, rel=1e-3)
        assert one.learning_rate(50) == pytest.approx(half)
    assert one.learning_rate(100) == pytest.approx(0.0)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    one = trainer(tmp_path)
    optimize = one._optimize

    def interrupted():
        if one.step == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return optimize()

    one._optimize = interrupted
    with pytest.raises(Interrupted, match=r"stopped at step 14 of 20, .* the same command goes on"):
        one.train(progress=False)
    assert checkpoints.steps(tmp_path)[-1] == 14
    assert signal.getsignal(signal.SIGINT) is handler
    trainer(tmp_path).train(progress=False)
    assert checkpoints.steps(tmp_path)[-1] == 20


def test_a_loss_of_nan_stops_with_step_and_samples_named(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"nan at step 21 \(samples 160 to 167 .* step 20 in"):
        trainer(tmp_path, Broken(), steps=40).train(progress=False)
    assert checkpoints.steps(tmp_path) == [10, 20]
    tensors, _ = checkpoints.read(tmp_path, 20)
    assert all(value.isfinite().all() for value in tensors["model"].values())


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    one = trainer(tmp_path, steps=60, keep=2)
    scores = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])

    def validate(loss, stopped):
        one.best = min(one.best, (next(scores), one.step))
        return {}

    one._validate = validate
    one.train(progress=False)
    assert checkpoints.steps(tmp_path) == [20, 50, 60]


def test_a_run_folder_of_another_run_is_refused(tmp_path):
    trainer(tmp_path, steps=10).train(progress=False)
    with pytest.raises(ValueError, match=r"lr: 0.002 for the run .* began with 0.001"):
        trainer(tmp_path, steps=10, lr=2e-3).train(progress=False)
    other = UNetConfig(**{**MODEL.to_dict(), "base_channels": 16})
    with pytest.raises(ValueError, match=r"base_channels: 16 for the run"):
        trainer(tmp_path, model=other, steps=10).train(progress=False)
    with pytest.raises(ValueError, match="holds checkpoints up to step 10"):
        trainer(tmp_path, steps=10).train(resume=False, progress=False)
    with pytest.raises(ValueError, match=r"data: '16 images, first samples .* began with '16 images"):
        trainer(tmp_path, Mirrored(), steps=10).train(progress=False)


class Mirrored(Bars):
    """The same pictures under another augmentation."""

    def batch(self, indices, ordinals=None, *, seed=0):
        images, labels = super().batch(indices)
        return images.flip(-1), labels


def test_a_damaged_checkpoint_is_named_with_the_newest_that_is_not(tmp_path):
    trainer(tmp_path, steps=30, keep=3).train(progress=False)
    for step, name in ((20, "state.json"), (30, "ema.safetensors")):
        file = tmp_path / "checkpoints" / f"step_{step:08d}" / name
        file.write_bytes(file.read_bytes()[:-20])
    message = r"step_00000030/ema.safetensors: not readable .*; step 10 is intact: remove .*step_00000030 to"
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, steps=30, keep=3).train(progress=False)
    for step in (20, 30):
        shutil.rmtree(tmp_path / "checkpoints" / f"step_{step:08d}")
    trainer(tmp_path, steps=30, keep=3).train(progress=False)
    assert checkpoints.steps(tmp_path) == [10, 20, 30]
    state = tmp_path / "checkpoints" / "step_00000030" / "state.json"
    state.with_name("sha256.json").unlink()
    for field, value in (("step", "10"), ("best_step", None), ("best_loss", [])):
        state.write_text(json.dumps({"step": 30, "best_loss": 0.5, "best_step": 10, field: value}))
        with pytest.raises(CheckpointError, match=r"checkpoint of step 30 in .*: does not fit \("):
            trainer(tmp_path, steps=40, keep=3).train(progress=False)
    file = tmp_path / "train.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"train.json: not readable"):
        trainer(tmp_path, steps=30, keep=3).train(progress=False)


def test_weights_of_nan_do_not_become_a_checkpoint(tmp_path):
    """The loss of the step that makes them is finite: it is computed before."""
    one = trainer(tmp_path)
    optimize = one._optimize

    def overflowing():
        loss = optimize()
        if one.step == 19:
            one.unet.conv_in.weight.data[0] = float("nan")
        return loss

    one._optimize = overflowing
    with pytest.raises(TrainingDiverged, match=r"weights are not finite after step 20; last .* step 10 in"):
        one.train(progress=False)
    assert checkpoints.steps(tmp_path) == [10]


def test_a_failing_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    one = trainer(tmp_path, steps=20)
    write_tensors = checkpoints.write_tensors

    def full(path, tensors):
        if one.step == 20 and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_tensors(path, tensors)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(
        OSError, match=r"No space left.*; step 10 is saved; make space there and give the same"
    ):
        one.train(progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]
    assert load_file(tmp_path / "checkpoints" / "step_00000010" / "optimizer.safetensors")


def test_a_model_is_sampled_from_as_it_was_trained(tmp_path):
    """Without a word of how, and what would take its output for something else is refused before any work."""
    options = config(steps=1, objective=Objective("v_prediction"))
    found = load(Trainer(options, MODEL, NoiseSchedule.linear(5), Bars(), tmp_path).train(progress=False))
    assert (found.plan.prediction_type, found.shape) == ("v_prediction", (1, 8, 8))
    assert (tmp_path / "samples" / "step_00000001.png").exists()
    for sampler, message in (
        ({"prediction_type": "epsilon"}, "sampler: prediction_type 'epsilon' to an objective of 'v_predict"),
        ({"scheduler": DDIM, "method": "diffusers"}, "sampler: prediction_type 'epsilon' to an objective of"),
        ({"num_inference_steps": 101}, "num_inference_steps: 101 given"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Trainer(options, MODEL, SCHEDULE, Bars(), tmp_path, sampler=sampler)


def test_options_are_checked(tmp_path):
    for field, value in {
        "steps": 0,
        "batch_size": 1.5,
        "lr": -1.0,
        "ema_decay": 1.0,
        "class_dropout": 1.5,
        "lr_schedule": "step",
        "mixed_precision": "fp8",
        "seed": -1,
        "grad_clip": float("nan"),
    }.items():
        with pytest.raises(ValueError, match=field):
            config(**{field: value})
    with pytest.raises(ValueError, match="mixed_precision: 'fp16' on a CPU given, 'no' or 'bf16' accepted"):
        trainer(tmp_path, mixed_precision="fp16")
    with pytest.raises(ValueError, match="batch_size: 8 given, a multiple of 3"):
        trainer(tmp_path, gradient_accumulation=3)
    assert TrainConfig.from_dict(config(objective=Objective(loss="l1")).to_dict()).objective.loss == "l1"
    with pytest.raises(ValueError, match=r"speed: unknown to train\.json, given"):
        TrainConfig.from_dict({"speed": 1})
