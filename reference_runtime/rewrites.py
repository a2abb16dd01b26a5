"""Rewrites that are not written yet: which blocks reach them, and which of them a broken case speaks against.

Before is the tree on disk; after is the same tree with the rewritten texts laid over it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reference_runtime.discover import Block
from reference_runtime.launch import Progress, VerifyError, Worker, choose, run_blocks
from reference_runtime.plan import Settings
from reference_runtime.tree import Tree, TreeError, find_tree
from reference_runtime.verdicts import CaseResult, ModelReport, Verdict, describe


@dataclass(frozen=True, slots=True)
class Proof:
    """What running some rewrites showed.

    Attributes:
        broken: rewritten file -> the case that was right before and is not any more.
        lines: for people, a line per block that was run and per file that no block reaches.
    """

    broken: dict[Path, str]
    lines: tuple[str, ...]


@dataclass
class Prover:
    """Runs rewrites. Asked again with fewer of them, it runs only the blocks for which that makes a difference.

    Raises VerifyError: no torch, or a rewritten file lies in no engine.
    """

    settings: Settings
    progress: Progress | None = None
    #: (block, what it reaches) -> what came of it
    _known: dict[tuple[Block, tuple[tuple[Path, bytes], ...]], ModelReport] = field(default_factory=dict)

    def prove(self, rewritten: Mapping[Path, bytes]) -> Proof:
        """Run every block that reaches a rewritten file, with all of them in place."""
        trees: dict[Tree, dict[Path, bytes]] = {}
        for path, data in rewritten.items():
            try:
                trees.setdefault(find_tree(path), {})[path.resolve()] = data
            except TreeError as error:
                raise VerifyError(str(error)) from error
        broken: dict[Path, str] = {}
        lines: list[str] = []
        for tree, files in trees.items():
            self._prove(tree, files, broken, lines)
        return Proof(broken, tuple(lines))

    def _prove(self, tree: Tree, files: Mapping[Path, bytes], broken: dict[Path, str], lines: list[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="moe-lint-") as folder:
            after = replace(tree, overlay=Path(folder).resolve())
            for path, data in files.items():
                target = Path(folder).resolve() / path.relative_to(tree.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            blocks, _ = choose(tree, after, ("*",))
            reach = {block: _reached(block, tree, files) for block in blocks}
            keys = {block: (block, tuple((f, files[f]) for f in found)) for block, found in reach.items() if found}
            waiting = [block for block, key in keys.items() if key not in self._known]
            if waiting:
                with Worker(self.settings) as worker:
                    models = run_blocks(worker, waiting, tree, after, self.settings, self.progress)
                for block, model in zip(waiting, models, strict=True):
                    self._known[keys[block]] = model
        for block, key in keys.items():
            model = self._known[key]
            lines.append(_told(model))
            for case in model.cases:
                for path in reach[block] if case.regression else ():
                    broken.setdefault(path, _case(model, case))
        unreached = files.keys() - {path for found in reach.values() for path in found}
        lines += [f"not verified: {path}: no MoE block that can be run reaches it" for path in sorted(unreached)]


def _reached(block: Block, tree: Tree, files: Mapping[Path, bytes]) -> list[Path]:
    """The rewritten files that a block runs: model files by import; files beside the models if there are no others."""
    models = tree.folder / "models"
    found, stack = set[Path](), [block.file]
    while stack:
        file = stack.pop()
        if file not in found and file.is_file():
            found.add(file)
            stack += _imported_models(file, models)
    inside = [path for path in files if path in found]
    return sorted(inside) or sorted(path for path in files if not path.is_relative_to(models))


def _imported_models(file: Path, models: Path) -> list[Path]:
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    named = re.findall(r"^\s*from [\w.]*\bmodels\.([\w.]+) import", text, re.M)
    beside = re.findall(r"^\s*from \.(\w+) import", text, re.M)
    return [models.joinpath(*name.split(".")).with_suffix(".py") for name in named] + [
        file.with_name(f"{name}.py") for name in beside
    ]


def _case(model: ModelReport, case: CaseResult) -> str:
    return f"{model.model} {case.level} {case.case}: {case.verdict.value}: {describe(case.after)}"


def _told(model: ModelReport) -> str:
    """A block in a line: its verdicts, and why it could not be judged in part or at all."""
    counts = ", ".join(f"{model.counts[verdict]} {verdict.value}" for verdict in Verdict if model.counts[verdict])
    reasons = dict.fromkeys(c.detail for c in model.cases if c.verdict is Verdict.UNMODELLED and c.detail)
    why = "; ".join([*([model.problem] if model.problem else []), *reasons])
    head = "verified" if model.judged else "not verified"
    return f"{head}: {model.path}: {model.model}: {counts or 'no case'}{f' ({why})' if why else ''}"
