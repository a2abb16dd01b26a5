"""Two engines in styles of their own, each judged with a profile and no Python: what is wrong is found, and no more.

`orbit` asks a policy object of each layer, hands its flags down in a data class, and sums by methods of a mesh. `fugue`
has functions only: experts, layers, and a predicate of a module that decides.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs import document, moe_lint

Edit = tuple[str, str]

ORBIT_PROFILE = """\
name = "orbit"
[collectives]
sum_slices = "TP"
sum_homes = "EP"
[helper]
name = "sum_is_elsewhere"
axis_parameter = "slices"
[experts]
attributes = ["specialists"]
constructors = ["SpecialistBank"]
exclude = ["common"]
shared = ["common"]
barriers = ["attention", "norm", "picker"]
[absorbers]
constructors = ["Seam"]
who = "the Seam"
scatters = ["scatter_sum"]
[topology]
sizes = ["slice_count", "home_count"]
[context]
publish = ["StepPlan"]
markers = ["_owes_sum"]
ownership = ["sums"]
reducing = ["sums"]
[[flags]]
name = "deferred"
predicate = "may_defer"
absorber = "the next layer's norm"
last = "final"
sums = ["with_sum"]
[[flags]]
name = "scattered"
predicate = "may_scatter"
permit = "allow_scatter"
absorber = "the Seam's reduce-scatter"
[launch]
groups = { TP = "slices", EP = "homes" }
[[launch.sizes]]
name = "slices"
option = "--slices {}"
names = ["slice_count"]
[[launch.sizes]]
name = "homes"
option = "--homes {}"
names = ["home_count"]
"""
ORBIT = {
    "plan.py": """\
from dataclasses import dataclass


@dataclass
class StepPlan:
    deferred: bool = False
    scattered: bool = False


def kernel_combines():
    return SETTINGS.combines


def halves_are_gathered():
    return SETTINGS.halves


class LayerPolicy:
    def __init__(self, index, config):
        self.index = index
        self.config = config

    def sum_is_elsewhere(self, plan, *, slices):
        if plan.deferred or plan.scattered:
            return True
        if kernel_combines():
            return True
        return slices and halves_are_gathered()
""",
    "seam.py": """\
class Seam:
    def __init__(self, policy, mesh, norm, allow_scatter=False, final=False):
        self.mesh = mesh
        self.norm = norm
        self.allow_scatter = allow_scatter
        self.final = final

    def may_defer(self, batch):
        return batch.small and not self.final

    def may_scatter(self, batch):
        return self.allow_scatter and batch.padded

    def enter(self, x, residual):
        if getattr(x, "_owes_sum", False):
            return self.norm.with_sum(x, residual)
        return self.norm(x, residual)

    def leave(self, x, residual, batch):
        if self.allow_scatter and batch.padded:
            x = self.mesh.scatter_sum(x)
        return x, residual
""",
    "layers.py": """\
class Dense:
    def __init__(self, config, sums=True):
        self.sums = sums

    def forward(self, x):
        x = self.down(x)
        if self.sums and self.mesh.slice_count > 1:
            x = self.mesh.sum_slices(x)
        return x


class SpecialistBank:
    def __init__(self, config, mesh, sums=False):
        self.mesh = mesh
        self.sums = sums

    def forward(self, x, picks):
        y = self.kernel.run(x, picks)
        if self.sums and self.mesh.slice_count > 1:
            y = self.mesh.sum_slices(y)
        return y
""",
    "models/one.py": """\
from orbit.layers import Dense, SpecialistBank
from orbit.plan import LayerPolicy, StepPlan, kernel_combines
from orbit.seam import Seam


class Mixture:
    def __init__(self, config, policy, mesh):
        self.policy = policy
        self.mesh = mesh
        self.picker = Picker(config)
        self.specialists = SpecialistBank(config, mesh, sums=False)
        self.common = Dense(config, sums=False)

    def forward(self, x, plan):
        y = self.specialists(x, self.picker(x)) + self.common(x)
        if self.mesh.home_count > 1 and not self.policy.sum_is_elsewhere(plan, slices=False):
            y = self.mesh.sum_homes(y)
        if self.mesh.slice_count > 1 and not self.policy.sum_is_elsewhere(plan, slices=True):
            y = self.mesh.sum_slices(y)
        return y


