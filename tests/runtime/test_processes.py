"""Processes of ranks stay for all launches of a world size, and are replaced only where one cannot go on."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from reference_runtime.comm.dist import DistTransport
from reference_runtime.discover import blocks
from reference_runtime.kernels.reference import ReferenceKernels
from reference_runtime.processes import ProcessRanks, Renewed, decoded, encoded
from reference_runtime.ranks import Members, Numerics, ThreadRanks
from reference_runtime.scenarios import Case, Launch
from reference_runtime.subjects import BlockSubject
from reference_runtime.topology import Topology
from reference_runtime.tree import find_tree
from tests.runtime.mini import PAIR, engine

FORWARD = "        router_logits, _ = self.gate(hidden_states)\n"
LEAVES = PAIR.replace(
    FORWARD, f"        if use_reduce_scatter:\n            import os\n            os._exit(0)\n{FORWARD}"
)
CASES = (
    Case(Launch(Topology(2))),
    Case(Launch(Topology(2, 2))),
    Case(Launch(Topology(2, 2, 2)), "max"),
    Case(Launch(Topology(2, 1, 2)), "sum"),
)


def members(tree: Path, size: int) -> Members:
    (block,) = blocks("pair", tree / "mini" / "models" / "pair.py")
    numerics = Numerics(torch.float32, torch.device("cpu"), ReferenceKernels())
    return Members(find_tree(tree), BlockSubject(block), size, {}, numerics)


def rows(results: object) -> list[list[float]]:
    assert isinstance(results, list)
    assert [r for r in results if isinstance(r, Exception)] == []
    return [result[0].flatten().tolist() for result in results]


@pytest.fixture
def made(tmp_path: Path) -> Members:
    return members(engine(tmp_path / "tree", {"pair": LEAVES}), 2)


def test_one_group_of_processes_serves_every_launch(made: Members) -> None:
    ranks = ProcessRanks("gloo", {"before": made})
    pids = set()
    try:
        for case in (*CASES, *CASES):
            expected = rows(ThreadRanks({"before": members(made.tree.root, 2)}).run("before", case))
            got = rows(ranks.run("before", case))
            assert [pytest.approx(row, abs=1e-6) for row in expected] == got
            pids |= {child.pid for child in ranks.children}
    finally:
        ranks.close()
    assert len(pids) == 2


def test_a_rank_that_ends_takes_its_group_along_and_the_next_case_has_a_new_one(made: Members) -> None:
    ranks = ProcessRanks("gloo", {"before": made})
    try:
        rows(ranks.run("before", CASES[2]))
        first = {child.pid for child in ranks.children}
        ended = ranks.run("before", Case(CASES[2].launch, "max", reduce_scatter=True))
        assert [str(result) for result in ended] == ["the rank's process ended"] * 2
        assert ranks.children == []
        rows(ranks.run("before", CASES[2]))
        assert first.isdisjoint(child.pid for child in ranks.children)
    finally:
        ranks.close()


def test_a_process_that_uses_a_gpu_imports_the_modules_again_for_each_launch(tmp_path: Path) -> None:
    counts = PAIR.replace("class PairMoE", "BUILT = []\n\n\nclass PairMoE").replace(
        FORWARD, f"        BUILT.append(1)\n        assert len(BUILT) < 2, 'the module of another launch'\n{FORWARD}"
    )
    one = members(engine(tmp_path / "tree", {"pair": counts}), 1)
    renewed = Renewed({"before": one}, DistTransport(0, 1, 10.0))
    launches = [Launch(Topology(1)), Launch(Topology(1), fusion=True), Launch(Topology(1))]
    results = [decoded(renewed.answer("before", Case(launch))) for launch in launches]
    assert [type(result) for result in results] == [tuple] * 3
    assert functools.reduce(lambda a, b: a if a == b else [], [rows([result]) for result in results])
    again = decoded(renewed.answer("before", Case(launches[-1])))
    assert isinstance(again, RuntimeError)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
        torch.zeros(0, 4),
        torch.tensor(3),
        torch.ones(2, dtype=torch.bfloat16),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=["transposed", "empty", "number", "half precision", "parameter"],
)
def test_a_tensor_comes_out_of_a_message_as_it_went_in(tensor: torch.Tensor) -> None:
    found = decoded(encoded((tensor, ["all_reduce(tp, 2)"], ["models/pair.py:1"])))
    assert not isinstance(found, Exception)
    output, trace, places = found
    assert torch.equal(output, tensor.detach())
    assert (output.dtype, output.shape) == (tensor.dtype, tensor.shape)
    assert (trace, places) == (["all_reduce(tp, 2)"], ["models/pair.py:1"])
