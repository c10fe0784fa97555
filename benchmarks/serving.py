"""Requests that come at random, drawn one at a time, in static batches, and in flight.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/serving.py --out benchmarks/results/serving.json

Arrivals are a Poisson process; each asks the model in the box for 1 to 4 digits of 10, 20, 50 or 250 steps,
guided or not. The same arrivals for each way:

    one at a time    a request is a batch; they are drawn in the order in which they came
    static batches   who is in front, and all that wait and ask for the same method, steps and guidance
    in flight        `fastddpm.serving.Scheduler`: images join and leave a batch at any step

The load is that of the arrivals, as a share of what one at a time could draw. Latency is from a request's
arrival to its last image. Occupancy: of the slots in flight, how many had an image in them; of other ways,
how many of ``--max-batch`` the batches filled. Requests of the shorter kinds come before, untimed.

On a CPU with one thread time is the processor time of the thread that draws, and where nobody is there the
time to the next arrival, which is not waited for: whatever else runs on the machine takes none of it, but for
the caches and the memory that it uses. Elsewhere it is the time of the wall. Of the default command the three
ways draw for about three times ``--seconds`` times the load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastddpm
from fastddpm.files import replacing
from fastddpm.plans.method_options import MethodOptions
from fastddpm.serving import Scheduler

KINDS: dict[int, MethodOptions] = {
    10: {"method": "dpmpp_2m", "num_inference_steps": 10},
    20: {"method": "ddim", "num_inference_steps": 20},
    50: {"method": "ddim", "num_inference_steps": 50},
    250: {"method": "ddpm", "num_inference_steps": 250},
}
SHARES = (0.35, 0.35, 0.2, 0.1)
GUIDANCE = 2.0
MOST_IMAGES = 4
"""Of a request."""


@dataclasses.dataclass
class Request:
    """One arrival, at ``at`` seconds, for some images; ``done`` is when the last of them was there."""

    at: float
    images: int
    steps: int
    guided: bool
    number: int
    done: float = 0.0

    @property
    def kind(self) -> tuple[int, bool]:
        """What those have in common that a static batch can hold."""
        return self.steps, self.guided

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `Sampler.sample`."""
        seeds = [4 * self.number + i for i in range(self.images)]
        return {"seeds": seeds, "guidance_scale": GUIDANCE if self.guided else 1.0}


def arrivals(seconds: float, rate: float) -> list[Request]:
    """Requests of so many seconds, so many a second."""
    draw, at, found = random.Random(0), 0.0, list[Request]()
    while True:
        at += draw.expovariate(rate)
        if at > seconds:
            return found
        steps = draw.choices(list(KINDS), SHARES)[0]
        found.append(Request(at, draw.randint(1, MOST_IMAGES), steps, draw.random() < 0.5, len(found)))


class Clock:
    """The time of a thread that draws, and of nobody being there.

    Args:
        thread: that draws.
        by_processor: whether its time is that of the processor.
    """

    def __init__(self, thread: threading.Thread, *, by_processor: bool) -> None:
        assert thread.ident is not None
        self._number = time.pthread_getcpuclockid(thread.ident) if by_processor else time.CLOCK_MONOTONIC
        self._skipped = -time.clock_gettime(self._number)

    def now(self) -> float:
        """Seconds since it was made."""
        return time.clock_gettime(self._number) + self._skipped

    def skip_to(self, at: float) -> None:
        """Nobody is there until then."""
        self._skipped += max(0.0, at - self.now())


