"""A process group as the engine sees it: the engine's method names over a transport, with a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reference_runtime.comm.base import Infeasible, Trace, Transport
from reference_runtime.stubs import Stub, StubReached


class Group:
    """One rank's view of one group.

    Args:
        name: the engine's name for it (`tp`, `moe_ep`, …); appears in traces.
        ranks: global ranks in group order.
    """

    def __init__(self, name: str, ranks: Sequence[int], transport: Transport, trace: Trace) -> None:
        self.unique_name = name
        self.ranks = list(ranks)
        self.rank = transport.rank
        self.local_rank = transport.rank
        self.world_size = len(self.ranks)
        self.rank_in_group = self.ranks.index(transport.rank)
        self.device_group: Any = Stub(f"{name}.device_group")
        self.cpu_group: Any = Stub(f"{name}.cpu_group")
        self._transport, self._trace = transport, trace

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise StubReached(f"GroupCoordinator.{name}")

    first_rank = property(lambda self: self.ranks[0])
    last_rank = property(lambda self: self.ranks[-1])
    is_first_rank = property(lambda self: self.rank == self.ranks[0])
    is_last_rank = property(lambda self: self.rank == self.ranks[-1])

    @property
    def process_group(self) -> Any:
        """torch's process group of the same ranks; None where ranks are no processes."""
        return self._transport.process_group(self.ranks) if self.world_size > 1 else None

    def record(self, op: str, tensor: torch.Tensor) -> None:
        """Note a collective that a kernel does by itself."""
        self._trace.record(op, self.unique_name, tensor)

    def all_reduce(self, input_: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The sum over the group: a new tensor, as the fast kernels give it (nobody may rely on the operand)."""
        if self.world_size == 1:
            return input_
        self._trace.record("all_reduce", self.unique_name, input_)
        return self._transport.all_reduce(input_.contiguous(), self.ranks)

    quant_all_reduce = all_reduce  # quantisation is the identity here

    def all_gather_into_tensor(self, output: torch.Tensor, input: torch.Tensor) -> None:
        """The inputs [rows, …] of all ranks into ``output`` [ranks * rows, …], in group order."""
        if self.world_size == 1:
            output.copy_(input)
            return
        self._trace.record("all_gather", self.unique_name, input)
        output.copy_(torch.cat(self._transport.all_gather(input.contiguous(), self.ranks, None)))

    def all_gather(
        self, input_: torch.Tensor, dim: int = -1, output_tensor_list: list[torch.Tensor] | None = None
    ) -> torch.Tensor | None:
        """The inputs of all ranks, all of one shape, joined along ``dim``; or each into its place of the list."""
        if self.world_size == 1:
            parts = [input_]
        else:
            self._trace.record("all_gather", self.unique_name, input_)
            parts = self._transport.all_gather(input_.contiguous(), self.ranks, None)
        if output_tensor_list is not None:
            for output, part in zip(output_tensor_list, parts, strict=True):
                output.copy_(part)
            return None
        return torch.cat(parts, dim=dim) if self.world_size > 1 else input_

    def all_gatherv(
        self, input_: torch.Tensor | list[torch.Tensor], sizes: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """The rows of all ranks: each tensor [sizes[own rank], …] -> [sum(sizes), …].

        Raises:
            Infeasible: not a size for each rank.
            ValueError: this rank has other rows than its size says.
        """
        single = isinstance(input_, torch.Tensor)
        tensors: list[torch.Tensor] = [input_] if isinstance(input_, torch.Tensor) else input_
        results = []
        for tensor in tensors:
            if sizes is not None and len(sizes) != self.world_size:
                raise Infeasible(f"all_gatherv: {len(sizes)} sizes for {self.world_size} ranks")
            if sizes is not None and sizes[self.rank_in_group] != tensor.shape[0]:
                raise ValueError(f"all_gatherv: {tensor.shape[0]} rows on rank {self.rank_in_group} of {list(sizes)}")
            if self.world_size == 1:
                results.append(tensor)
                continue
            self._trace.record("all_gatherv", self.unique_name, tensor)
            results.append(torch.cat(self._transport.all_gather(tensor.contiguous(), self.ranks, sizes)))
        return results[0] if single else results

    def reduce_scatter_tensor(self, output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum of the inputs [rows, …], into ``output`` [rows / ranks, …].

        Raises:
            ValueError: the rows cannot be divided by the ranks.
        """
        if self.world_size == 1:
            output.copy_(input)
            return output
        rows, left = divmod(input.shape[0], self.world_size)
        if left:
            raise ValueError(f"reduce_scatter_tensor: {input.shape[0]} rows over {self.world_size} ranks")
        return self._scatter("reduce_scatter", output, input, [rows] * self.world_size)

    def reduce_scatterv(
        self, input_: torch.Tensor, output: torch.Tensor | None = None, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """This rank's rows of the sum: [sum(sizes), …] -> [sizes[own rank], …]; without ``sizes`` equal parts.

        Raises:
            Infeasible: not a size for each rank.
            ValueError: the sizes do not add up to the rows.
        """
        if sizes is None:
            sizes = [input_.shape[0] // self.world_size] * self.world_size
        if len(sizes) != self.world_size:
            raise Infeasible(f"reduce_scatterv: {len(sizes)} sizes for {self.world_size} ranks")
        if sum(sizes) != input_.shape[0]:
            raise ValueError(f"reduce_scatterv: {input_.shape[0]} rows into {list(sizes)}")
        if output is None:
            output = input_.new_empty((sizes[self.rank_in_group], *input_.shape[1:]))
        return self._scatter("reduce_scatterv", output, input_, sizes)

    def _scatter(self, op: str, output: torch.Tensor, input_: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        if self.world_size == 1:
            output.copy_(input_)
            return output
        self._trace.record(op, self.unique_name, input_)
        output.copy_(self._transport.reduce_scatter(input_.contiguous(), self.ranks, sizes))
        return output

    def broadcast(self, input_: torch.Tensor, src: int = 0) -> torch.Tensor:
        """The tensor of the rank at position ``src`` of the group, in place of ``input_``."""
        if self.world_size == 1:
            return input_
        self._trace.record("broadcast", self.unique_name, input_)
        input_.copy_(self._transport.broadcast(input_.contiguous(), self.ranks, src))
        return input_

    def barrier(self) -> None:
        if self.world_size > 1:
            self._transport.barrier(self.ranks)
