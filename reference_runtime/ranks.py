"""The ranks of the variants: modules loaded once per rank, then set up and built anew for every launch."""

from __future__ import annotations

import contextlib
import copy
import functools
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from reference_runtime.comm.base import Abandoned, Transport
from reference_runtime.comm.threads import ThreadHub, ThreadTransport, run_ranks
from reference_runtime.config import Config
from reference_runtime.kernels.base import Kernels
from reference_runtime.scenarios import Case, Launch
from reference_runtime.stubs import StubReached
from reference_runtime.subjects import Subject
from reference_runtime.topology import Topology
from reference_runtime.tree import Tree
from reference_runtime.world import RankContext

#: `path:line`, the path below the tree's root.
Place = str
#: A rank's own rows, its trace, and the places in model files from which its collectives were called.
Done = tuple[torch.Tensor, list[str], list[Place]]
#: That, or what ended it.
Result = Done | Exception


#: Seconds that a collective waits for the others. Everything here takes milliseconds.
TIMEOUT = 10.0
#: Seconds that a process takes until it can use a GPU, with everything that is imported there.
_GPU_START = 90.0


@dataclass(frozen=True, slots=True)
class Numerics:
    """In which arithmetic the run computes, and how far right may be from the oracle.

    Attributes:
        gpu: which of the machine's GPUs this process uses, if it uses one.
    """

    dtype: torch.dtype
    device: torch.device
    kernels: Kernels
    gpu: int = 0

    def select(self) -> None:
        """Make this process's GPU the current one: from here on, `cuda` means that one."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.gpu)

    @property
    def tolerance(self) -> float:
        """See the function of that name."""
        return tolerance(self.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Relative error allowed, in the norm of a rank's output.

    Routing and norms compute in float32 whatever the model's type, so float64 and float32 runs may differ by a few
    roundings of float32.

    Half precision: with u the unit roundoff, 4 roundings lie between a token and an expert's output (two GEMMs,
    activation, routing weight), up to 11 in the sums behind it (top-k and shared experts 3, partials of 8 ranks 7,
    residual 1). They are independent, so in the norm they add as squares: 4 u. Up to 16 partials that point in
    all directions are 4 times as long as their sum: 16 u. The oracle has the same error: 16 sqrt(2) u, or 23 u.
    For bfloat16 that is 0.09; a sum that is missing or made twice is off by 0.25 or more.
    """
    if torch.finfo(dtype).bits < 32:
        return 23 * torch.finfo(dtype).eps / 2
    return 64 * torch.finfo(torch.float32).eps


class Members:
    """The ranks' module spaces, with everything imported and nothing set up. Imports do not depend on the launch.

    With a GPU, imports wait until the rank is set up: some look at the GPU, and a process that has done so cannot fork
    ranks that use it.

    Args:
        size: of the largest world; ranks of smaller ones import the same.
    """

    def __init__(self, tree: Tree, subject: Subject, size: int, config: dict[str, Any], numerics: Numerics) -> None:
        self.tree, self.size, self.subject, self._numerics = tree, size, subject, numerics
        self.config = config
        self.contexts: list[RankContext] = []
        self.failure: Exception | None = None
        while len(self.contexts) < size and self.failure is None:
            self.contexts.append(self._context(len(self.contexts)))

    @property
    def on_gpu(self) -> bool:
        return self._numerics.device.type != "cpu"

    def _context(self, rank: int) -> RankContext:
        numerics = self._numerics
        context = RankContext(
            self.tree,
            Launch(Topology(self.size)),
            ThreadTransport(ThreadHub(self.size), rank),
            numerics.kernels,
            numerics.dtype,
            numerics.device,
            Config(numerics.dtype, self.config),
        )
        if not self.on_gpu:
            try:
                context.preload(self.subject.module)
            except Exception as error:
                self.failure = error if _in_models(error, self.tree) else StubReached(f"import: {error}")
        return context

    def running(self, subject: Subject) -> Members:
        """The same modules, for another subject of the same module."""
        some = copy.copy(self)
        some.subject = subject
        return some

    def of(self, size: int) -> Members:
        """The first ranks of these, as those of a smaller world."""
        some = copy.copy(self)
        some.size = size
        return some

    def alone(self) -> Members:
        """The same model on one rank, with modules of its own."""
        return Members(self.tree, self.subject, 1, self.config, self._numerics)

    def configure(self, config: dict[str, Any]) -> None:
        """Other configuration values, before anything is built."""
        self.config = config
        for context in self.contexts:
            context.config = Config(self._numerics.dtype, config)

    def renew(self, rank: int) -> None:
        """Import a rank's modules again: as if nothing had been set up."""
        self.contexts[rank].close()
        self.contexts[rank] = self._context(rank)

    def close(self) -> None:
        """Forget the modules."""
        for context in self.contexts:
            context.close()

    def patience(self, first: bool) -> float:
        """Seconds within which a rank's process answers; the first time it may have to start."""
        return 3 * TIMEOUT + (_GPU_START if first and self.on_gpu else 0.0)

    def enter(self, launch: Launch, transport: Transport) -> Any:
        """Set a rank up for a launch and build its model."""
        context = self.contexts[transport.rank]
        try:
            context.enter(launch, transport)
        except Exception as error:  # the engine's own set-up, not the model: nothing that a rewrite could break
            raise StubReached(f"set-up of the engine: {error}") from error
        on_gpu = context.device.type != "cpu"  # engines build their models on the device
        with context.device if on_gpu else contextlib.nullcontext():
            return self.subject.build(context)

    def step(self, transport: Transport, model: Any, case: Case) -> Done:
        """Run one case on one rank."""
        context = self.contexts[transport.rank]
        with torch.no_grad():
            output = self.subject.run(context, model, case)
        places = sorted(f"{_inside(self.tree, file)}:{line}" for file, line in context.trace.places)
        return output, [str(event) for event in context.trace.events], places