class Queued:
    """Requests that wait, and a thread that draws them in batches.

    On a card batches are filled up to one size, so that one graph serves them all; a sampler keeps a few.

    Args:
        most: images of a batch.
        together: whether requests that wait share one.
    """

    def __init__(self, sampler: fastddpm.Sampler, most: int, *, together: bool) -> None:
        self._together = together
        self._samplers = {
            (steps, guided): sampler.replace(**options)
            for steps, options in KINDS.items()
            for guided in (False, True)
        }
        self._size = (most if together else MOST_IMAGES) if sampler.device.type == "cuda" else 0
        self._most, self._filled = most, list[int]()
        self._waiting: deque[tuple[Request, Future[None]]] = deque()
        self._news, self._is_closed = threading.Condition(), False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def submit(self, request: Request) -> list[Future[None]]:
        """A future of all images."""
        future: Future[None] = Future()
        with self._news:
            self._waiting.append((request, future))
            self._news.notify()
        return [future]

    def close(self) -> None:
        """Waits for what is left."""
        with self._news:
            self._is_closed = True
            self._news.notify()
        self.thread.join()

    def occupancy(self) -> float:
        """Images a batch, as a share of the most."""
        return statistics.fmean(self._filled) / self._most

    def _serve(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._is_closed:
                    self._news.wait()
                if not self._waiting:
                    return
                batch = self._batch()
            try:
                self._draw([request for request, _ in batch])
            except BaseException as error:  # whoever waits for them is to hear of it
                for _, future in batch:
                    future.set_exception(error)
            else:
                for _, future in batch:
                    future.set_result(None)

    def _draw(self, requests: list[Request]) -> None:
        seeds = [seed for request in requests for seed in request.arguments["seeds"]]
        self._filled.append(len(seeds))
        seeds += seeds[-1:] * (self._size - len(seeds))
        self._samplers[requests[0].kind].sample(
            seeds=seeds,
            class_labels=[seed % 10 for seed in seeds],
            guidance_scale=requests[0].arguments["guidance_scale"],
            progress=False,
        )

    def _batch(self) -> list[tuple[Request, Future[None]]]:
        """Who is in front, and who asks for the same, as long as there is room."""
        batch = [self._waiting.popleft()]
        images = batch[0][0].images
        for one in list(self._waiting) if self._together else ():
            if one[0].kind == batch[0][0].kind and images + one[0].images <= self._most:
                self._waiting.remove(one)
                batch.append(one)
                images += one[0].images
        return batch


class InFlight:
    """The scheduler, an image a request of its."""

    def __init__(self, sampler: fastddpm.Sampler, most: int) -> None:
        self._scheduler = Scheduler(sampler, max_batch=most, max_waiting=100_000)
        self._used = self._slots = 0
        self._is_closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def submit(self, request: Request) -> list[Future[Any]]:
        """A future of each image."""
        options: dict[str, Any] = {**KINDS[request.steps]}
        options["guidance_scale"] = request.arguments["guidance_scale"]
        drawings: list[Future[Any]] = []
        for seed in request.arguments["seeds"]:
            first: Any = drawings[0] if drawings else None
            drawings.append(self._scheduler.submit(seed, class_label=seed % 10, beside=first, **options))
        return drawings

    @property
    def thread(self) -> threading.Thread:
        """The scheduler's."""
        return next(one for one in threading.enumerate() if one.name == "fastddpm-scheduler")

    def close(self) -> None:
        """Waits for what is left."""
        self._scheduler.close()
        self._is_closed.set()
        self._watcher.join()

    def occupancy(self) -> float:
        """Of the slots of the batches, those that were used, by looks every 20 ms."""
        return self._used / max(1, self._slots)

    def _watch(self) -> None:
        while not self._is_closed.wait(0.02):
            stats = self._scheduler.stats()
            self._used += stats["filled"]
            self._slots += stats["slots"]


def by_processor() -> bool:
    """Whether the thread that draws does all the work itself."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def measured(make: Callable[[], Queued | InFlight], requests: list[Request]) -> dict[str, float]:
    """Throughput, latencies in seconds and occupancy of one way."""
    way = make()
    kinds = {request.kind for request in requests if request.steps < 100}
    # On a card the second chain of a kind makes graphs too.
    for kind in [*kinds, *(kinds if torch.cuda.is_available() else ())]:
        example = next(request for request in requests if request.kind == kind)
        for future in way.submit(example):
            future.result()
    clock = Clock(way.thread, by_processor=by_processor())
    futures = list[Future[Any]]()

    def note(request: Request) -> Callable[[Future[Any]], None]:
        def done(_: Future[Any]) -> None:
            request.done = max(request.done, clock.now())

        return done

    for request in requests:
        while (left := request.at - clock.now()) > 0:
            if all(future.done() for future in futures):
                clock.skip_to(request.at)
            time.sleep(min(0.002, max(0.0, left)))
        for future in way.submit(request):
            future.add_done_callback(note(request))
            futures.append(future)
        futures = [future for future in futures if not future.done()] or futures[-1:]
    for future in futures:
        future.result()
    way.close()  # its thread has called back by then, too
    took = max(request.done for request in requests)
    latencies = [request.done - request.at for request in requests]
    images = sum(request.images for request in requests)
    figures = {f"p{share} latency, s": float(np.percentile(latencies, share)) for share in (50, 95, 99)}
    return {"images a second": images / took, **figures, "occupancy": way.occupancy()}


def capacity(sampler: fastddpm.Sampler) -> float:
    """Requests a second that one at a time can draw, by what a step of each kind of batch takes."""
    one, seconds = sampler.replace(**KINDS[20]), list[float]()
    # A host that waits for a card need not be at work.
    clock = time.process_time if by_processor() else time.perf_counter
    for images in (1, 2, 3, 4):
        for guided in (False, True):
            arguments = Request(0.0, images, 20, guided, 0).arguments
            for _ in range(3 if torch.cuda.is_available() else 2):  # the first makes buffers, or both graphs
                began = clock()
                one.sample(**arguments, class_labels=1, progress=False)
            seconds.append((clock() - began) / 20)
    steps = sum(number * share for number, share in zip(KINDS, SHARES, strict=True))
    return 1 / (steps * statistics.fmean(seconds))


def summary(load: float, ways: dict[str, dict[str, float]]) -> str:
    """What in flight has of what static batches have."""
    ours, theirs = ways["in flight"], ways["static batches"]
    shares = {name: ours[name] / theirs[name] for name in ours if name != "occupancy"}
    return f"load {load}, in flight over static batches: " + ", ".join(
        f"{name.split(',')[0]} {share:.2f}" for name, share in shares.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=200.0, help="of arrivals")
    parser.add_argument("--load", type=float, nargs="+", default=[0.8])
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sampler = fastddpm.load(engine=given.engine)
    rate = capacity(sampler)
    found, counts = dict[str, Any](), dict[str, int]()
    for load in given.load:
        requests = arrivals(given.seconds, load * rate)
        counts[f"load {load}"] = len(requests)
        ways: dict[str, Callable[[], Queued | InFlight]] = {
            "one at a time": lambda: Queued(sampler, given.max_batch, together=False),
            "static batches": lambda: Queued(sampler, given.max_batch, together=True),
            "in flight": lambda: InFlight(sampler, given.max_batch),
        }
        here: dict[str, dict[str, float]] = {}
        for name, make in ways.items():
            here[name] = measured(make, [dataclasses.replace(request) for request in requests])
            found[f"load {load}, {name}"] = {key: round(value, 3) for key, value in here[name].items()}
            print(f"load {load}, {name}: {found[f'load {load}, {name}']}", flush=True)
        print(summary(load, here), flush=True)
    report = {
        "engine": sampler.engine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "max_batch": given.max_batch,
        "seconds of arrivals": given.seconds,
        "requests a second at load 1": round(rate, 3),
        "requests": counts,
        "clock": "processor" if by_processor() else "wall",
        "ways": found,
    }
    if given.out:
        with replacing(given.out) as file:
            file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
