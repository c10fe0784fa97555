"""What the drop-ins for diffusers' pipelines share: plan, network, walk, report."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.dropin._diffusers.network import (
    Translation,
    Way,
    call,
    call_with_log_variance,
    check_network,
    image_shape,
)
from fastddpm.dropin._diffusers.options import Options, Plans, Steps, variance_type_of
from fastddpm.dropin._diffusers.scheduler_kinds import STEPS, scheduler_kind
from fastddpm.dropin._diffusers.states import SIGMA_SPACE
from fastddpm.dropin._diffusers.times import Times
from fastddpm.dropin.network import PeerNetwork
from fastddpm.dropin.overrides import check_published
from fastddpm.dropin.peer import DropIn, Peer
from fastddpm.dropin.settings import Report, Settings
from fastddpm.engine import resolve_engine
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.progress import is_first_rank
from fastddpm.runner import Runner
from fastddpm.unet import UNet


class FastPipeline(DropIn):
    """What all of them share. ``unet`` and ``scheduler`` are the original's, read anew by each call.

    Args:
        original: the pipeline; left as it was.
        settings: noise, engine and dtype.
        options: habits of the original to be changed.

    Attributes:
        peer: the original's class.
        only: the scheduler that it takes; None for any.
        unscaled: what the original does wrong with schedulers of `SIGMA_SPACE`, which are refused then; empty
            where it scales their state for the network and nothing else.
        looks_up: the scheduler finds its first row by its timestep, and is not told it.
    """

    peer: str
    only: str | None = None
    unscaled = "whose state the original gives to its network as it is"
    looks_up = True

    def __init__(self, original: Peer, settings: Settings, options: Options) -> None:
        super().__init__(original)
        self.settings, self.options = settings, options
        self._plans = Plans()
        self._kept: dict[str, PeerNetwork[UNet]] = {}
        # Whether images are to have the original's rounding; int8 is calibrated in x.
        self._as_written = settings.noise == "torch" and settings.precision != "int8"
        self.check()

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        self._check_network()
        self._short_plan()

    def _check_network(self) -> None:
        check_network(self.unet)

    @property
    def unet(self) -> Peer:
        """The original's network, as it is now."""
        return self.original.unet

    @property
    def scheduler(self) -> Peer:
        """The original's scheduler, as it is now; chains do not change it."""
        return self.original.scheduler

    def _short_plan(self) -> Plan:
        """Two steps, or what there are: one may be the last, which is special. PNDM's start takes four."""
        config = self.scheduler.config
        fewest = 2 if config.get("skip_prk_steps", True) else 4
        total = int(config.get("num_train_timesteps", fewest))
        try:
            return self._plan(min(fewest, total))
        except BadArgument:
            # So few steps may be what has no rows: KDPM2's ancestral ones from a high level.
            with contextlib.suppress(BadArgument):
                return self._plan(min(50, total))
            raise

    def _plan(
        self,
        num_inference_steps: int,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
        times: Times | None = None,
    ) -> Plan:
        """The plan of a number of steps, which is not looked at where times are given."""
        if times is None:
            whole("num_inference_steps", num_inference_steps, least=1)
        check_published(self.scheduler, STEPS, "scheduler")
        kind = scheduler_kind(self.scheduler)
        steps = Steps(
            num_inference_steps,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
            times=times,
            as_written=self._as_written,
        )
        plan = self._plans.get(self.scheduler, steps, self.options, kind=kind)
        if self.unscaled and kind in SIGMA_SPACE:
            given = f"{type(self.scheduler).__name__}, {self.unscaled},"
            raise BadArgument("scheduler", given, "one whose state is x, such as a DDIMScheduler,")
        if self.only not in (None, kind):
            accepted = f"a {self.only} by a {self.peer}"
            raise BadArgument("scheduler", type(self.scheduler).__name__, accepted)
        self._check_variance(plan)
        if kind == "SASolverScheduler":
            check_cut(self.scheduler, self.unet)
        if self.looks_up and kind in SOLVERS and kind != "PNDMScheduler":
            check_first(plan, num_inference_steps, times)
        return plan

    def _check_variance(self, plan: Plan) -> None:
        """ValueError for channels of the network that a plan has no use for."""
        unet, scheduler = self.unet, self.scheduler
        widened = unet.config.out_channels == 2 * unet.config.in_channels
        if widened and scheduler_kind(scheduler) == "DDPMScheduler" and not plan.learned_range:
            raise BadArgument(
                "variance_type",
                f"{variance_type_of(scheduler, self.options)} with a UNet that returns twice the channels",
                "learned_range or learned",
            )

    def _way(self) -> Way:
        """How chains call the network."""
        if self._is_learned():
            return Way("learned", functools.partial(call_with_log_variance, image_shape(self.unet)[0]), False)
        return Way("plain", call, True)

    def _network(self, way: Way | None = None) -> PeerNetwork[UNet]:
        """The network as it is now, called in a way; None for `_way`."""
        unet, way = self.unet, way or self._way()
        kept = self._kept.get(way.name)
        if kept is None or not kept.fits(unet):
            self._check_network()
            kept = PeerNetwork(
                unet,
                way.call,
                Translation(),
                self.settings,
                choice=self.options.network,
                times=self._times(),
                tries_ours=way.may_be_ours and self._is_faster_as_ours(*model_device_dtype(unet)),
                casts="copy",
            )
            self._kept = {name: one for name, one in self._kept.items() if one.source is unet}
            self._kept[way.name] = kept
        return kept

    def _times(self) -> Tensor:
        """Time inputs that the network may be given, as of `PeerNetwork`."""
        # "trailing" can have a step more than there are timesteps.
        return torch.arange(int(self.scheduler.config["num_train_timesteps"]) + 1)

    def _ready(self, way: Way | None = None) -> Runner:
        """The runner of the network, with its weights as they are now."""
        network = self._network(way)
        network.refresh()
        return network.runner

    def _is_learned(self) -> bool:
        said = self.options.variance_type or self.scheduler.config.get("variance_type")
        return said == "learned" and scheduler_kind(self.scheduler) == "DDPMScheduler"

    def _is_faster_as_ours(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether our UNet is to stand in for the original's, if it gives its outputs.

        On a GPU, and where chains are compiled on a CPU, it has a faster form (`fastddpm.tabulated`); in
        others on a CPU the original's operators give the original's images to the last bit.
        """
        compiles = resolve_engine(self.settings.engine, device) == "compile"
        return device.type == "cuda" or (compiles and self.settings.dtype in (None, dtype))

    @contextlib.contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[int], None]]:
        """The progress bar that the original would show; yields what advances it by so many steps."""
        # The original's own method is not called: it would leave an attribute there.
        config = dict(getattr(self, "_progress_bar_config", {}))
        if "disable" not in config:
            config["disable"] = not is_first_rank()
        if config["disable"] is True:
            yield lambda steps: None
            return
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, **config) as bar:
            yield bar.update

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
        is_written = "levels of noise at which the original's rounding is seen: its operations, one by one"
        fused += ["learned variance"] if plan.learned_range else []
        fused += self._fused()
        noise, why = "torch generators, drawn as the original draws", [is_written] if plan.in_sigmas else []
        if self.settings.noise == "philox":
            noise = "one seed per image (noise spec v1), drawn in the step"
        if plan.thresholding is not None:
            why.append("dynamic thresholding: the quantile of |x0| is a pass of its own")
        if self._is_learned():
            why.append("variance_type learned: the logarithm of the network's variance is a pass of its own")
        why += self._not_fused()
        kind = scheduler_kind(self.scheduler) or type(self.scheduler).__name__
        return Report(
            peer=f"diffusers {self.peer} with {kind}",
            network=network.words if network.unet else f"{type(self.unet).__name__}, {network.words}",
            engine=network.runner.engine_in_words(),
            noise=noise,
            precision=network.runner.computes_in(),
            fused=() if plan.in_sigmas else tuple(fused),
            not_fused=tuple(why),
        )

    def _fused(self) -> list[str]:
        """What of this pipeline one kernel does besides."""
        return []

    def _not_fused(self) -> list[str]:
        """What of this pipeline runs as it is."""
        return []


def check_cut(scheduler: Peer, unet: Peer) -> None:
    """ValueError where SA-Solver, of learned variances, takes the first three channels and needs more."""
    variance_type, prediction_type = scheduler.config.variance_type, scheduler.config.prediction_type
    channels = int(unet.config.out_channels or unet.config.in_channels)  # None of DiT's for the same
    if channels == 2 * unet.config.in_channels:
        channels //= 2
    if variance_type in ("learned", "learned_range") and prediction_type == "epsilon" and channels > 3:
        given = f"{variance_type!r} with a SASolverScheduler, which takes the first 3 of {channels} channels,"
        raise BadArgument("variance_type", given, "None")


def check_first(plan: Plan, num_inference_steps: int, given_times: Times | None = None) -> None:
    """ValueError where the first timestep comes again: the original begins at its second place, as for
    an image, and has no row left for the last step."""
    times = plan.model_time
    if (times == times[0]).sum() > 1:
        if given_times is not None:
            raise BadArgument(given_times.names, f"the timestep {times[0]:g} first and again", "others")
        given = f"{num_inference_steps}, of which the first timestep, {times[0]:g}, comes twice,"
        raise BadArgument("num_inference_steps", given, "fewer")
