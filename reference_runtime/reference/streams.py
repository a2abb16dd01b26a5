"""GPU streams where there is no GPU: all work is done when it is called, so every stream runs in order.

That is what a program does whose streams wait for each other as they should. A wait that is missing is not noticed.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch


class Event:
    """A point in a stream: passed as soon as it is recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Nothing is under way."""

    wait = record

    def synchronize(self) -> None:
        """Nothing is under way."""

    def query(self) -> bool:
        return True


class Stream:
    """A stream in which nothing is ever under way."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """The other has done its work."""

    def wait_event(self, event: Any) -> None:
        """It has passed."""

    def record_event(self, event: Any = None) -> Any:
        return Event() if event is None else event

    def synchronize(self) -> None:
        """Nothing is under way."""

    def query(self) -> bool:
        return True


_CURRENT = Stream()
_capturing = False


def capture(on: bool) -> None:
    """Say whether a graph is being captured: all ranks of a process run the same case."""
    global _capturing
    _capturing = on


def second_stream(device: torch.device) -> Any:
    """What an engine gives its layers to work in beside the main stream."""
    kind: Any = torch.cuda.Stream if device.type == "cuda" else Stream
    return kind()


def run_in_order() -> None:
    """Give `torch.cuda` such streams, in a process that uses no GPU."""
    replaced: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_, **__: _CURRENT,
        "default_stream": lambda *_, **__: _CURRENT,
        "stream": lambda *_, **__: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: _capturing,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    # which stream uses a tensor decides about its memory, not about its content
    torch.Tensor.record_stream = lambda *_, **__: None  # type: ignore[method-assign]
