"""The names of a reference module that have no implementation here."""

from __future__ import annotations

import ast
import functools
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference_runtime.space import mentions, statements
from reference_runtime.stubs import Stub

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace


@functools.lru_cache(maxsize=512)
def _imported(file: Path) -> dict[str, tuple[str, int, str]]:
    """Name -> (module, level, name there) of a file's `from … import …` statements."""
    found = {}
    for node in statements(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module or "", node.level, alias.name)
    return found


def complete(space: ModuleSpace, module: types.ModuleType) -> None:
    """Give a reference module the other names of the file that it stands for.

    A name that the file imports from the tree is what it is there; a name that the file defines is a placeholder; a
    name that the file does not mention does not exist.
    """
    name = module.__name__
    file, is_package = space.path(name)

    def missing(attribute: str) -> Any:
        if attribute.startswith("__") and attribute.endswith("__"):
            raise AttributeError(attribute)
        if file is not None:
            source = _imported(file).get(attribute)
            if source is not None and (source[1] or source[0].partition(".")[0] == space.package):
                parts = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join(parts[: len(parts) - source[1] + 1]) if source[1] else ""
                origin = space.load(".".join(part for part in (base, source[0]) if part))
                return getattr(origin, source[2])
            if not mentions(file, attribute):
                raise AttributeError(f"{name} does not define {attribute}")
        return Stub(f"{name}.{attribute}")

    module.__dict__["__getattr__"] = missing
