"""A folder written by `fastddpm.export_onnx`, read and checked before anything in it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastddpm.checks import LONGEST, BadArgument, check_choice, fitted, shortened, whole
from fastddpm.class_names import Names, class_names
from fastddpm.inputs import (
    MAX_AXES,
    MAX_SIDE,
    InputError,
    Json,
    asked_shape,
    check_regular,
    member,
    open_regular,
    read_document,
)
from fastddpm.onnx.errors import OnnxFolderError
from fastddpm.plans import Method
from fastddpm.plans.time_input import LEVEL_INPUTS, TimeInput
from fastddpm.schedule import NoiseSchedule

FORMAT = "fastddpm-onnx"
VERSIONS = (1,)
NOISE_SPECS = (1,)
OPSETS = (20,)
DESCRIPTION = "export.json"
NEEDED = ("denoiser.onnx", "step.onnx", "sampler.onnx", "noise.onnx")
MAX_LABEL = 2**31 - 1
CONDITION_DTYPES = ("float32", "int64", "int32", "bool")
MAX_CONDITIONS = 64
FIRST_METHODS = ("ddpm", "ddim", "dpmpp_2m")
"""Of exports that do not list theirs."""
LOG_SIGMA = "log_sigma"
TIMES: dict[str, TimeInput] = {
    "index": "timestep",
    **{level: level for level in LEVEL_INPUTS},
    LOG_SIGMA: "timestep",
}
"""What the network is told about time: the words of export.json, and those of a sampler's `time_input`. A
network of diffusers' EDM schedulers is told log(sigma)/4, which is their matter and no option."""


@dataclass(frozen=True)
class Condition:
    """What the network is given by name besides the image, time and labels.

    Attributes:
        name: as the network has it; the files' input is ``cond_NAME``, and ``uncond_NAME`` under guidance.
        dtype: ``float32``, ``int64``, ``int32`` or ``bool``.
        shape: of a row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """What export.json says, checked.

    Attributes:
        path: the folder.
        image_shape: of one state: (C, H, W) of an image.
        num_classes: None without classes.
        null_label: the label that means "no class", or None.
        condition_channels: channels of the condition image; 0 without.
        schedule: the noise schedule.
        method: what is fixed in the files, and the defaults of the rest.
        methods: those whose tables sampler.onnx computes itself, in the order of their numbers.
        times_between: whether the network may be told times between two of training.
        cond: what the network is given by name.
        class_names: of classes 0, 1, ..., or None.
    """

    path: Path
    image_shape: tuple[int, ...]
    num_classes: int | None
    null_label: int | None
    condition_channels: int
    schedule: NoiseSchedule
    method: Method
    methods: tuple[str, ...]
    times_between: bool = False
    cond: tuple[Condition, ...] = ()
    class_names: Names | None = None

    @property
    def draws_images(self) -> bool:
        """Whether its states are images, (C, H, W), and may be had as pixels."""
        return len(self.image_shape) == 3

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of the condition image, (Cc, H, W); as the state but for its channels."""
        return self.condition_channels, *self.image_shape[1:]

    @property
    def guides(self) -> bool:
        """Whether it has files for guidance."""
        return _guides(self.null_label, self.num_classes, self.cond)

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name


def read_folder(folder: str | Path) -> ModelFolder:
    """Reads export.json and checks every file that it lists.

    Raises:
        OnnxFolderError: no export, another format, noise or opset, a file that is missing or not the one that
            was exported.
    """
    path = Path(folder)
    content = _description(path)
    _check_versions(path, content)
    _check_files(path, content)
    try:
        found = ModelFolder(
            path=path,
            image_shape=asked_shape(content["image_shape"]),
            num_classes=_optional(content, "num_classes", 0, MAX_LABEL),
            null_label=_optional(content, "null_label", 0, MAX_LABEL),
            condition_channels=_optional(content, "condition_channels", 0) or 0,
            schedule=NoiseSchedule.from_dict(content["schedule"]),
            method=Method.from_dict(
                {
                    **content["defaults"],
                    "prediction_type": content["prediction_type"],
                    "time_input": TIMES[content["time"]],
                }
            ),
            methods=tuple(_method_names(content.get("methods", FIRST_METHODS))),
            times_between=_flag(content.get("times_between", False)),
            cond=tuple(_conditions(content.get("cond", []))),
            class_names=class_names(content.get("class_names"), content["num_classes"] or 0),
        )
        found.method.plan(found.schedule)  # an option that no run could use is found here
        return found
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise OnnxFolderError(f"{path / DESCRIPTION}: {_reason(error)}") from error


