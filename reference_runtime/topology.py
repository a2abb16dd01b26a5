"""How ranks are laid out over tensor, expert and attention-data parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Topology:
    """A launch configuration: `--tp TP --ep EP --dp DP --enable-dp-attention` (DP > 1).

    The MoE-TP size is tp / ep; the attention-TP size is tp / dp. One pipeline stage, no context parallelism.
    """

    tp: int
    ep: int = 1
    dp: int = 1

    @property
    def moe_tp(self) -> int:
        return self.tp // self.ep

    @property
    def attn_tp(self) -> int:
        return self.tp // self.dp

    def dp_rank(self, rank: int) -> int:
        """The attention-data-parallel rank; tensor parallelism is the inner dimension."""
        return rank // self.attn_tp

    def __str__(self) -> str:
        return f"tp{self.tp} ep{self.ep}" + (f" dp{self.dp}" if self.dp > 1 else "")


def topologies(world_size: int) -> Iterator[Topology]:
    """Every layout of that many ranks: each divisor as EP size, each divisor as attention-DP size."""
    divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
    for dp in divisors:
        for ep in divisors:
            yield Topology(world_size, ep, dp)
