"""An engine that shares no name with any other: what `docs/profiles.md` tells, step by step, and no Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import moe_lint

MODEL = """\
from zeta.parts.seam import ResidualSeam
from zeta.parts.sums import sum_is_elsewhere, width, width_sum


class {name}Mix:
    def __init__(self, specialists):
        self.width = width()
        self.specialists = specialists

    def forward(self, x, later=False):
        x = self.specialists(x)
        if self.width > 1 and not {asked}:
            x = width_sum(x)
        return x


class {name}Layer:
    def __init__(self, specialists):
        self.mix = {name}Mix(specialists)
        self.seam = ResidualSeam()

    def forward(self, x, batch):
        return self.mix(x, later=self.seam.can_sum_later(batch))
"""
SUMS = """\
def width_sum(x):
    return x


def width():
    return 2


_SLICES = False


def slices_go_round():
    return _SLICES


def sum_is_elsewhere(*, along_width, later=False):
    return later or (along_width and slices_go_round())
"""
SEAM = """\
class ResidualSeam:
    def can_sum_later(self, batch):
        return batch.fuse
"""
#: What each step of the document adds.
STEPS = {
    "what sums": 'name = "zeta"\n[collectives]\nwidth_sum = "TP"\n[helper]\nname = "sum_is_elsewhere"\n',
    "who decides": 'axis_parameter = "along_width"\n',
    "what the experts are": '[experts]\nattributes = ["specialists"]\n',
    "who else sums": '[absorbers]\nconstructors = ["*Seam"]\nwho = "the seam"\n',
    "what a size is": '[topology]\nsizes = ["width"]\n',
    "what is passed down": '[[flags]]\nname = "later"\npredicate = "can_sum_later"\n',
}
ASKED = "sum_is_elsewhere(along_width=True, later=later)"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tree `zeta/` with a model that is right and one that forgets a reason; the working directory."""
    files = {
        "parts/sums.py": SUMS,
        "parts/seam.py": SEAM,
        "models/good.py": MODEL.format(name="Good", asked=ASKED),
        "models/bad.py": MODEL.format(name="Bad", asked="later").replace("sum_is_elsewhere, ", ""),
    }
    for name, text in {**files, "__init__.py": "", "parts/__init__.py": "", "models/__init__.py": ""}.items():
        path = tmp_path / "zeta" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own.toml").write_text("".join(STEPS.values()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(*args: str) -> list[tuple[str, str, str | None]]:
    shown = json.loads(moe_lint("matrix", "--profile", "own.toml", "--format", "json", *args, "zeta").stdout)
    return [(Path(site["path"]).stem, site["route"], site["relation"]) for site in shown["sites"]]


def test_the_matrix_shows_what_each_step_adds(engine: Path) -> None:
    (engine / "own.toml").write_text(STEPS["what sums"])
    assert rows("--all") == [("bad", "inline", None), ("good", "helper", None)]
    assert rows() == rows("--all")  # JSON lists every reduction
    told = "note: no reduction after experts; --all shows 2 that do not follow them\n"
    assert moe_lint("matrix", "--profile", "own.toml", "zeta").stdout == told
    (engine / "own.toml").write_text("".join(STEPS.values()))
    assert rows("--all") == [("bad", "inline", "weaker"), ("good", "helper", "equal")]
    assert "bad.py:13" in moe_lint("matrix", "--profile", "own.toml", "zeta").stdout


def test_a_row_of_the_matrix_is_one_line_where_there_is_no_terminal(engine: Path) -> None:
    deep = engine / "zeta/models" / "a_long_name" / "_".join(["and_a_very_long_one"] * 8)
    deep.mkdir(parents=True)
    (engine / "zeta/models/bad.py").rename(deep / "bad.py")
    moe_lint("matrix", "--profile", "own.toml", "-o", "text:matrix.txt", "zeta")
    shown = moe_lint("matrix", "--profile", "own.toml", "zeta").stdout
    assert Path("matrix.txt").read_text().strip() == shown.strip()
    assert f"{(deep / 'bad.py').relative_to(engine)}:13" in shown


