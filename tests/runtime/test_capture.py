"""What a block does only while a graph is captured, on its second stream; and what it does in no case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from reference_runtime.discover import blocks
from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.report.json_report import render
from reference_runtime.verdicts import ModelReport, RunReport, Verdict
from tests.runtime.mini import PAIR, engine

HEAD = next(line for line in PAIR.splitlines(keepends=True) if line.startswith("    def forward("))
ASKS = """        if self.alt_stream is not None and get_is_capture_mode():
            return self.forward_on_two_streams(hidden_states, should_allreduce_fusion, use_reduce_scatter)
"""
SECOND = """    def forward_on_two_streams(self, hidden_states, should_allreduce_fusion, use_reduce_scatter):
        current = torch.cuda.current_stream()
        self.alt_stream.wait_stream(current)
        with torch.cuda.stream(self.alt_stream):
            router_logits, _ = self.gate(hidden_states)
            event = self.alt_stream.record_event()
        current.wait_event(event)
        hidden_states = self.experts(hidden_states, self.topk(hidden_states, router_logits))
        hidden_states.record_stream(self.alt_stream)
        reduces = not should_skip_post_experts_all_reduce(
            is_tp_path=True,
            use_reduce_scatter=use_reduce_scatter,
            should_allreduce_fusion=should_allreduce_fusion,
        )
        if self.ep_size > 1 and reduces:
            hidden_states = moe_expert_parallel_all_reduce(hidden_states)
        if self.tp_size > 1 and reduces:
            hidden_states = moe_tensor_model_parallel_all_reduce(hidden_states)
        return hidden_states

"""
INIT = 'prefix=""):\n        super().__init__()\n'
STREAM_INIT = INIT.replace('""', '"", alt_stream=None')
IMPORT = "from mini.model_executor.cuda_graph_runner import get_is_capture_mode"
STREAMS = (
    PAIR.replace("from torch import nn\n", "import torch\nfrom torch import nn\n")
    .replace("\n\nclass PairMoE", f"\n{IMPORT}\n\n\nclass PairMoE")
    .replace(INIT + "        self.tp", STREAM_INIT + "        self.alt_stream = alt_stream\n        self.tp")
    .replace("self.mlp = PairMoE(config, layer_id)", "self.mlp = PairMoE(config, layer_id, alt_stream=alt_stream)")
    .replace(INIT + "        self.self_attn", STREAM_INIT + "        self.self_attn")
    .replace(HEAD, SECOND + HEAD + ASKS)
)  # fmt: skip
#: Nobody calls it.
ELSEWHERE = """    def forward_elsewhere(self, hidden_states):
        return moe_expert_parallel_all_reduce(
            hidden_states
        )

"""


@pytest.fixture(scope="module", params=["threads", "gloo"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelReport:
    folder = tmp_path_factory.mktemp("trees")
    before = engine(folder / "before", {"pair": STREAMS})
    after = engine(
        folder / "after",
        {"pair": STREAMS.replace("self.tp_size > 1 and reduces", "self.tp_size < 1").replace(HEAD, ELSEWHERE + HEAD)},
    )
    (model,) = verify(before, after, (), Settings(world_sizes=(2,), backend=request.param)).models
    return model


def test_a_sum_that_is_lost_on_the_second_stream_alone_is_found_while_a_graph_is_captured(report: ModelReport) -> None:
    assert report.problem == ""
    assert len(report.cases) == 40
    broken = {
        level: {c.case for c in report.cases if c.level == level and c.regression} for level in ("block", "layer")
    }
    assert broken == {
        "block": {"tp2 ep1 capture", "tp2 ep1 dp2 max-len capture", "tp2 ep1 dp2 sum-len capture"},
        # the last layer has no next one to leave its sum to
        "layer": {"tp2 ep1 capture", "tp2 ep1 fusion capture", "tp2 ep1 dp2 sum-len capture"},
    }
    others = {c.verdict for c in report.cases if not c.regression}
    assert others == {Verdict.EQUIVALENT}


def test_a_reduction_that_no_case_makes_is_named(report: ModelReport) -> None:
    found = {(one.function, one.line) for one in report.unreached}
    source = STREAMS.replace(HEAD, ELSEWHERE + HEAD).splitlines()
    elsewhere = next(n for n, line in enumerate(source, 1) if "return moe_expert_parallel_all_reduce(" in line)
    lost = next(n for n, line in enumerate(source, 1) if "self.tp_size > 1 and reduces" in line) + 1
    assert found == {("PairMoE.forward_elsewhere", elsewhere), ("PairMoE.forward_on_two_streams", lost)}


def test_the_report_says_which_reductions_are_not_verified(report: ModelReport) -> None:
    document = json.loads(render(RunReport("before", "after", {}, (report,))))
    assert [one["function"] for one in document["models"][0]["not_reached"]] == [
        "PairMoE.forward_on_two_streams",
        "PairMoE.forward_elsewhere",
    ]


def test_only_blocks_that_ask_are_run_while_a_graph_is_captured(tmp_path: Path) -> None:
    tree = engine(tmp_path / "tree", {"pair": PAIR, "streams": STREAMS})
    found = {name: blocks(name, tree / "mini" / "models" / f"{name}.py") for name in ("pair", "streams")}
    assert {name: block.captures for name, (block,) in found.items()} == {"pair": False, "streams": True}
