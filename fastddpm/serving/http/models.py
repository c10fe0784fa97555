"""A model that is served: its sampler, its scheduler, and what is told about it."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch

from fastddpm.checks import BadArgument, quoted
from fastddpm.facts import ModelFacts
from fastddpm.plans import METHODS
from fastddpm.plans.method import Method
from fastddpm.plans.method_options import MethodName
from fastddpm.plans.spacing import check_sigmas
from fastddpm.sampler import Sampler
from fastddpm.serving.drawing import Drawing, Preview
from fastddpm.serving.http.asked import Asked
from fastddpm.serving.http.limits import Limits
from fastddpm.serving.scheduler import Scheduler

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""Of a model: what stands in an address as it is."""
Watch = Callable[[int], Preview]
"""Gives what an image of a request, by its place, shows its previews to."""


class ServedModel:
    """One model of a service.

    Args:
        name: in addresses.
        sampler: as of `fastddpm.serving.Scheduler`, of images, with a shape.
        limits: of its requests.

    Attributes:
        facts: of the model.
        shape: ``(C, H, W)`` of its images.
        methods: that it can be sampled by.
        digest: of its weights, schedule and method: the same images, to a rounding, while it is the same.

    Raises:
        ValueError: a name or a sampler that cannot be served.
    """

    def __init__(self, name: str, sampler: Sampler, limits: Limits) -> None:
        if not NAME.fullmatch(name):
            raise BadArgument(
                "MODEL", f"the name {quoted(name)}", "1 to 64 letters, digits, _, - and . in a name"
            )
        if sampler.method is None:
            raise BadArgument("MODEL", f"{name}, a sampler of a given plan,", "one of a method")
        if sampler.shape is None:
            raise BadArgument("MODEL", f"{name}, which says no shape (C, H, W) of images,", "one that does")
        if len(sampler.shape) != 3:
            accepted = "images (C, H, W) (a policy's actions: fastddpm.load_policy(folder).act(observations))"
            raise BadArgument("MODEL", f"{name}, whose states are {tuple(sampler.shape)},", accepted)
        self.name, self.limits = name, limits
        self.scheduler = Scheduler(sampler, max_batch=limits.batch, max_waiting=limits.waiting)
        self.sampler: Sampler = self.scheduler.sampler
        self.method: Method = sampler.method
        channels, height, width = sampler.shape
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.facts: ModelFacts = sampler.facts
        self.methods = [method for method in METHODS if self._has(method)]
        self.digest = _digest(sampler)

    @property
    def condition(self) -> tuple[int, int, int] | None:
        """``(Cc, H, W)`` of the condition image that it needs; None where it takes none."""
        channels = self.facts.condition_channels
        return (channels, *self.shape[1:]) if channels else None

    @property
    def is_guided(self) -> bool:
        """Whether it takes a guidance_scale other than 1."""
        return self.facts.takes_labels is not False and self.facts.null_label is not None

    def resolved(self, asked: Asked) -> dict[str, Any]:
        """What an image is drawn with: method, num_inference_steps, eta, guidance_scale.

        Raises:
            ValueError: naming the argument.
        """
        method = self.method.adapted(**asked.changes) if asked.changes else self.method
        steps = method.num_inference_steps
        if steps is None:
            given = method.timesteps if method.sigmas is None else check_sigmas(method.sigmas)
            steps = len(self.sampler.schedule) if given is None else np.size(given)
        return {
            "method": method.method,
            "num_inference_steps": steps,
            "eta": method.eta,
            "guidance_scale": float(asked.guidance_scale),
        }

    def submit(self, asked: Sequence[Asked], watch: Watch | None = None, every: int = 10) -> list[Drawing]:
        """Asks the scheduler for all images of a request, or for none.

        Args:
            asked: the images.
            watch: gives what each of them shows its previews to; None for no previews.
            every: steps between two previews.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            Busy: too many wait.
            Closed: the service ends.
        """
        self.limits.check_images(len(asked))
        for one in asked:
            self.limits.check_steps(self.resolved(one)["num_inference_steps"])
            self._check_condition(one)
        drawings: list[Drawing] = []
        try:
            for index, one in enumerate(asked):
                drawings.append(
                    self.scheduler.submit(
                        one.seed,
                        class_label=one.class_label,
                        method=one.method_name,
                        num_inference_steps=one.num_inference_steps,
                        eta=one.eta,
                        guidance_scale=one.guidance_scale,
                        condition=one.condition,
                        beside=drawings[0] if drawings else None,
                        deadline=self.limits.deadline,
                        preview=None if watch is None else watch(index),
                        preview_every=every,
                    )
                )
        except BaseException:
            for drawing in drawings:
                drawing.cancel()
            raise
        return drawings

    def described(self) -> dict[str, Any]:
        """What a client has to know of it, as JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "classes": self.facts.num_classes,
            "class_names": None if self.facts.class_names is None else list(self.facts.class_names),
            "guidance": self.is_guided,
            "condition": None if self.condition is None else list(self.condition),
            "methods": self.methods,
            "methods_with_eta": [name for name in self.methods if "eta" in METHODS[name].takes],
            "defaults": self.resolved(Asked(0)),
            "limits": {
                "images": self.limits.images,
                "steps": min(self.limits.steps, len(self.sampler.schedule)),
                "body_bytes": self.limits.body,
                "waiting": self.limits.waiting,
                "deadline_seconds": self.limits.deadline,
            },
            "digest": self.digest,
        }

    def _check_condition(self, asked: Asked) -> None:
        """BadArgument where a condition is missing, or is not what the network takes."""
        channels = self.facts.condition_channels
        given = "None" if asked.condition is None else f"shape {tuple(asked.condition.shape)}"
        if channels and (asked.condition is None or asked.condition.shape[1] != channels):
            sides = ", ".join(map(str, (channels, *self.shape[1:])))
            raise BadArgument("condition", given, f"(images or 1, {sides}) by this model")
        if channels == 0 and asked.condition is not None:
            raise BadArgument("condition", f"{given} to a model without one", "none")

    def _has(self, method: str) -> bool:
        """Whether the model's options go with a method."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.method.adapted(method=cast("MethodName", method)).plan(self.sampler.schedule)
        except ValueError:
            return False
        return True


def _digest(sampler: Sampler) -> str:
    """Of what the images depend on besides their requests; of a model without weights to see, a new one."""
    if not isinstance(sampler.model, torch.nn.Module) or sampler.method is None:
        return secrets.token_hex(16)
    found = hashlib.sha256()
    said = [sampler.schedule.to_dict(), sampler.method.to_dict(), sampler.precision, str(sampler.dtype)]
    found.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, value in sorted(sampler.model.state_dict().items()):
        found.update(name.encode())
        held = value.detach().to("cpu").contiguous().reshape(-1)
        found.update(memoryview(held.view(torch.uint8).numpy()))
    return found.hexdigest()[:32]
