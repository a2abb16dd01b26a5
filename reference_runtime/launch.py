"""From two trees to a report: chooses the blocks, drives the worker process, puts its lines together. No torch."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from reference_runtime.discover import Block, blocks, reductions
from reference_runtime.plan import Job, Settings
from reference_runtime.specs import spec_of
from reference_runtime.tree import Tree, TreeError, find_tree
from reference_runtime.verdicts import (
    CaseResult,
    ModelReport,
    OracleNote,
    Outcome,
    Reduction,
    RunReport,
    Status,
    outcome_from_dict,
)


class VerifyError(Exception):
    """The run cannot begin. The message is one line for the user."""


#: Called with (block and level, cases done of it, cases of it) after every case.
Progress = Callable[[str, int, int], None]


@dataclass
class _State:
    """What is known of a job so far."""

    job: Job
    total: int
    outcomes: dict[int, dict[str, Outcome]] = field(default_factory=dict)
    ended: str = "not run"
    oracle: OracleNote | None = None
    seconds: float = 0.0

    def results(self) -> list[CaseResult]:
        """The finished cases, and the one in which the process died."""
        found = []
        for number, case in enumerate(self.job.cases()):
            sides = self.outcomes.get(number, {})
            if len(sides) < 2 and not self.ended:
                continue
            before = sides.get("before", Outcome(Status.FAILED, detail=self.ended))
            after = sides.get("after", Outcome(Status.FAILED, detail=self.ended))
            if not sides:  # what the second variant would have done is not known
                after = Outcome(Status.UNMODELLED, detail=f"not run: {self.ended}")
            found.append(CaseResult(self.job.level, str(case), case.topology.tp, before, after))
            if len(sides) < 2:
                break
        return found


def verify(
    before: Path,
    after: Path,
    patterns: Sequence[str] = (),
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Run the blocks of two trees and compare.

    Args:
        before, after: trees, or files inside them; a file selects its own blocks.
        patterns: shell patterns on module, class or file names; none: the blocks that the trees differ in.

    Raises:
        VerifyError: no torch, no engine, or no block to run.
    """
    settings = settings or Settings()
    need_torch("verify")
    _check_ranks(settings)
    try:
        trees = find_tree(before), find_tree(after)
    except TreeError as error:
        raise VerifyError(str(error)) from error
    if not patterns:
        patterns = tuple({path.resolve().name: None for path in (before, after) if path.is_file()})
    with Worker(settings) as worker:
        chosen, notes = choose(*trees, patterns)
        if not chosen:
            raise VerifyError(f"no MoE block to run in {before}" + (f" for {', '.join(patterns)}" if patterns else ""))
        models = run_blocks(worker, chosen, *trees, settings, progress)
    return RunReport(str(before), str(after), settings.to_dict(), models, tuple(notes))


def _check_ranks(settings: Settings) -> None:
    """Whether there can be that many ranks. Raises VerifyError."""
    member, sizes = settings.member, settings.world_sizes
    if member is not None and sizes != (member.size,):
        raise VerifyError(f"--world-size {','.join(map(str, sizes))}: torchrun started {member.size} ranks")
    if settings.backend == "nccl":
        wanted, found = member.local_size if member is not None else max(sizes), _gpus()
        if found < wanted:
            raise VerifyError(f"--backend nccl needs a GPU for each rank: {wanted} ranks, {found} GPUs")


def _gpus() -> int:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip()])
    return len(_asked("uuid"))