class Layer:
    def __init__(self, config, index, mesh):
        policy = LayerPolicy(index, config)
        self.attention = Attention(config, mesh)
        self.mixture = Mixture(config, policy, mesh)
        self.seam = Seam(policy, mesh, Norm(config), allow_scatter=True, final=index == config.layer_count - 1)

    def forward(self, x, residual, batch):
        x, residual = self.seam.enter(x, residual)
        x = self.attention(x, batch)
        plan = StepPlan(deferred=self.seam.may_defer(batch), scattered=self.seam.may_scatter(batch))
        x = self.mixture(x, plan)
        if plan.deferred:
            x._owes_sum = True
        else:
            x, residual = self.seam.leave(x, residual, batch)
        return x, residual
""",
}
EP = "self.mesh.home_count > 1 and not self.policy.sum_is_elsewhere(plan, slices=False)"
TP = "self.mesh.slice_count > 1 and not self.policy.sum_is_elsewhere(plan, slices=True)"
SUM = f"        if {TP}:\n            y = self.mesh.sum_slices(y)\n"
PLAN = "plan = StepPlan(deferred=self.seam.may_defer(batch), scattered=self.seam.may_scatter(batch))"
CALL = "        x = self.mixture(x, plan)\n"
LAST = ", final=index == config.layer_count - 1"
#: what is wrong -> the edits that make it so, and the rules that say it
ORBIT_BUGS: dict[str, tuple[list[Edit], set[str]]] = {
    "guard-drifts": ([(EP, "self.mesh.home_count > 1 and not plan.deferred")], {"MOE001", "MOE101"}),
    "no-guard": ([(TP, "self.mesh.slice_count > 1")], {"MOE002"}),
    "other-axis": ([(TP, TP.replace("True", "False"))], {"MOE004"}),
    "helper-not-followed": ([(TP, TP.replace("and not", "or not"))], {"MOE002"}),
    "summed-twice": ([("        return y\n", "        return self.mesh.sum_slices(y)\n")], {"MOE002", "MOE309"}),
    "summed-by-the-layer-too": (
        [(CALL, f"{CALL}        if not plan.deferred:\n            x = self.mesh.sum_slices(x)\n")],
        {"MOE001", "MOE309"},
    ),
    "summed-by-nobody": (
        [(SUM, ""), (f"        if {EP}:\n            y = self.mesh.sum_homes(y)\n", "")],
        {"MOE304"},
    ),
    "path-without-a-sum": (
        [("        y = ", "        if x.shape[0] == 1:\n            return self.specialists(x, None)\n        y = ")],
        {"MOE307"},
    ),
    "experts-sum-too": ([("mesh, sums=False", "mesh, sums=True")], {"MOE306"}),
    "plan-not-handed-on": ([(CALL, "        x = self.mixture(x, StepPlan())\n")], {"MOE201"}),
    "flag-left-out-of-the-plan": ([(PLAN, "plan = StepPlan(deferred=self.seam.may_defer(batch))")], {"MOE204"}),
    "deferred-and-not-marked": ([("            x._owes_sum = True\n", "            pass\n")], {"MOE301"}),
    "last-layer-defers": ([(LAST, "")], {"MOE302"}),
    "marked-and-not-summed": ([("self.norm.with_sum(x, residual)", "self.norm(x, residual)")], {"MOE407"}),
}
LATER = "plan = StepPlan()\n        plan.deferred = self.seam.may_defer(batch)\n        plan.scattered = self.seam.may_"
ORBIT_HARMLESS: dict[str, list[Edit]] = {
    "as-it-is": [],
    "early-return": [
        (
            SUM,
            "        if self.mesh.slice_count == 1 or self.policy.sum_is_elsewhere(plan, slices=True):\n"
            "            return y\n        y = self.mesh.sum_slices(y)\n",
        )
    ],
    "in-a-method": [
        (SUM, "        y = self.finish(y, plan)\n"),
        ("    def forward(self, x, plan):\n", f"    def finish(self, y, plan):\n{SUM}        return y\n\n"),
        ("        y = self.specialists", "    def forward(self, x, plan):\n        y = self.specialists"),
    ],
    "in-a-function-inside": [
        ("self.specialists(x, self.picker(x)) +", "routed() +"),
        (
            "        y = routed",
            "        def routed():\n            return self.specialists(x, self.picker(x))\n\n        y = routed",
        ),
    ],
    "flags-in-locals": [
        (
            PLAN,
            "deferred = self.seam.may_defer(batch)\n        scattered = self.seam.may_scatter(batch)\n"
            "        plan = StepPlan(deferred=deferred, scattered=scattered)",
        )
    ],
    "flags-set-later": [(PLAN, f"{LATER}scatter(batch)")],
    "flags-by-position": [(PLAN, "plan = StepPlan(self.seam.may_defer(batch), self.seam.may_scatter(batch))")],
    "plan-on-the-spot": [
        (CALL, f"        x = self.mixture(x, {PLAN.removeprefix('plan = ')})\n"),
        (f"        {PLAN}\n", ""),
        ("if plan.deferred:", "if self.seam.may_defer(batch):"),
    ],
    "plan-by-keyword": [(CALL, "        x = self.mixture(x, plan=plan)\n")],
    "no-scatter-permitted": [("allow_scatter=True, ", "")],
    "nobody-absorbs": [
        (f"        self.seam = Seam(policy, mesh, Norm(config), allow_scatter=True{LAST})\n", ""),
        ("        x, residual = self.seam.enter(x, residual)\n", ""),
        (PLAN, "plan = StepPlan()"),
        (
            "        if plan.deferred:\n            x._owes_sum = True\n        else:\n    ",
            "        if batch.rows:\n    ",
        ),
        ("self.seam.leave(x, residual, batch)", "x, residual"),
    ],
}

FUGUE_PROFILE = """\
name = "fugue"
[collectives]
psum_tp = "TP"
psum_ep = "EP"
[helper]
name = "nobody_sums_here"
axis_parameter = "axis_is_tp"
[experts]
functions = ["expert_mlp"]
shared = ["shared*"]
barriers = ["attend", "norm", "route"]
[absorbers]
constructors = ["after_block"]
who = "what follows the block"
scatters = ["psum_scatter_tp"]
plain_scatters = ["slice_rows"]
[topology]
sizes = ["tp_size(*)", "ep_size(*)"]
[context]
markers = ["owes_sum"]
[[flags]]
name = "fused_add"
predicate = "can_fuse_add"
absorber = "the next add"
[launch]
groups = { TP = "tp", EP = "ep" }
[[launch.sizes]]
name = "tp"
option = "--tp {}"
names = ["tp_size(*)"]
[[launch.sizes]]
name = "ep"
option = "--ep {}"
names = ["ep_size(*)"]
"""
FUGUE = {
    "own.py": """\
