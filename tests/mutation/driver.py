"""Sabotage the rewritten files of a tree, run every mutant, and argue about those that nothing tells apart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_lint.analysis import Tree as Analysis
from moe_lint.analysis import analyse
from moe_lint.discover import python_file_names
from moe_lint.helper import find_definition
from moe_lint.model import Route
from moe_lint.profile import Profile
from moe_lint.sites import Site
from reference_runtime.discover import Block
from reference_runtime.launch import choose
from reference_runtime.plan import Settings
from reference_runtime.scenarios import block_cases
from reference_runtime.topology import Topology
from reference_runtime.tree import Tree, find_tree
from reference_runtime.verdicts import CaseResult, Verdict
from tests.mutation.equivalence import Argument, Refused, argue
from tests.mutation.operators import Mutant, Place, mutants
from tests.trials.observe import Question
from tests.trials.variants import Trial, run_variants


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one mutant.

    Attributes:
        trials: one per level.
        ran: some case runs the function that is sabotaged.
        argument: why it may go unnoticed; None where it was noticed.
    """

    block: Block
    function: str
    mutant: Mutant
    trials: tuple[Trial, ...]
    ran: bool
    argument: Argument | None

    @property
    def noticed(self) -> bool:
        return any(trial.differing for trial in self.trials)

    @property
    def outcome(self) -> str:
        """`caught`, `equal`, `not run` or, which must not be, `missed`."""
        if self.noticed:
            return "caught"
        if not self.ran:
            return "not run"
        return "equal" if self.argument is not None and self.argument.equal else "missed"


def survey(
    path: Path,
    names: Sequence[str],
    profile: Profile,
    settings: Settings,
    wanted: Callable[[Mutant], bool] = lambda _: True,
) -> list[Result]:
    """Sabotage the blocks of some model files (by module name; none: all with a helper-guarded reduction)."""
    tree = find_tree(path)
    root = str(tree.root / tree.package)
    analysis = analyse(root, python_file_names(root), profile)
    blocks, _ = choose(tree, tree, names or ("*",))
    sites = {block: _sites(analysis, block) for block in blocks}
    made = {
        block: [m for m in mutants(block.file.read_text("utf-8-sig"), _places(analysis, found)) if wanted(m)]
        for block, found in sites.items()
        if found
    }
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = {
            block: [
                _overlay(tree, block, mutant, Path(folder, f"{position}-{number}")) for number, mutant in enumerate(ms)
            ]
            for position, (block, ms) in enumerate(made.items())
        }
        functions = {block: sorted({site.raw.function for site in sites[block]}) for block in made}
        questions = {
            block: [Question(block.file.relative_to(tree.root).as_posix(), function) for function in found]
            for block, found in functions.items()
        }
        trials = run_variants(tree, trees, settings, questions)
    results = []
    for block, ms in made.items():
        for mutant, own in zip(ms, trials[block], strict=True):
            function = sites[block][mutant.site].raw.function
            ran = any(function in before for trial in own for before, _ in trial.seen)
            result = Result(block, function, mutant, tuple(own), ran, None)
            if not result.noticed and ran:
                refused = _refused(block, own, settings.world_sizes)
                result = replace(result, argument=argue(analysis, sites[block], mutant, refused))
            results.append(result)
    return results


def _refused(block: Block, trials: Sequence[Trial], sizes: tuple[int, ...]) -> Refused | None:
    """The FP4 layouts that the engine refuses at every level that was run; None: there are none."""
    layouts = {str(case): case.topology for case in block_cases(sizes, block.communicator) if case.launch.fp4}
    found: dict[Topology, list[CaseResult]] = {}
    for trial in trials:
        for result in trial.cases:
            if result.case in layouts:
                found.setdefault(layouts[result.case], []).append(result)
    refused = [layout for layout, ran in found.items() if all(r.verdict is Verdict.INFEASIBLE for r in ran)]
    return Refused(tuple(refused), max(sizes), found[refused[0]][0].detail) if refused else None


def _sites(analysis: Analysis, block: Block) -> list[Site]:
    """The reductions of a block that the helper decides on."""
    return [
        site
        for site in analysis.sites
        if site.post_experts and site.route is Route.HELPER and site.raw.class_name == block.name
        if Path(site.path) == block.file
    ]


def _places(analysis: Analysis, sites: Sequence[Site]) -> list[Place]:
    helper, launch = analysis.policy.helper, analysis.policy.profile.launch
    assert helper is not None
    groups: dict[str, tuple[str, str | None]] = {}
    for name, axis in analysis.policy.profile.collectives.items():
        group = launch.group_of(name, axis)
        known = {found for _, found in groups.values()}
        if axis in ("TP", "EP") and group not in known and find_definition(analysis.index, name) is not None:
            groups[name] = (axis, group)
    for site in sites:
        groups[site.raw.collective] = (site.axis, launch.group_of(site.raw.collective, site.axis))
    return [
        Place(site.raw.span.line, site.raw.span.column, helper.name, helper.axis_parameter or "", groups)
        for site in sites
    ]


def _overlay(tree: Tree, block: Block, mutant: Mutant, folder: Path) -> Tree:
    file = folder / block.file.relative_to(tree.root)
    file.parent.mkdir(parents=True)
    file.write_text(mutant.text, "utf-8")
    return replace(tree, overlay=folder.resolve())
