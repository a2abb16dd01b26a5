"""The configurations in which a block is run: layouts, and what the layer around it will do with its output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from reference_runtime.topology import Topology, topologies

Padding = Literal["", "max", "sum"]
#: Rows of the attention-DP ranks in a batch: unequal on purpose, padded to the longest or packed.
TOKENS = (5, 8, 3, 7, 2, 6, 8, 4)


@dataclass(frozen=True, slots=True)
class Launch:
    """How the server was launched: what decides the tree's own predicates.

    Attributes:
        fp4: FP4 experts on the flashinfer CUTLASS backend, whose dispatcher gathers and scatters the tokens.
        fusion: `--enable-flashinfer-allreduce-fusion`.
    """

    topology: Topology
    fp4: bool = False
    fusion: bool = False

    @property
    def dp_attention(self) -> bool:
        return self.topology.dp > 1


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration of one batch.

    Attributes:
        padding: how the rows of the attention-DP ranks stand together; empty without DP attention.
        fusion: the communicator announces a fused all-reduce (`should_allreduce_fusion`).
        reduce_scatter: the communicator announces a reduce-scatter (`use_reduce_scatter`).
        capture: a graph is being captured: where blocks use their second stream.
        first: the attention-DP rank whose tokens the first of this launch has; the oracle asks for others than 0.
    """

    launch: Launch
    padding: Padding = ""
    fusion: bool = False
    reduce_scatter: bool = False
    capture: bool = False
    first: int = 0

    @property
    def topology(self) -> Topology:
        return self.launch.topology

    @property
    def tokens(self) -> list[int]:
        """Rows of each attention-DP rank."""
        return list(TOKENS[self.first : self.first + self.topology.dp])

    @property
    def rows(self) -> list[int]:
        """Rows of each attention-DP rank with its padding: engines pad to a multiple of the attention-TP size first."""
        if not self.padding:
            return self.tokens
        step = self.topology.attn_tp
        aligned = [-(-count // step) * step for count in self.tokens]
        return [max(aligned)] * len(aligned) if self.padding == "max" else aligned

    def __str__(self) -> str:
        parts = [str(self.topology)]
        if self.padding:
            parts.append(f"{self.padding}-len")
        if self.fusion:
            parts.append("fusion")
        if self.reduce_scatter:
            parts.append("reduce-scatter")
        if self.launch.fp4:
            parts.append("fp4-allgather")
        if self.capture:
            parts.append("capture")
        return " ".join(parts)


def block_cases(world_sizes: tuple[int, ...], communicator: bool) -> Iterator[Case]:
    """Every feasible configuration at block level, in a fixed order; cases of one launch stand together.

    Args:
        communicator: the layer around the block has a communicator. Without one nobody gathers or scatters tokens
            and nobody sums: neither DP attention nor a skipped reduction is possible.
    """
    for size in world_sizes:
        for topology in topologies(size):
            if not communicator:
                if topology.dp == 1:
                    yield Case(Launch(topology))
                continue
            if topology.dp == 1:
                yield Case(Launch(topology))
                if topology.ep == 1 or topology.moe_tp == 1:  # over two axes, only a communicator knows if it fuses
                    yield Case(Launch(topology), fusion=True)
                continue
            launch = Launch(topology)
            yield Case(launch, "max")
            yield Case(launch, "max", reduce_scatter=True)
            yield Case(launch, "sum")
            if topology.ep == topology.dp:  # the tree's dispatcher says whether it can gather there
                yield Case(Launch(topology, fp4=True), "sum")


def layer_cases(world_sizes: tuple[int, ...], communicator: bool) -> Iterator[Case]:
    """Every feasible configuration at layer level: the tree's own communicator decides about flags and absorbers."""
    for size in world_sizes:
        for topology in topologies(size):
            launch = Launch(topology)
            if topology.dp == 1:
                yield Case(launch)
                if communicator:
                    yield Case(Launch(topology, fusion=True), fusion=True)
            elif communicator:
                yield Case(launch, "max")
                yield Case(launch, "sum")
                if topology.ep == topology.dp:
                    yield Case(Launch(topology, fp4=True), "sum")


def captured(cases: Iterable[Case]) -> Iterator[Case]:
    """Each case, and the same while a graph is being captured."""
    for case in cases:
        yield case
        yield replace(case, capture=True)
