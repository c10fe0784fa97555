"""Diffusion code of repositories that are no packages, restated: what its objects hold, and its loops.

Benchmarks time them beside their drop-ins, and tests hold drop-ins and readers to them. They share no code
with `fastddpm`.
"""
