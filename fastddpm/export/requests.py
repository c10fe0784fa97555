"""The sampler for servers of models: the batch is the first axis of inputs, and everything an image's own.

A server puts the requests of several callers into one batch, along axis 0 of all inputs. So each image has
its seed, label and guidance here, and its method, number of steps and eta as well: a plan of its own. The
loop walks all plans at once and is as long as the longest; an image whose plan has ended stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from fastddpm.export import noise
from fastddpm.export.compose import Recipe, inputs_accepted, model_of, named_inputs, pixels, tiled
from fastddpm.export.nodes import BOOL, FLOAT, INT64, UINT8, Graph, value
from fastddpm.export.spacing import spaced
from fastddpm.export.table import accepted, only_if
from fastddpm.export.update import Kept, Output, guided_output, remember, split_output, update
from fastddpm.export.walk import REMEMBERED, Inputs, computed
from fastddpm.plans.registry import formulas
from fastddpm.plans.spacing import TimestepSpacing
from fastddpm_kernels.table import KEPT, N_COLUMNS


@dataclass(frozen=True)
class Plans:
    """Names of the plans of a batch, padded with zeros to the length of the longest.

    Attributes:
        table: float32 [S, 32, B].
        times: [S, B], what the network is told.
        longest: int64 [], S.
        own: int64 [B], the length of each.
        remembers: bool [], whether rows of any keep more than the last x0.
        combines: bool [B], whether what they keep is a sum.
    """

    table: str
    times: str
    longest: str
    own: str
    remembers: str
    combines: str


def sampler_of_requests(recipe: Recipe, spacing: TimestepSpacing) -> onnx.ModelProto:
    """The whole reverse process: seeds, steps, method, eta, [B, 1] each, and what the model takes -> images.

    Args:
        recipe: what the file is made of. The plan of a solver is the method after the formulas.
        spacing: of the timesteps of formulas.
    """
    call, image, g = recipe.network.call, recipe.image, Graph()
    given = {name: g("Reshape", name, g.int64([-1])) for name in ("seeds", "steps", "method", "eta")}
    labels = g("Reshape", "class_labels", g.int64([-1])) if call.has_classes else None
    plans = _plans(g, recipe, spacing, given, inputs_accepted(g, recipe))
    batch = g("Shape", given["seeds"])
    conditions = [one.input for one in call.cond]
    condition = "condition" if call.condition_channels else None
    passes = scale = None
    if call.guides:
        scale = _of_each(g, "guidance_scale", len(image))
        guided = g("Cast", g("Not", g("Equal", "guidance_scale", g.float32(1.0))), to=INT64)
        passes = g("Reshape", g("Add", g("ReduceMax", guided, keepdims=0), g.int64(1)), g.int64([1]))
        extra = g("Mul", batch, g("Sub", passes, g.int64([1])))
        conditions = [g("Concat", g.slice(one.without, 0, extra, 0), one.input, axis=0) for one in call.cond]
        if call.null_label is not None and labels is not None:
            labels = g("Concat", g("Expand", g.int64([call.null_label]), extra), labels, axis=0)
        condition = condition and tiled(g, condition, passes, len(image))
    keys = noise.keys(g, given["seeds"], int(np.prod(image)))
    start = noise.normal(g, keys, g.int64(0), image)
    combines, own = (_of_each(g, name, len(image)) for name in (plans.combines, plans.own))

    body = Graph(g)
    columns = body("Gather", plans.table, "k", axis=0)
    row = body("Reshape", columns, g.int64([N_COLUMNS, -1, *[1] * len(image)]))
    told = body("Gather", plans.times, "k", axis=0)
    x = "x"
    if passes is not None:
        told, x = body("Tile", told, passes), tiled(body, x, passes, len(image))
    x = x if condition is None else body("Concat", condition, x, axis=1)
    m = recipe.network.predict(body, x, recipe.network.prepare(body, told, labels, conditions))
    output = _output(body, recipe, m, scale, batch)
    after = update(body, "x", output, row, "x0_prev", of_each=True)
    kept_before = Kept("x0_prev", "kept")
    keeps = (plans.remembers, combines)
    mean, kept = remember(body, after, output, row, kept_before, keeps=keeps, shape=image)
    noisy, quiet = Graph(body), Graph(body)
    z = noise.normal(noisy, keys, noisy("Add", "k", noisy.int64(1)), image)
    noisy("Add", mean, noisy("Mul", after.sigma, z), out="x_noisy")
    quiet("Identity", mean, out="x_quiet")
    state: list[int | str] = ["batch", *image]
    walked = body(
        "If",
        body("Equal", body("ReduceMax", body("Abs", after.c), keepdims=0), body.float32(0.0)),
        then_branch=quiet.finished("quiet", [], [value("x_quiet", FLOAT, state)]),
        else_branch=noisy.finished("noisy", [], [value("x_noisy", FLOAT, state)]),
    )
    body("Where", body("Less", "k", own), walked, "x", out="x_next")
    body("Identity", "go_on", out="goes_on")
    places: list[int | str] = ["places", *state]
    loop = body.finished(
        "reverse_step",
        [
            *(value("k", INT64), value("go_on", BOOL)),
            *(value("x", FLOAT, state), value("x0_prev", FLOAT, state), value("kept", FLOAT, places)),
        ],
        [
            *(value("goes_on", BOOL), value("x_next", FLOAT, state)),
            *(value(kept.first, FLOAT, state), value(kept.others, FLOAT, places)),
        ],
    )
    others = g("Where", plans.remembers, g.int64([2]), g.int64([0]))
    nothing = g("ConstantOfShape", g("Concat", others, g("Shape", start), axis=0))
    final, *_ = g.subgraphs("Loop", plans.longest, "", start, start, nothing, outputs=3, body=loop)
    g("Identity", final, out="images")
    outputs = [value("images", FLOAT, state)]
    if len(image) == 3:
        pixels(g, final)
        outputs.append(value("pixels", UINT8, ["batch", *image[1:], image[0]]))
    inputs = [value(name, INT64, ["batch", 1]) for name in ("seeds", "steps", "method")]
    inputs.append(value("eta", FLOAT, ["batch", 1]))
    if call.has_classes:
        inputs.append(value("class_labels", INT64, ["batch", 1]))
    if call.guides:
        inputs.append(value("guidance_scale", FLOAT, ["batch", 1]))
    if call.condition_channels:
        inputs.append(value("condition", FLOAT, ["batch", call.condition_channels, *image[1:]]))
    inputs += named_inputs(recipe, guided=call.guides)
    return model_of(g, "fastddpm_requests", inputs, outputs)


def _of_each(g: Graph, name: str, axes: int) -> str:
    """[B] or [B, 1] as [B, 1, ...], with so many axes behind the first."""
    return g("Reshape", name, g.int64([-1, *[1] * axes]))


def _output(g: Graph, recipe: Recipe, m: str, scale: str | None, batch: str) -> Output:
    """The network's output; where an image's guidance is 1, what it gives without a second pass."""
    channels, has_variance = recipe.network.call.channels, recipe.has_variance
    if scale is None:
        return split_output(g, m, channels, has_variance)
    guided = guided_output(g, m, channels, has_variance, scale=scale, batch=batch)
    last = g.slice(m, g("Neg", batch), np.iinfo(np.int64).max, 0)
    alone = split_output(g, last, channels, has_variance)
    return Output(g("Where", g("Equal", scale, g.float32(1.0)), alone.m, guided.m), guided.variance)


def _plans(
    g: Graph, recipe: Recipe, spacing: TimestepSpacing, given: dict[str, str], conditions: list[str]
) -> Plans:
    """The plan of each image, one after the other."""
    steps, method, eta = given["steps"], given["method"], given["eta"]
    total = int(np.size(recipe.table.alphas_cumprod))
    conditions = [*conditions, *accepted(g, method, eta)]
    conditions += [g("GreaterOrEqual", steps, g.int64(1)), g("LessOrEqual", steps, g.int64(total))]
    is_solver = None
    if recipe.rows is not None:
        is_solver = g("Equal", method, g.int64(len(formulas())))
        as_long = g("Equal", steps, g.int64(len(recipe.rows)))
        conditions.append(g("Or", g("Not", is_solver), as_long))
    # Fails where something is not accepted, before a table of that length is made.
    place = g("Range", g.int64(0), g("Size", steps), g.int64(1))
    steps = g("Gather", steps, only_if(g, conditions, place, g("Size", steps)))
    longest = g("ReduceMax", steps, keepdims=0)

    body = Graph(g)
    count, number = (body("Gather", name, "image") for name in (steps, method))
    strength = body("Gather", eta, "image")
    branch = Graph(body)
    visited = spaced(branch, total, count, number, spacing)
    computed(branch, recipe.table, recipe.times, [], Inputs(visited, number, strength))
    if recipe.rows is None or is_solver is None:
        body.nodes += branch.nodes
        body.weights += branch.weights
        table, told = "computed_table", "computed_times"
    else:
        stored = Graph(body)
        dtype = np.float32 if recipe.times.kind == FLOAT else np.int64
        stored("Identity", stored.float32(recipe.rows.table), out="stored_table")
        stored("Identity", stored.constant(recipe.rows.model_time, dtype), out="stored_times")
        then_branch, else_branch = (
            graph.finished(
                name,
                [],
                [
                    value(f"{name}_table", FLOAT, ["rows", N_COLUMNS]),
                    value(f"{name}_times", recipe.times.kind, ["rows"]),
                ],
            )
            for graph, name in ((stored, "stored"), (branch, "computed"))
        )
        solved = body("Gather", is_solver, "image")
        branches = {"then_branch": then_branch, "else_branch": else_branch}
        table, told = body.subgraphs("If", solved, outputs=2, **branches)
    missing = body("Reshape", body("Sub", longest, count), g.int64([1]))
    zero = g.int64([0])
    body("Pad", table, body("Concat", g.int64([0, 0]), missing, zero, axis=0), out="padded_table")
    body("Pad", told, body("Concat", zero, missing, axis=0), out="padded_times")
    body("Identity", "more", out="more_images")
    loop = body.finished(
        "plan_of_each",
        [value("image", INT64), value("more", BOOL)],
        [
            value("more_images", BOOL),
            value("padded_table", FLOAT, ["rows", N_COLUMNS]),
            value("padded_times", recipe.times.kind, ["rows"]),
        ],
    )
    tables, times = g.subgraphs("Loop", g("Size", steps), "", outputs=2, body=loop)
    return Plans(
        table=g("Transpose", tables, perm=[1, 2, 0]),
        times=g("Transpose", times, perm=[1, 0]),
        longest=longest,
        own=steps,
        remembers=_any(g, tables, REMEMBERED, [0, 1, 2]),
        combines=_any(g, tables, KEPT, [1, 2]),
    )


def _any(g: Graph, tables: str, columns: slice, axes: list[int]) -> str:
    """Whether a number in these columns of [B, S, 32] is not 0, over these axes."""
    part = g("Abs", g.slice(tables, columns.start, columns.stop, 2))
    return g("Greater", g("ReduceMax", part, g.int64(axes), keepdims=0), g.float32(0.0))
