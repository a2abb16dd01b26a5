"""One tree: paths -> files -> index -> policy -> judged sites."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.absorbers import combine_sums
from moe_lint.dataflow import Dataflow
from moe_lint.facts import RawSite, is_reduction_name
from moe_lint.formula import Atom
from moe_lint.helper import find_definition, propose_helper, read_helper
from moe_lint.index import ProjectIndex
from moe_lint.kept import Unchanged
from moe_lint.model import Problem, Route, SkipReason, counted
from moe_lint.policy import Policy
from moe_lint.prefilter import Prefilter
from moe_lint.profile import Profile, bundled_profiles, load_profile, matches
from moe_lint.reading import Known, Reader
from moe_lint.sites import FoundSite, Site, find_site, judge_site, skip_atoms_used
from moe_lint.text import Text

#: A name that may be called or handed on: no text in quotes, no prose (`an allreduce fusion`, `--custom-allreduce`), no
#: definition, no keyword (`fuse_all_reduce=True`), no object that has a part of interest (`custom_all_reduce.buffers`).
_USED_NAME = re.compile(
    r"""(?<![\w"'-])(?<!\bdef )(\w+)(?![\w"'.-])(?!\ *=(?!=))(?!\ +(?!(?:if|else|and|or|in|is|not|for|as)\b)[A-Za-z])"""
)

#: The name of a class, and what it derives from.
_CLASS = r"^[ \t]*class (\w+\([^:]*)\):"
_WORD = re.compile(r"\w+")


class Tree(Struct, frozen=True):
    """One analysed tree: every file's text that matters, the index, the policy and the judged sites."""

    texts: Mapping[str, Text]
    index: ProjectIndex
    policy: Policy
    dataflow: Dataflow
    sites: tuple[Site, ...]
    #: what could not be judged
    open: tuple[Problem, ...]
    #: what was read, and what could not be; grows while rules lead to further files
    reader: Reader

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that went wrong so far; of a file that could not be read, the first thing."""
        unread = self.reader.problems
        told = (p for p in self.open if p.reason is not SkipReason.SYNTAX_ERROR or p.path not in unread)
        return (*unread.values(), *told)


def analyse(
    root: str,
    paths: Iterable[str],
    profile: Profile,
    overlay: Mapping[str, str] | None = None,
    known: Known | None = None,
    unchanged: Unchanged | None = None,
) -> Tree:
    """Read the Python files of a tree and judge every site in them.

    ``overlay``: path -> text in its place. ``known``, ``unchanged``: what earlier judgements of the tree, in this
    process and before, have read.
    """
    prefilter = Prefilter(profile)
    reader = Reader(profile, prefilter, overlay or {}, {} if known is None else known, unchanged)
    paths = list(paths)
    texts = {path: text for path in paths if (text := reader.candidate(path)) is not None}
    profile = profile.within(partial(_mentions, texts.values()))
    profile = replace(profile, absorber_constructors=_with_subclasses(profile.absorber_constructors, texts.values()))
    index = ProjectIndex(texts, paths, reader.facts, profile)
    dataflow = Dataflow(index)
    found: list[FoundSite] = []
    too_deep: list[Problem] = []
    for path in sorted(texts):
        for raw in _raw_sites(index, path, prefilter):
            try:
                found.append(find_site(path, raw, index, dataflow))
            except RecursionError:
                message = f"the guard of `{raw.collective}` is nested too deeply to be judged"
                too_deep.append(Problem(SkipReason.SYNTAX_ERROR, path, raw.span.line, message))
    for path in dict.fromkeys(site.path for site in found if site.post_experts):
        judged = index.facts(path)
        if judged is not None:
            judged.parse_all()  # a file that is judged is known to be whole
    helper, helper_problems = read_helper(index)
    used = skip_atoms_used(found, profile)
    if helper is None and not helper_problems and (any(a for _, a in used) or any(f.absorber for f in found)):
        whole = {found.condition.name for found in combine_sums(index) if isinstance(found.condition, Atom)}
        helper = propose_helper(index, used, whole)
    policy = Policy(index, helper, helper_problems, unchanged.configurations if unchanged is not None else None)
    sites = tuple(judge_site(site, policy) for site in found)
    return Tree(
        index.texts,
        index,
        policy,
        dataflow,
        sites,
        (*too_deep, *helper_problems, *_no_helper(root, policy, sites), *_site_problems(sites)),
        reader,
    )


def _mentions(texts: Iterable[Text], word: str) -> bool:
    """Whether the code of a tree has an identifier: what only a comment tells of is gone."""
    return any(
        text.holds(word) and text.lines_that(f"name {word} outside of comments", partial(_naming, text, word))
        for text in texts
    )


def _naming(text: Text, word: str) -> Iterator[int]:
    for number in text.lines_of(word, whole=True):
        if not text.lines[number - 1].lstrip().startswith("#"):
            yield number
            return  # one is enough


def _with_subclasses(names: tuple[str, ...], texts: Collection[Text]) -> tuple[str, ...]:
    """The patterns, and the names of the classes that derive from one of such a name."""
    bases = {word for text in texts for word in text.words_in("class") if matches(word, names)}
    while bases:
        headers = (
            header for text in texts if not bases.isdisjoint(text.words_in("class")) for header in text.finds(_CLASS)
        )
        split = (header.partition("(") for header in headers)
        bases = {name for name, _, given in split if not bases.isdisjoint(_WORD.findall(given))}
        bases = {name for name in bases if not matches(name, names)}
        names = (*names, *sorted(bases))
    return names


def _no_helper(root: str, policy: Policy, sites: Sequence[Site]) -> Iterator[Problem]:
    """Reductions after the experts in a tree in which nothing says who else could sum."""
    open_sites = [site for site in sites if site.post_experts and site.route is not Route.WRAPPER]
    if policy.helper is not None or policy.problems or not open_sites:
        return
    profile, count = policy.profile, f"{counted(len(open_sites), 'reduction')} after the experts"
    if profile.names_no_helper:
        message = f"{count}: compared with nothing, as the profile names no helper and no guard a skip reason"
        yield Problem(SkipReason.NO_HELPER, root, 1, message, failed=False)
        return
    others = (load_profile(name) for name in bundled_profiles() if name != profile.name)
    fitting = [p.name for p in others if any(find_definition(policy.index, name) is not None for name in p.helpers)]
    if fitting:
        hint = f"did you mean `--profile {fitting[0]}`?"
    elif profile.name in bundled_profiles():
        hint = (
            "an engine or fork with other names needs a profile of its own (`--profile FILE`), "
            "a plug-in the package of its engine in the same folder"
        )
    else:
        hint = "`helper.name` in the profile is what decides there; where nothing does, leave it out"
    message = f"no `{profile.helper}` in this tree, and no guard names a skip reason: {count} not judged; {hint}"
    yield Problem(SkipReason.NO_HELPER, root, 1, message)


def _raw_sites(index: ProjectIndex, path: str, prefilter: Prefilter) -> list[RawSite]:
    """The reductions of one file, in order."""
    question = f"name a reduction, or {' or '.join(index.profile.collectives)}"
    lines = index.lines_that(path, question, lambda: _naming_reductions(index, path, prefilter))
    facts = index.facts(path) if lines else None
    if facts is None:
        return []
    found = {
        (site.span, site.collective): site for name in facts.functions_at(lines) for site in facts.function(name).sites
    }
    return sorted(found.values(), key=lambda site: site.span)


def _naming_reductions(index: ProjectIndex, path: str, prefilter: Prefilter) -> Iterator[int]:
    """The lines that may hold a reduction after the experts."""
    if prefilter.may_hold_sites(str(index.texts[path])):
        for number in sorted({n for word in prefilter.call_words for n in index.lines_of(path, word)}):
            if _names_reduction(index.line(path, number), index.profile):
                yield number


def _names_reduction(line: str, profile: Profile) -> bool:
    """Whether a line of code may use a reduction: it holds the whole name of one, where code could have a name."""
    if line.lstrip().startswith("#"):
        return False
    return any(
        word in profile.collectives or word in profile.wrappers or is_reduction_name(word)
        for word in _USED_NAME.findall(line)
    )


def _site_problems(sites: Iterable[Site]) -> list[Problem]:
    texts = {
        SkipReason.UNKNOWN_AXIS: "sums over a group that is not known to be TP or EP; not compared with the helper",
        SkipReason.UNKNOWN_ABSORBER: "has no skip condition, and no layer around it was found: right or wrong is open",
        SkipReason.TOO_MANY_ATOMS: "has a guard of too many conditions for a truth table; not compared with the helper",
    }
    return [
        Problem(site.problem, site.path, site.raw.span.line, f"`{site.raw.collective}` {texts[site.problem]}", False)
        for site in sites
        if site.problem is not None
    ]
