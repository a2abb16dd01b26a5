"""Which files may matter: a search for the engine's words in bytes, before anything is decoded or parsed."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import takewhile

from moe_lint.profile import Profile, longest_part

DIGEST_SIZE = 16
#: How many characters words must begin with alike to be looked for together.
_ALIKE = 8
#: How a file speaks of experts, whatever the profile calls them.
_EXPERTS = ("expert", "moe", "MoE", "Moe", "MOE")
#: What the name of a reduction holds that the profile does not list.
_REDUCTIONS = ("all_reduce", "allreduce")
_NAMED = tuple(name.encode() for name in _REDUCTIONS)


class Prefilter:
    """The words of one engine; most files of a tree hold none of them."""

    def __init__(self, profile: Profile) -> None:
        names = [*profile.collectives, *profile.wrappers]
        central = [*profile.helpers, *([f"class {profile.backend_enum}"] if profile.backend_enum else [])]
        plain = [constructor.strip("*") for constructor in profile.absorber_constructors]
        absorbers = [name for name in plain if "*" not in name]
        absorbers += [f"def {name}(" for name in (*profile.combines, *profile.summing)]
        absorbers += [f"{name}(" for name in profile.plain_scatters]
        if any(flag.last for flag in profile.flags):
            absorbers += profile.heads  # they build a layer of another file, perhaps the last one
        ours = ["moe-lint"]  # a directive may silence something, or nothing
        experts = [*profile.expert_attributes, *profile.expert_functions, *profile.expert_constructors]
        self._experts = _shortest([*_EXPERTS, *map(longest_part, experts)]) if experts else [""]
        self._beside = [word.encode() for word in _shortest(["expert", *map(longest_part, profile.expert_attributes)])]
        #: experts told not to reduce, in a file where perhaps nobody does
        self._partial = [f"{name}=False".encode() for name in profile.reducing]
        #: experts that are run by a function, in a file that makes parameters: perhaps their weights
        self._run = [f"{name}(".encode() for name in profile.expert_functions if "*" not in name]
        self._words = [word.encode() for word in _shortest([*names, *absorbers, *central, *ours])]
        #: each of the words, and each other reduction, holds one of these
        looked_for = _shortest([*_REDUCTIONS, *names, *absorbers, *central, *ours])
        self._stems = [stem.encode() for stem in _stems(looked_for)]
        #: what the name of a reduction may hold
        self.call_words = _shortest([*_REDUCTIONS, *names])

    def is_candidate(self, data: bytes) -> bool:
        """Whether a file with this content may matter."""
        if not _holds(data, self._stems):
            partial = _holds(data, self._partial) or (b"Parameter(" in data and _holds(data, self._run))
            return partial and _holds(data, self._beside)
        # a reduction under a name that the profile does not list matters only beside experts
        return (_holds(data, _NAMED) and _holds(data, self._beside)) or _holds(data, self._words)

    def may_hold_sites(self, text: str) -> bool:
        """Whether a file speaks of experts at all; only there can a reduction follow them."""
        return any(word in text for word in self._experts)


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises ``OSError``."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def digest_of(*data: bytes | memoryview) -> bytes:
    """What stands for the content of a file: this, one after the other."""
    digest = blake2b(digest_size=DIGEST_SIZE)
    for part in data:
        digest.update(part)
    return digest.digest()


def _holds(data: bytes, words: Iterable[bytes]) -> bool:
    for word in words:  # noqa: SIM110 - asked of every file: a generator costs more than the search
        if word in data:
            return True
    return False


def _stems(words: Iterable[str]) -> list[str]:
    """The words, those that begin alike by what they have in common: a file without that is done with sooner."""
    found: list[str] = []
    for word in sorted(words):
        same = takewhile(lambda pair: pair[0] == pair[1], zip(found[-1] if found else "", word, strict=False))
        alike = sum(1 for _ in same)
        if alike >= _ALIKE:
            found[-1] = word[:alike]
        else:
            found.append(word)
    return found


def _shortest(words: Iterable[str]) -> list[str]:
    """The words without those that hold another one: where a long one occurs, the short one does."""
    unique = list(dict.fromkeys(words))
    return [word for word in unique if not any(other != word and other in word for other in unique)]
