"""The methods that a chain can be sampled by, by name.

A method is a formula (`fastddpm.plans.formula`) and an entry here; `Sampler`, the command line, exported
files and jobs then know it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from fastddpm.checks import BadArgument
from fastddpm.plans.ddim import ddim_columns
from fastddpm.plans.ddpm import ddpm_columns
from fastddpm.plans.dpmpp import dpmpp_2m_columns
from fastddpm.plans.formula import Formula
from fastddpm.signatures import checked

OwnOption = Literal["eta", "sigma_scale", "fixed_large"]
OWN_OPTIONS: tuple[OwnOption, ...] = ("eta", "sigma_scale", "fixed_large")


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes:
        formula: gives the columns of its plans.
        takes: those of its own among ``eta``, ``sigma_scale`` and the variance_type ``fixed_large``; other
            methods are refused them.
        skips_last: whether the spacings ``leading`` and ``linspace`` leave out timestep 0; see
            `fastddpm.plans.spaced_timesteps`.
    """

    formula: Formula
    takes: frozenset[OwnOption] = frozenset()
    skips_last: bool = False


METHODS: dict[str, Entry] = {
    "ddpm": Entry(ddpm_columns, frozenset({"sigma_scale", "fixed_large"})),
    "ddim": Entry(ddim_columns, frozenset({"eta"})),
    "dpmpp_2m": Entry(dpmpp_2m_columns, skips_last=True),
}
"""All there are, in the order of their numbers in exported files."""


@checked
def register_method(
    name: str, formula: Formula, *, takes: Collection[OwnOption] = (), skips_last: bool = False
) -> None:
    """Adds a method, for this process.

    Args:
        name: what ``method=`` is then given.
        formula: as of `fastddpm.plans.formula`; it may use the columns ``x0_from_x``, ``x0_from_m``,
            ``from_x0``, ``from_x``, ``from_m``, ``from_x0_prev``, ``from_noise``, ``log_var_min`` and
            ``log_var_max``.
        takes: as of `Entry`, as is the next.
        skips_last: likewise.

    Raises:
        ValueError: a name that is taken, or an option that is none.
    """
    if not isinstance(name, str) or not name.isidentifier() or name in METHODS:
        raise BadArgument("name", repr(name), f"an identifier other than {', '.join(METHODS)}")
    for option in takes:
        if option not in OWN_OPTIONS:
            raise BadArgument("takes", repr(option), ", ".join(OWN_OPTIONS))
    METHODS[name] = Entry(formula, frozenset(takes), skips_last)
