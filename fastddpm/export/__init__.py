"""A trained model as ONNX files: the network, one step, and the whole sampler in one file.

Data flows one way: `settings` (what is asked for) -> `network` (torch.export) -> `compose` (the models, from
`noise`, `walk`, `table` and `update`) -> `folder` (the files) -> `verify` (ONNX Runtime against PyTorch) ->
`readme`. `export_triton` goes from the network to `requests`, its model, `triton` and `verify_requests`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fastddpm.extras import needed

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
for _package in PACKAGES:
    needed(_package, by="fastddpm.export_onnx")

from fastddpm.checks import BadArgument, whole  # noqa: E402
from fastddpm.export.call import NetworkCall  # noqa: E402
from fastddpm.export.compose import Recipe, models  # noqa: E402
from fastddpm.export.errors import ExportError  # noqa: E402
from fastddpm.export.folder import (  # noqa: E402
    DESCRIPTION,
    FORMAT,
    README,
    VERSION,
    described,
    new_export,
    save_model,
)
from fastddpm.export.network import OPSET, export_network  # noqa: E402
from fastddpm.export.readme import readme  # noqa: E402
from fastddpm.export.requests import sampler_of_requests  # noqa: E402
from fastddpm.export.settings import CONDITION_KINDS, ExportSettings, resolve  # noqa: E402
from fastddpm.export.spacing import spacing_of  # noqa: E402
from fastddpm.export.verify import self_test, verified  # noqa: E402
from fastddpm.export.verify_requests import verified_requests  # noqa: E402
from fastddpm.files import sha256  # noqa: E402
from fastddpm.onnx.folder import LOG_SIGMA, TIMES  # noqa: E402
from fastddpm.options import ExportOptions  # noqa: E402
from fastddpm.plans.registry import formulas  # noqa: E402
from fastddpm.sampler import Sampler  # noqa: E402
from fastddpm.schedule import NoiseSchedule  # noqa: E402
from fastddpm.signatures import checked  # noqa: E402

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ExportError", "export_onnx", "export_triton"]


@checked
def export_onnx(
    model: nn.Module | Sampler,
    folder: str | Path,
    *,
    schedule: NoiseSchedule | None = None,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    verify: bool = True,
    num_classes: int | None = None,
    condition_channels: int | None = None,
    cond: Mapping[str, Tensor] | None = None,
    **options: Unpack[ExportOptions],
) -> Path:
    """Writes a model as ONNX: denoiser.onnx, step.onnx, sampler.onnx, noise.onnx, export.json and README.md.

    A network with a null label gets step_guided.onnx too. Every file holds the weights it needs. The model
    stays as it is: a copy on the CPU is exported.

    Args:
        model: a :class:`Sampler`, whose options become the defaults; or a module ``model(x, t)`` or
            ``model(x, t, class_labels=)`` that torch.export takes, such as diffusers' UNet2DModel.
        folder: where to; a new or empty folder, or an earlier export, whose files are replaced (what else is
            there stays).
        schedule: with a module: the noise schedule it was trained with.
        shape: ``(C, H, W)`` of an image, or that of another state; None for the sampler's. sampler.onnx has
            this size. In the other files height and width vary for our UNet.
        dtype: of the network inside: ``float32`` or ``float16``. Inputs, outputs, tables, state and noise
            are float32 in both.
        verify: run the files in ONNX Runtime against PyTorch; see `fastddpm.export.verify` for the limits.
        num_classes: of a module that takes ``class_labels``; known of our UNet.
        condition_channels: channels that a condition puts in front of the image; known of our UNet and of
            UNet2DModel, else 0 unless given.
        cond: of a module that is given more by name: examples ``(1 or more, ...)``, which say the shape and
            dtype of inputs ``cond_NAME`` (and ``uncond_NAME``, where they are guided).
        **options: those of a method (`fastddpm.plans.Method`), ``null_label`` and ``class_names``, as of
            :class:`Sampler`.

    Returns:
        The folder.

    Raises:
        ExportError: torch.export cannot export the network, or a file differs from PyTorch. Nothing is left.
        ValueError: naming the argument, what was given and what is accepted.
        OSError: the folder cannot be written, or its disk is full: it is as it was.
    """
    settings = resolve(
        model,
        schedule=schedule,
        shape=shape,
        dtype=dtype,
        num_classes=num_classes,
        condition_channels=condition_channels,
        cond=cond,
        options=options,
    )
    destination = Path(folder)
    with new_export(destination) as temporary:
        recipe = _recipe(settings)
        made = models(recipe)
        for name, proto in made.items():
            save_model(proto, temporary / name)
        parity = verified(temporary, settings) if verify else None
        between = recipe.network.tells_between or settings.call.preconditioned
        about = {**_about(settings, temporary, dtype, parity), "times_between": between}
        (temporary / README).write_text(readme(made, about))
        about["readme"] = sha256(temporary / README)
        (temporary / DESCRIPTION).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
    return destination


@checked
def export_triton(
    sampler: Sampler,
    repository: str | Path,
    name: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: str = "float32",
    cond: Mapping[str, Tensor] | None = None,
    max_batch: int = 64,
    verify: bool = True,
) -> Path:
    """Writes a sampler as a model of a repository of NVIDIA Triton Inference Server.

    ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``: sampler.onnx with the batch as first axis of every input;
    seed, steps, method, eta, label and guidance of each image are its own (docs/onnx.md).

    Args:
        sampler: what is exported; its options are the defaults that are told in the configuration.
        repository: folder of the repository, made where it is not there.
        name: of the model there. A model of that name that was written by this function is replaced.
        shape: as of `export_onnx`, as are the next two.
        dtype: likewise.
        cond: likewise.
        max_batch: images in a batch, at most.
        verify: run a batch of unlike requests in ONNX Runtime against PyTorch.

    Returns:
        The model's folder.

    Raises:
        ExportError: torch.export cannot export the network, or it differs from PyTorch. Nothing is left.
        ValueError: naming the argument, what was given and what is accepted.
        OSError: the folder cannot be written.
    """
    from fastddpm.export import triton

    folder = triton.check_place(Path(repository), name)
    whole("max_batch", max_batch, least=1)
    settings = resolve(
        sampler,
        schedule=None,
        shape=shape,
        dtype=dtype,
        num_classes=None,
        condition_channels=None,
        cond=cond,
        options={},
    )
    if settings.call.preconditioned:
        given = f"one of {settings.method.fields['_class_name']}, whose network is told log(sigma)/4,"
        raise BadArgument("sampler", given, "one whose network is told timesteps or levels")
    spacing = spacing_of(settings.method)
    model = sampler_of_requests(_recipe(settings), spacing)
    about = triton.described(model, settings)
    with triton.written(folder, model, triton.config(name, model, about, max_batch)) as file:
        if verify:
            verified_requests(file, settings)
    return folder


def _recipe(settings: ExportSettings) -> Recipe:
    """The network in ONNX, and the plans of its files."""
    assert isinstance(settings.sampler.model, nn.Module)
    network = export_network(settings.sampler.model, settings.call)
    learned = settings.method.variance_type == "learned_range"
    if learned and network.out_channels == settings.call.channels:
        raise BadArgument(
            "variance_type",
            f"learned_range with a model that returns {network.out_channels} channels for an image "
            "of as many",
            "fixed_small or fixed_large",
        )
    rows = None if settings.method.has_formula else settings.sampler.plan
    return Recipe(network, settings.table, rows=rows)


def _about(
    settings: ExportSettings, folder: Path, dtype: str, parity: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of export.json."""
    import fastddpm

    call = settings.call
    multiple, padding = settings.sizes or (None, 0)
    return {
        "format": FORMAT,
        "version": VERSION,
        "noise_spec": 1,
        "opset": OPSET,
        "files": described(folder),
        "image_shape": list(call.shape),
        "size_multiple": multiple,
        "size_padding": padding,
        "num_classes": call.num_classes,
        "null_label": call.null_label,
        "condition_channels": call.condition_channels,
        **_conditions(call),
        **_class_names(settings),
        "prediction_type": settings.method.prediction_type,
        "time": _time(call),
        "learned_range": settings.method.variance_type == "learned_range",
        "network_dtype": dtype,
        "num_train_timesteps": len(settings.schedule),
        "schedule": settings.schedule.to_dict(),
        "methods": [] if call.preconditioned else list(formulas()),
        "defaults": settings.defaults,
        "timesteps": settings.sampler.plan.timesteps.tolist(),
        "parity": parity,
        "versions": {
            "fastddpm": fastddpm.__version__,
            **{name: metadata.version(name) for name in ("torch", "numpy", "onnx", "onnxscript")},
            "onnxruntime": _onnxruntime_version(),
        },
        "self_test": self_test(),
    }


def _time(call: NetworkCall) -> str:
    if call.preconditioned:
        return LOG_SIGMA
    return next(word for word, time_input in TIMES.items() if time_input == call.time_input)


def _conditions(call: NetworkCall) -> dict[str, Any]:
    """Of an export of a network that is given more by name; else nothing, as in exports of before."""
    described = [
        {"name": one.name, "dtype": CONDITION_KINDS[one.kind], "shape": list(one.rows.shape[1:])}
        for one in call.cond
    ]
    return {"cond": described} if described else {}


def _class_names(settings: ExportSettings) -> dict[str, Any]:
    """Of an export of a model whose classes have names; else nothing, likewise."""
    names = settings.sampler.class_names
    return {} if names is None else {"class_names": list(names)}


def _onnxruntime_version() -> str:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    return str(onnxruntime.__version__)  # onnxruntime-gpu is distributed under another name
