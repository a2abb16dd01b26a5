"""Jobs of one block, inside their own process: runs the target and reports every outcome as a line of JSON.

The worker runs what it is given by name: this module, or another with a `Job` and an `execute`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from reference_runtime import run
from reference_runtime.kernels.base import Kernels
from reference_runtime.kernels.reference import ReferenceKernels
from reference_runtime.layers import LayerSubject
from reference_runtime.plan import Job
from reference_runtime.processes import ProcessRanks
from reference_runtime.ranks import Members, Numerics, ThreadRanks
from reference_runtime.reference import ops, streams
from reference_runtime.space import compiled_files, libraries
from reference_runtime.subjects import BlockSubject, Subject
from reference_runtime.verdicts import Outcome, outcome_to_dict


def kernels_of(name: str) -> Kernels:
    """The kernels of that name."""
    if name == "reference":
        return ReferenceKernels()
    from reference_runtime.kernels.flashinfer import FlashinferKernels

    return FlashinferKernels()


def numerics_of(job: Job) -> Numerics:
    """In which arithmetic the job runs."""
    s = job.settings
    dtype = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}[s.dtype]
    gpu = 0
    if s.member is not None and s.device == "cuda":  # gloo's ranks may share one
        gpu = s.member.local_rank % torch.cuda.device_count()
    return Numerics(dtype, torch.device(s.device), kernels_of(s.kernels), gpu)


def ranks_of(job: Job) -> run.Maker:
    """Who makes the ranks of a world size."""
    settings = job.settings
    if settings.member is not None:
        from reference_runtime.torchrun import Exchange, MemberRanks

        return functools.partial(MemberRanks, Exchange(settings.member, settings.backend, numerics_of(job), job.number))
    return ThreadRanks if settings.backend == "threads" else functools.partial(ProcessRanks, settings.backend)


def subject_of(job: Job) -> Subject:
    """What is run at the job's level."""
    return LayerSubject(job.block) if job.level == "layer" else BlockSubject(job.block)


def execute(jobs: Sequence[Job], emit: Callable[[str], None]) -> None:
    """Run all cases of some jobs that import the same modules.

    Lines: `{"oracle"}`, `{"side", "case", "outcome"}` for both sides, before first, and `{"sources", "libraries"}` at
    the end of each job.
    """
    prepare(jobs[0])
    imported: dict[str, Members] = {}
    for job in jobs:
        _execute(job, imported, emit)


def prepare(job: Job) -> None:
    """Make torch ready for what the job and its like run."""
    ops.register()
    if job.settings.device == "cpu":
        streams.run_in_order()


def _execute(job: Job, imported: dict[str, Members], emit: Callable[[str], None]) -> None:
    def tell(**line: Any) -> None:
        emit(json.dumps({"job": job.number, **line}) + "\n")

    def on_outcome(side: str, index: int, outcome: Outcome) -> None:
        tell(side=side, case=index, outcome=outcome_to_dict(outcome))

    name, cases, numerics = job.block.name, job.cases(), numerics_of(job)
    if not imported:
        imported.update(run.both(*job.trees(), subject_of(job), name, cases, numerics))
    run.compare(
        imported, lambda: subject_of(job), name, cases, numerics, ranks_of(job), on_outcome,
        lambda dense, error, detail: tell(oracle={"dense": dense, "error": error, "detail": detail}),
    )  # fmt: skip
    tell(sources=compiled_files(), libraries=libraries())
