"""Who sums a block's partial output downstream, at block level: what the layer's communicator would do.

At layer level none of this is used: there the tree's own communicator decides and acts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reference_runtime.scenarios import Case
from reference_runtime.verdicts import LEFT

if TYPE_CHECKING:
    from reference_runtime.world import RankContext

#: The tree's predicate for a reduce-scatter of unequal parts. Its communicator asks it before the flag.
REDUCE_SCATTERV = "should_use_dp_reduce_scatterv"
#: Ranks whose outputs differ by more than this, relative to their size, hold parts of a sum and not the sum.
_SAME = 1e-2


def absorb(context: RankContext, case: Case, output: torch.Tensor, owner: str = "") -> torch.Tensor:
    """From the block's output to this rank's own rows, summed by whoever sums them in this configuration.

    Args:
        output: [rows, hidden]. With DP attention: the rows of all attention-DP ranks (FP4: the own rows).
        owner: who follows and may sum a partial output besides the communicator: "decoder" or "boundary". A boundary
            alone decides what it does. That a partial was left to them is noted in the trace.

    Raises:
        Infeasible: the communicator of the tree cannot do what its predicates ask for.
    """
    if case.launch.fp4:
        return output  # the dispatcher inside the experts has scattered the sum already
    if owner == "boundary":
        output = _at_boundary(context, output)
        return _own(context, output) if case.launch.dp_attention else output
    if case.launch.dp_attention:
        return _to_own_rows(context, case, output, owner)
    if case.fusion:
        return context.fused_sum(output)
    return _at_boundary(context, output) if owner else output


def _at_boundary(context: RankContext, output: torch.Tensor) -> torch.Tensor:
    """The sum of what the block has left to the boundary, or the output if the block has summed it."""
    group = context.group("tp")
    if group.world_size == 1:
        return output
    parts = context.transport.all_gather(output.contiguous(), group.ranks, None)
    if all((part - parts[0]).norm() <= _SAME * parts[0].norm() for part in parts):
        return output
    group.record(LEFT, output)
    return context.transport.all_reduce(output.contiguous(), group.ranks)


def _to_own_rows(context: RankContext, case: Case, output: torch.Tensor, owner: str) -> torch.Tensor:
    rows = context.global_num_tokens
    mine = context.topology.dp_rank(context.transport.rank)
    group = context.group("tp")
    if context.predicate(REDUCE_SCATTERV):
        return group.reduce_scatterv(output, sizes=rows)
    if case.reduce_scatter:
        own = output.new_empty((rows[mine], output.shape[-1]))
        context.module("layers.dp_attention").dp_reduce_scatter_tensor(own, output)
        return own
    return _own(context, _at_boundary(context, output) if owner else output)


def _own(context: RankContext, output: torch.Tensor) -> torch.Tensor:
    rows = context.global_num_tokens
    mine = context.topology.dp_rank(context.transport.rank)
    return output.narrow(0, sum(rows[:mine]), rows[mine]).clone()
