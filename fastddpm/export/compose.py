"""The files of an export, each a model made around the same network.

denoiser: x, t -> m.  step: x, one row of a table, noise -> the next x.  sampler: seeds, timesteps or rows ->
images, the whole loop.  noise: seeds -> the sampler's noise, to test a machine's integer arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from fastddpm.export import noise
from fastddpm.export.network import OPSET, ExportedNetwork
from fastddpm.export.nodes import BOOL, FLOAT, INT64, UINT8, Graph, as_model, value
from fastddpm.export.table import LARGEST, ROW_COLUMNS, TableOptions
from fastddpm.export.update import Kept, guided_output, remember, split_output, update
from fastddpm.export.walk import Times, row_inputs, walk
from fastddpm.plans import Plan
from fastddpm.plans.registry import formulas

NOISE_ELEMENTS = 64
"""Numbers per seed that noise.onnx gives."""

IR_VERSION = 10


@dataclass(frozen=True)
class Recipe:
    """What the files are made of.

    Attributes:
        network: in ONNX.
        table: what of the plans is fixed.
        rows: the plan of a solver, which sampler.onnx walks where it is given none; or None.
    """

    network: ExportedNetwork
    table: TableOptions
    rows: Plan | None = None

    @property
    def has_variance(self) -> bool:
        """Whether the network returns 2C channels; without learned range no row uses the second half."""
        return self.network.out_channels != self.network.call.channels

    @property
    def times(self) -> Times:
        """What the network is told in a loop."""
        network, call = self.network, self.network.call
        kind = FLOAT if network.tells_between else call.time_kind
        if call.preconditioned:
            return Times(kind, call.time_input, least=-LARGEST, last=LARGEST, formulas=())
        last = 1 if call.tells_levels else np.size(self.table.alphas_cumprod) - 1
        return Times(kind, call.time_input, least=0, last=last, formulas=tuple(formulas()))

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of one state, (C, H, W) of an image."""
        return self.network.call.shape

    def free_image(self, channels: int) -> list[int | str]:
        """The shape of a batch: sizes that may vary are named."""
        sizes = ["height", "width"] if self.network.dynamic_size else list(self.image[1:])
        return ["batch", channels, *sizes]


def models(recipe: Recipe) -> dict[str, onnx.ModelProto]:
    """Every model of an export by its file name."""
    made = {"denoiser.onnx": denoiser(recipe), "step.onnx": step(recipe, guided=False)}
    if recipe.network.call.guides:
        made["step_guided.onnx"] = step(recipe, guided=True)
    return {**made, "sampler.onnx": sampler(recipe), "noise.onnx": noise_test()}


def denoiser(recipe: Recipe) -> onnx.ModelProto:
    """The network: x, t (, class_labels) -> m."""
    network, call = recipe.network, recipe.network.call
    g = Graph()
    given = [one.input for one in call.cond]
    prepared = network.prepare(g, _told(g, recipe, "t"), "class_labels" if call.has_classes else None, given)
    g("Identity", network.predict(g, "x", prepared), out="m")
    inputs = [
        value("x", FLOAT, recipe.free_image(call.condition_channels + call.channels)),
        value("t", call.time_kind, ["batch"]),
        *_offset_inputs(recipe),
        *_label_inputs(recipe),
        *named_inputs(recipe, guided=False),
    ]
    outputs = [value("m", FLOAT, recipe.free_image(network.out_channels))]
    return model_of(g, "fastddpm_denoiser", inputs, outputs)


def step(recipe: Recipe, *, guided: bool) -> onnx.ModelProto:
    """The network and one reverse step: x, row, time, noise, x0_prev -> x_next, x0."""
    network, call = recipe.network, recipe.network.call
    g = Graph()
    x, labels = "x", "class_labels" if call.has_classes else None
    condition = "condition" if call.condition_channels else None
    given = [one.input for one in call.cond]
    batch = g.slice(g("Shape", "x"), 0, 1, 0)
    if guided:
        x = g("Concat", x, x, axis=0)
        condition = condition and g("Concat", condition, condition, axis=0)
        given = [g("Concat", one.without, one.input, axis=0) for one in call.cond]
        if labels is not None:
            nulls = g("Expand", g.int64(call.null_label or 0), batch)
            labels = g("Concat", nulls, "class_labels", axis=0)
    told = _told(g, recipe, g("Reshape", "time", g.int64([1])))
    prepared = network.prepare(g, told, labels, given)
    m = network.predict(g, x if condition is None else g("Concat", condition, x, axis=1), prepared)
    if guided:
        output = guided_output(g, m, call.channels, recipe.has_variance, scale="guidance_scale", batch=batch)
    else:
        output = split_output(g, m, call.channels, recipe.has_variance)
    after = update(g, "x", output, "row", "x0_prev")
    # Whatever stands in a buffer that is not read: 0 * NaN would be NaN.
    noiseless = g("Equal", after.c, g.float32(0.0))
    z = g("Where", noiseless, g.float32(0.0), "noise")
    g("Add", after.mean, g("Mul", after.sigma, z), out="x_next")
    g("Identity", after.x0, out="x0")
    image = recipe.free_image(call.channels)
    inputs = [
        value("x", FLOAT, image),
        value("row", FLOAT, [ROW_COLUMNS]),
        value("time", call.time_kind),
        value("noise", FLOAT, image),
        value("x0_prev", FLOAT, image),
        *_offset_inputs(recipe),
        *_label_inputs(recipe),
        *([value("guidance_scale", FLOAT)] if guided else []),
        *_condition_inputs(recipe, recipe.free_image(call.condition_channels)),
        *named_inputs(recipe, guided=guided),
    ]
    name = "fastddpm_step_guided" if guided else "fastddpm_step"
    return model_of(g, name, inputs, [value("x_next", FLOAT, image), value("x0", FLOAT, image)])


