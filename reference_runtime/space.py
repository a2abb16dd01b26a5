"""A private world of modules: one tree's own modules, loaded beside others of the same name in one process.

Each loaded module gets a `__builtins__` of its own whose `__import__` resolves inside this space. Nothing enters
`sys.meta_path`, and two trees, two variants of a file and several ranks live side by side.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from reference_runtime.stubs import Stub, setting_up

#: What target code may import for real besides the standard library. Anything else is a placeholder, installed or
#: not, so that a verdict does not depend on what happens to be installed.
REAL_PACKAGES = frozenset({"torch", "numpy", "typing_extensions", "packaging", "msgspec"}) | sys.stdlib_module_names
_IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_numbers = itertools.count()
_sources: dict[Path, Source] = {}


class Tier(Enum):
    """Where a module's content comes from."""

    REAL = "real"  #: the tree's own file
    REFERENCE = "reference"  #: an implementation of the runtime
    STUB = "stub"  #: placeholders
    NAMESPACE = "namespace"  #: a package whose `__init__` is not run


class Source:
    """A compiled file, shared by all spaces."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.code = compile(self._data, str(path), "exec", dont_inherit=True)

    @property
    def digest(self) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self._data).hexdigest()

    @functools.cached_property
    def optional(self) -> frozenset[int]:
        """Lines whose imports may fail: the file says what to do then. Asked only where one fails."""
        return frozenset(_optional_lines(self._data))

    @property
    def asked(self) -> bool:
        """Whether anybody needed to know which imports may fail."""
        return "optional" in vars(self)


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Every statement below a node. Unlike `ast.walk`, it does not look at expressions, which are most of a tree."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child)


def _optional_lines(data: bytes) -> set[int]:
    """Only the `try` statements are parsed; where their text does not tell how far they go, the whole file is."""
    lines = data.splitlines()
    found: set[int] = set()
    last = 0
    for number, line in enumerate(lines, 1):
        opened = _TRY.match(line) if number > last else None
        if opened is not None:
            indent = len(opened.group(1))
            last = next((n for n in range(number, len(lines)) if _ends(lines[n], indent)), len(lines))
            above = [b""] * (number - 2) + ([b"if 1:"] if indent else [b""] * (number > 1))
            text = b"\n".join([*above, *lines[number - 1 : last]])
            try:
                found |= _optional_in(ast.parse(text))
            except SyntaxError:  # a string or a bracket reaches farther to the left
                return _optional_in(ast.parse(data))
    return found


_TRY = re.compile(rb"([ \t]*)try[ \t]*:")


def _ends(line: bytes, indent: int) -> bool:
    """Whether a line is behind a `try` statement that stands ``indent`` blanks from the margin."""
    text = line.lstrip()
    inside = not text or text.startswith(b"#") or len(line) - len(text) > indent
    return not inside and not text.startswith((b"except", b"else", b"finally"))


def _optional_in(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in statements(tree):
        if isinstance(node, ast.Try):
            caught = {n.id for h in node.handlers if h.type for n in ast.walk(h.type) if isinstance(n, ast.Name)}
            if caught & _IMPORT_ERRORS or any(h.type is None for h in node.handlers):
                for inner in statements(ast.Module(node.body, [])):
                    if isinstance(inner, (ast.Import, ast.ImportFrom)):
                        lines.update(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return lines


def source(path: Path) -> Source:
    """The compiled file; compiled once per process."""
    if path not in _sources:
        _sources[path] = Source(path)
    return _sources[path]


def remember_generated() -> None:
    """Compile what the standard library generates for a dataclass once: every rank has the same ones."""
    compiled = functools.cache(lambda text: compile(text, "<string>", "exec", dont_inherit=True))
    vars(dataclasses)["exec"] = lambda text, *scopes: exec(compiled(text), *scopes)


def compiled_files() -> dict[str, bool]:
    """Every file that `source` has compiled in this process, and whether it was asked which imports may fail."""
    return {str(path): compiled.asked for path, compiled in _sources.items()}


def libraries() -> list[str]:
    """The modules of third-party libraries that this process has imported, in the order of their import."""
    tops = REAL_PACKAGES - sys.stdlib_module_names
    return [name for name in sys.modules if name.partition(".")[0] in tops]


class _StubModule(types.ModuleType):
    """A module of placeholders, but for functions that have an implementation here.

    ``file``, if it is one of the tree, tells which names can exist.
    """

    def __init__(self, name: str, file: Path | None, functions: Mapping[str, Any] = types.MappingProxyType({})) -> None:
        super().__init__(name)
        self.__dict__["_file"] = file
        self.__dict__["_functions"] = functions
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        file = self.__dict__["_file"]
        if file is not None and not mentions(file, name):
            raise AttributeError(f"{self.__name__} does not define {name}")
        value = self.__dict__["_functions"].get(name)
        self.__dict__[name] = value = Stub(f"{self.__name__}.{name}") if value is None else value
        return value


@functools.cache
def _find(root: Path, name: str) -> tuple[Path | None, bool]:
    base = root.joinpath(*name.split("."))
    if (base / "__init__.py").is_file():
        return base / "__init__.py", True
    if base.with_name(base.name + ".py").is_file():
        return base.with_name(base.name + ".py"), False
    return (None, True) if base.is_dir() else (None, False)


@functools.lru_cache(maxsize=1024)
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


@functools.cache
def mentions(path: Path, name: str) -> bool:
    """Whether a file may define the name: it contains it as a word, or imports names by star."""
    text = _text(path)
    return "import *" in text or re.search(rf"\b{re.escape(name)}\b", text) is not None


class ModuleSpace:
    """The modules of one tree as one rank sees them.

    Args:
        root: the folder that holds the top package.
        package: the top package, e.g. the first part of every dotted name of the tree.
        tier: dotted name -> `Tier`.
        install: what a REFERENCE module contains, by dotted name: a function of the space and the module.
        after: patches to a REAL module, run after its own code.
        complete: gives a REFERENCE module the names that its installer left out.
        functions: implementations of the tree's kernels, by name, in whatever module a tree keeps them.
        overlay: a folder whose files stand for those of the same relative path below the root.
    """

    def __init__(
        self,
        root: Path,
        package: str,
        tier: Callable[[str], Tier],
        install: Mapping[str, Callable[[ModuleSpace, types.ModuleType], None]],
        after: Mapping[str, Callable[[ModuleSpace, types.ModuleType], None]],
        complete: Callable[[ModuleSpace, types.ModuleType], None],
        functions: Mapping[str, Any] = types.MappingProxyType({}),
        overlay: Path | None = None,
    ) -> None:
        self.root, self.package, self.tier, self.overlay = root, package, tier, overlay
        self.install, self.after, self.complete, self.functions = install, after, complete, functions
        self.context: Any = None  # what the installers are told; set by the owner
        self.modules: dict[str, types.ModuleType] = {}
        self.tiers: dict[str, Tier] = {}
        self._prefix = f"_reference_runtime_space_{next(_numbers)}."
        self._builtins = dict(vars(builtins))
        self._builtins["__import__"] = self._import
        self._registered: list[str] = []
        self._importlib = types.ModuleType("importlib")
        self._importlib.__dict__.update(vars(importlib), import_module=self._import_module)

    def close(self) -> None:
        """Forget the modules."""
        for name in self._registered:
            sys.modules.pop(name, None)
        self.modules.clear()

    def load(self, name: str) -> types.ModuleType:
        """The module of that dotted name.

        Raises:
            ModuleNotFoundError: the tree has no such module.
        """
        if name in self.modules:
            return self.modules[name]
        parent, _, child = name.rpartition(".")
        if parent:
            self.load(parent)
            if name in self.modules:  # the parent imported it
                return self.modules[name]
        with setting_up():
            module = self._create(name)
        if parent:
            setattr(self.modules[parent], child, module)
        return module

    def path(self, name: str) -> tuple[Path | None, bool]:
        """(the file of a module, whether it is a package)."""
        found = _find(self.overlay, name) if self.overlay is not None else (None, False)
        return found if found[0] is not None else _find(self.root, name)

    def digests(self) -> dict[str, str]:
        """Module name -> digest of its file, for every REAL module loaded so far."""
        result = {}
        for name, tier in sorted(self.tiers.items()):
            file = self.path(name)[0]
            if tier is Tier.REAL and file is not None:
                result[name] = source(file).digest
        return result

    def _create(self, name: str) -> types.ModuleType:
        file, is_package = self.path(name)
        if file is None and not is_package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        tier = self.tier(name)
        if tier is Tier.REAL and file is None:
            tier = Tier.NAMESPACE
        self.tiers[name] = tier
        if tier is Tier.STUB and not is_package:
            module: types.ModuleType = _StubModule(name, file, self.functions)
        elif tier in (Tier.STUB, Tier.NAMESPACE):
            module = _PackageStub(self, name)
        else:
            module = types.ModuleType(name)
            if is_package:
                module.__path__ = [str(self.root.joinpath(*name.split(".")))]
        self.modules[name] = module
        if tier is Tier.REFERENCE:
            self.install[name](self, module)
            self.complete(self, module)
        elif tier is Tier.REAL and file is not None:
            self._execute(name, module, file, is_package)
        if name in self.after and tier is not Tier.REFERENCE:
            self.after[name](self, module)
        return module

    def _execute(self, name: str, module: types.ModuleType, file: Path, is_package: bool) -> None:
        # dataclasses and typing look a class's module up in sys.modules by its name: so the name is unique and is
        # registered there. `__package__` stays what the file expects.
        unique = self._prefix + name
        sys.modules[unique] = module
        self._registered.append(unique)
        module.__name__ = unique
        module.__package__ = name if is_package else name.rpartition(".")[0]
        module.__file__ = str(file)
        module.__dict__["__builtins__"] = self._builtins
        try:
            exec(source(file).code, module.__dict__)
        except BaseException:
            self.modules.pop(name, None)
            raise

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level:
            package = (globals or {}).get("__package__") or ""
            base = package.rsplit(".", level - 1)[0] if level > 1 else package
            name = f"{base}.{name}" if name else base
        top = name.partition(".")[0]
        if top == self.package:
            module = self.load(name)
            if not fromlist:
                return self.modules[top]
            for item in fromlist:
                if item != "*" and not hasattr(module, item) and self.path(f"{name}.{item}") != (None, False):
                    self.load(f"{name}.{item}")
            if "*" in fromlist and isinstance(module, (_StubModule, _PackageStub)):
                module.__dict__["__all__"] = []
            return module
        if top in REAL_PACKAGES:
            with setting_up():
                found: types.ModuleType = builtins.__import__(name, globals, locals, fromlist or (), 0)
            return self._importlib if found is importlib else found
        if self._may_fail():
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        return self._foreign(name, bool(fromlist))

    def _import_module(self, name: str, package: str | None = None) -> types.ModuleType:
        """`importlib.import_module` as the tree's code calls it."""
        absolute = importlib.util.resolve_name(name, package)
        inside = absolute.partition(".")[0] == self.package
        return self.load(absolute) if inside else self._import(absolute, fromlist=("*",))

    def _foreign(self, name: str, leaf: bool) -> types.ModuleType:
        """A third-party module that has no place here: placeholders."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            if part not in self.modules:
                self.modules[part] = _StubModule(part, None)
                self.tiers[part] = Tier.STUB
                if count > 1:
                    setattr(self.modules[".".join(parts[: count - 1])], parts[count - 1], self.modules[part])
        return self.modules[name if leaf else parts[0]]

    def _may_fail(self) -> bool:
        """Whether the importing statement stands in a `try` that handles a missing package."""
        frame = sys._getframe(2)
        file = frame.f_code.co_filename
        compiled = _sources.get(Path(file))
        return compiled is not None and frame.f_lineno in compiled.optional


class _PackageStub(types.ModuleType):
    """A package that is not run: its submodules are found, other names are placeholders."""

    def __init__(self, space: ModuleSpace, name: str) -> None:
        super().__init__(name)
        self.__dict__["_space"] = space
        self.__path__ = [str(space.root.joinpath(*name.split(".")))]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        space: ModuleSpace = self.__dict__["_space"]
        full = f"{self.__name__}.{name}"
        if space.path(full) != (None, False):
            return space.load(full)
        file = space.path(self.__name__)[0]
        if file is not None and mentions(file, name):
            value = space.functions.get(name)
            self.__dict__[name] = value = Stub(full) if value is None else value
            return value
        raise AttributeError(f"{self.__name__} does not define {name}")