def _guides(null_label: object, num_classes: object, cond: Collection[object]) -> bool:
    return null_label is not None or (bool(cond) and num_classes is None)


def _conditions(listed: object) -> Iterator[Condition]:
    """Those that export.json lists; a ValueError for anything else."""
    if not isinstance(listed, list) or len(listed) > MAX_CONDITIONS:
        raise BadArgument("cond", repr(listed), f"a list of at most {MAX_CONDITIONS}")
    names = set()
    for one in listed:
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str) or one["name"] in names:
            raise BadArgument("cond", repr(one), "an object with a name of its own")
        check_choice("dtype", one.get("dtype"), CONDITION_DTYPES)
        sides = one.get("shape")
        if not isinstance(sides, list) or len(sides) > MAX_AXES:
            raise BadArgument("shape", repr(sides), f"a list of at most {MAX_AXES} sides")
        names.add(one["name"])
        shape = tuple(whole("shape", side, least=1, most=MAX_SIDE) for side in sides)
        yield Condition(one["name"], str(one["dtype"]), shape)


def _method_names(names: object) -> list[str]:
    """A list of names as it is; a ValueError for anything else."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise BadArgument("methods", repr(names), "a list of names")
    return list(names)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadArgument("times_between", repr(value), "true or false")
    return value


def _description(path: Path) -> Json:
    file = path / DESCRIPTION
    if not path.is_dir() or not file.exists():
        raise OnnxFolderError(
            f"folder: {str(path)!r} given, without {DESCRIPTION}; a folder of `fastddpm export` accepted"
        )
    try:
        content = read_document(file)
    except InputError as error:
        raise OnnxFolderError(f"{DESCRIPTION}: not JSON that can be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise OnnxFolderError(f"{file}: format {shortened(repr(found))} found, {FORMAT!r} accepted")
    return content


def _check_versions(path: Path, content: Mapping[str, object]) -> None:
    for name, accepted in (("version", VERSIONS), ("noise_spec", NOISE_SPECS), ("opset", OPSETS)):
        found = content.get(name)
        if isinstance(found, bool) or found not in accepted:
            raise OnnxFolderError(
                f"{path / DESCRIPTION}: {name} {shortened(repr(found))} found, "
                f"{', '.join(map(str, accepted))} accepted by "
                "this version of fastddpm; export the model again"
            )


def _check_files(path: Path, content: Mapping[str, object]) -> None:
    files = content.get("files")
    if not isinstance(files, Mapping):
        raise OnnxFolderError(f"{path / DESCRIPTION}: no list of files")
    cond = content.get("cond")
    named = cond if isinstance(cond, list) else []
    guided = _guides(content.get("null_label"), content.get("num_classes"), named)
    needed = (*NEEDED, *(["step_guided.onnx"] if guided else []))
    unlisted = [name for name in needed if name not in files]
    if unlisted:
        raise OnnxFolderError(f"{path / DESCRIPTION}: {unlisted[0]} is not among its files")
    for name, stored in files.items():
        _check_file(path, name, stored)


def _check_file(path: Path, name: str, stored: object) -> None:
    try:
        file = member(path, name)
    except InputError:
        file = None
    if file is None or not isinstance(stored, Mapping):
        given = f"{shortened(repr(name))} is no file of the folder with a sha256"
        raise OnnxFolderError(f"{path / DESCRIPTION}: {given}")
    if not file.exists():
        raise OnnxFolderError(f"{file}: missing; export the model again")
    try:
        size = check_regular(file)
    except InputError as error:
        raise OnnxFolderError(str(error)) from error
    if size != stored.get("bytes"):
        exported = shortened(str(stored.get("bytes")))
        raise OnnxFolderError(f"{file}: {size} bytes found, {exported} were exported")
    digest = _sha256(file)
    if digest != stored.get("sha256"):
        raise OnnxFolderError(
            f"{file}: damaged or another file: sha256 {digest[:12]}... found, "
            f"{shortened(str(stored.get('sha256')), 15)} was exported"
        )


def _optional(content: Mapping[str, object], name: str, low: int, high: int = MAX_SIDE) -> int | None:
    return None if content[name] is None else whole(name, content[name], least=low, most=high)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while piece := opened.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{shortened(repr(error.args[0]))} is missing or unknown"
    return fitted(str(error), LONGEST)