from fugue.settings import settings


def exchange_sums():
    return settings.exchange == "sum"


def nobody_sums_here(axis_is_tp, fused_add=False):
    if fused_add or exchange_sums():
        return True
    return axis_is_tp and settings.sequence_parallel
""",
    "step.py": """\
from fugue.comm import psum_scatter_tp, psum_tp, slice_rows
from fugue.settings import settings


def can_fuse_add(batch, last):
    return batch.rows < 64 and not last


def after_block(x, residual, ctx):
    if settings.sequence_parallel:
        x = psum_scatter_tp(x, ctx)
        residual = slice_rows(residual, ctx)
    return x, residual
""",
    "models/one.py": """\
from fugue.comm import ep_size, psum_ep, psum_tp, tp_size
from fugue.kernels import attend, expert_mlp, shared_mlp
from fugue.own import exchange_sums, nobody_sums_here
from fugue.step import after_block, can_fuse_add


def moe(x, weights, ctx, fused_add=False):
    picks = route(x, weights.router)
    y = expert_mlp(x, weights.experts, picks)
    y = y + shared_mlp(x, weights.shared, ctx)
    if ep_size(ctx) > 1 and not nobody_sums_here(False, fused_add=fused_add):
        y = psum_ep(y, ctx)
    if tp_size(ctx) > 1 and not nobody_sums_here(True, fused_add=fused_add):
        y = psum_tp(y, ctx)
    return y


def layer(x, residual, weights, batch, ctx, last):
    x = attend(x, weights.attention, batch)
    fused_add = can_fuse_add(batch, last)
    x = moe(x, weights.moe, ctx, fused_add=fused_add)
    if fused_add:
        x.owes_sum = True
    else:
        x, residual = after_block(x, residual, ctx)
    return x, residual
