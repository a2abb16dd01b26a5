"""What a run is asked to do, as data that crosses the border to the worker process as JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reference_runtime.discover import Block
from reference_runtime.scenarios import Case, block_cases, layer_cases
from reference_runtime.tree import Tree, find_tree

LEVELS = ("block", "layer")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run.

    Attributes:
        timeout: seconds that one block may take at one level.
        memory: bytes that the process of one block may use.
        parallel: blocks at a time.
    """

    levels: tuple[str, ...] = LEVELS
    world_sizes: tuple[int, ...] = (2, 4)
    backend: str = "threads"
    device: str = "cpu"
    dtype: str = "float64"
    kernels: str = "reference"
    timeout: float = 120.0
    memory: int = 8 << 30
    parallel: int = 2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        values = dict(data)
        return cls(**{**values, "levels": tuple(values["levels"]), "world_sizes": tuple(values["world_sizes"])})


@dataclass(frozen=True, slots=True)
class Job:
    """One block at one level.

    Attributes:
        before, after: folders of the engine's package.
        overlay: a folder whose files stand for files of ``after``; empty: none.
    """

    number: int
    level: str
    block: Block
    before: str
    after: str
    settings: Settings
    overlay: str = ""

    def cases(self) -> list[Case]:
        """The cases of the job, in order."""
        if self.level == "layer":
            return list(layer_cases(self.settings.world_sizes, self.block.communicator))
        return list(block_cases(self.settings.world_sizes, self.block.communicator))

    def trees(self) -> tuple[Tree, Tree]:
        """Before and after."""
        after = find_tree(Path(self.after))
        return find_tree(Path(self.before)), replace(after, overlay=Path(self.overlay) if self.overlay else None)

    def to_dict(self) -> dict[str, Any]:
        block = {**asdict(self.block), "file": str(self.block.file)}
        return {
            "number": self.number, "level": self.level, "block": block, "before": self.before, "after": self.after,
            "settings": self.settings.to_dict(), "overlay": self.overlay,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        block = dict(data["block"])
        return cls(
            data["number"], data["level"], Block(**{**block, "file": Path(block["file"])}), data["before"],
            data["after"], Settings.from_dict(data["settings"]), data["overlay"],
        )  # fmt: skip
