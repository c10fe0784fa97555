"""Every public function, constructor and method that takes arguments, with sound ones.

`CALLS` makes them from a folder to write into; `SILENT` are the public names that take none of a caller's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from networks import TINY, make_unet

import fastddpm
from fastddpm import (
    Method,
    NoiseSchedule,
    Plan,
    Sampler,
    UNet,
    UNetConfig,
    evaluation,
    gaussian,
    plans,
    restoration,
    score,
    tasks,
)
from fastddpm.data import Augmentation, ImageDataset, epoch_order, indices_for, open_dataset
from fastddpm.jobs import Blocks, Job, TorchDrawer
from fastddpm.repaint import repaint
from fastddpm.serving import Scheduler
from fastddpm.training import Objective, TrainConfig, Trainer
from fastddpm_bench.peers import lerobot_policy as peers

SHAPE = (3, 8, 8)
STEPS = 20


@dataclasses.dataclass(frozen=True)
class Call:
    """A public name with sound arguments, by keyword.

    Attributes:
        name: dotted, as in ``Sampler.sample``.
        function: what is called.
        sound: arguments that are accepted.
        says: what its errors call other things by.
        slow: arguments of which None is accepted and takes seconds.
        costs: whether to call it with them takes seconds; what is wrong is refused before.
    """

    name: str
    function: Callable[..., Any]
    sound: dict[str, Any]
    says: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    costs: bool = False


def pushed(**options: Any) -> str:
    """`fastddpm.push_to_hub` to a place where nobody listens."""
    with mock.patch("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9"):
        return fastddpm.push_to_hub(**options)


def sampler_calls(network: UNet, schedule: NoiseSchedule) -> list[Call]:
    sampler = Sampler(network, schedule, num_inference_steps=2, shape=SHAPE, engine="eager")
    options = {
        "null_label": None,
        "class_names": None,
        "shape": SHAPE,
        "device": "cpu",
        "dtype": None,
        "precision": None,
        "engine": "eager",
        "steps_per_graph": None,
    }
    method = {
        "method": "ddpm",
        "num_inference_steps": 2,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
        "sigma_scale": 1.0,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "timesteps": None,
        "eta": 0.0,
        "time_input": "timestep",
        "solver_order": None,
        "lower_order_final": False,
        "sigmas": None,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
    }
    shared = {"class_labels": 1, "guidance_scale": 2.0, "condition": None, "max_batch": None}
    given = {"known": torch.zeros(1, *SHAPE), "known_mask": torch.ones(1, *SHAPE, dtype=torch.bool)}
    request = {"seeds": [3], "shape": SHAPE, **given, "noise": "philox", "generator": None, **shared}
    shown = {"progress": False, "callback": None, "callback_every": 1}
    image = torch.zeros(SHAPE)
    plan = plans.ddpm_plan(schedule, 2)
    onward = {"num_inference_steps": 2, "prediction_type": "epsilon", "clip_sample_range": 1.0}
    onward |= {"timestep_spacing": "leading", "timesteps": None}
    return [
        Call("Sampler", Sampler, {"model": network, "schedule": schedule, **method, **options}),
        Call(
            "Sampler.from_plan",
            Sampler.from_plan,
            {"model": network, "schedule": schedule, "plan": plan, **options},
        ),
        Call("Sampler.replace", sampler.replace, {**method, **options}),
        Call("Sampler.sample", sampler.sample, {"batch_size": 1, "x_T": None, **request, **shown}),
        Call(
            "Sampler.sample_trajectory",
            sampler.sample_trajectory,
            {"batch_size": 1, "frames": 2, "predicted": False, "x_T": None, "progress": False, **request},
        ),
        Call(
            "Sampler.sample_from",
            sampler.sample_from,
            {"images": image[None], "timestep": 15, "batch_size": 1, **request, **shown},
        ),
        Call(
            "Sampler.invert",
            Sampler(sampler.model, sampler.schedule, method="ddim", num_inference_steps=2).invert,
            {"images": image[None], **shared, "progress": False},
        ),
        Call(
            "Sampler.interpolate",
            sampler.interpolate,
            {"first": image, "second": image, "timestep": 15, "steps": 2, "seed": 0, **shared, **shown},
        ),
        Call(
            "Scheduler",
            Scheduler,
            {
                "sampler": sampler,
                "max_batch": 2,
                "max_waiting": 4,
                "max_lanes": 2,
                "rows": 20,
                "order": "arrival",
            },
        ),
        Call(
            "Scheduler.submit",
            Scheduler(sampler, max_waiting=10_000).submit,
            {
                **{"seed": 0, "class_label": 1, "method": "ddim", "num_inference_steps": 2, "eta": 0.5},
                **{"guidance_scale": 1.0, "condition": None, "cond": None, "uncond": None, "priority": 0},
                **{"beside": None, "deadline": 60.0, "preview": None, "preview_every": 1},
            },
            says=("class_labels",),
        ),
        Call("Method", Method, method),
        Call("Method.from_dict", Method.from_dict, {"options": {}}),
        Call("Method.adapted", Method().adapted, method),
        Call("Method.plan", Method().plan, {"schedule": schedule}),
        Call("make_plan", plans.make_plan, {"schedule": schedule, **method}),
        Call(
            "ddpm_plan",
            plans.ddpm_plan,
            {"schedule": schedule, **onward, "variance_type": "fixed_small", "sigma_scale": 1.0},
        ),
        Call(
            "ddim_plan",
            plans.ddim_plan,
            {
                "schedule": schedule,
                **onward,
                "eta": 0.5,
                "use_clipped_model_output": False,
                "final_alpha_cumprod": 1.0,
            },
        ),
        Call("dpmpp_2m_plan", plans.dpmpp_2m_plan, {"schedule": schedule, **onward}),
        Call(
            "spaced_timesteps",
            plans.spaced_timesteps,
            {"num_train_timesteps": 20, "num_inference_steps": 5, "spacing": "leading", "skip_last": False},
        ),
        Call("Plan", Plan, {field.name: getattr(plan, field.name) for field in dataclasses.fields(Plan)}),
        Call("Plan.row_of", plan.row_of, {"timestep": 15}),
        Call("Plan.restarted", plan.restarted, {"row": 1}),
        Call("Plan.with_thresholding", plan.with_thresholding, {"ratio": 0.9, "max_value": 1.0}),
        Call(
            "Plan.with_noise_levels",
            plan.with_noise_levels,
            {"schedule": schedule, "time_input": "noise_level"},
        ),
        Call(
            "repaint",
            repaint,
            {
                "sampler": sampler,
                "images": image[None],
                "mask": torch.ones(1, 1, 8, 8),
                "seeds": [1],
                "class_labels": 1,
                "guidance_scale": 2.0,
                "jump": 1,
                "resample": 1,
                "max_batch": None,
                "progress": False,
            },
        ),
    ]


def schedule_calls(schedule: NoiseSchedule) -> list[Call]:
    bounds = {"num_train_timesteps": 20, "beta_start": 1e-4, "beta_end": 0.02}
    x, t = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    pairs = {
        "forward_mean_variance": ("x_prev",),
        "q_mean_variance": ("x_0",),
        "posterior_variance": ("x_t",),
        "q_sample": ("x_0", "noise"),
        "x0_from_eps": ("x_t", "eps"),
        "x0_from_v": ("x_t", "v"),
        "eps_from_x0": ("x_t", "x_0"),
        "eps_from_v": ("x_t", "v"),
        "v_from_x0": ("x_t", "x_0"),
        "v_from_eps": ("x_t", "eps"),
        "velocity": ("x_0", "eps"),
        "posterior_mean": ("x_t", "x_0"),
        "posterior_mean_from_eps": ("x_t", "eps"),
    }
    return [
        Call("NoiseSchedule", NoiseSchedule, {"betas": [0.1, 0.2]}),
        Call("NoiseSchedule.from_betas", NoiseSchedule.from_betas, {"betas": [0.1, 0.2]}),
        Call("NoiseSchedule.linear", NoiseSchedule.linear, bounds),
        Call("NoiseSchedule.scaled_linear", NoiseSchedule.scaled_linear, bounds),
        Call("NoiseSchedule.quad", NoiseSchedule.quad, bounds),
        Call(
            "NoiseSchedule.cosine",
            NoiseSchedule.cosine,
            {"num_train_timesteps": 20, "s": 0.008, "max_beta": 0.9},
        ),
        Call(
            "NoiseSchedule.sigmoid",
            NoiseSchedule.sigmoid,
            {"num_train_timesteps": 20, "start": -3.0, "end": 3.0, "tau": 1.0, "max_beta": 0.9},
        ),
        Call("NoiseSchedule.warmup", NoiseSchedule.warmup, {"fraction": 0.5, **bounds}),
        Call("NoiseSchedule.const", NoiseSchedule.const, {"num_train_timesteps": 20, "beta": 0.02}),
        Call("NoiseSchedule.jsd", NoiseSchedule.jsd, {"num_train_timesteps": 20}),
        Call(
            "NoiseSchedule.tensor",
            schedule.tensor,
            {"name": "betas", "dtype": torch.float32, "device": "cpu"},
        ),
        Call(
            "NoiseSchedule.from_dict",
            NoiseSchedule.from_dict,
            {"content": schedule.to_dict()},
            says=("schedule",),
        ),
        *(
            Call(
                f"gaussian.{name}",
                getattr(gaussian, name),
                {"schedule": schedule, "t": t, **dict.fromkeys(given, x)},
            )
            for name, given in pairs.items()
        ),
    ]


def policy_calls(folder: Path) -> list[Call]:
    torch.manual_seed(0)
    config = peers.config({"observation.state": ("STATE", (3,))}, 2, num_inference_steps=2)
    spans = {"min": torch.zeros(3), "max": torch.ones(3)}
    statistics = {"observation.state": spans, "action": {name: one[:2] for name, one in spans.items()}}
    saved = peers.save(peers.DiffusionPolicy(config), folder / "policy", statistics)
    policy = fastddpm.load_policy(saved)
    seen = {"observations": {"observation.state": torch.zeros(1, 2, 3)}}
    drawn = {"seeds": [3], "noise": "philox", "generator": None, "x_T": None}
    return [
        Call(
            "load_policy", fastddpm.load_policy, {"source": saved, "device": "cpu", "num_inference_steps": 2}
        ),
        Call("Policy.encode", policy.encode, seen),
        Call("Policy.act", policy.act, {**seen, **drawn}, says=("batch_size",)),
    ]


def network_calls(network: UNet, schedule: NoiseSchedule, folder: Path) -> list[Call]:
    config = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(UNetConfig)}
    saved = fastddpm.save_folder(folder / "model", network, schedule, {"shape": list(SHAPE)})
    given = {"model": network, "schedule": schedule, "sampler": {"shape": list(SHAPE)}}
    x, t = torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
    return [
        Call("UNetConfig", UNetConfig, config),
        Call("UNetConfig.from_dict", UNetConfig.from_dict, {"values": {}}),
        Call("UNet", UNet, {"config": TINY}),
        Call("UNet.forward", network, {"x": x, "t": t, "class_labels": t}),
        Call("save_folder", fastddpm.save_folder, {"folder": folder / "saved", **given}),
        Call(
            "push_to_hub",
            pushed,
            {
                "source": saved,
                "repository": "some-lab/model",
                "private": True,
                "token": "x",
                "revision": "x",
                "message": "x",
                "license": "mit",
                "dataset": "x",
                "metrics": {"fid": 1.0},
            },
            costs=True,
        ),
        Call(
            "load",
            fastddpm.load,
            {
                "source": saved,
                "format": "auto",
                "config": None,
                "ema": True,
                "variant": None,
                "device": "cpu",
                "dtype": torch.float32,
                "revision": None,
                "token": None,
                "cache_dir": None,
                "local_files_only": False,
                "shape": SHAPE,
                "method": "ddim",
                "eta": 0.5,
                "num_inference_steps": 2,
            },
        ),
        *policy_calls(folder),
        Call(
            "optimize",
            fastddpm.optimize,
            {
                "obj": network,
                "schedule": schedule,
                "noise": "torch",
                "engine": "auto",
                "dtype": None,
                "precision": None,
                "shape": SHAPE,
            },
        ),
        Call("fuse_norms", fastddpm.fuse_norms, {"model": torch.nn.Sequential()}),
        Call(
            "export_onnx",
            fastddpm.export_onnx,
            {
                "model": network,
                "folder": folder / "export",
                "schedule": schedule,
                "shape": SHAPE,
                "dtype": "float32",
                "verify": False,
                "num_classes": None,
                "condition_channels": None,
                "method": "ddpm",
            },
            slow=("num_classes", "condition_channels"),
            costs=True,
        ),
    ]


def score_calls(network: UNet, schedule: NoiseSchedule) -> list[Call]:
    sampler = Sampler(network, schedule, shape=SHAPE, engine="eager")
    bare = score.score_of(sampler)
    sde, denoiser = score.VPSDE(), score.Denoiser(bare)
    image, euler = torch.zeros(1, *SHAPE), score.Euler(2)
    mask, labels = torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    ladder = [denoiser.sigma_max, denoiser.sigma_min]
    sigmas = torch.tensor([*ladder, 0.0], dtype=torch.float64)
    passes = {
        "steps": 2,
        "predictor": "ancestral",
        "corrector_steps": 0,
        "snr": 0.1,
        "spacing": "time",
        "denoise": True,
    }
    drawn = {"score": bare, "seeds": [1], "shape": SHAPE}
    times = {"t_min": 1e-3}
    cond = {"class_labels": labels}
    return [
        Call(
            "score.score_of", score.score_of, {"sampler": sampler, "class_labels": 1, "guidance_scale": 2.0}
        ),
        Call(
            "score.NetworkScore",
            score.NetworkScore,
            {
                "sde": sde,
                "model": network,
                "prediction_type": "epsilon",
                "time_input": "timestep",
                "cond": cond,
                "uncond": cond,
                "guidance_scale": 2.0,
            },
        ),
        Call("score.VPSDE", score.VPSDE, {"beta_min": 0.1, "beta_max": 20.0, **times}),
        Call("score.SubVPSDE", score.SubVPSDE, {"beta_min": 0.1, "beta_max": 20.0, **times}),
        Call("score.VESDE", score.VESDE, {"sigma_min": 0.01, "sigma_max": 50.0, **times}),
        Call("score.ScheduleSDE", score.ScheduleSDE, {"schedule": schedule}),
        Call("score.SDE.times", sde.times, {"steps": 2, "spacing": "time"}),
        Call("score.Denoiser", score.Denoiser, {"score": bare}),
        Call("score.Euler", score.Euler, {"steps": 2, "spacing": "time"}),
        Call("score.Heun", score.Heun, {"steps": 2, "spacing": "time"}),
        Call("score.RK4", score.RK4, {"steps": 2, "spacing": "time"}),
        Call("score.RK45", score.RK45, {"rtol": 1e-3, "atol": 1e-3, "spacing": "time"}),
        Call("score.Churn", score.Churn, {"amount": 0.0, "low": 0.0, "high": 1.0, "scale": 1.0}),
        Call(
            "score.karras_sigmas",
            score.karras_sigmas,
            {"steps": 3, "sigma_min": 0.1, "sigma_max": 1.0, "rho": 7.0},
        ),
        Call(
            "score.sample_karras",
            score.sample_karras,
            {**drawn, "sigmas": sigmas, "order": 1, "churn": None},
            slow=("sigmas",),
        ),
        Call("score.sample_pc", score.sample_pc, {**drawn, **passes, "constraint": None}),
        Call(
            "score.sample_annealed_langevin",
            score.sample_annealed_langevin,
            {**drawn, "sigmas": ladder, "steps_per_level": 1, "step_size": 0.05, "denoise": True},
        ),
        Call(
            "score.sample_ode",
            score.sample_ode,
            {**drawn, "solver": euler, "denoise": False},
            slow=("solver",),
            says=("x",),
        ),
        Call(
            "score.encode",
            score.encode,
            {"score": bare, "images": image, "solver": euler},
            slow=("solver",),
            says=("x",),
        ),
        Call(
            "score.decode",
            score.decode,
            {"score": bare, "latents": image, "solver": euler, "denoise": False},
            says=("x",),
            slow=("solver",),
        ),
        Call(
            "score.flow",
            score.flow,
            {"score": bare, "x": image, "forward": True, "solver": euler},
            slow=("solver",),
        ),
        Call(
            "score.interpolate",
            score.interpolate,
            {"score": bare, "first": image[0], "second": image[0] + 1, "images": 2, "solver": euler},
            slow=("solver",),
        ),
        Call("score.slerp", score.slerp, {"first": image, "second": image + 1, "weights": torch.ones(2)}),
        Call(
            "score.log_likelihood",
            score.log_likelihood,
            {"score": bare, "x": image, "seeds": [1], "probes": 1, "solver": euler},
            slow=("solver", "seeds"),
        ),
        Call(
            "score.bits_per_dim",
            score.bits_per_dim,
            {"score": bare, "pixels": image.to(torch.uint8), "seeds": [1], "probes": 1, "solver": euler},
            slow=("solver", "seeds"),
        ),
        Call("score.dequantised", score.dequantised, {"pixels": image.to(torch.uint8), "seeds": [1]}),
        Call(
            "score.denoised",
            score.denoised,
            {"score": bare, "x": image, "t": torch.ones(1, dtype=torch.float64)},
        ),
        Call("score.KnownPart", score.KnownPart, {"image": image, "mask": mask, "basis": None}),
        Call(
            "score.inpaint",
            score.inpaint,
            {"score": bare, "image": image, "mask": mask, "seeds": [1], **passes},
        ),
        Call(
            "score.colourise", score.colourise, {"score": bare, "grey": image[:, :1], "seeds": [1], **passes}
        ),
        Call(
            "score.GuidedScore",
            score.GuidedScore,
            {"score": bare, "classifier": lambda x, t: x.flatten(1), "class_labels": labels, "scale": 1.0},
        ),
        Call("score.on_denoised", score.on_denoised, {"score": bare, "classifier": lambda x: x.flatten(1)}),
        Call(
            "score.DenoisingScoreMatching", score.DenoisingScoreMatching, {"seed": 0, "weighting": "variance"}
        ),
        Call(
            "score.DenoisingScoreMatching.__call__",
            score.DenoisingScoreMatching(),
            {"score": bare, "x_0": image, "ordinals": labels},
            says=("x",),
        ),
    ]


def data_calls() -> list[Call]:
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images = ImageDataset(pixels)
    augmentation = Augmentation(flip=True, shift=1)
    ordinals = torch.arange(2)
    return [
        Call(
            "open_dataset",
            open_dataset,
            {
                "spec": "mnist",
                "size": None,
                "channels": None,
                "split": "test",
                "labels": True,
                "image_column": None,
                "label_column": None,
                "skip_broken": False,
                "flip": False,
                "shift": 0,
                "memory_limit": 2**20,
            },
        ),
        Call(
            "ImageDataset",
            ImageDataset,
            {
                "pixels": pixels,
                "labels": torch.arange(2),
                "class_names": ["a", "b"],
                "augmentation": None,
                "skipped": (),
            },
        ),
        Call("ImageDataset.batch", images.batch, {"indices": [0, 1], "ordinals": [0, 1], "seed": 0}),
        Call("Augmentation", Augmentation, {"flip": True, "shift": 1}),
        Call("Augmentation.apply", augmentation.apply, {"images": pixels, "ordinals": ordinals, "seed": 0}),
        Call("epoch_order", epoch_order, {"n": 3, "seed": 0, "epoch": 0}),
        Call("indices_for", indices_for, {"start_ordinal": 0, "count": 2, "n": 3, "seed": 0}),
    ]


def training_calls(schedule: NoiseSchedule, folder: Path) -> list[Call]:
    config = {field.name: getattr(TrainConfig(), field.name) for field in dataclasses.fields(TrainConfig)}
    images = ImageDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ["a", "b", "c", "d"])
    given = {
        "config": TrainConfig(steps=1, batch_size=2),
        "model": TINY,
        "schedule": schedule,
        "data": images,
    }
    trainer = Trainer(**given, run=folder / "run")
    return [
        Call(
            "Objective",
            Objective,
            {"prediction_type": "epsilon", "loss": "l2", "weighting": "none", "gamma": 5.0},
        ),
        Call("TrainConfig", TrainConfig, config),
        Call("TrainConfig.from_dict", TrainConfig.from_dict, {"values": {}}),
        Call(
            "Trainer",
            Trainer,
            {**given, "run": folder / "run", "validation": None, "sampler": None, "task": None}
            | {"initial": None},
        ),
        Call("Trainer.train", trainer.train, {"resume": True, "progress": False}, costs=True),
    ]


def job_calls(sampler: Sampler, folder: Path) -> list[Call]:
    drawer = TorchDrawer(sampler)
    given = {"seeds": [0, 1], "shard_size": 2, "batch_size": 2}
    job = Job(drawer, **given, outdir=folder / "job", class_labels=1)
    return [
        Call(
            "TorchDrawer",
            TorchDrawer,
            {"sampler": sampler, "guidance_scale": 1.0, "threads": 1, "device": "cpu", "engine": "eager"},
        ),
        Call(
            "Job",
            Job,
            {"drawer": drawer, **given, "outdir": folder / "job", "class_labels": 1, "format": "npz"},
        ),
        Call("Job.run", job.run, {"workers": "local", "merge": False, "progress": False}),
        Call(
            "Blocks.of",
            Blocks.of,
            {"seeds": [0, 1], "labels": 1, "batch_size": 2, "shard_size": 2},
            says=("class_labels",),
        ),
    ]


def picture_calls(schedule: NoiseSchedule, folder: Path) -> list[Call]:
    config = dataclasses.replace(TINY, in_channels=2, out_channels=1, num_classes=None, null_class=False)
    shape = (1, 8, 8)
    sampler = Sampler(make_unet(config), schedule, num_inference_steps=2, shape=shape, engine="eager")
    task = tasks.SuperResolve(2)
    restorer = restoration.Restorer(sampler, task)
    fastddpm.save_folder(
        folder / "sr", sampler.model, schedule, {"shape": list(shape), "num_inference_steps": 2}
    )
    tasks.write_task(folder / "sr", task)
    picture = restoration.Picture(torch.zeros(1, 4, 4, dtype=torch.uint8))
    picture.write(folder / "picture.png")
    x, ordinals = torch.zeros(1, 1, 8, 8), torch.arange(1)
    features = np.random.default_rng(0).normal(size=(5, 2))
    pair = {"a": features, "b": features}
    np.savez(folder / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    restored = {"picture": picture, "seeds": [1], "mask": None, "progress": False}
    return [
        Call("SuperResolve", tasks.SuperResolve, {"gain": 1.0, "factor": 2}),
        Call(
            "Deblur",
            tasks.Deblur,
            {"gain": None, "blur": "gaussian", "sigma": 2.0, "length": 9, "noise": 0.1},
        ),
        Call("Colorize", tasks.Colorize, {"gain": 1.0}),
        Call("Task.condition", task.condition, {"x_0": x, "ordinals": ordinals, "seed": 0}),
        Call("Inpaint.condition", tasks.Inpaint().condition, {"x_0": x, "ordinals": ordinals, "seed": 0}),
        Call("make_task", tasks.make_task, {"name": "sr", "factor": 2}, says=("task",)),
        Call("task_from_dict", tasks.task_from_dict, {"values": {"task": "sr"}}, says=("task",)),
        Call("write_task", tasks.write_task, {"folder": folder / "sr", "task": task}),
        Call("read_task", tasks.read_task, {"folder": folder / "sr"}),
        Call("Picture", restoration.Picture, {"pixels": picture.pixels, "alpha": None, "profile": None}),
        Call("Picture.write", picture.write, {"path": folder / "picture.png"}),
        Call("read_picture", restoration.read_picture, {"path": folder / "picture.png", "factor": 1}),
        Call("Restorer", restoration.Restorer, {"sampler": sampler, "task": task}),
        Call("Restorer.restore", restorer.restore, restored),
        Call("Restorer.restore_mean", restorer.restore_mean, restored),
        Call("load_restorer", restoration.load_restorer, {"source": folder / "sr", "device": "cpu"}),
        Call("TiledModel", restoration.TiledModel, {"network": sampler.model, "tile": 8, "overlap": 2}),
        Call("frechet_distance", evaluation.frechet_distance, pair),
        Call("read_statistics", evaluation.read_statistics, {"path": folder / "statistics.npz"}),
        Call("nearest_distances", evaluation.nearest_distances, pair),
        Call("mean_pairwise_distance", evaluation.mean_pairwise_distance, {"a": features}),
        Call(
            "precision_recall", evaluation.precision_recall, {"generated": features, "real": features, "k": 3}
        ),
    ]


def calls(folder: Path) -> list[Call]:
    """All of them; files that they read and write are in ``folder``."""
    network, schedule = make_unet(), NoiseSchedule.linear(STEPS)
    sampler = Sampler(network, schedule, num_inference_steps=2, shape=SHAPE, engine="eager")
    return [
        *sampler_calls(network, schedule),
        *schedule_calls(schedule),
        *network_calls(network, schedule, folder),
        *score_calls(network, schedule),
        *data_calls(),
        *training_calls(schedule, folder),
        *job_calls(sampler, folder),
        *picture_calls(schedule, folder),
    ]
