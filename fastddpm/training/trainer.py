"""The training loop: batches by ordinal, one optimiser step, the moving average, and what is saved when.

    for step: x_0, y -> x_t, t, target (objective) -> network -> loss -> Adam -> EMA -> log, checkpoint

Everything random follows from the seed and the number of samples drawn so far, so a resumed run and a run on
another number of processes see the same batches, noise and timesteps. Devices, processes and mixed
precision are Hugging Face accelerate's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fastddpm.checkpoint import CheckpointError, save_folder
from fastddpm.data.order import indices_for
from fastddpm.progress import progress_bar
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.training import checkpoints, report
from fastddpm.training.config import TrainConfig
from fastddpm.training.interruption import Interrupted, stop_on_interrupt
from fastddpm.training.objective import NoisedBatch, Noiser
from fastddpm.unet import UNet, UNetConfig

# Ordinals of validation samples: far from any that a run reaches.
VALIDATION_ORDINAL = 2**48
VALIDATION_BATCH = 256


class TrainingData(Protocol):
    """What the trainer needs of a data set."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(
        self, indices: Tensor, ordinals: Tensor | None = None, *, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Images float32 ``(B, C, H, W)`` in [-1, 1], labels int64 ``(B,)``; augmented by ordinal, seed."""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite."""


