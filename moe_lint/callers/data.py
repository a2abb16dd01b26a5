"""The values that tell who builds and calls whom. All frozen, none holds a syntax node."""

from __future__ import annotations

from msgspec import Struct

from moe_lint.facts import Call, Passed
from moe_lint.formula import TRUE, Formula, atom_set
from moe_lint.index import Ref
from moe_lint.sites import Site


class Bound(Struct, frozen=True):
    """An argument and the callee's parameter that takes it; None when the callee has no such parameter."""

    parameter: str | None
    passed: Passed

    @property
    def positional(self) -> bool:
        return self.passed.keyword is None


class Built(Struct, frozen=True, cache_hash=True):
    """A class that ``self.attribute`` may be an instance of: where and how it is built."""

    path: str
    attribute: str
    call: Call
    owner: Ref
    condition: Formula


class Instance(Struct, frozen=True, cache_hash=True):
    """An object: its class, the constants that its constructor was given, and those that it keeps of them.

    ``given`` maps the constructor's parameters, ``fixed`` attributes (`self.reduce_results` -> False).
    """

    owner: Ref
    given: tuple[tuple[str, Formula], ...] = ()
    fixed: tuple[tuple[str, Formula], ...] = ()


class Frame(Struct, frozen=True, cache_hash=True):
    """A function on the way from a layer to a reduction, with what its names are worth in the layer's terms.

    ``itself`` is the name of the instance there: `self`, or the parameter that a module-level function takes it as.
    ``context`` holds the flags that are published around it.
    """

    function: Ref
    instance: Instance | None
    itself: str = "self"
    values: tuple[tuple[str, Formula], ...] = ()
    context: tuple[tuple[str, Formula], ...] = ()
    holds: Formula = TRUE

    @property
    def path(self) -> str:
        return self.function.path

    @property
    def class_name(self) -> str | None:
        return self.function.name.rsplit(".", 1)[0] if "." in self.function.name else None


class Callee(Struct, frozen=True):
    """A function that a call may run, whatever holds around the call."""

    function: Ref
    #: the name of the caller's instance there, or of the block that the caller built; None where it is not given it
    itself: str | None
    bound: tuple[Bound, ...]
    #: parameter (a flag by its name) -> its truth value in the caller's terms
    values: tuple[tuple[str, Formula], ...]
    #: for `self.attribute(…)`: how the block was built
    built: Built | None = None


class Edge(Struct, frozen=True, cache_hash=True):
    """One call that reaches a function in the tree."""

    frame: Frame
    call: Call
    target: Frame
    bound: tuple[Bound, ...]
    #: for `self.attribute(…)`: how the block was built
    built: Built | None = None

    def passes(self, flag: str) -> bool:
        """Whether the flag's value reaches the callee, by an argument or published around it (or might, unseen).

        Whatever the argument is called here and there.
        """
        return (
            any(b.passed.hides or b.passed.carries(flag) for b in self.bound)
            or any(flag in atom_set(value) for _, value in self.target.values)
            or any(flag == name for name, _ in self.target.context)
            or any(flag == p.keyword for p in self.call.published)
        )


class Sum(Struct, frozen=True):
    """A reduction that a call reaches: when it runs (in the layer's terms), and the calls that lead to it."""

    site: Site
    condition: Formula
    route: tuple[Edge, ...]


class Layer(Struct, frozen=True):
    """A class that builds absorbers, with its functions that are in force (its own, inherited, and helpers)."""

    owner: Ref
    absorbers: tuple[Built, ...]
    frames: tuple[Frame, ...]
