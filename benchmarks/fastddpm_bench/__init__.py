"""Benchmarks: our work against what people would otherwise use, side by side, after a check of parity.

Data flows one way: `subjects` describe contests (`contest`), `runner` sets them up, holds their outputs to
each other, times them (`fastddpm.timing`) beside the machine's limits (`limits`, `costs`, `light`) and fills
a document (`results`), of which `tables`, `figures` and `comparison` make reports. `fastddpm bench` is
`session`; the files in benchmarks/ stand on the rest. See docs/benchmarks.md.
"""
