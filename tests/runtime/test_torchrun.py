"""`torchrun -m reference_runtime`: a process of torchrun's for each rank, the verdicts of threads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reference_runtime.plan import Member, Settings
from tests.runtime.mini import PAIR, changed, engine
from tests.runtime.test_verify import FORWARD, MODELS

NAMES = ("same", "flag_dropped", "flag_added", "another_shape", "asks_a_placeholder")


def trees(folder: Path, models: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    before = engine(folder / "before", {name: text for name, (text, _) in models.items()})
    after = engine(folder / "after", {name: text for name, (_, text) in models.items()})
    return str(before), str(after)


def torchrun(ranks: int, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "-m", "reference_runtime", *arguments],
        capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=cwd,
    )  # fmt: skip


def cases(document: Mapping[str, Any]) -> dict[tuple[str, str, str], tuple[object, ...]]:
    return {
        (model["model"], case["level"], case["case"]): (
            case["verdict"], case["detail"], case["before"]["trace"], case["after"]["trace"], case["after"]["scale"]
        )
        for model in document["models"]
        for case in model["cases"]
    }  # fmt: skip


def test_two_ranks_agree_with_threads_and_the_first_one_tells(tmp_path: Path) -> None:
    before, after = trees(tmp_path, {name: MODELS[name] for name in NAMES})
    files = [tmp_path / "torchrun.json", tmp_path / "threads.json"]
    done = torchrun(2, before, after, "--models", "*", "-o", "text", "-o", f"json:{files[0]}")
    assert done.returncode == 1, done.stderr  # a case is broken
    assert done.stdout.count("same.PairMoE block: 11 EQUIVALENT") == 1
    command = [sys.executable, "-m", "moe_lint", "verify", before, after, "--models", "*", "--world-size", "2"]
    subprocess.run([*command, "-o", f"json:{files[1]}"], check=False, capture_output=True)
    documents = [json.loads(file.read_text()) for file in files]
    assert cases(documents[0]) == cases(documents[1])
    assert len(cases(documents[0])) == 20 * len(NAMES)
    assert documents[0]["settings"]["member"] == {"rank": 0, "size": 2, "local_rank": 0, "local_size": 2}


def test_four_ranks_run_and_a_clean_run_ends_with_0(tmp_path: Path) -> None:
    before, after = trees(tmp_path, {"pair": MODELS["flag_added"]})
    done = torchrun(4, before, after, "--level", "block")
    assert done.returncode == 0, done.stderr
    head, *rest = done.stdout.splitlines()
    assert head.startswith(
        "pair.PairMoE block: 20 EQUIVALENT, 4 CORRECTED, 1 INFEASIBLE  mini/models/pair.py  oracle: dense, error "
    )
    assert any("tp4 ep4 dp4 max-len reduce-scatter" in line and "scaled by 4.00" in line for line in rest)


def test_a_rank_that_dies_hangs_or_crashes_ends_its_own_block_on_all_ranks(tmp_path: Path) -> None:
    def at(rank: int, action: str) -> str:
        text = changed(FORWARD, FORWARD + f"        if get_tp_group().rank_in_group == {rank}:\n            {action}\n")
        return text.replace(
            "from torch import nn\n", "from torch import nn\nfrom mini.distributed import get_tp_group\n"
        )

    models = {
        "leaves": (PAIR, at(1, "import os; os._exit(0)")),
        "crashes": (PAIR, at(0, "import ctypes; ctypes.string_at(0)")),
        "same": MODELS["same"],
        "spins": (PAIR, at(1, "exec('while True: pass')")),
    }
    before, after = trees(tmp_path, models)
    done = torchrun(2, before, after, "--models", "*", "--level", "block", "--timeout", "6")
    assert done.returncode == 1
    assert "same.PairMoE block: 11 EQUIVALENT" in done.stdout
    told = {line.partition(".")[0]: line for line in done.stdout.splitlines() if " block: " in line}
    for name in ("leaves", "spins", "crashes"):
        assert "BROKEN" in told[name] or "DEADLOCK" in told[name], done.stdout
    assert "problem: block: rank 0: no answer within 6 s" in done.stdout  # each case waits for the spinning rank


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world-size", "4"], "--world-size 4: torchrun started 2 ranks"),
        (["--backend", "threads"], "torchrun starts a process for each rank: give --backend gloo or nccl"),
        (["--backend", "nccl"], "--backend nccl needs a GPU for each rank: 2 ranks, 0 GPUs"),
    ],
)
def test_what_torchrun_cannot_give_is_a_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    before, after = trees(tmp_path, {"same": MODELS["same"]})
    done = torchrun(2, before, after, *arguments)
    assert done.returncode != 0
    # torchrun ends the others with the first, and that need not be rank 0
    assert re.search(rf"^moe-lint: error: (rank 1: )?{re.escape(message)}$", done.stderr, re.M)
    assert done.stdout == ""


def test_outside_torchrun_nccl_needs_a_gpu_for_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import moe_lint

    before, after = trees(tmp_path, {"same": MODELS["same"]})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    result = moe_lint("verify", before, after, "--backend", "nccl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "moe-lint: error: --backend nccl needs a GPU for each rank: 4 ranks, 2 GPUs\n"
    result = moe_lint("verify", before, after, "--backend", "nccl", "--device", "cpu")
    assert result.stderr.startswith("moe-lint: error: --backend nccl moves tensors between GPUs")


def test_the_module_alone_is_the_verify_command(tmp_path: Path) -> None:
    before, after = trees(tmp_path, {"same": MODELS["same"]})
    command = [sys.executable, "-m", "reference_runtime", before, after, "--world-size", "2", "--level", "block"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same.PairMoE block: 11 EQUIVALENT")


def test_a_process_that_torchrun_did_not_start_is_no_member() -> None:
    found = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Member.of(found) is None
    member = Member.of({**found, "TORCHELASTIC_RUN_ID": "x"})
    assert member == Member(rank=3, size=8, local_rank=1, local_size=2)
    settings = Settings(world_sizes=(8,), backend="gloo", member=member)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
