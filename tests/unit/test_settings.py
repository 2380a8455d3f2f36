from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.errors import InputError, MissingInputError, UsageError
from mpipar.folder_settings import CheckSettings
from mpipar.options import read_settings_file, seconds_of, toml_values
from mpipar.settings import RefineSettings, RunSettings

GIVEN = {"input": "particles.star", "model": "init.mrc"}

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
sizes = st.none() | st.floats(0.5, 1e6)
settings = st.builds(
    RefineSettings,
    input=texts.map(Path),
    model=texts.map(Path),
    mask=st.none() | texts.map(Path),
    sym=texts,
    iter=st.integers(1, 10**6),
    diameter=sizes.filter(lambda size: size is None or size >= 1),
    targetres=sizes,
    seed=st.integers(0, 2**63 - 1),
    resume=st.booleans(),
    verbose=st.integers(-1, 9),
)


@given(settings)
def test_toml_round_trip_keeps_every_value(before):
    after = RefineSettings.from_mapping(toml_values(before.to_toml(), "refine", "settings"))
    assert after.to_mapping() == before.to_mapping()


def test_text_becomes_the_declared_type():
    made = RefineSettings.from_mapping({**GIVEN, "iter": "7", "diameter": "150", "cache": "64"})
    assert (made.input, made.iter, made.diameter, made.cache) == (
        Path("particles.star"),
        7,
        150.0,
        64,
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"iter": 0}, "--iter 0: must be at least 1"),
        ({"iter": "x"}, "--iter 'x': must be a whole number"),
        ({"iter": 2.5}, "--iter 2.5: must be a whole number"),
        ({"iter": True}, "--iter True: must be a whole number"),
        ({"diameter": "nan"}, "--diameter nan: must be a finite number"),
        ({"diameter": 0.5}, "--diameter 0.5: must be at least 1 A"),
        ({"apix": -1.0}, "--apix -1.0: must be at least 0.01 A"),
        ({"input": ""}, "--input '': must be a path"),
        ({"input": 3}, "--input 3: must be a path"),
        ({"path": "a\0b"}, r"--path 'a\x00b': must be a path, which has no zero bytes"),
        ({"resume": "yes"}, "--resume 'yes': must be true or false"),
    ],
)
def test_wrong_value_is_named_with_its_flag_and_bound(wrong, said):
    with pytest.raises(UsageError) as caught:
        RefineSettings.from_mapping({**GIVEN, **wrong})
    assert str(caught.value) == said


def test_input_and_model_are_required_unless_resumed():
    with pytest.raises(UsageError, match="--model is required"):
        RefineSettings.from_mapping({"input": "particles.star"})
    assert RefineSettings.from_mapping({"resume": True}).model is None


def test_required_option_is_missed():
    with pytest.raises(UsageError, match="path is required"):
        CheckSettings.from_mapping({})


def test_unknown_name_gets_a_hint():
    with pytest.raises(UsageError, match=r"no option 'diametr'; did you mean diameter\?"):
        RefineSettings.from_mapping({**GIVEN, "diametr": 3})


def test_saved_paths_are_absolute():
    saved = RefineSettings.from_mapping(GIVEN).to_mapping()
    assert saved["input"] == str(Path("particles.star").absolute())
    assert "mask" not in saved


def test_resumed_run_keeps_its_settings_and_takes_what_may_change():
    saved = RefineSettings.from_mapping({**GIVEN, "sym": "d7", "iter": 5}).to_mapping()
    now = RefineSettings.from_mapping({"resume": True, "iter": 9, "threads": 2})
    made = now.resumed_from(saved, where="refine_01")
    assert (made.sym, made.iter, made.threads, made.resume) == ("d7", 9, 2, True)
    assert made.input == Path("particles.star").absolute()


def test_resumed_run_refuses_what_must_not_change():
    saved = RefineSettings.from_mapping(GIVEN).to_mapping()
    same = RefineSettings.from_mapping({**GIVEN, "resume": True})
    assert same.resumed_from(saved, where="refine_01").sym == "c1"
    other = RefineSettings.from_mapping({"resume": True, "sym": "d7"})
    with pytest.raises(UsageError, match="--sym d7: refine_01 was started with --sym c1"):
        other.resumed_from(saved, where="refine_01")


def test_every_option_has_help_and_a_frozen_value():
    for name in RefineSettings.options():
        assert RefineSettings.option_of(name).help
    made = RefineSettings.from_mapping(GIVEN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, "iter", 3)  # noqa: B010  # mypy knows as well that it cannot be set


def test_settings_file_takes_top_level_and_the_command_s_table(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('sym = "c1"\niter = 3\n[refine]\nsym = "d7"\n[check]\npath = "x"\n')
    assert read_settings_file(file, "refine") == {"sym": "d7", "iter": 3}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_settings_file_may_have_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "settings.toml").write_text('sym = "d7"\n', encoding=encoding)
    assert read_settings_file(tmp_path / "settings.toml", "refine") == {"sym": "d7"}


def test_a_name_that_is_not_utf_8_comes_back(tmp_path):
    name = "/data/caf\udce9/p.star"
    made = RefineSettings.from_mapping({**GIVEN, "input": name})
    file = tmp_path / "settings.toml"
    file.write_bytes(made.to_toml().encode("utf-8", "surrogateescape"))
    assert read_settings_file(file, "refine")["input"] == name


def test_settings_file_that_is_missing_or_no_toml(tmp_path):
    with pytest.raises(MissingInputError, match="No such file"):
        read_settings_file(tmp_path / "none.toml", "refine")
    (tmp_path / "bad.toml").write_text("iter 3")
    with pytest.raises(InputError, match="not valid TOML"):
        read_settings_file(tmp_path / "bad.toml", "refine")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_settings_file(tmp_path / "binary.toml", "refine")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172800),
    ],
)
def test_times(text, seconds):
    assert seconds_of("--timeout", text) == seconds


@pytest.mark.parametrize("text", ["0", "-5", "5x", "10 m", "m", "1h30", "nan", "1e9", "5m!", "0s"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match=r"--timeout .*: must be a time such as"):
        seconds_of("--timeout", text)


def test_all_options_of_run_may_change_when_it_is_resumed():
    assert all(RunSettings.option_of(name).changeable for name in RunSettings.options())
