"""A diffusion policy from its folder: observations in, actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument
from fastddpm.formats.files import CheckpointError
from fastddpm.formats.lerobot import ENCODER, PolicyFolder, read_folder, recognises
from fastddpm.network import without_grad
from fastddpm.options import HubOptions
from fastddpm.policy.config import ACTION, Feature, PolicyConfig
from fastddpm.policy.images import ImageEncoder
from fastddpm.randomness import NoiseKind
from fastddpm.sampler import Sampler
from fastddpm.signatures import checked
from fastddpm.sources import located
from fastddpm.transfer import to_device
from fastddpm.unet.inference import check_shapes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastddpm.options import LoadOptions

__all__ = ["Policy", "load_policy"]


class Observations(nn.Module):
    """What a policy sees, as the vector that its network is told: ``global_cond (B, cond_dim)``.

    Args:
        held: the policy's folder.
    """

    def __init__(self, held: PolicyFolder) -> None:
        super().__init__()
        self.config = held.config
        self._names = list(held.inputs)
        self.normalisations = nn.ModuleList(held.inputs.values())
        self.encoders = nn.ModuleList(_encoders(held))

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Of observations ``(B, n_obs_steps, ...)`` by name."""
        config = self.config
        steps = [self._of(config.state, observations)]
        if config.images:
            images = [self._of(one, observations) for one in config.images]
            encoders = list(self.encoders) if config.separate else [self.encoders[0]] * len(images)
            for encoder, image in zip(encoders, images, strict=True):
                steps.append(encoder(image.flatten(0, 1)).unflatten(0, image.shape[:2]))
        if config.environment is not None:
            steps.append(self._of(config.environment, observations))
        return torch.cat(steps, dim=-1).flatten(1)

    def _of(self, feature: Feature, observations: Mapping[str, Tensor]) -> Tensor:
        """One of them, normalised."""
        value = observations[feature.name]
        if feature.name not in self._names:
            return value
        normalised: Tensor = self.normalisations[self._names.index(feature.name)](value)
        return normalised


