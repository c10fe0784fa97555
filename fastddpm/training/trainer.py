"""The training loop: batches by ordinal, one optimiser step, the moving average, and what is saved when.

    for step: x_0, y -> x_t, t, target (objective) -> network -> loss -> Adam -> EMA -> log, checkpoint

Everything random follows from the seed and the number of samples drawn so far, so a resumed run and a run on
another number of processes see the same batches, noise and timesteps. Devices, processes and mixed
precision are Hugging Face accelerate's.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastddpm.inputs import Json
from fastddpm.locks import exclusive
from fastddpm.options import SamplerOptions
from fastddpm.progress import progress_bar
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked
from fastddpm.tasks import Task
from fastddpm.temporaries import remove_leftovers
from fastddpm.training.average import MovingAverage
from fastddpm.training.config import TrainConfig
from fastddpm.training.description import begin_or_go_on, describe, make_run
from fastddpm.training.divergence import check_losses, check_weights
from fastddpm.training.initial import begin_with, digest
from fastddpm.training.interruption import Interrupted, stop_on_interrupt
from fastddpm.training.loading import Batches
from fastddpm.training.objective import NoisedBatch, Noiser
from fastddpm.training.processes import accelerator_for, on_any, on_main
from fastddpm.training.results import Results
from fastddpm.training.sampling import options_of
from fastddpm.training.state import State
from fastddpm.training.validation import TrainingData, on_device, validation_loss
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.size import MAX_PARAMETERS

# Steps between looks at whether another process was interrupted, where a look waits for a GPU.
STOP_EVERY = 10


class Trainer:
    """Trains a :class:`UNet` and leaves a model folder.

    Args:
        config: how to train.
        model: architecture; its weights are initialised from the seed.
        schedule: noise schedule.
        data: training images.
        run: folder of the run; made if need be.
        validation: images whose loss is measured at checkpoints; the best checkpoint is the best on them.
        sampler: default options of the saved model (:class:`fastddpm.Sampler`); also used for the grids. Its
            ``time_input`` is what the network is trained with; without ``class_names`` or ``shape`` it gets
            those of ``data``, and its ``prediction_type`` is the objective's.
        task: what makes a condition from each x_0 (`fastddpm.tasks`); ``model.in_channels`` are those of the
            condition and the image. The saved model gets a `task.json`. None for generation.
        initial: a network of this architecture, the classes aside, whose weights it begins with.
        max_parameters: that the network may have.

    Raises:
        ValueError: a larger network, a batch size that does not divide, a mixed precision that is not to be
            had here, or options that no sampler of this network has.
    """

    @checked
    def __init__(
        self,
        config: TrainConfig,
        model: UNetConfig,
        schedule: NoiseSchedule,
        data: TrainingData,
        run: str | Path,
        *,
        validation: TrainingData | None = None,
        sampler: SamplerOptions | None = None,
        task: Task | None = None,
        initial: UNet | None = None,
        max_parameters: int = MAX_PARAMETERS,
    ) -> None:
        self.config, self.schedule, self.data, self.validation = config, schedule, data, validation
        self.run, self.task = Path(run), task
        self.accelerator = accelerator_for(config)
        self.device = self.accelerator.device
        place = {"processes": self.accelerator.num_processes, "process": self.accelerator.process_index}
        self.batches = Batches(data, config, **place)
        torch.manual_seed(config.seed)
        network = UNet(model, max_parameters=max_parameters)
        if initial is not None:
            begin_with(network, initial)
        self.first_weights = digest(initial)
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.unet = network
        self.ema = MovingAverage(self.unet, config.ema_decay)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        prepared = torch.compile(network) if config.compile else network
        self.network, self.optimizer = self.accelerator.prepare(prepared, optimizer)
        self.state = State(network, self.ema, self.optimizer, self.accelerator)
        null = model.num_classes if model.null_class else None
        self.sampler_options = options_of(sampler, network, schedule, data, config.objective)
        noiser = functools.partial(
            Noiser,
            schedule,
            config.objective,
            seed=config.seed,
            null_label=null,
            task=task,
            time_input=self.sampler_options.get("time_input", "timestep"),
            device=self.device,
        )
        self.noiser = noiser(class_dropout=config.class_dropout)
        self.validation_noiser = noiser()
        self.results: Results | None = None  # of the main process, while it trains
        self.step = 0
        self.best: tuple[float, int] = (math.inf, 0)

    @checked
    def train(self, *, resume: bool = True, progress: bool = True) -> Path:
        """Trains to ``config.steps``; at every checkpoint ``RUN/model`` gets the averaged weights.

        Args:
            resume: go on from the last checkpoint of the run folder where there is one; False refuses a
                folder that holds checkpoints.
            progress: show a progress bar.

        Returns:
            The model folder.

        Raises:
            TrainingDiverged: loss or weights are not finite; names the step. The last checkpoint stays.
            Interrupted: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, on any process; the state was saved.
            CheckpointError: the checkpoint to resume from is damaged; names one that is not.
            ValueError: the run folder is that of another configuration or of other data.
            FolderInUse: another process trains in it.
            WorkerDied: (an OSError) a process that made batches has ended.
            OSError: a file could not be written; names the folder, the last checkpoint and how to go on.
            MainProcessFailed: on the other processes, where the main process raised one of these.
        """
        with contextlib.ExitStack() as held:
            self._prepare_run(resume, held)
            held.enter_context(self.batches)
            return self._train(progress)

    def _train(self, progress: bool) -> Path:
        losses: list[Tensor] = []
        began, first = time.perf_counter(), self.step
        steps, every = self.config.steps, self.config.checkpoint_every
        with stop_on_interrupt() as stopped, progress_bar(progress, steps, "training") as advance:
            if self.step:
                advance(self.step)
            while self.step < steps:
                losses.append(self._optimize())
                self.step += 1
                advance(1)
                at_checkpoint = self.step % every == 0 or self.step == steps
                stop = self._is_to_stop(bool(stopped))
                if at_checkpoint or stop or self.step % self.config.log_every == 0:
                    loss = self._mean_loss(losses)
                    losses.clear()
                    seconds = time.perf_counter() - began
                    entry = {"step": self.step, "loss": loss, "lr": self.config.learning_rate(self.step)}
                    entry["samples_per_second"] = (self.step - first) * self.config.batch_size / seconds
                    if at_checkpoint or stop:
                        check_weights(self.unet, self.step, self.run)
                    if at_checkpoint and not stop:
                        entry.update(self._validate(loss, stopped))
                    on_main(self.accelerator, self._write, entry, at_checkpoint or stop)
                if at_checkpoint and not stop:
                    stop = on_any(self.accelerator, bool(stopped))
                    if not stop:
                        on_main(self.accelerator, self._draw, stopped)
                        stop = on_any(self.accelerator, bool(stopped))
                if stop and self.step < steps:
                    raise Interrupted(
                        f"stopped at step {self.step} of {steps}, saved in {self.run}; "
                        "the same command goes on from there",
                        *stopped,
                    )
        on_main(self.accelerator, self._finish)
        return self.run / "model"

    def _is_to_stop(self, stopped: bool) -> bool:
        """Whether all processes stop after this step, since one was interrupted: none may go on alone."""
        look = self.device.type == "cpu" or self.accelerator.num_processes == 1
        return on_any(self.accelerator, stopped) if look or self.step % STOP_EVERY == 0 else False

    def _optimize(self) -> Tensor:
        """One optimiser step on ``batch_size`` samples; returns this process's mean loss, on the device."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step)
        self.network.train()
        total = torch.zeros((), device=self.device)
        for micro in range(config.gradient_accumulation):
            last = micro == config.gradient_accumulation - 1
            batch = self._batch(micro)
            # Dropout too follows from the step, so that a resumed run repeats it.
            torch.manual_seed(self._local_seed(micro))
            with contextlib.nullcontext() if last else accelerator.no_sync(self.network):
                with accelerator.autocast():
                    prediction = self.network(batch.inputs, batch.t, *batch.conditioning)
                loss = self.noiser.loss(prediction, batch) / config.gradient_accumulation
                accelerator.backward(loss)
            total += loss.detach()
        if config.grad_clip is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        return total

    def _batch(self, micro: int) -> NoisedBatch:
        return self.noiser(*on_device(self.unet, *self.batches.get(self.step, micro)))

    def _local_seed(self, micro: int) -> int:
        place = (self.step * self.config.gradient_accumulation + micro) * self.accelerator.num_processes
        return int(self.config.seed + 1_000_003 * (place + self.accelerator.process_index)) % 2**63

    def _mean_loss(self, losses: list[Tensor]) -> float:
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean")
        check_losses(values, self.step, self.config.batch_size, self.run)
        return float(values.mean())

    def _validate(self, train_loss: float, stopped: Sequence[int] = ()) -> dict[str, float]:
        """The averaged weights' loss on the validation images, if any, by which the best are known.

        Nothing where the run is stopped meanwhile: who stopped it may not wait for long.
        """
        score, entry = train_loss, {}
        if self.validation is not None:
            found = validation_loss(self._averaged(), self.validation_noiser, self.validation, stopped)
            if found is None:
                return {}
            score, entry = found, {"validation_loss": found}
        self.best = min(self.best, (score, self.step))
        return entry

    def _averaged(self) -> UNet:
        network: UNet = self.ema.module.eval()
        return network

    def _sampler(self) -> Sampler:
        return Sampler(self._averaged(), self.schedule, **self.sampler_options)

    def _write(self, entry: Json, checkpoint: bool) -> None:
        assert self.results is not None
        self.results.write(entry)
        if checkpoint:
            self.results.checkpoint(*self.state.saved(self.step, self.best))
            self.results.model(self._averaged())

    def _draw(self, stopped: Sequence[int]) -> None:
        assert self.results is not None
        self.results.pictures(self.step, self._sampler(), stopped)

    def _finish(self) -> None:
        assert self.results is not None
        self.results.close()
        self.results.model(self._averaged())  # which a run of before wrote at the end alone

    def _prepare_run(self, resume: bool, held: contextlib.ExitStack) -> None:
        """Begins the run, or puts every process where its last checkpoint is; holds the folder."""
        step = on_main(self.accelerator, self._begin, resume, held)
        if step:
            self.step, self.best = step, self.state.restore(self.run, step)
        on_main(self.accelerator, self._open_results)

    def _begin(self, resume: bool, held: contextlib.ExitStack) -> int:
        make_run(self.run)
        held.enter_context(exclusive(self.run, "run", "training"))
        for folder in (self.run, self.run / "checkpoints", self.run / "samples", self.run / "model"):
            if folder.is_dir():
                remove_leftovers(folder, alone=True)
        document = describe(
            self.config, self.unet.config, self.schedule, self.data, self.task, self.first_weights
        )
        return begin_or_go_on(self.run, document, resume=resume)

    def _open_results(self) -> None:
        self.results = Results(
            self.run,
            self.step,
            self.config.keep,
            schedule=self.schedule,
            options=self.sampler_options,
            task=self.task,
            data=self.validation or self.data,
        )
