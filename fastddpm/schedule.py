"""The noise schedule: how much noise each of the T training steps adds.

A `NoiseSchedule` holds the betas of the forward process q(x_t | x_{t-1}) and every quantity derived from
them under the name the field uses. It is immutable and float64; `fastddpm.gaussian` turns it into formulas
on images, `fastddpm.plans` into tables for the sampler. t is a 0-based index, 0 .. T-1.

Sources: Ho et al. 2020 (DDPM), Nichol and Dhariwal 2021 (cosine), Jabri et al. 2022 (sigmoid), Lin et al.
2023 (zero terminal SNR), and the betas of diffusers, denoising-diffusion-pytorch and the SR3 repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from fastddpm import betas as formulas
from fastddpm.checks import BadArgument, quoted
from fastddpm.inputs import Fields, Json
from fastddpm.signatures import checked

if TYPE_CHECKING:
    import torch

    Betas: TypeAlias = Sequence[float] | npt.ArrayLike | torch.Tensor

Array = npt.NDArray[np.float64]
_NAMED = ("linear", "scaled_linear", "quad", "cosine", "sigmoid", "warmup", "const", "jsd")


class NoiseSchedule:
    """Betas of a variance-preserving diffusion and what follows from them.

    Every array is float64, read-only and of shape [T]. Betas lie in (0, 1], and only the last may be 1
    (zero terminal SNR); then alphas_cumprod[-1] is 0, sqrt_recip_alphas_cumprod[-1] is inf and log_snr[-1]
    is -inf, as the formulas say.

    Make one with `linear`, `scaled_linear`, `quad`, `cosine`, `sigmoid`, `warmup`, `const`, `jsd` or
    `from_betas`. Two schedules are equal when all their betas are.
    """

    betas: Array
    name: str
    zero_terminal_snr: bool
    _parameters: dict[str, int | float]

    def __init__(self, betas: Betas) -> None:
        """A schedule from T given betas (list, array or tensor), read as float64; as `from_betas`."""
        vars(self).update(
            betas=formulas.checked(betas), name="custom", zero_terminal_snr=False, _parameters={}
        )

    @classmethod
    def linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """beta_t evenly spaced from beta_start to beta_end, both in (0, 1] (Ho et al. 2020, section 4)."""
        return cls._of("linear", num_train_timesteps, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def scaled_linear(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """sqrt(beta_t) evenly spaced, as diffusers' `scaled_linear` (Stable Diffusion: 0.00085 to 0.012)."""
        return cls._of("scaled_linear", num_train_timesteps, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def quad(
        cls, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """sqrt(beta_t) evenly spaced: the SR3 repository's name for `scaled_linear`."""
        return cls._of("quad", num_train_timesteps, beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def cosine(
        cls, num_train_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999
    ) -> NoiseSchedule:
        """beta_t = min(1 - f(t+1)/f(t), max_beta), f(i) = cos((i/T + s)/(1 + s) * pi/2)^2.

        Nichol and Dhariwal 2021, equation 17. With these defaults it is diffusers' `squaredcos_cap_v2` and
        the `cosine` of abarankab/DDPM, denoising-diffusion-pytorch, guided-diffusion and the SR3 repository
        (up to the dtype they store it in). s >= 0; max_beta in (0, 1].
        """
        return cls._of("cosine", num_train_timesteps, s=s, max_beta=max_beta)

    @classmethod
    def sigmoid(
        cls,
        num_train_timesteps: int = 1000,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
        max_beta: float = 0.999,
    ) -> NoiseSchedule:
        """beta_t = min(1 - abar(t+1)/abar(t), max_beta), abar falling from 1 to 0 along a sigmoid.

        Jabri et al. 2022, figure 8, as denoising-diffusion-pytorch computes it (not diffusers' `sigmoid`,
        which squashes the betas themselves). start < end; tau > 0; max_beta in (0, 1].
        """
        return cls._of("sigmoid", num_train_timesteps, start=start, end=end, tau=tau, max_beta=max_beta)

    @classmethod
    def warmup(
        cls,
        fraction: float,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> NoiseSchedule:
        """Linear from beta_start to beta_end over the first int(T * fraction) steps, then beta_end.

        SR3's `warmup10` is fraction 0.1 and `warmup50` is 0.5. fraction in [0, 1].
        """
        bounds = {"beta_start": beta_start, "beta_end": beta_end}
        return cls._of("warmup", num_train_timesteps, fraction=fraction, **bounds)

    @classmethod
    def const(cls, num_train_timesteps: int = 1000, beta: float = 0.02) -> NoiseSchedule:
        """beta_t = beta (the SR3 repository's `const`, whose value is its linear_end)."""
        return cls._of("const", num_train_timesteps, beta=beta)

    @classmethod
    def jsd(cls, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """beta_t = 1/T, 1/(T-1), ..., 1 (Sohl-Dickstein et al. 2015, section 2.4.1): ends at zero SNR."""
        return cls._of("jsd", num_train_timesteps)

    @classmethod
    def from_betas(cls, betas: Betas) -> NoiseSchedule:
        """A schedule from T given betas (list, array or tensor), read as float64."""
        return cls(betas)

    def rescaled_zero_terminal_snr(self) -> NoiseSchedule:
        """A new schedule with alphas_cumprod[-1] = 0: sqrt(abar) is shifted and scaled, its first value kept.

        Lin et al. 2023, algorithm 1; diffusers' `rescale_betas_zero_snr`. Needs T >= 2.
        """
        if self.zero_terminal_snr:
            return self  # once more would move the last bits, which the name could not tell
        betas = formulas.rescaled_zero_terminal_snr(self.alphas_cumprod)
        return self._described(betas, self.name, self._parameters, True)

    @classmethod
    def _of(cls, name: str, num_train_timesteps: int, **parameters: float) -> NoiseSchedule:
        betas = getattr(formulas, name)(num_train_timesteps=num_train_timesteps, **parameters)
        plain = {key: float(value) for key, value in parameters.items()}
        return cls._described(betas, name, {"num_train_timesteps": len(betas), **plain}, False)

    @classmethod
    def _described(
        cls, betas: Betas, name: str, parameters: dict[str, int | float], zero_terminal_snr: bool
    ) -> NoiseSchedule:
        """Betas with the name and parameters that gave them, which is for the named constructors to say."""
        schedule = cls(betas)
        vars(schedule).update(name=name, _parameters=parameters, zero_terminal_snr=zero_terminal_snr)
        return schedule

    def __reduce__(self) -> tuple[object, ...]:
        # Arrays come out of pickle and deepcopy writable; made anew, they are read-only again.
        return self._described, (self.betas, self.name, self._parameters, self.zero_terminal_snr)

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas(self) -> Array:
        """alpha_t = 1 - beta_t."""
        return _frozen(1.0 - self.betas)

    @cached_property
    def alphas_cumprod(self) -> Array:
        """abar_t = alpha_0 * ... * alpha_t."""
        return _frozen(np.cumprod(self.alphas))

    @cached_property
    def alphas_cumprod_prev(self) -> Array:
        """abar_{t-1}, with 1 before the first step."""
        return _frozen(np.concatenate([[1.0], self.alphas_cumprod[:-1]]))

    @cached_property
    def sqrt_alphas_cumprod(self) -> Array:
        """sqrt(abar_t): the signal left at step t (SR3's noise level)."""
        return _frozen(np.sqrt(self.alphas_cumprod))

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Array:
        """sqrt(1 - abar_t): the standard deviation of the noise at step t."""
        return _frozen(np.sqrt(1.0 - self.alphas_cumprod))

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Array:
        """sqrt(1 / abar_t); inf where abar_t is 0."""
        with np.errstate(divide="ignore"):
            return _frozen(np.sqrt(1.0 / self.alphas_cumprod))

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Array:
        """sqrt(1 / abar_t - 1); inf where abar_t is 0."""
        with np.errstate(divide="ignore"):
            return _frozen(np.sqrt(1.0 / self.alphas_cumprod - 1.0))

    @cached_property
    def posterior_variance(self) -> Array:
        """beta_t (1 - abar_{t-1}) / (1 - abar_t): the variance of q(x_{t-1} | x_t, x_0), 0 at t = 0."""
        return _frozen(self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod))

    @cached_property
    def posterior_log_variance_clipped(self) -> Array:
        """log(max(posterior_variance, 1e-20)), as SR3 and denoising-diffusion-pytorch store it."""
        return _frozen(np.log(np.maximum(self.posterior_variance, 1e-20)))

    @cached_property
    def posterior_mean_coef1(self) -> Array:
        """Weight of x_0 in the posterior mean: beta_t sqrt(abar_{t-1}) / (1 - abar_t)."""
        return _frozen(self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod))

    @cached_property
    def posterior_mean_coef2(self) -> Array:
        """Weight of x_t in the posterior mean: (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t)."""
        return _frozen((1.0 - self.alphas_cumprod_prev) * np.sqrt(self.alphas) / (1.0 - self.alphas_cumprod))

    @cached_property
    def snr(self) -> Array:
        """Signal to noise ratio abar_t / (1 - abar_t)."""
        return _frozen(self.alphas_cumprod / (1.0 - self.alphas_cumprod))

    @cached_property
    def log_snr(self) -> Array:
        """log(snr); -inf where abar_t is 0."""
        with np.errstate(divide="ignore"):
            return _frozen(np.log(self.snr))

    @checked
    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """The derived quantity `name` as a torch tensor [T] (float32 unless another dtype is given)."""
        import torch

        from fastddpm.transfer import device_of

        values = getattr(self, name, None) if isinstance(name, str) else None
        if not isinstance(values, np.ndarray):
            raise BadArgument("name", quoted(name), "one of the schedule's arrays, such as 'betas'")
        place = None if device is None else device_of(device)
        return torch.tensor(values, dtype=dtype or torch.float32, device=place)

    def to_dict(self) -> Json:
        """Plain data for schedule.json: the name and parameters, or the betas of a custom schedule."""
        content: Json = {"name": self.name}
        if self.name in _NAMED:
            content["parameters"] = dict(self._parameters)
            content["zero_terminal_snr"] = self.zero_terminal_snr
        else:
            content["betas"] = self.betas.tolist()
        return content

    @classmethod
    def from_dict(cls, content: Fields) -> NoiseSchedule:
        """The schedule that `to_dict` described; ValueError for anything else."""
        if not isinstance(content, Mapping) or "name" not in content:
            raise BadArgument("schedule", repr(content), "a mapping with a 'name'")
        name = content["name"]
        if name == "custom":
            _check_keys(content, {"name", "betas"}, required={"betas"})
            return cls.from_betas(content["betas"])
        if name not in _NAMED:
            raise BadArgument(
                "name", quoted(name), f"one of {', '.join(_NAMED)} or custom as the name of a schedule"
            )
        _check_keys(content, {"name", "parameters", "zero_terminal_snr"}, required=set())
        parameters = content.get("parameters", {})
        rescale = content.get("zero_terminal_snr", False)
        if not isinstance(parameters, Mapping):
            raise BadArgument("parameters", repr(parameters), "a mapping")
        if not isinstance(rescale, bool):
            raise BadArgument("zero_terminal_snr", repr(rescale), "true or false")
        try:
            schedule: NoiseSchedule = getattr(cls, name)(**parameters)
        except TypeError as error:
            raise BadArgument(
                "parameters",
                f"{dict(parameters)!r} for a schedule named {name!r}",
                "those of its constructor",
            ) from error
        return schedule.rescaled_zero_terminal_snr() if rescale else schedule

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and np.array_equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(self.betas.tobytes())

    def __repr__(self) -> str:
        if self.name not in _NAMED:
            return f"NoiseSchedule.from_betas(<{len(self)} betas, {self.betas[0]:g} .. {self.betas[-1]:g}>)"
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._parameters.items())
        suffix = ".rescaled_zero_terminal_snr()" if self.zero_terminal_snr else ""
        return f"NoiseSchedule.{self.name}({arguments}){suffix}"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a NoiseSchedule is immutable, cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a NoiseSchedule is immutable, cannot delete {name!r}")


def _frozen(values: npt.ArrayLike) -> Array:
    array: Array = np.asarray(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _check_keys(content: Mapping[str, object], accepted: set[str], *, required: set[str]) -> None:
    if set(content) - accepted or required - set(content):
        name, keys = content["name"], sorted(accepted)
        raise BadArgument("schedule", f"the keys {sorted(content)}", f"{keys} by one named {name!r}")
