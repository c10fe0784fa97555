"""A model's folder on the Hugging Face Hub, with a card that says what it is and how it is used."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import fastddpm
from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument, check_number, fitted, quoted
from fastddpm.class_names import listed
from fastddpm.extras import needed
from fastddpm.formats.files import CheckpointError
from fastddpm.formats.hub import REPOSITORY
from fastddpm.model_folder import save_folder
from fastddpm.options import SamplerOptions
from fastddpm.sampler import Sampler
from fastddpm.signatures import checked
from fastddpm.sources import located
from fastddpm.tasks import TASK_FILE
from fastddpm.unet import UNet

KEPT = ("null_label", "class_names", "shape")
"""Of a sampler's options those that are the model's, besides its method's; device and engine are not."""
CARD = "README.md"


@checked
def push_to_hub(
    source: Sampler | str | Path,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Puts a model into a repository of the Hub, made if need be; `fastddpm.load` reads it there.

    It goes there as one commit of a model folder: `config.json`, `schedule.json`, `sampler.json`,
    `model.safetensors`, `task.json` of a restoration model, and a card, `README.md`. A folder's own card
    stays as it is.

    Args:
        source: a sampler of our UNet, or what `fastddpm.load` takes.
        repository: ``organisation/name``.
        private: whether only its owners see it; None for the account's default. Of a new repository.
        token: of an account; None for the one that was logged in with (``hf auth login``, HF_TOKEN).
        revision: a branch that is there; None for main.
        message: of the commit.
        license: of the card, an identifier such as ``apache-2.0``.
        dataset: its name, of what the model was trained on.
        metrics: what was measured on that, by name: ``{"fid": 3.2}``.

    Returns:
        The commit's address.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        CheckpointError: the Hub does not take it: no such account, token or branch, or no way to it.
        MissingExtra: huggingface-hub is not installed.
    """
    found = REPOSITORY.fullmatch(repository) if isinstance(repository, str) else None
    if found is None or found["revision"] is not None:
        raise BadArgument("repository", quoted(repository), "'organisation/name'")
    if metrics and dataset is None:
        raise BadArgument(
            "dataset", f"None with metrics {listed(tuple(metrics))}", "the name of what they are of"
        )
    for name, value in (metrics or {}).items():
        check_number(f"metrics[{name!r}]", value)
    hub = needed("huggingface_hub", by="fastddpm.push_to_hub")
    sampler = source if isinstance(source, Sampler) else load(source)
    with tempfile.TemporaryDirectory() as made:
        folder = written(sampler, Path(made) / "model")
        if not isinstance(source, Sampler):
            for name in (TASK_FILE, CARD):
                if (located(source) / name).is_file():
                    shutil.copyfile(located(source) / name, folder / name)
        if not (folder / CARD).exists():
            data = _metadata(hub, sampler, repository, license, dataset, metrics)
            (folder / CARD).write_text(card(sampler, repository, data.to_yaml()), encoding="utf-8")
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"A model of fastddpm {fastddpm.__version__}",
            )
        except Exception as error:  # of many kinds, by what huggingface_hub is built on
            raise CheckpointError(f"{repository}: {_reason(error)}") from error
    return str(commit.commit_url)


def written(sampler: Sampler, folder: Path) -> Path:
    """A sampler's model, schedule and method as a model folder.

    Raises:
        ValueError: a sampler of another network, or of a given plan.
    """
    if not isinstance(sampler.model, UNet):
        raise BadArgument(
            "source",
            f"a sampler of a {type(sampler.model).__name__}",
            "one of our UNet, which a folder holds,",
        )
    if sampler.method is None:
        raise BadArgument("source", "a sampler of a given plan", "one of a method")
    own = {name: value for name, value in sampler.options.items() if name in KEPT and value is not None}
    options = cast("SamplerOptions", {**sampler.method.to_dict(), **own})
    return save_folder(folder, sampler.model, sampler.schedule, options)


def card(sampler: Sampler, repository: str, metadata: str) -> str:
    """The text of a card: metadata, what the model is, and lines that draw from it."""
    model, name = cast(UNet, sampler.model), repository.split("/")[1]
    shape = "of any size" if sampler.shape is None else "x".join(map(str, sampler.shape))
    classes = model.config.num_classes
    rows = {
        "network": f"`fastddpm.UNet`, {sum(one.numel() for one in model.parameters()):,} parameters",
        "states": shape,
        "predicts": sampler.method.prediction_type if sampler.method else "",
        "schedule": f"{len(sampler.schedule)} timesteps",
        "classes": "none" if classes is None else f"{classes}",
        "sampler": f"{sampler.plan.method}, {len(sampler.plan)} steps",
    }
    if sampler.class_names is not None:
        rows["classes"] += f": {listed(tuple(sampler.class_names))}"
    label = ", class_labels=0" if classes is not None else ""
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\n{metadata.strip()}\n---\n\n# {name}\n\n| | |\n| --- | --- |\n{table}\n\n"
        "```python\n"
        "import fastddpm\n\n"
        f'sampler = fastddpm.load("{repository}")\n'
        f"images = sampler.sample(seeds=range(4){label})\n"
        "```\n\n"
        "An image depends on its own seed alone, not on the batch that it is drawn in.\n"
    )


def _metadata(
    hub: Any,
    sampler: Sampler,
    repository: str,
    license: str | None,
    dataset: str | None,
    metrics: Mapping[str, float] | None,
) -> Any:
    task = "unconditional-image-generation"
    results = [
        hub.EvalResult(
            task_type=task, dataset_type="custom", dataset_name=dataset, metric_type=name, metric_value=value
        )
        for name, value in (metrics or {}).items()
    ]
    return hub.ModelCardData(
        library_name="fastddpm",
        tags=["diffusion", "ddpm", *sorted({sampler.plan.method} - {"ddpm"})],
        license=license,
        datasets=None if dataset is None else [dataset],
        pipeline_tag=task,
        **({"model_name": repository.split("/")[1], "eval_results": results} if results else {}),
    )


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the Hugging Face Hub does not let this account write there; token= of one that may accepted"
    if status == 404:
        return "no such branch, or no such organisation, on the Hugging Face Hub"
    return f"not taken by the Hugging Face Hub ({fitted(str(error), 120)})"
