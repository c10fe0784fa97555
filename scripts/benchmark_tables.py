"""Makes the tables of documents anew from the benchmark's committed results.

    fastddpm bench --threads 1 --json benchmarks/results/cpu.json --out runs/bench
    python scripts/benchmark_tables.py

Writes docs/benchmarks_cpu.md, the report, and in the other documents what stands between
``<!-- measured: NAME -->`` and ``<!-- end -->``; `fastddpm_bench.excerpts` has the names. `tests/bench` holds
all of it to the results.
"""

from __future__ import annotations

from pathlib import Path

from fastddpm.files import replacing
from fastddpm_bench import excerpts, tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("benchmarks.md", "dropin.md", "onnx.md")


def main() -> None:
    results = excerpts.loaded(ROOT / "benchmarks" / "results")
    texts = {ROOT / "docs" / "benchmarks_cpu.md": tables.markdown(results["cpu"])}
    for name in DOCUMENTS:
        path = ROOT / "docs" / name
        texts[path] = excerpts.filled(path.read_text(), results)
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
