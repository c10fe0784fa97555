"""What the drop-ins for diffusers' pipelines share: plan, network, batch, chain, trajectory, report."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from fastddpm.batch import Batch, make_batch
from fastddpm.checks import BadArgument, whole
from fastddpm.dropin._diffusers.generators import Generators, one_each
from fastddpm.dropin._diffusers.network import (
    Translation,
    call,
    call_with_log_variance,
    check_network,
    image_shape,
    label_tensors,
)
from fastddpm.dropin._diffusers.options import Options, Plans, variance_type_of
from fastddpm.dropin._diffusers.scheduler_kinds import STEPS, scheduler_kind
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import DropIn, Peer
from fastddpm.dropin.settings import Report, Settings
from fastddpm.engine import resolve_engine
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.runner import Runner
from fastddpm.trajectory import Trajectory

if TYPE_CHECKING:
    from typing_extensions import Unpack

Callback = Callable[[int, int, Tensor], None]
_EXTRAS = ("class_labels", "seeds", "callback")


class Extras(TypedDict, total=False):
    """What a call takes beyond the original's arguments."""

    class_labels: int | Sequence[int] | Tensor | None
    seeds: Sequence[int] | Tensor | None
    callback: Callback | None


class FastPipeline(DropIn):
    """What both pipelines share. ``unet`` and ``scheduler`` are the original's, read anew by each call.

    Args:
        original: the pipeline; left as it was.
        settings: noise, engine and dtype.
        options: habits of the original to be changed.
    """

    peer: str

    def __init__(self, original: Peer, settings: Settings, options: Options) -> None:
        super().__init__(original)
        self.settings, self.options = settings, options
        self._plans = Plans()
        self._kept: PeerNetwork | None = None
        self._was_learned = False
        self.check()

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        check_network(self.unet)
        self._short_plan()

    @property
    def unet(self) -> Peer:
        """The original's network, as it is now."""
        return self.original.unet

    @property
    def scheduler(self) -> Peer:
        """The original's scheduler, as it is now; chains do not change it."""
        return self.original.scheduler

    def _short_plan(self) -> Plan:
        """Two steps, or what there are: one may be the last, which is special."""
        return self._plan(min(2, int(self.scheduler.config["num_train_timesteps"])))

    def _plan(
        self, num_inference_steps: int, *, eta: float = 0.0, use_clipped_model_output: bool = False
    ) -> Plan:
        whole("num_inference_steps", num_inference_steps, least=1)
        scheduler, unet = self.scheduler, self.unet
        check_published(scheduler, STEPS, "scheduler")
        plan = self._plans.get(
            scheduler,
            num_inference_steps,
            self.options,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
        )
        widened = unet.config.out_channels == 2 * unet.config.in_channels
        if widened and scheduler_kind(scheduler) == "DDPMScheduler" and not plan.learned_range:
            raise BadArgument(
                "variance_type",
                f"{variance_type_of(scheduler, self.options)} with a UNet that returns twice the channels",
                "learned_range or learned",
            )
        return plan

    def _network(self) -> PeerNetwork:
        """The UNet as it is now."""
        unet, is_learned = self.unet, self._is_learned()
        kept = self._kept
        if kept is None or is_learned != self._was_learned or not kept.fits(unet):
            check_network(unet)
            total = int(self.scheduler.config["num_train_timesteps"])
            self._kept = kept = PeerNetwork(
                unet,
                functools.partial(call_with_log_variance, image_shape(unet)[0]) if is_learned else call,
                Translation(),
                self.settings,
                choice=self.options.network,
                # "trailing" can have a step more than there are timesteps.
                times=torch.arange(total + 1),
                tries_ours=not is_learned and self._is_faster_as_ours(*model_device_dtype(unet)),
                casts="copy",
            )
            self._was_learned = is_learned
        return kept

    def _ready(self) -> Runner:
        """The runner of the UNet, with its weights as they are now."""
        network = self._network()
        network.refresh()
        return network.runner

    def _is_learned(self) -> bool:
        return (
            scheduler_kind(self.scheduler) == "DDPMScheduler"
            and variance_type_of(self.scheduler, self.options) == "learned"
        )

    def _is_faster_as_ours(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether our UNet is to stand in for the original's, if it gives its outputs.

        On a GPU, and where chains are compiled on a CPU, it has a faster form (`fastddpm.tabulated`); in
        others on a CPU the original's operators give the original's images to the last bit.
        """
        compiles = resolve_engine(self.settings.engine, device) == "compile"
        return device.type == "cuda" or (compiles and self.settings.dtype in (None, dtype))

    def _batch(self, runner: Runner, batch_size: int, generator: Generators, extras: Extras) -> Batch:
        """The batch that a call asks for; see `__call__`."""
        unknown = [name for name in extras if name not in _EXTRAS]
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: given, beyond the original's {', '.join(_EXTRAS)} accepted"
            )
        seeds = extras.get("seeds")
        count = whole("batch_size", batch_size, least=1)
        if seeds is not None and count == 1:
            count = len(seeds)
        source = self.settings.source(
            count,
            runner.device,
            generator=one_each(generator, count, exactly=self.peer == "DDIMPipeline"),
            seeds=seeds,
            dtype=model_device_dtype(self.unet)[1],
        )
        labels = label_tensors(self.unet, extras.get("class_labels"), count)
        return make_batch((count, *image_shape(self.unet)), source, cond=labels)

    def _walk(
        self, plan: Plan, runner: Runner, batch: Batch, *, every_step: bool, keep_x0: bool = False
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Walks a chain under the progress bar that the original would show."""
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        # The original's own method is not called: it would leave an attribute there.
        config = dict(getattr(self, "_progress_bar_config", {}))
        if "disable" not in config:
            config["disable"] = not _is_first_rank()
        if config["disable"] is True:
            yield from runner.walk(plan, batch, every_step=every_step, keep_x0=keep_x0, progress=False)
            return
        done = 0
        with tqdm(total=len(plan), **config) as bar:
            steps = runner.walk(plan, batch, every_step=every_step, keep_x0=keep_x0, progress=False)
            for k, x, x0 in steps:
                bar.update(k - done)
                done = k
                yield k, x, x0

    def _images(self, plan: Plan, batch_size: int, generator: Generators, extras: Extras) -> Tensor:
        """The last state, float32 ``(B, C, H, W)``, a tensor of its own."""
        runner = self._ready()
        batch = self._batch(runner, batch_size, generator, extras)
        callback = extras.get("callback")
        last: Tensor | None = None
        for k, x, _ in self._walk(plan, runner, batch, every_step=callback is not None):
            if callback is not None and k > 0:
                callback(k - 1, int(plan.model_time[k - 1]), x)
            last = x
        assert last is not None
        return last

    def sample_trajectory(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 50,
        *,
        frames: int | None = None,
        predicted: bool = False,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        **extras: Unpack[Extras],
    ) -> Tensor:
        """Draws images and keeps the way there.

        Args:
            batch_size: as of the call.
            generator: as of the call.
            num_inference_steps: as of the call.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            eta: as of `FastDDIMPipeline`, as is the next.
            use_clipped_model_output: None is False.
            **extras: ``class_labels`` and ``seeds``, as of the call.

        Returns:
            float32 ``(F, B, C, H, W)`` in [-1, 1], unclamped: the call returns the last frame / 2 + 0.5.
        """
        plan = self._plan(
            num_inference_steps, eta=eta, use_clipped_model_output=bool(use_clipped_model_output)
        )
        trajectory = Trajectory(len(plan), frames, predicted)
        runner = self._ready()
        batch = self._batch(runner, batch_size, generator, extras)
        for k, x, x0 in self._walk(plan, runner, batch, every_step=True, keep_x0=predicted):
            trajectory.look(k, x, x0)
        return trajectory.taken()

    def set_progress_bar_config(self, **config: object) -> None:
        """tqdm's arguments for this object's bar, such as ``disable=True``; until then the original's."""
        self._progress_bar_config = config

    def to(self, *args: object, **kwargs: object) -> FastPipeline:
        """Moves the network, which is the original's as well, and returns this object."""
        self.original.to(*args, **kwargs)
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: object) -> None:
        """Saves the original's folder, which anyone can load with diffusers."""
        self.original.save_pretrained(save_directory, **options)

    def report(self) -> Report:
        """What became of the pipeline, with the engine that runs now."""
        plan, network = self._short_plan(), self._network()
        x0 = "x0" if plan.thresholding is None else "x0 after its threshold"
        fused = [
            f"{x0} from {plan.prediction_type}",
            *(["clip"] if plan.clip else []),
            f"{plan.method} update",
        ]
        fused += ["learned variance"] if plan.learned_range else []
        noise, why = "torch generators, drawn as the original draws", []
        if self.settings.noise == "philox":
            noise = "one seed per image (noise spec v1), drawn in the step"
        if plan.thresholding is not None:
            why.append("dynamic thresholding: the quantile of |x0| is a pass of its own")
        if self._is_learned():
            why.append("variance_type learned: the logarithm of the network's variance is a pass of its own")
        return Report(
            peer=f"diffusers {self.peer} with {scheduler_kind(self.scheduler)}",
            network=network.words if network.unet else f"{type(self.unet).__name__}, {network.words}",
            engine=network.runner.engine_in_words(),
            noise=noise,
            precision=network.runner.computes_in(),
            fused=tuple(fused),
            not_fused=tuple(why),
        )


def _is_first_rank() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
