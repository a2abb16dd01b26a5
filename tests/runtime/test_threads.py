"""Collectives between threads: their results, and what is said when ranks do not meet."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Infeasible, Trace, Transport  # noqa: E402
from reference_runtime.comm.group import Group  # noqa: E402
from reference_runtime.comm.threads import run_ranks  # noqa: E402


def groups(transport: Transport) -> Group:
    return Group("tp", range(transport.world_size), transport, Trace())


def rank_tensor(transport: Transport, rows: int = 4) -> torch.Tensor:
    return torch.arange(rows * 2, dtype=torch.float64).reshape(rows, 2) + 100 * transport.rank


def test_one_rank_runs_in_the_thread_that_asks() -> None:
    # the process that runs one rank is forked afterwards, which no other thread may see
    assert run_ranks(1, lambda transport: threading.get_ident()) == [threading.get_ident()]


def test_ranks_take_turns_and_change_only_where_they_wait() -> None:
    order: list[tuple[str, int]] = []

    def work(transport: Transport) -> None:
        order.append(("begins", transport.rank))
        groups(transport).all_reduce(rank_tensor(transport))
        order.append(("ends", transport.rank))

    run_ranks(3, work)
    # who comes last goes on at once
    assert order == [*(("begins", rank) for rank in range(3)), ("ends", 2), ("ends", 0), ("ends", 1)]


def test_an_error_after_a_collective_is_told_for_every_rank_that_makes_it() -> None:
    def work(transport: Transport) -> None:
        groups(transport).all_reduce(rank_tensor(transport))
        raise ValueError(transport.rank)

    assert [str(result) for result in run_ranks(3, work)] == ["0", "1", "2"]


def test_all_reduce_sums_into_a_new_tensor() -> None:
    def work(transport: Transport) -> tuple[torch.Tensor, torch.Tensor]:
        x = rank_tensor(transport)
        return groups(transport).all_reduce(x), x

    results = run_ranks(4, work)
    for rank, result in enumerate(results):
        assert not isinstance(result, Exception)
        total, x = result
        assert torch.equal(total, 4 * torch.arange(8, dtype=torch.float64).reshape(4, 2) + 600)
        assert x[0, 0] == 100 * rank


def test_scatters_and_gathers_of_equal_and_unequal_parts() -> None:
    def work(transport: Transport) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        group = groups(transport)
        own = torch.empty(2, 2, dtype=torch.float64)
        group.reduce_scatter_tensor(own, rank_tensor(transport))
        uneven = group.reduce_scatterv(rank_tensor(transport), sizes=[1, 3])
        gathered = group.all_gatherv(rank_tensor(transport)[: 1 + 2 * transport.rank], sizes=[1, 3])
        assert isinstance(gathered, torch.Tensor)
        return own, uneven, gathered

    first, second = run_ranks(2, work)
    assert not isinstance(first, Exception)
    assert not isinstance(second, Exception)
    assert first[0].tolist() == [[100, 102], [104, 106]]
    assert second[0].tolist() == [[108, 110], [112, 114]]
    assert first[1].tolist() == [[100, 102]]
    assert second[1].tolist() == [[104, 106], [108, 110], [112, 114]]
    assert first[2].tolist() == second[2].tolist() == [[0, 1], [100, 101], [102, 103], [104, 105]]


def test_a_rank_that_does_not_come_is_a_deadlock_and_not_a_hang() -> None:
    def work(transport: Transport) -> None:
        if transport.rank:
            groups(transport).all_reduce(rank_tensor(transport))

    first, second = run_ranks(2, work)
    assert first is None
    assert isinstance(second, Deadlock)
    assert "rank 1 in all_reduce of 4x2" in str(second)
    assert "finished: rank 0" in str(second)


def test_groups_that_wait_for_each_other_are_a_deadlock() -> None:
    pairs = {0: [0, 1], 1: [1, 2], 2: [2, 0]}

    def work(transport: Transport) -> None:
        Group("pair", sorted(pairs[transport.rank]), transport, Trace()).all_reduce(rank_tensor(transport))

    assert all(isinstance(result, Deadlock) for result in run_ranks(3, work))


def test_different_operations_of_one_group_are_a_mismatch() -> None:
    def work(transport: Transport) -> None:
        group = groups(transport)
        if transport.rank:
            group.all_reduce(rank_tensor(transport))
        else:
            group.reduce_scatterv(rank_tensor(transport))

    for result in run_ranks(2, work):
        assert isinstance(result, CollectiveMismatch)
        assert str(result).endswith(": reduce_scatter of 4x2 (rank 0), all_reduce of 4x2 (rank 1)")


def test_an_error_of_one_rank_frees_the_others() -> None:
    def work(transport: Transport) -> None:
        if transport.rank == 2:
            raise ValueError("the cause")
        groups(transport).all_reduce(rank_tensor(transport))

    results = run_ranks(4, work)
    assert isinstance(results[2], ValueError)
    assert all(isinstance(results[rank], (Abandoned, Deadlock)) for rank in (0, 1, 3))


def test_a_trace_names_operation_group_and_shape_in_order() -> None:
    def work(transport: Transport) -> list[str]:
        trace = Trace()
        group = Group("tp", range(2), transport, trace)
        group.all_reduce(rank_tensor(transport))
        group.reduce_scatterv(rank_tensor(transport))
        Group("alone", [transport.rank], transport, trace).all_reduce(rank_tensor(transport))
        return [str(event) for event in trace.events]

    assert run_ranks(2, work)[0] == ["all_reduce(tp, 4x2)", "reduce_scatterv(tp, 4x2)"]


@pytest.mark.parametrize(("sizes", "kind"), [([1, 2], ValueError), ([2, 2, 0], Infeasible)])
def test_sizes_that_do_not_fit_are_an_error(sizes: list[int], kind: type[Exception]) -> None:
    def work(transport: Transport) -> None:
        groups(transport).reduce_scatterv(rank_tensor(transport), sizes=sizes)

    assert all(isinstance(result, kind) for result in run_ranks(2, work))