class Trainer:
    """Trains a :class:`UNet` and leaves a model folder.

    Args:
        config: how to train.
        model: architecture; its weights are initialised from the seed.
        schedule: noise schedule.
        data: training images.
        run: folder of the run; made if need be.
        validation: images whose loss is measured at checkpoints; the best checkpoint is the best on them.
        sampler: default options of the saved model (:class:`fastddpm.Sampler`); also used for the grids.

    Raises:
        ValueError: batch size that does not divide, or a run folder of another configuration.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: UNetConfig,
        schedule: NoiseSchedule,
        data: TrainingData,
        run: str | Path,
        *,
        validation: TrainingData | None = None,
        sampler: dict[str, Any] | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.config, self.schedule, self.data, self.validation = config, schedule, data, validation
        self.run = Path(run)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        chunks = self.accelerator.num_processes * config.gradient_accumulation
        if config.batch_size % chunks:
            raise ValueError(
                f"batch_size: {config.batch_size} given, a multiple of {chunks} (processes times "
                "gradient_accumulation) accepted"
            )
        self.device = self.accelerator.device
        torch.manual_seed(config.seed)
        network = UNet(model).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unet: UNet = network
        self.ema = AveragedModel(network, multi_avg_fn=self._average)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        prepared = torch.compile(network) if config.compile else network
        self.network, self.optimizer = self.accelerator.prepare(prepared, optimizer)
        null = model.num_classes if model.null_class else None
        noiser = {"seed": config.seed, "null_label": null, "device": self.device}
        self.noiser = Noiser(schedule, config.objective, class_dropout=config.class_dropout, **noiser)
        self.validation_noiser = Noiser(schedule, config.objective, **noiser)
        self.sampler_options = dict(sampler or {})
        self.step = 0
        self.best: tuple[float, int] = (math.inf, 0)

    # ------------------------------------------------------------------ the run

    def train(self, *, resume: bool = True, progress: bool = True) -> Path:
        """Trains to ``config.steps`` and writes the model folder ``RUN/model`` with the averaged weights.

        Args:
            resume: go on from the last checkpoint of the run folder where there is one; False refuses a
                folder that holds checkpoints.
            progress: show a progress bar.

        Returns:
            The model folder.

        Raises:
            TrainingDiverged: the loss is not finite; names step and samples. The last checkpoint stays.
            Interrupted: Ctrl-C; the state was saved.
            CheckpointError: the checkpoint to resume from is damaged.
        """
        self._prepare_run(resume)
        main = self.accelerator.is_main_process
        log = report.Log(self.run, self.step) if main else None
        losses: list[Tensor] = []
        began, first = time.perf_counter(), self.step
        steps, every = self.config.steps, self.config.checkpoint_every
        with stop_on_interrupt() as stopped, progress_bar(progress, steps, "training") as advance:
            advance(self.step)
            while self.step < steps:
                losses.append(self._optimize())
                self.step += 1
                advance(1)
                at_checkpoint = self.step % every == 0 or self.step == steps
                if at_checkpoint or stopped or self.step % self.config.log_every == 0:
                    loss = self._mean_loss(losses)
                    losses.clear()
                    seconds = time.perf_counter() - began
                    entry = {"step": self.step, "loss": loss, "lr": self._learning_rate(self.step)}
                    entry["samples_per_second"] = (self.step - first) * self.config.batch_size / seconds
                    if at_checkpoint:
                        entry.update(self._validate(loss))
                    if log is not None:
                        log.write(entry)
                        if at_checkpoint:
                            report.plot_losses(self.run, log.entries)
                            report.draw_grid(self.run, self.step, self._sampler())
                    if at_checkpoint or stopped:
                        self._save()
                if stopped:
                    raise Interrupted(
                        f"stopped at step {self.step} of {steps}, saved in {self.run}; "
                        "the same command goes on from there"
                    )
        if log is not None:
            log.close()
            save_folder(self.run / "model", self._averaged(), self.schedule, self.sampler_options)
        self.accelerator.wait_for_everyone()
        return self.run / "model"

    def _optimize(self) -> Tensor:
        """One optimiser step on ``batch_size`` samples; returns this process's mean loss, on the device."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        self.network.train()
        total = torch.zeros((), device=self.device)
        for micro in range(config.gradient_accumulation):
            last = micro == config.gradient_accumulation - 1
            batch = self._batch(micro)
            # Dropout too follows from the step, so that a resumed run repeats it.
            torch.manual_seed(self._local_seed(micro))
            with contextlib.nullcontext() if last else accelerator.no_sync(self.network):
                with accelerator.autocast():
                    prediction = self.network(batch.x_t, batch.t, *batch.conditioning)
                loss = self.noiser.loss(prediction, batch) / config.gradient_accumulation
                accelerator.backward(loss)
            total += loss.detach()
        if config.grad_clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.unet)
        return total

    def _batch(self, micro: int) -> NoisedBatch:
        config, accelerator = self.config, self.accelerator
        size = config.batch_size // (accelerator.num_processes * config.gradient_accumulation)
        chunk = micro * accelerator.num_processes + accelerator.process_index
        start = self.step * config.batch_size + chunk * size
        ordinals = torch.arange(start, start + size)
        indices = indices_for(start, size, len(self.data), config.seed)
        x_0, labels = self.data.batch(indices, ordinals, seed=config.seed)
        return self.noiser(*self._on_device(x_0, labels, ordinals))

    def _on_device(
        self, x_0: Tensor, labels: Tensor | None, ordinals: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """A batch on the training device; labels only for a network that takes them."""
        used = None if labels is None or self.unet.config.num_classes is None else labels.to(self.device)
        return x_0.to(self.device), used, ordinals.to(self.device)

    def _local_seed(self, micro: int) -> int:
        place = (self.step * self.config.gradient_accumulation + micro) * self.accelerator.num_processes
        return int(self.config.seed + 1_000_003 * (place + self.accelerator.process_index)) % 2**63

    def _learning_rate(self, step: int) -> float:
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        done = step / config.steps
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return config.lr * warm * fall[config.lr_schedule]

    def _average(self, averages: Sequence[Tensor], weights: Sequence[Tensor], n: Tensor | int) -> None:
        decay = min(self.config.ema_decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_(list(averages), list(weights), 1 - decay)

    def _mean_loss(self, losses: list[Tensor]) -> float:
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean")
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step = self.step - len(losses) + int(bad[0])
            first = step * self.config.batch_size
            saved = checkpoints.steps(self.run)
            raise TrainingDiverged(
                f"the loss is {values[bad[0]].item()} at step {step + 1} (samples {first} to "
                f"{first + self.config.batch_size - 1} of the run); last checkpoint: "
                f"{f'step {saved[-1]} in {self.run}' if saved else 'none'}"
            )
        return float(values.mean())

    @torch.no_grad()
    def _validate(self, train_loss: float) -> dict[str, float]:
        """The averaged weights' loss on the validation images, always with the same noise and timesteps."""
        score, entry = train_loss, {}
        if self.validation is not None:
            network, total, count = self._averaged(), 0.0, len(self.validation)
            for start in range(0, count, VALIDATION_BATCH):
                indices = torch.arange(start, min(start + VALIDATION_BATCH, count))
                x_0, labels = self.validation.batch(indices)
                ordinals = indices + VALIDATION_ORDINAL
                batch = self.validation_noiser(*self._on_device(x_0, labels, ordinals))
                prediction = network(batch.x_t, batch.t, *batch.conditioning)
                total += float(self.validation_noiser.loss(prediction, batch)) * len(indices)
            score = total / count
            entry = {"validation_loss": score}
        self.best = min(self.best, (score, self.step))
        return entry

    # ------------------------------------------------------------------ state

    def _averaged(self) -> UNet:
        network = self.ema.module.eval()
        assert isinstance(network, UNet)
        return network

    def _sampler(self) -> Sampler:
        return Sampler(self._averaged(), self.schedule, **self.sampler_options)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {
                "model": self.unet.state_dict(),
                "ema": self.ema.module.state_dict(),
                "optimizer": checkpoints.optimizer_tensors(self._bare_optimizer()),
            }
            state: dict[str, Any] = {"step": self.step, "best_loss": self.best[0], "best_step": self.best[1]}
            scaler = self.accelerator.scaler
            if scaler is not None:
                state["scaler"] = scaler.state_dict()
            checkpoints.save(self.run, self.step, tensors, state, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _prepare_run(self, resume: bool) -> None:
        found = checkpoints.steps(self.run)
        if found and not resume:
            raise ValueError(
                f"run: {self.run} holds checkpoints up to step {found[-1]}; an empty folder accepted"
            )
        options = self.config.to_dict()
        document = {
            "objective": options.pop("objective"),
            "train": options,
            "model": self.unet.config.to_dict(),
            "schedule": self.schedule.to_dict(),
        }
        if found:
            checkpoints.check_same_run(self.run, document)
            self._restore(found[-1])
        elif self.accelerator.is_main_process:
            checkpoints.begin_run(self.run, document)
        self.accelerator.wait_for_everyone()

    def _restore(self, step: int) -> None:
        tensors, state = checkpoints.read(self.run, step)
        try:
            self.unet.load_state_dict(tensors["model"])
            self.ema.module.load_state_dict(tensors["ema"])
            checkpoints.restore_optimizer(self._bare_optimizer(), tensors["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], (state["best_loss"], state["best_step"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint of step {step} in {self.run}: does not fit ({error})"
            ) from error
        self.ema.n_averaged.fill_(self.step)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer
