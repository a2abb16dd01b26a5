"""Profiles: loading, extending, merging, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.profile import Profile, ProfileError, bundled_profiles, load_profile, matches

SMALL = """
name = "small"
[collectives]
sum_all = "TP"
[helper]
name = "skip"
"""


def write(folder: Path, text: str, name: str = "own.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def error_of(reference: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(reference)
    return str(caught.value)


def wrong(folder: Path, text: str) -> tuple[str, str]:
    """(path, message without the path) of a profile that must be refused."""
    path = write(folder, text)
    message = error_of(path)
    assert message.startswith(f"{path}: ")
    return path, message.removeprefix(f"{path}: ")


# --- bundled


@pytest.mark.parametrize("name", bundled_profiles())
def test_every_bundled_profile_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.collectives
    assert profile.helper


def test_the_sglang_profile_knows_the_collectives_and_their_axes() -> None:
    profile = load_profile("sglang")
    assert profile.collectives["tensor_model_parallel_all_reduce"] == "TP"
    assert profile.collectives["moe_tensor_model_parallel_all_reduce"] == "TP"
    assert profile.collectives["moe_expert_parallel_all_reduce"] == "EP"
    assert profile.helper == "should_skip_post_experts_all_reduce"
    assert profile.axis_parameter == "is_tp_path"


def test_the_sglang_profile_knows_the_two_flags() -> None:
    names = load_profile("sglang").flag_names
    assert set(names.values()) == {"should_allreduce_fusion", "use_reduce_scatter"}
    assert all(names[name] == name for name in names.values())


def test_what_sums_in_place_of_a_block_stays_where_a_tree_spells_another_flag_only() -> None:
    profile = load_profile("sglang").within(lambda name: name == "use_reduce_scatter")
    assert [flag.name for flag in profile.flags] == ["use_reduce_scatter"]
    assert profile.summing == ("forward_with_allreduce_fusion",)


# --- what a minimal profile is


def test_a_profile_needs_collectives_and_a_helper_only(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, SMALL))
    assert profile == Profile(
        name="small",
        collectives={"sum_all": "TP"},
        helpers=("skip",),
        axis_parameter="",
        wrappers=(),
        flags=(),
        summing=(),
        skip_predicates=(),
        publishers=(),
        markers=(),
        ownership=(),
        absorber_constructors=(),
        scatters=(),
        plain_scatters=(),
        combines=(),
        absorber="whoever absorbs the reduction there",
        last_stage=(),
        send=(),
        captures=(),
        heads=(),
        pipeline_option="",
        reducing=(),
        replicating=(),
        expert_attributes=(),
        expert_functions=(),
        expert_constructors=(),
        expert_exclude=(),
        shared_element=None,
        shared=(),
        barriers=(),
        other_layers=(),
        sizes=(),
        backend_getter="",
        backend_enum="",
    )


def test_a_profile_without_a_name_is_named_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace('name = "small"', "", 1))
    assert load_profile(path).name == path


def test_every_axis_is_accepted(tmp_path: Path) -> None:
    text = '[collectives]\na = "TP"\nb = "EP"\nc = "other"\n[helper]\nname = "skip"\n'
    assert load_profile(write(tmp_path, text)).collectives == {"a": "TP", "b": "EP", "c": "other"}


def test_the_spellings_of_a_flag_mean_the_flag(tmp_path: Path) -> None:
    text = (
        SMALL + '[[flags]]\nname = "fused"\naliases = ["fuse", "fusing"]\npredicate = "should_fuse"\nabsorber = "it"\n'
    )
    profile = load_profile(write(tmp_path, text))
    assert profile.flag_names == {"fused": "fused", "fuse": "fused", "fusing": "fused"}
    assert (profile.flags[0].predicate, profile.flags[0].absorber) == ("should_fuse", "it")


def test_a_flag_needs_no_more_than_a_name(tmp_path: Path) -> None:
    flag = load_profile(write(tmp_path, SMALL + '[[flags]]\nname = "fused"\n')).flags[0]
    assert (flag.aliases, flag.predicate, flag.absorber) == ((), "", "an absorber downstream")


# --- patterns


@pytest.mark.parametrize(
    ("name", "patterns", "wanted"),
    [
        ("experts", ("experts",), True),
        ("text_experts", ("*_experts",), True),
        ("Experts", ("experts",), False),
        ("experts_", ("experts",), False),
        ("x", (), False),
        ("", (), False),
        ("b", ("a", "b"), True),
        ("LinearX", ("*Linear[A-Z]*",), True),
    ],
)
def test_names_match_patterns_as_a_whole_and_case_counts(name: str, patterns: tuple[str, ...], wanted: bool) -> None:
    assert matches(name, patterns) is wanted


def test_excluded_names_are_no_experts(tmp_path: Path) -> None:
    text = SMALL + '[experts]\nattributes = ["*experts"]\nfunctions = ["run_*"]\nexclude = ["shared_*", "run_gate"]\n'
    profile = load_profile(write(tmp_path, text))
    assert profile.is_expert_attribute("experts")
    assert not profile.is_expert_attribute("shared_experts")
    assert profile.is_expert_function("run_core")
    assert not profile.is_expert_function("run_gate")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("self.tp_size", True),
        ("get_parallel().tp_size", True),
        ("tp_size", True),
        ("world()", True),
        ("group.world()", True),
        ("self.tp_size_x", False),
        ("tp_size.x", False),
    ],
)
def test_a_size_is_told_by_its_last_name(tmp_path: Path, text: str, wanted: bool) -> None:
    profile = load_profile(write(tmp_path, SMALL + '[topology]\nsizes = ["tp_size", "world()"]\n'))
    assert profile.is_size(text) is wanted


# --- extending


def test_a_profile_extends_a_bundled_one_by_name(tmp_path: Path) -> None:
    base = load_profile("sglang")
    own = load_profile(write(tmp_path, 'name = "fork"\nextends = "sglang"\n[collectives]\nmy_reduce = "EP"\n'))
    assert own.name == "fork"
    assert own.helper == base.helper
    assert own.collectives == {**base.collectives, "my_reduce": "EP"}
    assert own.sizes == base.sizes


def test_a_profile_extends_a_file_by_path(tmp_path: Path) -> None:
    base = write(tmp_path, SMALL, "base.toml")
    own = load_profile(write(tmp_path, f'extends = "{base}"\n[helper]\naxis_parameter = "tp"\n'))
    assert (own.name, own.helper, own.axis_parameter) == ("small", "skip", "tp")


def test_a_profile_extends_over_several_files(tmp_path: Path) -> None:
    first = write(tmp_path, SMALL, "first.toml")
    second = write(tmp_path, f'extends = "{first}"\n[collectives]\nb = "EP"\n', "second.toml")
    own = load_profile(write(tmp_path, f'extends = "{second}"\n[collectives]\nc = "other"\n'))
    assert own.collectives == {"sum_all": "TP", "b": "EP", "c": "other"}


def test_a_file_extends_another_beside_it_wherever_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "profiles", SMALL, "base.toml")
    own = write(tmp_path / "profiles", 'extends = "./base.toml"\n[helper]\naxis_parameter = "tp"\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_profile(own).helper == "skip"


BASE = (
    SMALL
    + """
