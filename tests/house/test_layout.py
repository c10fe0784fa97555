"""The package: what a wheel holds, what an import costs, and what it does not need or shadow."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastddpm

ROOT = Path(__file__).parents[2]


def python(code: str, *, cwd: Path = ROOT, path: str = "") -> str:
    """What a fresh interpreter prints; the working folder comes first on its path, as with `python -c`."""
    code = f"import sys; sys.path[1:1] = {[path] if path else []!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_folder_is_a_package_by_accident():
    for folder in ("kernels", "tests", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_kernels_folder_does_not_shadow_the_package_of_that_name(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("get_kernel = 'the real one'\n")
    assert python("from kernels import get_kernel; print(get_kernel)", path=str(tmp_path)) == "the real one"


def source_names() -> list[str]:
    """The files of the project: what git tracks, or in an unpacked sdist all that it holds."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        return [name for name in done.stdout.split("\0") if name]
    made = re.compile(r"__pycache__|\.egg-info|^PKG-INFO$|^setup\.cfg$|^build/|^dist/|^\.venv|_cache/")
    names = [file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*") if file.is_file()]
    return [name for name in names if not made.search(name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of the project's files."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in source_names():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--sdist", "--wheel", "--no-isolation", "--outdir"]
    done = subprocess.run([*command, folder, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


def test_sdist_holds_what_its_tests_need(built):
    """All that is tracked: tests, documents and scripts that they read; beside it what setuptools adds."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert set(source_names()) - names == set()
    added = {name for name in names - set(source_names()) if ".egg-info/" not in name}
    assert added <= {"PKG-INFO", "setup.cfg"}


def test_wheel_holds_two_packages_with_their_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"fastddpm", "fastddpm_kernels"}
    for needed in (
        "fastddpm/py.typed",
        "fastddpm/assets/mnist/model.safetensors",
        "fastddpm/assets/mnist/sampler.json",
        "fastddpm/data/mnist_split.json",
        "fastddpm/serving/http/page/index.html",
        "fastddpm_kernels/py.typed",
        "fastddpm_kernels/reverse_step/kernel.py",
    ):
        assert needed in names
    # Models in the box are below 5 MB each.
    assert wheel.stat().st_size < 5e6 * sum(name.endswith("model.safetensors") for name in names)


def test_wheel_holds_the_command_of_the_benchmarks_and_nothing_else_of_them(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = archive.namelist()
    assert [name for name in names if "bench" in name or "peers" in name] == ["fastddpm/cli/bench.py"]
    metadata = next(tmp_path.glob("*.dist-info/METADATA")).read_text()
    assert "pytest-benchmark" not in metadata
    code = (
        "sys.modules['fastddpm_bench'] = None  # importing it raises, looking for it finds nothing\n"
        "import fastddpm\n"
        "from fastddpm.cli import main\n"
        f"assert fastddpm.__file__.startswith({str(tmp_path)!r}), fastddpm.__file__\n"
        "for words in (['bench', '--quick'], ['sample', '--steps', '2', '--out', 'digits.png']):\n"
        "    sys.argv = ['fastddpm', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        print(words[0], ended.code)"
    )
    lines = python(code, cwd=tmp_path, path=str(tmp_path)).splitlines()
    assert {line for line in lines if line.split()[0] in ("bench", "sample")} == {"bench 2", "sample 0"}
    assert (tmp_path / "digits.png").is_file()


def test_only_the_command_knows_the_benchmarks():
    """What the library imports is in its wheel."""
    knowing = {
        file.relative_to(ROOT).as_posix()
        for folder in ("fastddpm", "kernels")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(from|import) fastddpm_bench\b", file.read_text(), re.MULTILINE)
    }
    assert knowing == {"fastddpm/cli/bench.py"}


def test_everything_but_the_kernels_works_without_triton():
    code = (
        "sys.modules['triton'] = None  # importing it raises, looking for it finds nothing\n"
        "import torch, fastddpm\n"
        "sampler = fastddpm.load(num_inference_steps=3)\n"
        "image = sampler.sample(seeds=[1], class_labels=3, progress=False)\n"
        "assert not any(name.startswith('triton.') for name in sys.modules)\n"
        "print(image.isfinite().all().item())"
    )
    assert python(code) == "True"
    assert importlib.util.find_spec("triton") is not None, "triton is not installed: this test shows nothing"


def test_import_is_light_and_touches_no_gpu():
    code = (
        "import time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "import fastddpm\n"
        "seconds = time.process_time() - start\n"
        "heavy = {'triton', 'diffusers', 'accelerate', 'onnx', 'onnxruntime', 'rich', 'PIL', 'typer'}\n"
        "print(seconds, torch.cuda.is_initialized(), sorted(heavy & (set(sys.modules) - before)))"
    )
    for _ in range(3):  # the first may find no bytecode
        seconds, initialized, heavy = python(code).split(" ", 2)
        assert (initialized, heavy) == ("False", "[]")
        if float(seconds) < 0.3:
            return
    pytest.fail(f"{seconds} s")


def test_kernel_package_does_not_import_the_library():
    code = "import fastddpm_kernels\nprint(any(name.split('.')[0] == 'fastddpm' for name in sys.modules))"
    assert python(code) == "False"


@pytest.mark.parametrize("extra", ["train", "onnx", "onnx-gpu", "diffusers", "test", "dev"])
def test_extras_are_declared(extra):
    from importlib.metadata import metadata

    assert extra in metadata("fastddpm").get_all("Provides-Extra")


def test_the_two_onnxruntimes_are_exclusive():
    from importlib.metadata import requires

    wanted = [line for line in requires("fastddpm") if line.startswith("onnxruntime")]
    cpu = [line for line in wanted if line.startswith("onnxruntime>") and 'extra == "onnx"' in line]
    gpu = [line for line in wanted if line.startswith("onnxruntime-gpu") and 'extra == "onnx-gpu"' in line]
    assert len(cpu) == len(gpu) == 1
    assert len(wanted) == 2


def test_what_needs_no_torch_does_not_load_it():
    """Plans, schedules and the noise reference: what production inference without torch stands on."""
    code = (
        "import sys, fastddpm, fastddpm.plans, fastddpm.schedule, fastddpm_kernels.noise.reference\n"
        "print('torch' in sys.modules)\n"
        "from fastddpm_kernels import reverse_step\n"
        "import fastddpm_kernels, fastddpm_kernels.reverse_step.reference\n"
        "print(callable(fastddpm_kernels.reverse_step), callable(reverse_step), 'torch' in sys.modules)"
    )
    assert python(code).split() == ["False", "True", "True", "True"]


def test_every_public_name_is_there():
    assert all(getattr(fastddpm, name) is not None for name in fastddpm.__all__)
    assert python("import fastddpm; print(fastddpm.onnx.OnnxSampler.__name__)") == "OnnxSampler"
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = fastddpm.nothing_here