def test_the_model_that_forgets_a_reason_is_found_in_the_engines_own_words(engine: Path) -> None:
    result = moe_lint("--profile", "own.toml", "zeta")
    assert result.exit_code == 1
    assert "error[MOE001]" in result.stdout
    assert "bypasses `sum_is_elsewhere`: it still reduces for `slices_go_round()`" in result.stdout
    assert "and the seam sums again" in result.stdout


def test_the_fix_makes_it_the_model_that_is_right(engine: Path) -> None:
    assert moe_lint("--profile", "own.toml", "--fix", "zeta").exit_code == 0
    assert (engine / "zeta/models/bad.py").read_text() == MODEL.format(name="Bad", asked=ASKED)


def test_experts_may_have_any_name(engine: Path) -> None:
    """The files that may hold them are found by the names that the profile gives, whatever these are."""
    for names in ('attributes = ["special*"]', 'attributes = ["*[a-z]pecialists"]', 'attributes = ["*"]'):
        text = "".join(STEPS.values()).replace('attributes = ["specialists"]', names)
        (engine / "own.toml").write_text(text)
        assert rows() == [("bad", "inline", "weaker"), ("good", "helper", "equal")]


def test_a_summary_without_sums_of_experts_says_how_many_others_there_are(engine: Path) -> None:
    (engine / "own.toml").write_text(STEPS["what sums"])
    told = "No findings: 0 post-experts reductions in 7 files (2 others: `moe-lint matrix --all`)."
    assert moe_lint("--profile", "own.toml", "zeta").stdout.strip() == told


def test_a_profile_of_the_trees_own_is_not_asked_for_again(engine: Path) -> None:
    steps = STEPS["what sums"].replace("sum_is_elsewhere", "nobody") + STEPS["what the experts are"]
    (engine / "own.toml").write_text(steps)
    (engine / "zeta/models/bad.py").unlink()
    result = moe_lint("--profile", "own.toml", "zeta")
    assert result.exit_code == 2
    assert "no `nobody` in this tree, and no guard names a skip reason: 1 reduction after the experts" in result.output
    assert "`helper.name` in the profile is what decides there; where nothing does, leave it out" in result.output


def test_an_engine_in_which_nothing_decides_is_judged_by_the_rules_that_need_no_helper(engine: Path) -> None:
    (engine / "zeta/models/bad.py").unlink()
    once = MODEL.format(name="Once", asked="later").replace(" and not later", "").replace("sum_is_elsewhere, ", "")
    (engine / "zeta/models/good.py").write_text(once)
    (engine / "own.toml").write_text(STEPS["what sums"].split("[helper]")[0] + STEPS["what the experts are"])
    assert rows("--all") == [("good", "none", None)]
    result = moe_lint("--profile", "own.toml", "zeta")
    assert result.exit_code == 0
    told = "note: zeta:1: 1 reduction after the experts: compared with nothing, as the profile names no helper"
    assert told in result.output.replace("\n", " ")
    twice = once.replace("        return x\n\n", "        return width_sum(x)\n\n", 1)
    (engine / "zeta/models/good.py").write_text(twice)
    with open("own.toml", "a") as profile:
        profile.write(STEPS["what a size is"])
    output = moe_lint("--profile", "own.toml", "zeta").output
    assert "error[MOE309]" in output
    assert "counts it once more for every rank (for example `self.width > 1` true)" in output


def test_a_reduction_that_no_profile_lists_is_found_by_its_name(engine: Path) -> None:
    text = (engine / "zeta/models/bad.py").read_text()
    path = engine / "zeta/models/bad.py"
    for call in ("x = self.allreduce(x)", "x = self.later_all_reduce(x)", "x = AllReduce(x)"):
        path.write_text(text.replace("x = width_sum(x)", call).replace(", width_sum", ""))
        assert [stem for stem, *_ in rows("--all")] == ["bad", "good"][call.startswith("x = All") :]
