"""What a run is asked to do, as data that crosses the border to the worker process as JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reference_runtime.discover import Block
from reference_runtime.scenarios import Case, block_cases, captured, layer_cases
from reference_runtime.tree import Tree, find_tree

LEVELS = ("block", "layer")


@dataclass(frozen=True, slots=True)
class Member:
    """One of the processes that torchrun started: a rank of the only world size there is."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Member | None:
        """This process's place, as torchrun tells it; None where it did not start this process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(environment[name]) for name in names)) if "TORCHELASTIC_RUN_ID" in environment else None


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run.

    Attributes:
        backend: `threads`, `gloo` (processes) or `nccl` (processes with a GPU each).
        timeout: seconds that one block may take at one level.
        memory: bytes that a process of one block may use.
        parallel: blocks at a time.
        member: this process's place where torchrun started one for each rank; None: the runtime makes the ranks.
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
    member: Member | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        member = Member(**data["member"]) if data["member"] is not None else None
        sizes = tuple(data["world_sizes"])
        return cls(**{**data, "levels": tuple(data["levels"]), "world_sizes": sizes, "member": member})


@dataclass(frozen=True, slots=True)
class Job:
    """One block at one level.

    Attributes:
        before, after: folders of the engine's package.
        overlay: a folder whose files stand for files of ``after``; empty: none.
        before_overlay: the same for ``before``.
    """

    number: int
    level: str
    block: Block
    before: str
    after: str
    settings: Settings
    overlay: str = ""
    before_overlay: str = ""

    @property
    def timeout(self) -> float:
        """Seconds for the whole job."""
        return self.settings.timeout

    @property
    def imports(self) -> object:
        """Equal for jobs that one process may do one after another, with the modules that it imports once."""
        settings = self.settings
        if settings.member is not None or settings.device != "cpu":
            return self.number
        return self.block, self.before, self.after, self.overlay, self.before_overlay

    def cases(self) -> list[Case]:
        """The cases of the job, in order."""
        made = layer_cases if self.level == "layer" else block_cases
        cases = made(self.settings.world_sizes, self.block.communicator)
        return list(captured(cases) if self.block.captures else cases)

    def trees(self) -> tuple[Tree, Tree]:
        """Before and after."""
        return tree_of(self.before, self.before_overlay), tree_of(self.after, self.overlay)

    def to_dict(self) -> dict[str, Any]:
        block = {**asdict(self.block), "file": str(self.block.file)}
        return {
            "number": self.number, "level": self.level, "block": block, "before": self.before, "after": self.after,
            "settings": self.settings.to_dict(), "overlay": self.overlay, "before_overlay": self.before_overlay,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        block = dict(data["block"])
        return cls(
            data["number"], data["level"], Block(**{**block, "file": Path(block["file"])}), data["before"],
            data["after"], Settings.from_dict(data["settings"]), data["overlay"], data["before_overlay"],
        )  # fmt: skip


def tree_of(folder: str, overlay: str) -> Tree:
    """The tree in an engine's folder, with the files of another one laid over it (empty: none)."""
    return replace(find_tree(Path(folder)), overlay=Path(overlay) if overlay else None)
