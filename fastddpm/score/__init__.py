"""Score-based models in continuous time, around the same networks (docs/score.md).

    sampler = fastddpm.load()
    score = fastddpm.score.score_of(sampler, class_labels=3)            # -eps/sigma of the same weights
    images = fastddpm.score.sample_pc(score, range(8), (1, 28, 28), steps=100)
    bits = fastddpm.score.bits_per_dim(score, pixels, seeds=range(len(pixels)))

A process (`sdes`, `schedule_sde`) and a score (`network`, or any `Score`) go into the samplers
(`predictor_corrector`, `langevin`, `ode`, `karras`), into `likelihood` and into `loss`; `guidance` bends a
score and `inverse` constrains a sampler. scipy, the extra ``score``, is loaded for DDPM schedules and for
RK45.
"""

from .denoiser import Denoiser
from .guidance import GuidedScore, on_denoised
from .inverse import KnownPart, colourise, inpaint
from .karras import Churn, karras_sigmas, sample_karras
from .langevin import sample_annealed_langevin
from .likelihood import bits_per_dim, dequantised, log_likelihood
from .loss import DenoisingScoreMatching
from .network import NetworkScore, score_of
from .ode import decode, encode, flow, interpolate, sample_ode, slerp
from .predictor_corrector import sample_pc
from .schedule_sde import ScheduleSDE
from .sdes import SDE, VESDE, VPSDE, Score, SubVPSDE, denoised
from .solvers import RK4, RK45, Euler, Heun

__all__ = [
    "RK4",
    "RK45",
    "SDE",
    "VESDE",
    "VPSDE",
    "Churn",
    "Denoiser",
    "DenoisingScoreMatching",
    "Euler",
    "GuidedScore",
    "Heun",
    "KnownPart",
    "NetworkScore",
    "ScheduleSDE",
    "Score",
    "SubVPSDE",
    "bits_per_dim",
    "colourise",
    "decode",
    "denoised",
    "dequantised",
    "encode",
    "flow",
    "inpaint",
    "interpolate",
    "karras_sigmas",
    "log_likelihood",
    "on_denoised",
    "sample_annealed_langevin",
    "sample_karras",
    "sample_ode",
    "sample_pc",
    "score_of",
    "slerp",
]
