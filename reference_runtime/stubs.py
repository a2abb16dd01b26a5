"""Placeholders for the engine parts that the runtime does not model.

A target module may import a placeholder, subclass it, decorate with it and store it. Nothing may *depend* on one: once
the strict phase begins, a call, a truth test or any other use raises `StubReached`, so that no placeholder can
influence a verdict.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class StubReached(Exception):
    """The target used a part of the engine that has no implementation here. The argument is its dotted name."""


class Phase(threading.local):
    """How strict the current thread is. Each rank has its own."""

    #: nothing at all may be used: a block is running
    forward = False
    #: calls are kept for later, but no decision may hang on one: a block is being built
    build = False


_phase = Phase()


@contextmanager
def building() -> Iterator[None]:
    """While a model is built: a placeholder may be called and stored, but not consulted."""
    before, _phase.build = _phase.build, True
    try:
        yield
    finally:
        _phase.build = before


@contextmanager
def running() -> Iterator[None]:
    """While a model runs: no placeholder may be used."""
    before, _phase.forward = _phase.forward, True
    try:
        yield
    finally:
        _phase.forward = before


@contextmanager
def setting_up() -> Iterator[None]:
    """While modules load, also inside the other two: an import that a forward does is an import."""
    before = _phase.build, _phase.forward
    _phase.build = _phase.forward = False
    try:
        yield
    finally:
        _phase.build, _phase.forward = before


class StubBase:
    """What a target class inherits from when its real base class is a placeholder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class Stub:
    """A placeholder: any attribute of it and any call of it is a placeholder, too."""

    def __init__(self, name: str) -> None:
        self.__dict__["_stub_name"] = name
        self.__dict__["__name__"] = name.rsplit(".", 1)[-1]
        self.__dict__["__qualname__"] = self.__dict__["__name__"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        child = Stub(f"{self._stub_name}.{name}")
        self.__dict__[name] = child
        return child

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _phase.forward:
            self._reached()
        return Stub(f"{self._stub_name}()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (type(self.__dict__["__name__"], (StubBase,), {"__module__": "reference_runtime.stubs"}),)

    def __repr__(self) -> str:
        return f"<placeholder {self._stub_name}>"

    def __hash__(self) -> int:
        return id(self)  # not by name: what meets its like from another rank in a table, as annotations do, is compared

    def _reached(self) -> NoReturn:
        raise StubReached(self._stub_name)

    def _consulted(self) -> None:
        if _phase.forward or _phase.build:
            self._reached()

    def __bool__(self) -> bool:
        self._consulted()
        return False

    def __iter__(self) -> Iterator[Any]:
        self._consulted()
        return iter(())

    def __len__(self) -> int:
        self._consulted()
        return 0

    def __contains__(self, item: object) -> bool:
        self._consulted()
        return False

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if sys._getframe(1).f_globals.get("__name__") != "typing":  # which makes an annotation, and decides nothing
            self._consulted()
        return False

    def __int__(self) -> int:
        self._consulted()
        return 0

    def __float__(self) -> float:
        self._consulted()
        return 0.0

    def __instancecheck__(self, instance: object) -> bool:
        return False  # nothing here can be an instance of a class that is not modelled

    def __subclasscheck__(self, subclass: object) -> bool:
        return False

    def _combined(self, *args: Any) -> Stub:
        self._consulted()
        return Stub(f"{self._stub_name}…")

    def __or__(self, other: Any) -> Any:  # `Stub | None`, an annotation
        return Stub(f"{self._stub_name}|…")

    def __ror__(self, other: Any) -> Any:
        return Stub(f"…|{self._stub_name}")

    def __getitem__(self, item: Any) -> Any:  # `Stub[int]`, an annotation
        if _phase.forward:
            self._reached()
        return Stub(f"{self._stub_name}[]")

    def __setitem__(self, item: Any, value: Any) -> None:
        self._consulted()

    def __enter__(self) -> Any:
        self._consulted()
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: bool(self._combined(other))
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = _combined
    __rtruediv__ = __rfloordiv__ = __mod__ = __pow__ = __and__ = __rand__ = __neg__ = __invert__ = _combined

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A placeholder in a torch operation: the operation has no value."""
        for item in (*args, *(kwargs or {}).values()):
            if isinstance(item, Stub):
                item._reached()
        raise StubReached(getattr(func, "__name__", "torch operation"))
