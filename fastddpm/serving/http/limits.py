"""What a request may cost."""

from __future__ import annotations

import dataclasses

from fastddpm.checks import BadArgument, check_number, whole

BODY_SECONDS = 30.0
"""In which the body of a request has to come."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of a service, of each of its models, and of a request.

    Attributes:
        batch: images that share a step at most.
        waiting: images that wait for a model at most; requests beyond are answered 503.
        images: of a request.
        steps: of an image.
        body: bytes of a request.
        deadline: seconds after which an image is given up; None for no end.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    batch: int = 16
    waiting: int = 256
    images: int = 64
    steps: int = 1000
    body: int = 8 * 2**20
    deadline: float | None = 300.0

    def __post_init__(self) -> None:
        """Checks them."""
        for name in ("batch", "waiting", "images", "steps", "body"):
            whole(f"max_{name}", getattr(self, name), least=1)
        if self.deadline is not None:
            check_number("deadline", self.deadline, above=0)
        if self.images > self.waiting:
            raise BadArgument(
                "max_images", f"{self.images} with max_waiting {self.waiting}", "as many at most"
            )

    def check_images(self, count: int, name: str = "seeds") -> None:
        """BadArgument for more images than a request may ask for, or none."""
        if not 1 <= count <= self.images:
            raise BadArgument(name, f"{count} images", f"1 to {self.images} in one request")

    def check_steps(self, steps: int) -> None:
        """BadArgument for more steps than an image may take."""
        if steps > self.steps:
            raise BadArgument("num_inference_steps", str(steps), f"{self.steps} at most by this service")
