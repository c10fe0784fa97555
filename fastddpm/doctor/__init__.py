"""What `fastddpm doctor` examines: the environment, the kernels, whole chains, and on a GPU their bandwidth.

Data flows `environment`, `kernels`, `chains`, `movements`, `bandwidth` -> `report` -> a table and
`doctor.json`.
"""

from fastddpm.doctor.comparison import Check
from fastddpm.doctor.report import Examination, examine

__all__ = ["Check", "Examination", "examine"]