""",
}
F_EP = "ep_size(ctx) > 1 and not nobody_sums_here(False, fused_add=fused_add)"
F_TP = "tp_size(ctx) > 1 and not nobody_sums_here(True, fused_add=fused_add)"
F_SUM = f"    if {F_TP}:\n        y = psum_tp(y, ctx)\n"
F_CALL = "    x = moe(x, weights.moe, ctx, fused_add=fused_add)\n"
FUGUE_BUGS: dict[str, tuple[list[Edit], set[str]]] = {
    "guard-drifts": ([(F_EP, "ep_size(ctx) > 1 and not fused_add")], {"MOE001", "MOE101"}),
    "sequence-parallel-forgotten": (
        [(F_TP, "tp_size(ctx) > 1 and not fused_add and not exchange_sums()")],
        {"MOE001"},
    ),
    "no-guard": ([(F_TP, "tp_size(ctx) > 1")], {"MOE002"}),
    "flag-forgotten": ([(F_TP, "tp_size(ctx) > 1 and not nobody_sums_here(True)")], {"MOE005", "MOE101"}),
    "flag-a-constant": ([(F_TP, F_TP.replace("=fused_add", "=True"))], {"MOE006"}),
    "other-axis": ([(F_TP, F_TP.replace("True", "False"))], {"MOE004"}),
    "summed-twice": ([("    return y\n", "    return psum_tp(y, ctx)\n")], {"MOE002", "MOE309"}),
    "summed-by-the-layer-too": ([(F_CALL, f"{F_CALL}    x = psum_tp(x, ctx)\n")], {"MOE002"}),
    "shared-experts-summed-before": (
        [("shared_mlp(x, weights.shared, ctx)", "psum_tp(shared_mlp(x, weights.shared, ctx), ctx)")],
        {"MOE309"},
    ),
    "input-in-the-sum": ([("y + shared_mlp", "y + x + shared_mlp")], {"MOE311"}),
}
FUGUE_HARMLESS: dict[str, list[Edit]] = {
    "as-it-is": [],
    "early-return": [
        (
            F_SUM,
            "    if tp_size(ctx) == 1 or nobody_sums_here(True, fused_add=fused_add):\n        return y\n"
            "    y = psum_tp(y, ctx)\n",
        )
    ],
    "in-a-local": [
        (
            F_SUM,
            "    ranks, skip = tp_size(ctx), nobody_sums_here(True, fused_add=fused_add)\n"
            "    if ranks > 1 and not skip:\n        y = psum_tp(y, ctx)\n",
        )
    ],
    "in-a-function": [
        (F_SUM, "    y = finish(y, ctx, fused_add)\n"),
        ("def moe(", f"def finish(y, ctx, fused_add):\n{F_SUM}    return y\n\n\ndef moe("),
    ],
    "in-a-function-inside": [
        (F_SUM, f"\n    def finish():\n        return psum_tp(y, ctx) if {F_TP} else y\n\n    y = finish()\n")
    ],
    "ternary": [(F_SUM, f"    y = psum_tp(y, ctx) if {F_TP} else y\n")],
    "by-position": [(F_CALL, "    x = moe(x, weights.moe, ctx, fused_add)\n")],
}


def write(root: Path, name: str, files: dict[str, str], profile: str) -> None:
    for path, text in {**files, "__init__.py": "", "models/__init__.py": ""}.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_text(text)
    (root / "own.toml").write_text(profile)


def findings(root: Path, name: str, files: dict[str, str], profile: str, edits: list[Edit]) -> set[str]:
    """The rules with a finding in an engine after some edits, each made where its text first stands, models first."""
    files = dict(files)
    for old, new in edits:
        path = next(path for path in sorted(files, key=lambda path: "models" not in path) if old in files[path])
        files[path] = files[path].replace(old, new, 1)
    write(root, name, files, profile)
    told = document("json", "--no-cache", "--profile", str(root / "own.toml"), str(root / name))
    assert told["skipped"] == []
    return {finding["rule"] for finding in told["findings"]}


@pytest.mark.parametrize(("edits", "rules"), ORBIT_BUGS.values(), ids=ORBIT_BUGS)
def test_a_bug_in_an_engine_of_objects_is_found(tmp_path: Path, edits: list[Edit], rules: set[str]) -> None:
    assert findings(tmp_path, "orbit", ORBIT, ORBIT_PROFILE, edits) == rules


@pytest.mark.parametrize("edits", ORBIT_HARMLESS.values(), ids=ORBIT_HARMLESS)
def test_what_changes_nothing_in_an_engine_of_objects_is_not_reported(tmp_path: Path, edits: list[Edit]) -> None:
    assert findings(tmp_path, "orbit", ORBIT, ORBIT_PROFILE, edits) == set()


@pytest.mark.parametrize(("edits", "rules"), FUGUE_BUGS.values(), ids=FUGUE_BUGS)
def test_a_bug_in_an_engine_of_functions_is_found(tmp_path: Path, edits: list[Edit], rules: set[str]) -> None:
    assert findings(tmp_path, "fugue", FUGUE, FUGUE_PROFILE, edits) == rules


@pytest.mark.parametrize("edits", FUGUE_HARMLESS.values(), ids=FUGUE_HARMLESS)
def test_what_changes_nothing_in_an_engine_of_functions_is_not_reported(tmp_path: Path, edits: list[Edit]) -> None:
    assert findings(tmp_path, "fugue", FUGUE, FUGUE_PROFILE, edits) == set()


@pytest.mark.parametrize("name", ["guard-drifts", "no-guard", "other-axis"])
@pytest.mark.parametrize("engine", ["orbit", "fugue"])
def test_a_fix_asks_as_the_engine_does(tmp_path: Path, engine: str, name: str) -> None:
    bugs, files, profile, asked = {
        "orbit": (ORBIT_BUGS, ORBIT, ORBIT_PROFILE, r"not self\.policy\.sum_is_elsewhere\(\s*(plan,|.*plan=plan)"),
        "fugue": (FUGUE_BUGS, FUGUE, FUGUE_PROFILE, r"not nobody_sums_here\(.*fused_add=fused_add"),
    }[engine]
    assert findings(tmp_path, engine, files, profile, bugs[name][0])
    result = moe_lint("--fix", "--no-cache", "--profile", str(tmp_path / "own.toml"), str(tmp_path / engine))
    text = (tmp_path / engine / "models" / "one.py").read_text()
    assert result.exit_code == 0, result.output
    assert len(re.findall(asked, text)) == 2
    compile(text, "one.py", "exec")


NO_HELPER = '[helper]\nname = "nobody_sums_here"\naxis_parameter = "axis_is_tp"\n'
SKIPS = '[predicates]\nskip = ["exchange_sums", "rows_are_split"]\n'


def test_an_engine_without_a_helper_gets_one_and_its_guards_ask_it(tmp_path: Path) -> None:
    own = FUGUE["own.py"].split("def nobody_sums_here")[0]
    own += "def rows_are_split():\n    return settings.sequence_parallel\n"
    text = FUGUE["models/one.py"].replace("exchange_sums, nobody_sums_here", "exchange_sums, rows_are_split")
    text = text.replace(F_EP, "ep_size(ctx) > 1 and not fused_add and not exchange_sums()")
    right = text.replace(F_TP, "tp_size(ctx) > 1 and not (fused_add or exchange_sums() or rows_are_split())")
    wrong = text.replace(F_TP, "tp_size(ctx) > 1 and not fused_add and not exchange_sums()")
    files = {**FUGUE, "own.py": own, "models/one.py": right, "models/two.py": wrong}
    for number, helper in enumerate(("", NO_HELPER, '[helper]\nname = "nobody_sums_here"\n')):
        root = tmp_path / str(number)
        write(root, "fugue", files, FUGUE_PROFILE.replace(NO_HELPER, helper + SKIPS))
        where = ("--profile", str(root / "own.toml"), str(root / "fugue"))
        told = document("json", "--no-cache", *where)["findings"]
        assert [(Path(f["path"]).stem, f["relation"]) for f in told] == [
            *[("one", "equal")] * 2,
            ("two", "equal"),  # what splits the rows is asked about TP sums alone
            ("two", "weaker"),
        ]
        assert moe_lint("init", *where).exit_code == 0
        assert moe_lint("--fix", "--no-cache", *where).exit_code == 0
        name = "experts_are_summed_elsewhere" if not helper else "nobody_sums_here"
        assert (root / "fugue" / "own.py").read_text().count(f"def {name}(") == 1
        assert (root / "fugue" / "models" / "two.py").read_text().count(f"not {name}(") == 2
