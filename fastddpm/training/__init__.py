"""Training a diffusion model, from the loss formula to a model folder (needs the extra `train`)."""

from fastddpm.training.config import TrainConfig
from fastddpm.training.divergence import TrainingDiverged
from fastddpm.training.objective import Objective
from fastddpm.training.trainer import Trainer

__all__ = ["Objective", "TrainConfig", "Trainer", "TrainingDiverged"]
