"""What the drop-ins for diffusers' pipelines share: plan, network, batch, chain, trajectory, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.copies import Copied, InDtype
from fastddpm.dropin._diffusers.generators import Generators, one_each
from fastddpm.dropin._diffusers.kinds import scheduler_kind
from fastddpm.dropin._diffusers.network import (
    LogVariance,
    Translation,
    check_network,
    image_shape,
    label_tensors,
)
from fastddpm.dropin._diffusers.options import Options, Plans, variance_type_of
from fastddpm.dropin.arranged import ForGpu
from fastddpm.dropin.chains import Chains
from fastddpm.dropin.peer import DropIn
from fastddpm.dropin.runner import Runner, is_altered
from fastddpm.dropin.settings import Report, Settings
from fastddpm.engine import resolve_engine
from fastddpm.network import model_device_dtype
from fastddpm.plans import Plan
from fastddpm.request import Batch
from fastddpm.sampler import evenly_spread

Callback = Callable[[int, int, Tensor], None]
_EXTRAS = ("class_labels", "seeds", "callback")


class FastPipeline(DropIn):
    """What both pipelines share. ``unet`` and ``scheduler`` are the original's, read anew by each call.

    Args:
        original: the pipeline; left as it was.
        settings: noise, engine and dtype.
        options: habits of the original to be changed.
    """

    peer: str

    def __init__(self, original: Any, settings: Settings, options: Options) -> None:
        super().__init__(original)
        self.settings, self.options = settings, options
        self._plans = Plans()
        self._chains: Chains | None = None
        self._chains_of: tuple[Any, ...] = ()
        self._copied: Copied | None = None
        self._runner: Runner | None = None
        self.check()

    def check(self) -> None:
        """ValueError for a pipeline that cannot be reproduced, before any image is asked for."""
        check_network(self.unet)
        self._short_plan()

    @property
    def unet(self) -> Any:
        """The original's network, as it is now."""
        return self.original.unet

    @property
    def scheduler(self) -> Any:
        """The original's scheduler, as it is now; chains do not change it."""
        return self.original.scheduler

    def _short_plan(self) -> Plan:
        """Two steps, or what there are: one may be the last, which is special."""
        return self._plan(min(2, int(self.scheduler.config["num_train_timesteps"])))

    def _plan(self, num_inference_steps: int, **options: Any) -> Plan:
        whole("num_inference_steps", num_inference_steps, least=1)
        scheduler, unet = self.scheduler, self.unet
        plan = self._plans.get(scheduler, num_inference_steps, self.options, **options)
        widened = unet.config.out_channels == 2 * unet.config.in_channels
        if widened and scheduler_kind(scheduler) == "DDPMScheduler" and not plan.learned_range:
            raise BadArgument(
                "variance_type",
                f"{variance_type_of(scheduler, self.options)} with a UNet that returns twice the channels",
                "learned_range or learned",
            )
        return plan

    def _network(self) -> Chains:
        """The chains of the UNet as it is now."""
        unet = self.unet
        device, dtype = model_device_dtype(unet)
        is_learned = (
            scheduler_kind(self.scheduler) == "DDPMScheduler"
            and variance_type_of(self.scheduler, self.options) == "learned"
        )
        copies = None if self._copied is None else self._copied.copies()  # which may make the copy anew
        copied = None if self._copied is None else self._copied.module
        key = (unet, device, dtype, is_learned)
        is_current = self._chains_of == (*key, copied) and (self._runner is None or self._runner.fits(unet))
        if self._chains is None or not is_current:
            check_network(unet)
            wanted = self.settings.dtype or dtype
            total = int(self.scheduler.config["num_train_timesteps"])
            copies = copied = None
            self._copied, self._runner = None, None
            if self._may_be_ours(device, is_learned, wanted == dtype):
                # "trailing" can have a step more than there are timesteps.
                self._runner = self._our_runner(torch.arange(total + 1))
            if self._runner is not None:
                self._chains = self._runner.chains
            else:
                self._copied = self._copy(device, None if wanted == dtype else wanted)
                if self._copied is not None:
                    copies, copied = self._copied.copies(), self._copied.module
                network: Any = unet if copied is None else copied
                if is_learned:
                    network = LogVariance(network, image_shape(unet)[0])
                self._chains = Chains(network, self.settings, capacity=total + 1)
            self._chains_of = (*key, copied)
        if self._runner is not None:
            self._runner.refresh()
        elif copies is not None:
            self._chains.copies = copies
        return self._chains

    def _may_be_ours(self, device: torch.device, is_learned: bool, same_dtype: bool) -> bool:
        """Whether our UNet is to stand in for the original's, if it gives its outputs.

        On a GPU, and where chains are compiled on a CPU, it has a faster form (`fastddpm.tabulated`); in
        others on a CPU the original's operators give the original's images to the last bit.
        """
        if is_learned or self.options.network == "original":
            return False
        compiles = resolve_engine(self.settings.engine, device) == "compile" and same_dtype
        return self.options.network == "ours" or device.type == "cuda" or compiles

    def _our_runner(self, times: Tensor) -> Runner | None:
        """Chains of our UNet with a network's weights; None where it does not give the same outputs."""
        try:
            return Runner(self.unet, _call, Translation(), self.settings, choice="ours", times=times)
        except ValueError:
            if self.options.network == "ours":
                raise
            return None

    def _copy(self, device: torch.device, dtype: torch.dtype | None) -> Copied | None:
        """What runs in the original's place: a copy in another dtype or, on a GPU, in another order."""
        if device.type == "cuda" and self.options.network == "auto" and not is_altered(self.unet):
            return ForGpu(self.unet, dtype)
        return None if dtype is None else InDtype(self.unet, dtype)

    def _batch(self, chains: Chains, batch_size: int, generator: Generators, extras: dict[str, Any]) -> Batch:
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
        source = chains.source(
            count,
            generator=one_each(generator, count, exactly=self.peer == "DDIMPipeline"),
            seeds=seeds,
            dtype=self._dtype(),
        )
        labels = label_tensors(self.unet, extras.get("class_labels"), count)
        return chains.batch((count, *image_shape(self.unet)), source, cond=labels)

    def _walk(
        self, plan: Plan, chains: Chains, batch: Batch, **options: Any
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Walks a chain under the progress bar that the original would show."""
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        # The original's own method is not called: it would leave an attribute there.
        config = dict(getattr(self, "_progress_bar_config", {}))
        if "disable" not in config:
            config["disable"] = not _is_first_rank()
        if config["disable"] is True:
            yield from chains.walk(plan, batch, progress=False, **options)
            return
        done = 0
        with tqdm(total=len(plan), **config) as bar:
            for k, x, x0 in chains.walk(plan, batch, progress=False, **options):
                bar.update(k - done)
                done = k
                yield k, x, x0

    def _images(self, plan: Plan, batch_size: int, generator: Generators, extras: dict[str, Any]) -> Tensor:
        """The last state, float32 ``(B, C, H, W)``, a tensor of its own."""
        chains = self._network()
        batch = self._batch(chains, batch_size, generator, extras)
        callback: Callback | None = extras.get("callback")
        last: Tensor | None = None
        for k, x, _ in self._walk(plan, chains, batch, every_step=callback is not None):
            if callback is not None and k > 0:
                callback(k - 1, int(plan.model_time[k - 1]), x)
            last = x
        assert last is not None
        return last

    def _dtype(self) -> torch.dtype:
        """Of the network that chains were last made for."""
        dtype = self._chains_of[2]
        assert isinstance(dtype, torch.dtype)
        return dtype

    def sample_trajectory(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        num_inference_steps: int = 50,
        *,
        frames: int | None = None,
        predicted: bool = False,
        **options: Any,
    ) -> Tensor:
        """Draws images and keeps the way there.

        Args:
            batch_size: as of the call, as are the next two and, of options, eta, use_clipped_model_output,
                class_labels and seeds.
            generator: as of the call.
            num_inference_steps: as of the call.
            frames: states kept, evenly spread, the first and the last among them; None for all S + 1.
            predicted: keep the predicted clean image of each step instead of the state (S frames at most).
            **options: further arguments of the call.

        Returns:
            float32 ``(F, B, C, H, W)`` in [-1, 1], unclamped: the call returns the last frame / 2 + 0.5.
        """
        extras = {name: options.pop(name) for name in _EXTRAS if name in options}
        plan = self._plan(num_inference_steps, **options)
        available = len(plan) + (0 if predicted else 1)
        if frames is not None and not 2 <= frames <= available:
            raise BadArgument("frames", repr(frames), f"None or 2 to {available}")
        kept = set(evenly_spread(available, available if frames is None else frames))
        chains = self._network()
        batch = self._batch(chains, batch_size, generator, extras)
        states = []
        for k, x, x0 in self._walk(plan, chains, batch, every_step=True, keep_x0=predicted):
            source = x0 if predicted else x
            if source is not None and (k - 1 if predicted else k) in kept:
                states.append(source.clone())
        return torch.stack(states)

    def set_progress_bar_config(self, **config: Any) -> None:
        """tqdm's arguments for this object's bar, such as ``disable=True``; until then the original's."""
        self._progress_bar_config = config

    def to(self, *args: Any, **kwargs: Any) -> FastPipeline:
        """Moves the network, which is the original's as well, and returns this object."""
        self.original.to(*args, **kwargs)
        return self

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Saves the original's folder, which anyone can load with diffusers."""
        self.original.save_pretrained(save_directory, **options)

    def report(self) -> Report:
        """What became of the pipeline, with the engine that runs now."""
        plan, chains = self._short_plan(), self._network()
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
        if isinstance(chains.model, LogVariance):
            why.append("variance_type learned: the logarithm of the network's variance is a pass of its own")
        dtype = "" if self._copied is None else f", copied to {chains.dtype} before each chain"
        if isinstance(self._copied, ForGpu):
            dtype = f", in channels_last, its norms fused{dtype if self.settings.dtype else ''}"
        return Report(
            peer=f"diffusers {self.peer} with {scheduler_kind(self.scheduler)}",
            network=(
                f"{type(self.unet).__name__}, the original module{dtype}"
                if self._runner is None
                else self._runner.network
            ),
            engine=chains.engine_in_words(),
            noise=noise,
            precision=chains.computes_in(),
            fused=tuple(fused),
            not_fused=tuple(why),
        )


def _call(unet: Any, x: Tensor, t: Tensor, **cond: Tensor) -> Any:
    return unet(x, t, **cond)


def _is_first_rank() -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0
