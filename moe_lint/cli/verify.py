"""`moe-lint verify`: run the MoE blocks of two trees on several ranks and compare the numbers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from moe_lint.cli.outputs import Output, chosen, echo_report, output_options, write_files
from moe_lint.cli.shared import fail

if TYPE_CHECKING:
    from reference_runtime.plan import Member

_EPILOG = "Exit status: 0 nothing broken, 1 a case is broken, 2 something could not be judged."
_FORMATS = ("text", "json", "html")
_SIZES = ("1", "2", "4", "8")


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(value.strip(" ,") for value in values):  # as with an empty variable: not what the default would choose
        raise click.BadParameter("it is empty")
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def _sizes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    sizes = _split(context, parameter, values)
    for size in sizes:
        if size not in _SIZES:
            fail(f"--world-size {size}: 1, 2, 4 or 8")
    return tuple(int(size) for size in sizes)


@click.command("verify", epilog=_EPILOG)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option("--models", multiple=True, callback=_split, metavar="GLOB", help="Modules, classes or files to run.")
@click.option(
    "--level",
    type=click.Choice(["block", "layer", "both"]),
    default="both",
    show_default=True,
    help="The MoE block alone, or decoder layers with the tree's own communicator.",
)
@click.option("--world-size", "sizes", multiple=True, callback=_sizes, metavar="N", help="Ranks.  [default: 2,4]")
@click.option(
    "--backend",
    type=click.Choice(["threads", "gloo", "nccl"]),
    default=None,
    help="Ranks as threads of one process, as processes, or as processes with a GPU each.  [default: threads]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default=None,
    help="Where to compute.  [default: cpu; cuda with nccl]",
)
@click.option(
    "--kernels",
    type=click.Choice(["reference", "flashinfer"]),
    default="reference",
    show_default=True,
    help="Plain torch, or flashinfer's kernels on a GPU (in bfloat16).",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "bfloat16"]),
    default=None,
    help="In which arithmetic.  [default: what suits the kernels]",
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 86400),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="For one block at one level.",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Blocks at a time.  [default: the cores]")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--all", "every", is_flag=True, help="In text, also the cases in which nothing changed.")
@output_options(_FORMATS)
@click.pass_obj
def command(
    member: Member | None,
    before: str,
    after: str,
    models: tuple[str, ...],
    level: str,
    sizes: tuple[int, ...],
    backend: str | None,
    device: str | None,
    kernels: str,
    dtype: str | None,
    timeout: int,
    jobs: int | None,
    quiet: bool,
    every: bool,
    outputs: tuple[Output, ...],
    to_stdout: Output | None,
) -> None:
    """Run the MoE blocks of two trees on several ranks and compare.

    BEFORE and AFTER are trees, or model files inside them. Without --models, the blocks in which they differ are run.
    Target code runs in child processes only. Needs the extra `runtime` (torch).
    """
    if not before or not after:  # to Path, no name at all is the working directory
        fail("'': no such file or folder")
    from reference_runtime import cli as runtime
    from reference_runtime.launch import VerifyError
    from reference_runtime.plan import Settings

    shown, files = chosen(outputs, to_stdout)
    backend = backend or ("threads" if member is None else "nccl" if device == "cuda" else "gloo")
    device = device or ("cuda" if backend == "nccl" else "cpu")
    if backend == "nccl" and device != "cuda":
        fail("--backend nccl moves tensors between GPUs: give --device cuda, or --backend gloo")
    if member is not None and backend == "threads":
        fail("torchrun starts a process for each rank: give --backend gloo or nccl")
    if member is not None and str(member.size) not in _SIZES:
        fail(f"torchrun started {member.size} ranks: start {', '.join(_SIZES)}")
    half = kernels != "reference"
    if half and (device != "cuda" or dtype not in (None, "bfloat16")):
        fail(f"--kernels {kernels} computes in bfloat16 on a GPU: give --device cuda, and no other --dtype")
    settings = Settings(
        ("block", "layer") if level == "both" else (level,),
        sizes or ((2, 4) if member is None else (member.size,)),
        backend,
        device,
        dtype or ("bfloat16" if half else "float64"),
        kernels,
        timeout=float(timeout),
        parallel=jobs or os.cpu_count() or 1,
        member=member,
    )
    follower = member is not None and member.rank > 0
    try:
        report = runtime.run(before, after, models, settings, quiet or follower)
    except VerifyError as error:
        fail(f"rank {member.rank}: {error}" if member is not None and follower else str(error))
    if follower:
        return  # the first rank has the same report, and tells it
    write_files(files, lambda name: runtime.render(report, name, every, colour=False))
    echo_report(runtime.render(report, shown.format, every, colour=sys.stdout.isatty()))
    sys.exit(report.exit_code)
