"""`verify` as a user runs it, on the miniature engine: each model is sabotaged in its own way."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")

from reference_runtime import launch
from reference_runtime.discover import Block
from reference_runtime.launch import VerifyError, verify
from reference_runtime.plan import Settings
from reference_runtime.verdicts import ModelReport, Outcome, RunReport, Status, Verdict, describe
from tests.runs import moe_lint
from tests.runtime.mini import PAIR, changed, engine

EP_CALL = """        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=False,
            use_reduce_scatter=use_reduce_scatter,
"""
FORWARD = "        router_logits, _ = self.gate(hidden_states)\n"
#: By libc, which no hook of Python's sees: a file, the network, and a process that leaves the job's group.
NATIVE = """        import ctypes, os
        libc = ctypes.CDLL(None)
        if libc.open(__file__.encode(), os.O_RDWR) >= 0:
            raise RuntimeError("a file")
        with open("/proc/self/net/dev") as devices:
            assert [line.split(":")[0].strip() for line in devices if ":" in line] == ["lo"]
        if libc.fork() == 0:
            libc.setsid()
            libc.prctl(15, b"moe-lint-orphan")
            libc.sleep(600)
            libc._exit(0)
"""
#: name -> (before, after)
MODELS = {
    "same": (PAIR, PAIR + "\n# a comment\n"),
    "reduces_in_two_steps": (
        PAIR,
        changed("return hidden_states", "return moe_expert_parallel_all_reduce(hidden_states) / self.ep_size"),
    ),
    "flag_dropped": (PAIR, changed(EP_CALL, EP_CALL.rpartition("            use")[0])),
    "flag_added": (changed(EP_CALL, EP_CALL.rpartition("            use")[0]), PAIR),
    "guard_deleted": (PAIR, changed("self.ep_size > 1 and not should_skip", "False and not should_skip")),
    "some_ranks_only": (
        PAIR,
        changed("from torch import nn\n", "from torch import nn\nfrom mini.distributed import get_tp_group\n").replace(
            "if self.ep_size > 1 and not", "if get_tp_group().rank_in_group > 0 and self.ep_size > 1 and not"
        ),
    ),
    "another_shape": (
        PAIR,
        changed("from torch import nn\n", "from torch import nn\nfrom mini.distributed import get_tp_group\n").replace(
            "= moe_expert_parallel_all_reduce(hidden_states)",
            "= moe_expert_parallel_all_reduce(hidden_states[get_tp_group().rank_in_group :])",
        ),
    ),
    "raises": (PAIR, changed(FORWARD, FORWARD + "        assert self.ep_size < 2, 'too many'\n")),
    "asks_a_placeholder": (
        PAIR,
        changed("from torch import nn\n", "from torch import nn\nimport fancy_kernels\n").replace(
            FORWARD, FORWARD + "        hidden_states = fancy_kernels.twice(hidden_states)\n"
        ),
    ),
    "loops": (PAIR, changed(FORWARD, FORWARD + "        while self.ep_size > 1:\n            pass\n")),
    "leaves": (
        PAIR,
        changed(FORWARD, FORWARD + "        if self.ep_size > 1:\n            import os\n            os._exit(0)\n"),
    ),
    "crashes": (PAIR, changed(FORWARD, FORWARD + "        import ctypes\n        ctypes.string_at(0)\n")),
    "calls_home": (
        PAIR,
        changed(FORWARD, FORWARD + "        import socket\n        socket.create_connection(('192.0.2.1', 80), 1)\n"),
    ),
    "opens_a_socket": (PAIR, changed(FORWARD, FORWARD + "        import socket\n        socket.socket()\n")),
    "writes_a_file": (PAIR, changed(FORWARD, FORWARD + "        open(__file__, 'a').close()\n")),
    "removes_a_file": (PAIR, changed(FORWARD, FORWARD + "        import os\n        os.remove(__file__)\n")),
    "forks_for_ever": (
        PAIR,
        changed(FORWARD, FORWARD + "        import os\n        while True:\n            os.fork()\n"),
    ),
    "kills_its_parent": (PAIR, changed(FORWARD, FORWARD + "        import os\n        os.kill(os.getppid(), 9)\n")),
    "keeps_a_scratch_file": (
        PAIR,
        changed(FORWARD, FORWARD + "        import tempfile\n        tempfile.NamedTemporaryFile()\n"),
    ),
    "goes_around_python": (PAIR, changed(FORWARD, FORWARD + NATIVE)),
    "runs_a_program": (
        PAIR,
        changed(FORWARD, FORWARD + "        import subprocess\n        subprocess.run(['true'])\n"),
    ),
    "grows": (PAIR, changed(FORWARD, FORWARD + "        self.much = bytearray(1 << 40)\n")),
}  # fmt: skip


def namespaces() -> bool:
    return subprocess.run(["unshare", "--user", "--net", "--mount", "true"], check=False).returncode == 0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    folder = tmp_path_factory.mktemp("trees")
    before = engine(folder / "before", {name: text for name, (text, _) in MODELS.items()})
    after = engine(folder / "after", {name: text for name, (_, text) in MODELS.items()})
    settings = Settings(("block",), (2,), timeout=8.0, memory=3 << 30, parallel=2)
    return verify(before, after, ("*",), settings)


def model(report: RunReport, name: str) -> ModelReport:
    (found,) = [m for m in report.models if m.model == f"{name}.PairMoE"]
    return found


def verdicts(report: RunReport, name: str) -> dict[str, Verdict]:
    return {case.case: case.verdict for case in model(report, name).cases}


def test_a_file_that_computes_the_same_is_equivalent_in_every_case(report: RunReport) -> None:
    found = verdicts(report, "same")
    assert len(found) == 11
    assert set(found.values()) == {Verdict.EQUIVALENT}


def test_other_collectives_with_the_right_result_are_called_reordered(report: RunReport) -> None:
    found = verdicts(report, "reduces_in_two_steps")
    assert found["tp2 ep1"] is Verdict.EQUIVALENT
    assert found["tp2 ep2"] is Verdict.REORDERED


def test_a_dropped_flag_doubles_the_output_exactly_where_the_flag_is_set(report: RunReport) -> None:
    broken = {c.case: c for c in model(report, "flag_dropped").cases if c.verdict is not Verdict.EQUIVALENT}
    assert set(broken) == {"tp2 ep2 dp2 max-len reduce-scatter"}
    (case,) = broken.values()
    assert case.verdict is Verdict.BROKEN
    assert case.regression
    assert case.after.scale == pytest.approx(2.0, abs=1e-9)
    assert case.after.error == pytest.approx(1.0, abs=1e-9)
    assert case.after.trace == ("all_reduce(moe_ep, 16x64)", "reduce_scatter(tp, 16x64)")


def test_the_same_change_the_other_way_round_is_corrected(report: RunReport) -> None:
    corrected = {c.case: c for c in model(report, "flag_added").cases if c.verdict is not Verdict.EQUIVALENT}
    assert set(corrected) == {"tp2 ep2 dp2 max-len reduce-scatter"}
    (case,) = corrected.values()
    assert case.verdict is Verdict.CORRECTED
    assert case.detail == "before: scaled by 2.00 (relative error 1)"


def test_a_lost_reduction_is_broken_where_nobody_else_sums(report: RunReport) -> None:
    found = verdicts(report, "guard_deleted")
    assert {case for case, verdict in found.items() if verdict is Verdict.BROKEN} == {
        "tp2 ep2",
        "tp2 ep2 dp2 max-len",
        "tp2 ep2 dp2 sum-len",
    }


def test_only_a_multiple_of_the_right_result_is_called_scaled() -> None:
    assert describe(Outcome(Status.WRONG, error=1.0, scale=2.0)) == "scaled by 2.00 (relative error 1)"
    assert describe(Outcome(Status.WRONG, error=1.01, scale=2.0)) == "scaled by 2.00 (relative error 1)"
    assert describe(Outcome(Status.WRONG, error=1.6, scale=1.03)) == "relative error 1.6"
    assert describe(Outcome(Status.WRONG, error=float("nan"), scale=float("nan"))) == "relative error nan"


def test_a_collective_that_not_all_ranks_reach_is_a_named_deadlock(report: RunReport) -> None:
    (case,) = [c for c in model(report, "some_ranks_only").cases if c.case == "tp2 ep2"]
    assert case.verdict is Verdict.DEADLOCK
    assert case.regression
    assert case.after.detail == "nobody can go on: rank 1 in all_reduce of 5x64 over ranks 0, 1; finished: rank 0"


def test_different_shapes_in_one_collective_are_a_named_mismatch(report: RunReport) -> None:
    (case,) = [c for c in model(report, "another_shape").cases if c.case == "tp2 ep2"]
    assert case.verdict is Verdict.MISMATCH
    met = "all_reduce of 5x64 (rank 0), all_reduce of 4x64 (rank 1)"
    assert case.after.detail == f"one group, different collectives: {met}"


def test_an_error_that_the_rewrite_brings_in_is_broken_and_says_where(report: RunReport) -> None:
    (case,) = [c for c in model(report, "raises").cases if c.case == "tp2 ep2"]
    assert case.verdict is Verdict.BROKEN
    assert case.after.detail.startswith("raises.py:")
    assert case.after.detail.endswith("AssertionError: too many")


def test_a_placeholder_that_a_forward_uses_makes_the_verdict_unmodelled(report: RunReport) -> None:
    found = model(report, "asks_a_placeholder")
    assert {case.verdict for case in found.cases} == {Verdict.UNMODELLED}
    assert {case.detail for case in found.cases} == {"fancy_kernels.twice"}
    assert found.judged == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loops", "no answer within 8 s"),
        ("leaves", "ended before its work was done"),
    ],
)
def test_a_process_that_dies_in_a_case_breaks_that_case(report: RunReport, name: str, reason: str) -> None:
    found = model(report, name)
    assert found.problem == f"block: {reason}"
    assert {c.case: c.verdict for c in found.cases}["tp2 ep1"] is Verdict.EQUIVALENT
    last = found.cases[-1]
    assert last.case == "tp2 ep2"
    assert last.verdict is Verdict.BROKEN
    assert last.after.detail == reason


def test_a_process_that_dies_at_one_level_is_replaced_for_the_other(tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {"leaves": PAIR})
    after = engine(tmp_path / "after", {"leaves": MODELS["leaves"][1]})
    (found,) = verify(before, after, (), Settings(("block", "layer"), (2,))).models
    reason = "ended before its work was done"
    assert found.problem == f"block: {reason}; layer: {reason}"
    verdicts = {(case.level, case.case): case.verdict for case in found.cases}
    assert verdicts["block", "tp2 ep1"] is verdicts["layer", "tp2 ep1"] is Verdict.EQUIVALENT
    assert verdicts["block", "tp2 ep2"] is verdicts["layer", "tp2 ep2"] is Verdict.BROKEN


def test_a_crash_is_named_by_its_signal(report: RunReport) -> None:
    found = model(report, "crashes")
    assert "SIGSEGV" in found.problem
    assert found.cases[0].verdict is Verdict.BROKEN


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("calls_home", "the target may not use socket"),
        ("opens_a_socket", "the target may not use socket.__new__"),
        ("writes_a_file", "the target may not write /"),
        ("removes_a_file", "the target may not write /"),
        ("forks_for_ever", "the target may not use os.fork"),
        ("kills_its_parent", "the target may not use os.kill"),
        ("runs_a_program", "the target may not use subprocess.Popen"),
        ("grows", "MemoryError"),
    ],
)
def test_network_programs_and_memory_are_refused(report: RunReport, name: str, reason: str) -> None:
    found = model(report, name)
    assert {case.verdict for case in found.cases} == {Verdict.BROKEN}
    assert all(case.after.status is Status.FAILED for case in found.cases)
    assert [case.after.detail for case in found.cases if reason not in case.after.detail] == []


def test_files_for_a_while_may_be_written_to_the_jobs_own_folder(report: RunReport) -> None:
    assert set(verdicts(report, "keeps_a_scratch_file").values()) == {Verdict.EQUIVALENT}


@pytest.mark.skipif(not namespaces(), reason="this machine allows no user namespaces")
def test_native_code_finds_no_network_and_no_file_to_write_and_leaves_no_process(report: RunReport) -> None:
    assert set(verdicts(report, "goes_around_python").values()) == {Verdict.EQUIVALENT}
    names = [path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()]
    assert "moe-lint-orphan" not in names


def test_the_other_models_are_run_whatever_one_of_them_does(report: RunReport) -> None:
    assert len(report.models) == len(MODELS)
    assert report.exit_code == 1


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moe_lint", "verify", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_tells_text_and_json_and_exits_1_when_something_is_broken(tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {"pair": PAIR})
    after = engine(tmp_path / "after", {"pair": MODELS["flag_dropped"][1]})
    output = tmp_path / "report.json"
    done = command(str(before), str(after), "--world-size", "2", "--level", "block", "--output", f"json:{output}")
    assert done.returncode == 1, done.stderr
    document = json.loads(output.read_text())
    assert document["version"] == 1
    assert document["summary"]["verdicts"]["BROKEN"] == 1
    assert document["models"][0]["model"] == "pair.PairMoE"
    done = command(str(before), str(before), "--world-size", "2")
    assert done.returncode == 0, done.stderr
    assert "pair.PairMoE block: 11 EQUIVALENT" in done.stdout
    assert "pair.PairMoE layer: " in done.stdout
    assert done.stdout.endswith("Nothing broken: 20 cases of 1 block, 0 broken, 0 corrected, 0 unmodelled.\n")


def test_a_folder_without_an_engine_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = command(str(tmp_path), str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"moe-lint: error: {tmp_path}: no engine found (a package with `models` and `layers/moe`)"
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["", "after"], "'': no such file or folder"),
        (["before", ""], "'': no such file or folder"),
        (["before", "after", "--timeout", "inf"], "Invalid value for '--timeout': 'inf' is not a valid integer"),
        (["before", "after", "--timeout", "0"], "Invalid value for '--timeout': 0 is not in the range"),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_line_and_exit_two(arguments: list[str], told: str) -> None:
    result = moe_lint("verify", *arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert told in result.stderr


@pytest.mark.parametrize("option", ["--models", "--world-size"])
def test_an_option_that_names_nothing_is_refused_where_the_default_would_run_everything(option: str) -> None:
    result = moe_lint("verify", "before", "after", option, " ")
    assert result.exit_code == 2
    assert result.stderr == f"moe-lint: error: Invalid value for '{option}': it is empty\n"


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_a_file_selects_its_own_blocks_whatever_else_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[bool, bool]
) -> None:
    chosen: list[str] = []

    def run_blocks(_: object, blocks: Sequence[Block], *__: object) -> tuple[ModelReport, ...]:
        chosen.extend(map(str, blocks))
        return ()

    monkeypatch.setattr(launch, "Worker", contextlib.nullcontext)
    monkeypatch.setattr(launch, "run_blocks", run_blocks)
    before = engine(tmp_path / "before", {"one": PAIR, "two": PAIR})
    after = engine(tmp_path / "after", {"one": PAIR + "\n", "two": PAIR + "\n"})
    trees = [tree / "mini/models/two.py" if file else tree for tree, file in zip((before, after), sides, strict=True)]
    verify(*trees)
    assert chosen == ["two.PairMoE"]


def test_without_torch_verify_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = engine(tmp_path / "tree", {"pair": PAIR})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VerifyError, match=r"needs torch: install moe-lint\[runtime\]"):
        verify(tree, tree)


def test_neither_the_command_nor_the_driver_imports_torch() -> None:
    code = "import sys, moe_lint.cli, reference_runtime.cli, reference_runtime.launch; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.stdout == "False\n"


def test_an_engine_that_cannot_be_set_up_here_is_unmodelled_and_not_broken(tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {"pair": PAIR})
    after = engine(tmp_path / "after", {"pair": PAIR + "\n"})
    attention = after / "mini" / "layers" / "dp_attention.py"
    attention.write_text(
        attention.read_text().replace("    global _DP_SIZE, _DP_RANK\n", "    raise OSError('no cluster')\n")
    )
    (model,) = verify(before, after, (), Settings(("block",), (2,))).models
    assert {(case.verdict, case.detail) for case in model.cases} == {
        (Verdict.UNMODELLED, "set-up of the engine: no cluster")
    }


def test_small_modules_beside_the_engine_run_however_deep_it_lies(tmp_path: Path) -> None:
    logged = changed("    def forward(self", "    @debug_kernel_api\n    def forward(self", 1).replace(
        "from torch import nn\n", "from torch import nn\nfrom mini.kernel_api_logging import debug_kernel_api\n"
    )
    tree = engine(tmp_path / "one", {"pair": logged}) / "mini"
    deep = tmp_path / "two" / "acme" / "llm"
    shutil.copytree(tree, deep / "core")
    (deep.parent / "__init__.py").touch()
    (deep / "__init__.py").touch()
    (deep / "kernel_api_logging.py").write_text("def debug_kernel_api(function):\n    return function\n")
    for path in deep.rglob("*.py"):
        text = path.read_text().replace("mini.kernel_api_logging", "acme.llm.kernel_api_logging")
        path.write_text(re.sub(r"\bmini\.(?=\w)", "acme.llm.core.", text))
    (found,) = verify(deep.parent, deep.parent, ("*",), Settings(("block",), (2,))).models
    assert {case.verdict for case in found.cases} == {Verdict.EQUIVALENT}