class Policy:
    """A diffusion policy: what it sees as tensors by name, and a chunk of actions drawn for it.

    Args:
        config: of the policy.
        sampler: draws normalised actions ``(B, horizon, A)`` given ``cond={"global_cond": ...}``.
        observations: encodes what is seen.
        actions: how actions are normalised; None where they are not.

    Attributes:
        config: as given.
        sampler: likewise; `fastddpm.export_onnx` takes it.
    """

    def __init__(
        self, config: PolicyConfig, sampler: Sampler, observations: Observations, actions: nn.Module | None
    ) -> None:
        self.config, self.sampler = config, sampler
        self._observations, self._actions = observations, actions

    @checked
    @without_grad()
    def encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The vector that the network is told, ``(B, cond_dim)``, float32, on the sampler's device.

        Args:
            observations: of each name of `config`'s inputs ``(B, n_obs_steps, ...)``, the present one last:
                vectors in the robot's own numbers, images ``(C, H, W)`` in [0, 1]. Other names, such as
                those of rewards, are left aside.

        Raises:
            ValueError: one that is missing, or of another shape.
        """
        given, count = {}, None
        for feature in self.config.inputs:
            value = observations.get(feature.name)
            wanted = (self.config.n_obs_steps, *feature.shape)
            accepted = f"a tensor (B, {', '.join(map(str, wanted))})"
            if not isinstance(value, Tensor):
                kind = "none" if value is None else type(value).__name__
                raise BadArgument(f"observations[{feature.name!r}]", kind, accepted)
            count = len(value) if count is None and value.ndim else count
            if tuple(value.shape) != (count, *wanted) or not count:
                given_shape = f"shape {tuple(value.shape)}"
                raise BadArgument(f"observations[{feature.name!r}]", given_shape, f"{accepted}, B alike,")
            given[feature.name] = to_device(value, self.sampler.device, torch.float32)
        encoded: Tensor = self._observations(given)
        return encoded

    @checked
    @without_grad()
    def act(
        self,
        observations: Mapping[str, Tensor],
        *,
        seeds: Sequence[int] | Tensor | None = None,
        noise: NoiseKind = "philox",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        x_T: Tensor | None = None,
    ) -> Tensor:
        """The next ``n_action_steps`` actions, ``(B, n_action_steps, A)``, float32, in the robot's numbers.

        Args:
            observations: as of `encode`.
            seeds: one a row; as of `fastddpm.Sampler.sample`, as are the others.
            noise: ``torch`` draws what LeRobot draws from ``generator``.
            generator: for that.
            x_T: the noise at the beginning, ``(B, horizon, A)``.

        Raises:
            ValueError: as of `encode` and `fastddpm.Sampler.sample`.
        """
        cond = {"global_cond": self.encode(observations)}
        count = len(cond["global_cond"])
        for name, rows in (("seeds", seeds), ("generator", generator), ("x_T", x_T)):
            listed = isinstance(rows, Sequence) or (isinstance(rows, Tensor) and rows.ndim > 0)
            if listed and len(rows) != count:  # type: ignore[arg-type]
                raise BadArgument(name, f"{len(rows)} rows", f"{count}, one for each of the observations")  # type: ignore[arg-type]
        drawn = self.sampler.sample(
            count,
            seeds=seeds,
            cond=cond,
            noise=noise,
            generator=generator,
            x_T=x_T,
            progress=False,
        )
        first = self.config.n_obs_steps - 1
        chosen = drawn[:, first : first + self.config.n_action_steps]
        actions: Tensor = chosen if self._actions is None else self._actions.inverse(chosen)  # type: ignore[operator]
        return actions

    def __repr__(self) -> str:
        seen = ", ".join(f"{one.name} {one.shape}" for one in self.config.inputs)
        drawn = f"{self.config.n_action_steps} actions {self.config.action.shape}"
        return f"Policy({seen} -> {drawn}, {self.sampler!r})"


@checked
def load_policy(source: str | Path, **options: Unpack[LoadOptions]) -> Policy:
    """Reads a folder of LeRobot's diffusion policy, without LeRobot: `fastddpm.load` gives its sampler alone.

    Args:
        source: the folder, with config.json and model.safetensors, or ``organisation/name`` of the Hugging
            Face Hub.
        **options: as of `fastddpm.load`.

    Raises:
        CheckpointError: naming the file, field or tensor and what is wrong with it.
        ValueError: an option that is not accepted.
    """
    hub: HubOptions = {}
    for name in HubOptions.__annotations__:
        if name in options:
            hub[name] = options[name]  # type: ignore[literal-required]
    folder = located(source, **hub)
    if not folder.is_dir() or not recognises(folder):
        raise CheckpointError(f"{folder}: no folder of a policy of LeRobot, whose config.json says its type")
    sampler = load(source, **options)
    held = read_folder(folder)
    observations = Observations(held).eval().requires_grad_(False).to(sampler.device)
    actions = held.outputs.get(ACTION)
    return Policy(held.config, sampler, observations, None if actions is None else actions.to(sampler.device))


def _encoders(held: PolicyFolder) -> list[ImageEncoder]:
    """The encoder of all cameras' images, or one of each."""
    config = held.config
    if not config.images:
        return []
    made = []
    for i in range(len(config.images) if config.separate else 1):
        prefix = f"{i}." if config.separate else ""
        state = {name.removeprefix(prefix): v for name, v in held.encoder.items() if name.startswith(prefix)}
        try:
            with torch.device("meta"):
                encoder = ImageEncoder(
                    config.backbone,
                    config.images[0].shape[0],
                    config.seen,
                    config.keypoints,
                    group_norm=config.group_norm,
                    resize=config.resize,
                    crop=config.crop,
                )
            check_shapes(state, encoder.state_dict())
        except ValueError as error:
            raise CheckpointError(f"{ENCODER}{prefix}{error}") from error
        encoder.load_state_dict(state, assign=True)
        made.append(encoder.float())
    return made