def sampler(recipe: Recipe) -> onnx.ModelProto:
    """The whole reverse process in one Loop: seeds, and timesteps, method, eta or rows -> images, pixels.

    Pixels of images alone: where states have another shape, ``images`` is all there is.
    """
    call = recipe.network.call
    g = Graph()
    walked = walk(g, recipe.table, recipe.times, inputs_accepted(g, recipe))

    batch = g("Shape", "seeds")
    passes, labels = None, "class_labels" if call.has_classes else None
    given = [one.input for one in call.cond]
    if call.guides:
        guided = g("Not", g("Equal", "guidance_scale", g.float32(1.0)))
        passes = g("Reshape", g("Add", g("Cast", guided, to=INT64), g.int64(1)), g.int64([1]))
        extra = g("Mul", batch, g("Sub", passes, g.int64([1])))
        # Without a second pass, none of its rows.
        given = [g("Concat", g.slice(one.without, 0, extra, 0), one.input, axis=0) for one in call.cond]
        if call.null_label is not None:
            nulls = g("Expand", g.int64([call.null_label]), extra)
            labels = g("Concat", nulls, "class_labels", axis=0)
    condition = None
    if call.condition_channels:
        condition = "condition" if passes is None else tiled(g, "condition", passes, len(recipe.image))
    prepared = recipe.network.prepare(g, walked.times, labels, given)
    keys = noise.keys(g, "seeds", int(np.prod(recipe.image)))
    start = noise.normal(g, keys, g.int64(0), recipe.image)

    body = Graph(g)
    row = body("Gather", walked.table, "k", axis=0)
    x = "x" if passes is None else tiled(body, "x", passes, len(recipe.image))
    x = x if condition is None else body("Concat", condition, x, axis=1)
    m = recipe.network.predict(body, x, prepared, body("Reshape", "k", g.int64([1])))
    if passes is None:
        output = split_output(body, m, call.channels, recipe.has_variance)
    else:
        output = guided_output(
            body, m, call.channels, recipe.has_variance, scale="guidance_scale", batch=batch
        )
    after = update(body, "x", output, row, "x0_prev")
    keeps = (walked.remembers, walked.combines)
    mean, kept = remember(body, after, output, row, Kept("x0_prev", "kept"), keeps=keeps, shape=recipe.image)
    noisy, quiet = Graph(body), Graph(body)
    z = noise.normal(noisy, keys, noisy("Add", "k", noisy.int64(1)), recipe.image)
    noisy("Add", mean, noisy("Mul", after.sigma, z), out="x_noisy")
    quiet("Identity", mean, out="x_quiet")
    image: list[int | str] = ["batch", *recipe.image]
    body(
        "If",
        body("Equal", after.c, body.float32(0.0)),
        out="x_next",
        then_branch=quiet.finished("quiet", [], [value("x_quiet", FLOAT, image)]),
        else_branch=noisy.finished("noisy", [], [value("x_noisy", FLOAT, image)]),
    )
    body("Identity", "go_on", out="goes_on")
    places: list[int | str] = ["places", *image]
    loop = body.finished(
        "reverse_step",
        [
            *(value("k", INT64), value("go_on", BOOL)),
            *(value("x", FLOAT, image), value("x0_prev", FLOAT, image), value("kept", FLOAT, places)),
        ],
        [
            *(value("goes_on", BOOL), value("x_next", FLOAT, image)),
            *(value(kept.first, FLOAT, image), value(kept.others, FLOAT, places)),
        ],
    )
    others = g("Where", walked.remembers, g.int64([2]), g.int64([0]))
    nothing = g("ConstantOfShape", g("Concat", others, g("Shape", start), axis=0))
    # The first row multiplies what nothing was put into by 0.
    final, *_ = g.subgraphs("Loop", walked.steps, "", start, start, nothing, outputs=3, body=loop)
    g("Identity", final, out="images")
    outputs = [value("images", FLOAT, image)]
    if len(recipe.image) == 3:
        channels, height, width = recipe.image
        pixels(g, final)
        outputs.append(value("pixels", UINT8, ["batch", height, width, channels]))
    inputs = [
        value("seeds", INT64, ["batch"]),
        value("timesteps", INT64, ["steps"]),
        value("method", INT64),
        value("eta", FLOAT),
        *row_inputs(g, recipe.rows, recipe.times),
        *_label_inputs(recipe),
        *([value("guidance_scale", FLOAT)] if passes is not None else []),
        *_condition_inputs(recipe, ["batch", call.condition_channels, *recipe.image[1:]]),
        *named_inputs(recipe, guided=call.guides),
    ]
    return model_of(g, "fastddpm_sampler", inputs, outputs)