[topology]
sizes = ["a", "b"]
[[flags]]
name = "one"
aliases = ["uno"]
[[flags]]
name = "two"
predicate = "should_two"
"""
)


def extended(folder: Path, text: str) -> Profile:
    base = write(folder, BASE, "base.toml")
    return load_profile(write(folder, f'extends = "{base}"\n{text}'))


def test_lists_are_appended_to_without_repetitions(tmp_path: Path) -> None:
    assert extended(tmp_path, '[topology]\nsizes = ["b", "c"]\n').sizes == ("a", "b", "c")


def test_strings_are_replaced(tmp_path: Path) -> None:
    own = extended(tmp_path, 'name = "other"\n[helper]\nname = "skip_too"\n')
    assert (own.name, own.helper) == ("other", "skip_too")


def test_an_axis_is_replaced(tmp_path: Path) -> None:
    assert extended(tmp_path, '[collectives]\nsum_all = "EP"\n').collectives == {"sum_all": "EP"}


def test_a_new_flag_is_added(tmp_path: Path) -> None:
    assert [f.name for f in extended(tmp_path, '[[flags]]\nname = "three"\n').flags] == ["one", "two", "three"]


def test_a_flag_of_the_same_name_is_merged(tmp_path: Path) -> None:
    own = extended(tmp_path, '[[flags]]\nname = "one"\naliases = ["eins"]\nabsorber = "x"\n')
    one, two = own.flags
    assert (one.name, one.aliases, one.absorber, two.name) == ("one", ("uno", "eins"), "x", "two")


def test_of_the_base_a_tree_knows_what_it_spells(tmp_path: Path) -> None:
    text = '[collectives]\nown_sum = "TP"\n[[flags]]\nname = "zwei"\npredicate = "should_two"\n'
    own = extended(tmp_path, f'{text}[context]\nmarkers = ["owes"]\n')
    words = {"own_sum", "zwei", "should_two"}
    within = own.within(words.__contains__)
    assert ([f.name for f in within.flags], dict(within.collectives), within.markers) == (
        ["zwei"],
        {"own_sum": "TP"},
        (),
    )


def test_the_flags_stay_known_to_a_tree_that_spells_none(tmp_path: Path) -> None:
    assert [f.name for f in extended(tmp_path, "").within({"sum_all"}.__contains__).flags] == ["one", "two"]


def test_a_flag_that_a_tree_does_not_spell_is_known_by_its_question(tmp_path: Path) -> None:
    assert [f.name for f in extended(tmp_path, "").within({"should_two"}.__contains__).flags] == ["two"]


# --- errors


def test_an_unknown_profile_lists_the_bundled_ones() -> None:
    message = error_of("sglagn")
    assert message.startswith("unknown profile 'sglagn': bundled are ")
    assert "sglang" in message
    assert message.endswith("; a file is given by its path (*.toml)")


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    assert error_of(path) == f"{path}: cannot read the profile: No such file or directory"


def test_a_path_that_holds_a_null_character_and_toml_that_nests_too_deeply_are_refused(tmp_path: Path) -> None:
    assert error_of("a\0.toml").startswith("a\0.toml: cannot read the profile: embedded null ")
    _, message = wrong(tmp_path, f"name = {'[' * 6000}{']' * 6000}")
    assert message == "nested too deeply to be read"


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    assert error_of(str(tmp_path)) == f"{tmp_path}: cannot read the profile: Is a directory"


def test_bad_toml_says_where(tmp_path: Path) -> None:
    _, message = wrong(tmp_path, "name = \n")
    assert message.startswith("not valid TOML: ")
    assert "line 1" in message


def test_a_file_that_is_not_utf8_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(b'name = "\xff"\n')
    assert error_of(str(path)).startswith(f"{path}: not valid TOML: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[helpers]\nname = "x"\n', "unknown key 'helpers'; did you mean 'helper'?"),
        ('[helper]\nnmae = "x"\n', "unknown key 'helper.nmae'; did you mean 'helper.name'?"),
        ('[experts]\nattribute = ["x"]\n', "unknown key 'experts.attribute'; did you mean 'experts.attributes'?"),
        ('[[flags]]\nname = "x"\nalias = ["y"]\n', "unknown key 'flags.alias'; did you mean 'flags.aliases'?"),
        ("zzzz = 1\n", "unknown key 'zzzz'"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion_when_one_is_close(tmp_path: Path, text: str, message: str) -> None:
    assert wrong(tmp_path, text)[1] == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1\n", "name must be a string"),
        ('extends = ["sglang"]\n', "extends must be a string"),
        ('collectives = ["x"]\n', "collectives must be a table"),
        ('helper = "skip"\n', "helper must be a table"),
        ("[helper]\nname = true\n", "helper.name must be a string or a list of strings"),
        ('[helper]\nwrappers = "x"\n', "helper.wrappers must be a list of strings"),
        ("[topology]\nsizes = [1]\n", "topology.sizes must be a list of strings"),
        ('flags = ["x"]\n', "flags must be an array of tables ([[flags]])"),
        ('[flags]\nname = "x"\n', "flags must be an array of tables ([[flags]])"),
        ('[[flags]]\nname = "x"\naliases = "y"\n', "flags.aliases must be a list of strings"),
        ("[[flags]]\nname = 3\n", "flags.name must be a string"),
        ('[[flags]]\naliases = ["x"]\n', "a flag has no name"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_wanted(tmp_path: Path, text: str, message: str) -> None:
    assert wrong(tmp_path, text)[1] == message


def test_an_unknown_axis_lists_the_axes(tmp_path: Path) -> None:
    _, message = wrong(tmp_path, '[collectives]\nsum_all = "DP"\n')
    assert message == "collectives.sum_all = 'DP': an axis is one of TP, EP, other"


@pytest.mark.parametrize("axis", ["1", '["TP"]', '{ axis = "TP" }'])
def test_an_axis_that_is_no_string_is_refused_like_an_unknown_one(tmp_path: Path, axis: str) -> None:
    _, message = wrong(tmp_path, f"[collectives]\nsum_all = {axis}\n")
    assert message.startswith("collectives.sum_all")


@pytest.mark.parametrize("text", ['[helper]\nname = "skip"\n', '[collectives]\n[helper]\nname = "skip"\n'])
def test_a_profile_without_collectives_is_refused(tmp_path: Path, text: str) -> None:
    message = "a profile needs [collectives]: at least one reduction and its axis"
    assert wrong(tmp_path, text)[1] == message


@pytest.mark.parametrize("name", ['""', '["skip", ""]'])
def test_an_empty_name_of_the_helper_is_refused(tmp_path: Path, name: str) -> None:
    message = "helper.name is empty: leave it out where nothing decides for all blocks"
    assert wrong(tmp_path, f'[collectives]\nx = "TP"\n[helper]\nname = {name}\n')[1] == message


@pytest.mark.parametrize("helper", ["", "[helper]\n"])
def test_a_profile_may_name_no_helper(tmp_path: Path, helper: str) -> None:
    assert load_profile(write(tmp_path, f'[collectives]\nx = "TP"\n{helper}')).names_no_helper


def test_a_profile_that_extends_itself_is_a_circle(tmp_path: Path) -> None:
    path = str(tmp_path / "own.toml")
    _, message = wrong(tmp_path, f'extends = "{path}"\n')
    assert message == f"profiles extend each other in a circle: {path} -> {path}"


def test_profiles_that_extend_each_other_are_a_circle(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one.toml"), str(tmp_path / "two.toml")
    write(tmp_path, f'extends = "{two}"\n', "one.toml")
    write(tmp_path, f'extends = "{one}"\n', "two.toml")
    assert error_of(one) == f"{one}: profiles extend each other in a circle: {one} -> {two} -> {one}"


def test_an_error_in_the_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, "zzzz = 1\n", "base.toml")
    assert error_of(write(tmp_path, f'extends = "{base}"\n')) == f"{base}: unknown key 'zzzz'"


def test_an_unknown_base_is_refused(tmp_path: Path) -> None:
    assert "own.toml: extends: unknown profile 'nobody'" in error_of(write(tmp_path, 'extends = "nobody"\n'))
