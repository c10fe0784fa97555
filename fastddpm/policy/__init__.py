"""Policies from their files: observations in, actions out, without the library that trained them.

`fastddpm.policy.policy` has what is used, `fastddpm.formats.lerobot` reads the files.
"""