def noise_test() -> onnx.ModelProto:
    """seeds, step -> the raw words, int64 [B, 4, 16], and the normals, float32 [B, 64], of 64 elements."""
    g = Graph()
    keys = noise.keys(g, "seeds", NOISE_ELEMENTS)
    lanes = [g("Unsqueeze", lane, g.int64([1])) for lane in noise.words(g, keys, "step")]
    g("Cast", g("Concat", *lanes, axis=1), to=INT64, out="words")
    g("Identity", noise.normal(g, keys, "step", (NOISE_ELEMENTS,)), out="normals")
    inputs = [value("seeds", INT64, ["batch"]), value("step", INT64)]
    outputs = [
        value("words", INT64, ["batch", 4, NOISE_ELEMENTS // 4]),
        value("normals", FLOAT, ["batch", NOISE_ELEMENTS]),
    ]
    return model_of(g, "fastddpm_noise", inputs, outputs)


def inputs_accepted(g: Graph, recipe: Recipe) -> list[str]:
    """Bool tensors: whether seeds and labels are as they should be."""
    call, conditions = recipe.network.call, [g("GreaterOrEqual", "seeds", g.int64(0))]
    if call.has_classes:
        largest = max((call.num_classes or 1) - 1, call.null_label or 0)
        conditions.append(g("GreaterOrEqual", "class_labels", g.int64(0)))
        conditions.append(g("LessOrEqual", "class_labels", g.int64(largest)))
    return conditions


def _told(g: Graph, recipe: Recipe, time: str) -> str:
    """What the network is told: the time, int64 [N], and what lies between it and the next, float32 []."""
    if not recipe.network.tells_between:
        return time
    g.default("time_offset", np.zeros((), np.float32))
    return g("Add", g("Cast", time, to=FLOAT), "time_offset")


def _offset_inputs(recipe: Recipe) -> list[onnx.ValueInfoProto]:
    return [value("time_offset", FLOAT)] if recipe.network.tells_between else []


def tiled(g: Graph, x: str, passes: str, axes: int) -> str:
    """x [B, ...], with so many axes behind the first, as often as there are passes, one behind the other."""
    return g("Tile", x, g("Concat", passes, g.int64([1] * axes), axis=0))


def pixels(g: Graph, images: str) -> None:
    """round((clamp(x, -1, 1) + 1) * 127.5), half to even, channels last."""
    shifted = g("Add", g("Clip", images, g.float32(-1.0), g.float32(1.0)), g.float32(1.0))
    levels = g("Cast", g("Round", g("Mul", shifted, g.float32(127.5))), to=UINT8)
    g("Transpose", levels, perm=[0, 2, 3, 1], out="pixels")


def _label_inputs(recipe: Recipe) -> list[onnx.ValueInfoProto]:
    return [value("class_labels", INT64, ["batch"])] if recipe.network.call.has_classes else []


def _condition_inputs(recipe: Recipe, shape: list[int | str]) -> list[onnx.ValueInfoProto]:
    return [value("condition", FLOAT, shape)] if recipe.network.call.condition_channels else []


def named_inputs(recipe: Recipe, *, guided: bool) -> list[onnx.ValueInfoProto]:
    """Of what a network is given by name."""
    cond = recipe.network.call.cond
    without = [value(one.without, one.kind, one.shape()) for one in cond if guided]
    return [*(value(one.input, one.kind, one.shape()) for one in cond), *without]


def model_of(
    g: Graph, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """A graph as a model of the exporter's operator set."""
    return as_model(g.finished(name, inputs, outputs), OPSET, IR_VERSION)
