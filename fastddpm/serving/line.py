"""The line: who is there, and in which order they are drawn.

Work is counted in image-steps: a step of one image, or of its half without a condition. What is asked for
together counts as one piece of work, since it is of use when its last image is there. A line knows nothing of
tensors, so that a simulation can walk through it (`tests/serving/test_line.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Generic, Literal, Protocol, TypeVar, get_args

Order = Literal["shortest", "arrival"]
ORDERS: tuple[Order, ...] = get_args(Order)
AGEING = 0.05
"""Of the image-steps drawn before a request came, the share that counts as if it had them left besides: those
who come later overtake nobody for longer than 1 / AGEING times the work that it has left."""
HEAD_START = 10_000
"""Image-steps that each priority takes off what is left."""


class Image(Protocol):
    """What a line has to know of an image."""

    @property
    def work(self) -> int:
        """Image-steps that are left."""

    @property
    def slots(self) -> int:
        """Slots of a batch that it takes, image-steps of each of its steps."""


ImageT = TypeVar("ImageT", bound=Image)


@dataclasses.dataclass(eq=False)
class Together(Generic[ImageT]):
    """Images that were asked for together.

    Attributes:
        start: image-steps that were drawn before they came, by their share, less their head start.
        images: those that have not ended.
    """

    start: float
    images: list[ImageT] = dataclasses.field(default_factory=list)

    @property
    def left(self) -> int:
        """Image-steps of all of them."""
        return sum(image.work for image in self.images)


class Line(Generic[ImageT]):
    """Images in their order.

    Args:
        order: ``shortest``, those first whose request has the least work left; ``arrival``, as they came.

    Attributes:
        drawn: image-steps so far, by which waiting is counted.
    """

    def __init__(self, order: Order) -> None:
        self._order, self.drawn = order, 0
        self._requests: list[Together[ImageT]] = []
        self._of: dict[ImageT, Together[ImageT]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def join(self, image: ImageT, priority: int = 0, beside: ImageT | None = None) -> None:
        """Takes an image in, with one that is here as part of its request, or by itself."""
        request = None if beside is None else self._of.get(beside)
        if request is None:
            request = Together(AGEING * self.drawn - HEAD_START * priority)
            self._requests.append(request)
        request.images.append(image)
        self._of[image] = request

    def leave(self, image: ImageT) -> None:
        """Lets an image go."""
        request = self._of.pop(image)
        request.images.remove(image)
        if not request.images:
            self._requests.remove(request)

    def in_order(self) -> list[ImageT]:
        """Those that are here, the first to be drawn in front; those of a request one after the other."""
        # The sort is stable, and requests are in the order in which they came.
        self._requests.sort(key=self._turn)
        return [image for request in self._requests for image in request.images]

    def _turn(self, request: Together[ImageT]) -> float:
        return request.start + (request.left if self._order == "shortest" else 0)
