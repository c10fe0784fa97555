"""Names of parameters, both ways, for repositories that number their blocks as we do."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Names:
    """What a repository calls our parameters. Our names are the keys of every mapping, theirs the values.

    Attributes:
        top: parts outside the blocks, such as ``conv_in`` or ``time_mlp.0``.
        sections: what ``down``, ``mid`` and ``up`` are called.
        parts: what stands in a block of each section, such as ``norm1`` or ``attention.qkv``.
        first_down: their number of our first block on the way down.
    """

    top: Mapping[str, str]
    sections: Mapping[str, str]
    parts: Mapping[str, Mapping[str, str]]
    first_down: int = 0

    def theirs(self, key: str) -> str:
        """Their name of one of our parameters; ValueError where they have no such part."""
        part, kind = key.rsplit(".", 1)
        if part in self.top:
            return f"{self.top[part]}.{kind}"
        match = re.fullmatch(r"(down|mid|up)\.(\d+)\.(.+)", part)
        if match is None or match[3] not in self.parts[match[1]]:
            raise ValueError(f"{key}: a part that their network has not")
        section, inner = match[1], match[3]
        index = int(match[2]) + self._offset(section)
        return f"{self.sections[section]}.{index}.{self.parts[section][inner]}.{kind}"

    def ours(self, key: str) -> str:
        """Our name of one of their parameters; one that is not known comes back as it is."""
        part, _, kind = key.rpartition(".")
        for our_part, their_part in self.top.items():
            if part == their_part:
                return f"{our_part}.{kind}"
        for section, their_section in self.sections.items():
            match = re.fullmatch(rf"{their_section}\.(\d+)\.(.+)", part)
            for our_part, their_part in self.parts[section].items() if match else ():
                if match and match[2] == their_part:
                    return f"{section}.{int(match[1]) - self._offset(section)}.{our_part}.{kind}"
        return key

    def _offset(self, section: str) -> int:
        return self.first_down if section == "down" else 0