def _asked(what: str) -> list[str]:
    """What the driver says of each GPU; nothing where there is none."""
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def need_torch(what: str) -> None:
    """Raises VerifyError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise VerifyError(f"{what} needs torch: install moe-lint[runtime]")


def run_blocks(
    worker: Worker,
    chosen: Sequence[Block],
    before: Tree,
    after: Tree,
    settings: Settings,
    progress: Progress | None,
) -> tuple[ModelReport, ...]:
    """Run some blocks of two trees, at every level of the settings. Raises VerifyError."""
    overlays = str(after.overlay or ""), str(before.overlay or "")
    jobs = [
        Job(number, level, block, str(before.folder), str(after.folder), settings, *overlays)
        for number, (block, level) in enumerate((b, level) for b in chosen for level in settings.levels)
    ]
    states = [_State(job, len(job.cases())) for job in jobs]
    longest_first = sorted(jobs, key=lambda job: (states[job.number].total, job.level == "layer"), reverse=True)
    worker.run(longest_first, lambda line: _take(states, line, progress))
    return tuple(_model(block, [s for s in states if s.job.block == block], before, after) for block in chosen)


def choose(before: Tree, after: Tree, patterns: Sequence[str]) -> tuple[list[Block], list[str]]:
    """The blocks to run, and what a reader should know about the others."""
    files = dict(before.models()), dict(after.models())
    modules = list(dict.fromkeys([*files[0], *files[1]]))
    if patterns:
        named = [m for m in modules if any(_may_match(m, one[m], patterns) for one in files if m in one)]
        return _chosen(files, named, patterns)
    changed, notes = _chosen(files, [m for m in modules if _content(files[0].get(m)) != _content(files[1].get(m))], ())
    return (changed, notes) if changed else (_chosen(files, modules, ())[0], notes)


def _chosen(
    files: tuple[dict[str, Path], dict[str, Path]], modules: Sequence[str], patterns: Sequence[str]
) -> tuple[list[Block], list[str]]:
    """The blocks of some modules that both trees have, and what a reader should know about the others."""
    notes: list[str] = []
    first, second = (_blocks({m: one[m] for m in modules if m in one}, notes) for one in files)
    common = {key: block for key, block in first.items() if key in second and not spec_of(block.name).ignore}
    for missing, where in ((first.keys() - second.keys(), "after"), (second.keys() - first.keys(), "before")):
        wanted = sorted(".".join(key) for key in missing if not patterns or _matches((first | second)[key], patterns))
        if wanted:
            notes.append(f"not in the tree {where}: {', '.join(wanted)}")
    return [block for block in common.values() if not patterns or _matches(block, patterns)], notes


def _content(file: Path | None) -> bytes | None:
    return file.read_bytes() if file is not None else None


def _blocks(files: Mapping[str, Path], notes: list[str]) -> dict[tuple[str, str], Block]:
    found = {}
    for module, file in files.items():
        try:
            found.update({(b.module, b.name): b for b in blocks(module, file)})
        except SyntaxError as error:
            notes.append(f"{file}: does not parse: {error.msg}")
    return found


def _may_match(module: str, file: Path, patterns: Sequence[str]) -> bool:
    """Whether a block of a file could match, by the names of the file and of its classes."""
    classes = re.findall(r"^class (\w+)", file.read_text("utf-8-sig", "replace"), re.M)
    return any(_matches(Block(module, name, None, False, file), patterns) for name in (*classes, ""))


def _matches(block: Block, patterns: Iterable[str]) -> bool:
    names = (block.module, block.module.rpartition(".")[2], block.name, block.file.name, str(block))
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _model(block: Block, states: list[_State], before: Tree, after: Tree) -> ModelReport:
    cases = tuple(case for state in states for case in state.results())
    problems = [f"{state.job.level}: {state.ended}" for state in states if state.ended]
    path = str(before.relative(block.file))
    oracles = tuple(state.oracle for state in states if state.oracle is not None)
    seconds = sum(state.seconds for state in states)
    found = tuple(_reductions(block, after, {state.job.level for state in states}))
    return ModelReport(str(block), path, cases, "; ".join(problems), seconds, oracles, found)


def _reductions(block: Block, tree: Tree, levels: Iterable[str]) -> list[Reduction]:
    file = tree.folder.joinpath("models", *block.module.split(".")).with_suffix(".py")
    names = [block.name, *([block.decoder] if block.decoder is not None and "layer" in levels else [])]
    return reductions(tree.current(file), str(file.relative_to(tree.root)), names)


class Worker:
    """The worker process. It imports torch when it starts: start it before there is something to run.

    Args:
        known: the module that knows the jobs.
    """

    def __init__(self, settings: Settings, known: str = "reference_runtime.job") -> None:
        environment = {
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # a process of few pages is copied sooner
            **os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONHASHSEED": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        if settings.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        else:
            environment.update(_without_using_the_gpu())
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "reference_runtime.worker", known]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.__exit__(kind, error, trace)

    def run(self, jobs: Sequence[Job], take: Callable[[dict[str, object]], None]) -> None:
        """Have it run some jobs, once; hand over its lines. Raises VerifyError."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):  # it says why on its standard error
            process.stdin.write(json.dumps({"jobs": [job.to_dict() for job in jobs]}))
            process.stdin.close()
        for line in process.stdout:
            take(json.loads(line))
        failure = process.stderr.read().strip().splitlines()
        if process.wait() != 0:
            raise VerifyError(f"the worker process failed: {failure[-1] if failure else process.returncode}")


def _without_using_the_gpu() -> dict[str, str]:
    """What torch and flashinfer would ask the GPU on import. A process that has used it cannot fork ranks that do."""
    told = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    answer = _asked("compute_cap")
    if not answer:
        raise VerifyError("--device cuda: `nvidia-smi` finds no GPU")
    # from Hopper on, the kernels use instructions of that architecture alone
    capabilities = sorted({f"{one}a" if float(one) >= 9 else one for one in answer})
    return {**told, "FLASHINFER_CUDA_ARCH_LIST": os.environ.get("FLASHINFER_CUDA_ARCH_LIST", " ".join(capabilities))}


def _take(states: list[_State], line: dict[str, object], progress: Progress | None) -> None:
    state = states[int(str(line["job"]))]
    outcome, number, oracle = line.get("outcome"), line.get("case"), line.get("oracle")
    if isinstance(oracle, dict):
        state.oracle = OracleNote(state.job.level, **oracle)
        return
    if isinstance(outcome, dict) and isinstance(number, int):
        state.outcomes.setdefault(number, {})[str(line["side"])] = outcome_from_dict(outcome)
    else:
        state.ended, state.seconds = str(line["ended"]), float(str(line["seconds"]))
    if progress is not None:
        done = state.total if not outcome else len(state.outcomes)
        progress(f"{state.job.block} {state.job.level}", done, state.total)
