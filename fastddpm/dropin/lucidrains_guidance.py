"""Drop-in for the ``GaussianDiffusion`` of denoising-diffusion-pytorch's classifier_free_guidance.py.

Guidance there projects the difference of the two predictions and rescales its result, which no row of a plan
expresses; the network's own ``forward_with_cond_scale`` does it, with two calls of the network, and the loop
does the rest. Under CFG++ (`use_cfg_plus_plus`) DDIM's eps comes from the unconditional prediction, so that
the step's mean too is finished before the loop adds noise.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastddpm.batch import make_batch
from fastddpm.checks import BadArgument, check_count
from fastddpm.dropin.lucidrains_loops import DrawOptions, FastLucidrains
from fastddpm.dropin.peer import Peer
from fastddpm.dropin.settings import NetworkChoice, Report, Settings
from fastddpm.plans import Plan
from fastddpm.plans.finished import finished_plan
from fastddpm.plans.lucidrains import OBJECTIVES, cfg_plus_plus_rows
from fastddpm.runner import Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = "denoising-diffusion-pytorch (lucidrains) GaussianDiffusion with classifier-free guidance"


class FastGuidedLucidrains(FastLucidrains):
    """``sample(classes, cond_scale, rescaled_phi)`` and its loops as in the library, by our loop.

    Each pair of cond_scale and rescaled_phi is compiled or captured of its own; the last four are kept.

    Attributes:
        original: the GaussianDiffusion; its attributes, buffers and weights are read anew by each call.
        settings: noise, engine and dtype.
        repair: whether cond_scale = 1 with two images gives each its own prediction; see `sample`.
    """

    description = DESCRIPTION

    def __init__(
        self, original: Peer, settings: Settings, *, repair: bool = False, network: NetworkChoice = "auto"
    ) -> None:
        self.repair = repair
        super().__init__(original, settings, network=network)

    def sample(  # type: ignore[override]
        self,
        classes: Tensor,
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        **options: Unpack[DrawOptions],
    ) -> Tensor:
        """Draws one image of each class given.

        With cond_scale = 1 the library unpacks the batch of predictions where it expects a pair: it fails,
        except for two images, which both get the first one's prediction. Those are repeated here with a
        warning unless ``repair`` was chosen; other batches get the conditional prediction.

        Args:
            classes: int64 ``(B,)``.
            cond_scale: 1 for the conditional prediction, above for guidance.
            rescaled_phi: in [0, 1], how much of the prediction has its standard deviation restored.
            **options: ``seeds``, ``generator`` and ``progress`` as of `FastLucidrains.sample`.

        Returns:
            float32 ``(B, C, H, W)`` in [0, 1].

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        if not isinstance(classes, Tensor) or classes.dim() != 1 or len(classes) == 0:
            raise BadArgument("classes", repr(classes), "an int64 tensor (B,)")
        loop = self.ddim_sample if self.original.is_ddim_sampling else self.p_sample_loop
        shape = (len(classes), self.original.channels, *self._size())
        return loop(classes, shape, cond_scale, rescaled_phi, **options)

    def p_sample_loop(  # type: ignore[override]
        self,
        classes: Tensor,
        shape: Sequence[int],
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        **options: Unpack[DrawOptions],
    ) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, with every timestep."""
        runner = self._guided(cond_scale, rescaled_phi, len(classes))
        return self._class_images(runner, self.ancestral_plan(), shape, {"classes": classes}, **options)

    def ddim_sample(  # type: ignore[override]
        self,
        classes: Tensor,
        shape: Sequence[int],
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        **options: Unpack[DrawOptions],
    ) -> Tensor:
        """`sample` for a shape ``(B, C, H, W)``, by DDIM with the original's sampling_timesteps."""
        plan, cond = self.ddim_plan(), {"classes": classes}
        is_finished = bool(getattr(self.original, "use_cfg_plus_plus", False))
        runner = self._guided(cond_scale, rescaled_phi, len(classes), finished=is_finished)
        if is_finished:
            rows = cfg_plus_plus_rows(self._buffers(), plan)
            cond["times"] = torch.tensor(plan.model_time, device=runner.device)
            cond["rows"] = torch.tensor(rows, device=runner.device)
            plan = finished_plan(plan)
        return self._class_images(runner, plan, shape, cond, **options)

    def interpolate(  # type: ignore[override]
        self,
        x1: Tensor,
        x2: Tensor,
        classes: Tensor,
        t: int | None = None,
        lam: float = 0.5,
        *,
        progress: bool = True,
    ) -> Tensor:
        """As of `FastLucidrains.interpolate`, with ``classes (B,)`` and the default guidance."""
        runner = self._guided(6.0, 0.7, len(classes))
        cond = {"classes": classes.to(runner.device)}
        return self._interpolated(x1, x2, t, lam, runner, cond, progress)

    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""
        report = super().report()
        guidance = "guidance: the network's forward_with_cond_scale projects and rescales, in two calls"
        not_fused = (guidance, *report.not_fused)
        if getattr(self.original, "use_cfg_plus_plus", False) and self.original.is_ddim_sampling:
            finished = "CFG++: the step's mean needs both predictions; plain torch before sigma * z"
            return Report(**{**vars(report), "fused": report.fused[3:], "not_fused": (finished, *not_fused)})
        return Report(**{**vars(report), "not_fused": not_fused})

    def _class_images(
        self,
        runner: Runner,
        plan: Plan,
        shape: Sequence[int],
        cond: dict[str, Tensor],
        *,
        seeds: Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Tensor:
        check_count("classes", len(cond["classes"]), shape[0])
        source = self.settings.source(int(shape[0]), runner.device, seeds=seeds, generator=generator)
        batch = make_batch(shape, source, cond={**cond, "classes": cond["classes"].to(runner.device)})
        return (runner.run(plan, batch, progress=progress) + 1) * 0.5

    def _guided(
        self, cond_scale: float, rescaled_phi: float, count: int, *, finished: bool = False
    ) -> Runner:
        """The runner for a pair of scales."""
        if cond_scale == 1 and finished:
            raise BadArgument("cond_scale", "1 under CFG++, where the original fails,", "another number")
        # Versions without CFG++ do not unpack a pair.
        mixes = cond_scale == 1 and count == 2 and hasattr(self.original, "use_cfg_plus_plus")
        mixes = mixes and not self.repair
        if mixes:
            warnings.warn(
                "cond_scale: 1 given with two images; the original gives both of them the first one's "
                "prediction, which is repeated here. Optimize with repair=True for each its own",
                UserWarning,
                stacklevel=4,
            )
        key = (float(cond_scale), float(rescaled_phi), mixes, finished and self.original.objective)
        predict = functools.partial(_guided_pair, cond_scale, rescaled_phi, mixes)
        call = functools.partial(_first, predict)
        if finished:
            reads_eps = OBJECTIVES[self.original.objective] == "epsilon"
            call = functools.partial(_finished_mean, predict, reads_eps)
        return self._runner(key, call)


def _guided_pair(
    cond_scale: float, rescaled_phi: float, mixes: bool, module: Peer, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The guided and the unconditional prediction, ``(B, C, H, W)`` each."""
    output = module.forward_with_cond_scale(*inputs, cond_scale=cond_scale, rescaled_phi=rescaled_phi)
    if mixes:
        return output[:1].expand_as(output), output[1:].expand_as(output)
    return output if isinstance(output, tuple) else (output, output)


def _first(
    predict: Callable[..., tuple[Tensor, Tensor]], module: nn.Module, x: Tensor, t: Tensor, classes: Tensor
) -> Tensor:
    return predict(module, x, t, classes)[0]


def _finished_mean(
    predict: Callable[..., tuple[Tensor, Tensor]],
    reads_eps: bool,
    module: nn.Module,
    x: Tensor,
    k: Tensor,
    *,
    classes: Tensor,
    times: Tensor,
    rows: Tensor,
) -> Tensor:
    """DDIM's mean under CFG++ (Chung et al. 2024): x0 as guided, eps as predicted without a class.

    Args:
        predict: as of `_guided_pair`.
        reads_eps: the network predicts eps; else it is computed from the unguided, clipped x0.
        module: the network.
        x: float32 ``(B, C, H, W)``.
        k: the plan's row, int64 ``(B,)``, the same for all.
        classes: int64 ``(B,)``.
        times: int64 ``(S,)``.
        rows: as of `cfg_plus_plus_rows`.
    """
    guided, unguided = predict(module, x, times.index_select(0, k), classes)
    p, q, from_x0, direction, recip, recipm1 = rows.index_select(0, k[:1])[0].unbind()
    x0 = (p * x + q * guided).clamp(-1.0, 1.0)
    eps = unguided if reads_eps else (recip * x - (p * x + q * unguided).clamp(-1.0, 1.0)) / recipm1
    mean: Tensor = x0 * from_x0 + direction * eps
    return mean
