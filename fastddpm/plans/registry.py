"""The methods that a chain can be sampled by, by name.

A method is a formula (`fastddpm.plans.formula`) or a solver (`fastddpm.plans.solver`), and an entry here;
`Sampler`, the command line, jobs and exported files then know it: these compute a formula themselves, and are
given the rows of a solver.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from fastddpm.checks import BadArgument
from fastddpm.plans import consistency, exponential, multistep, runge_kutta
from fastddpm.plans.ddim import ddim_columns
from fastddpm.plans.ddpm import ddpm_columns
from fastddpm.plans.dpmpp import dpmpp_2m_columns
from fastddpm.plans.formula import Formula
from fastddpm.plans.sa_solver import sa_solver
from fastddpm.plans.solver import Solver
from fastddpm.plans.unipc import unipc
from fastddpm.signatures import checked

OwnOption = Literal["eta", "sigma_scale", "fixed_large", "lower_order_final"]
OWN_OPTIONS: tuple[OwnOption, ...] = ("eta", "sigma_scale", "fixed_large")
"""Those that a formula can take."""


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes:
        formula: gives the columns of its plans; None of a solver.
        takes: those of its own among ``eta``, ``sigma_scale``, the variance_type ``fixed_large`` and
            ``lower_order_final``; other methods are refused them.
        skips_last: whether the spacings ``leading`` and ``linspace`` leave out timestep 0; see
            `fastddpm.plans.spaced_timesteps`.
        solver: gives the rows of its plans; None of a formula.
        order: of a solver, unless another is asked for.
        orders: those that it can have.
    """

    formula: Formula | None = None
    takes: frozenset[OwnOption] = frozenset()
    skips_last: bool = False
    solver: Solver | None = None
    order: int = 1
    orders: tuple[int, ...] = (1,)


def _solver(solver: Solver, order: int, *others: int, takes: frozenset[OwnOption] = frozenset()) -> Entry:
    orders = tuple(sorted((order, *others)))
    return Entry(takes=takes, solver=solver, skips_last=True, order=order, orders=orders)


_LOWERS: frozenset[OwnOption] = frozenset({"lower_order_final"})

METHODS: dict[str, Entry] = {
    "ddpm": Entry(ddpm_columns, frozenset({"sigma_scale", "fixed_large"})),
    "ddim": Entry(ddim_columns, frozenset({"eta"})),
    "dpmpp_2m": Entry(dpmpp_2m_columns, skips_last=True),
    "dpmpp_3m": _solver(exponential.dpmpp, 3, takes=_LOWERS),
    "dpmpp_2m_sde": _solver(exponential.dpmpp_sde, 2, takes=_LOWERS),
    "dpmpp_3m_sde": _solver(exponential.dpmpp_sde, 3, takes=_LOWERS),
    "dpmpp_2s": _solver(runge_kutta.dpmpp_2s, 2),
    "dpmpp_2s_sde": _solver(runge_kutta.dpmpp_2s_sde, 2),
    "dpm_solver": _solver(exponential.dpm_solver, 2, 1, 3, takes=_LOWERS),
    "deis": _solver(exponential.dpm_solver, 3, 1, 2, takes=_LOWERS),
    "unipc": _solver(unipc, 2, 1, 3, takes=_LOWERS),
    "sa_solver": _solver(sa_solver, 2, 1, 3, takes=frozenset({"eta", "lower_order_final"})),
    "pndm": _solver(multistep.pndm, 4, 1, 2, 3),
    "lms": _solver(multistep.lms, 4, 1, 2, 3),
    "euler": _solver(multistep.euler, 1),
    "euler_ancestral": _solver(multistep.euler_ancestral, 1),
    "heun": _solver(runge_kutta.heun, 2, takes=frozenset({"eta"})),
    "dpm2": _solver(runge_kutta.dpm2, 2),
    "dpm2_ancestral": _solver(runge_kutta.dpm2_ancestral, 2),
    "lcm": _solver(consistency.lcm, 1),
    "tcd": _solver(consistency.tcd, 1, takes=frozenset({"eta"})),
}
"""All there are; those with a formula are in the order of their numbers in exported files."""


def formulas() -> dict[str, Formula]:
    """The methods that have a formula, which an exported file computes itself."""
    return {name: entry.formula for name, entry in METHODS.items() if entry.formula is not None}


@checked
def register_method(
    name: str, formula: Formula, *, takes: Collection[OwnOption] = (), skips_last: bool = False
) -> None:
    """Adds a method, for this process.

    Args:
        name: what ``method=`` is then given.
        formula: as of `fastddpm.plans.formula`; it may use the columns ``x0_from_x``, ``x0_from_m``,
            ``from_x0``, ``from_x``, ``from_m``, ``from_kept_1`` (of the last x0), ``from_noise``,
            ``log_var_min`` and ``log_var_max``.
        takes: as of `Entry`, as is the next.
        skips_last: likewise.

    Raises:
        ValueError: a name that is taken, or an option that is none.
    """
    _check_new(name)
    for option in takes:
        if option not in OWN_OPTIONS:
            raise BadArgument("takes", repr(option), ", ".join(OWN_OPTIONS))
    METHODS[name] = Entry(formula, frozenset(takes), skips_last)


@checked
def register_solver(name: str, solver: Solver, *, order: int = 1, orders: Collection[int] = ()) -> None:
    """Adds a solver, for this process.

    Args:
        name: what ``method=`` is then given.
        solver: as of `fastddpm.plans.solver`.
        order: of it, unless another is asked for.
        orders: others that it can have.

    Raises:
        ValueError: a name that is taken.
    """
    _check_new(name)
    METHODS[name] = _solver(solver, order, *orders)


def _check_new(name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or name in METHODS:
        raise BadArgument("name", repr(name), f"an identifier other than {', '.join(METHODS)}")