@functools.lru_cache(maxsize=256)
def _inside(tree: Tree, file: str) -> Path | None:
    """The path below the tree's root. Asked for every collective, and paths are slow."""
    return tree.relative(Path(file))


def _in_models(error: Exception, tree: Tree) -> bool:
    """Whether an import failed in a model file, rather than in a part of the engine that is not modelled."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [file for frame in frames if (file := tree.relative(Path(frame.filename))) is not None]
    return bool(inside) and inside[-1].is_relative_to((tree.folder / "models").relative_to(tree.root))


class Ranks(Protocol):
    """All ranks of one world size. They are set up for the launch of the case that they are given."""

    def run(self, side: str, case: Case) -> Sequence[Result]:
        """Each rank's result of a case of one variant, in rank order."""

    def close(self) -> None:
        """End the ranks."""


class ThreadRanks:
    """Ranks as threads of this process. Once set up for a launch, a variant cannot be set up for another."""

    def __init__(self, members: Mapping[str, Members]) -> None:
        self._members = members
        self._launches: dict[str, ThreadLaunch] = {}

    def launch(self, side: str, launch: Launch) -> ThreadLaunch:
        """The variant, set up for a launch."""
        if side not in self._launches:
            self._launches[side] = ThreadLaunch(self._members[side], launch)
        found = self._launches[side]
        assert found.launch == launch
        return found

    def run(self, side: str, case: Case) -> Sequence[Result]:
        return self.launch(side, case.launch).run(case)

    def close(self) -> None:
        self._launches.clear()


class ThreadLaunch:
    """One variant's ranks, set up for a launch."""

    def __init__(self, members: Members, launch: Launch) -> None:
        self.members, self.launch = members, launch
        self._transports: dict[int, ThreadTransport] = {}
        self.models: dict[int, Any] = {}
        self.failure = members.failure
        if self.failure is None:

            def build(transport: ThreadTransport) -> None:
                self._transports[transport.rank] = transport
                self.models[transport.rank] = members.enter(launch, transport)

            self.failure = first_error(run_ranks(members.size, build))

    def run(self, case: Case) -> Sequence[Result]:
        """Each rank's result, in rank order."""
        if self.failure is not None:
            return [self.failure] * self.members.size

        def one(transport: ThreadTransport) -> Done:
            own = self._transports[transport.rank]
            own.hub = transport.hub  # a new hub each time: a failed run leaves nothing behind
            return self.members.step(own, self.models[transport.rank], case)

        return run_ranks(self.members.size, one)


def first_error(results: Sequence[Any]) -> Exception | None:
    """The error that came first in rank order and was not merely caused by another rank's."""
    errors = [item for item in results if isinstance(item, Exception)]
    causes = [error for error in errors if not isinstance(error, Abandoned)]
    return next(iter(causes or errors), None)
