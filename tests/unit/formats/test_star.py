"""Particle STAR files: two generations, what is wrong is named, writing keeps all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpipar.errors import InputError, MissingInputError, MpiparError
from mpipar.formats.particles import ParticleSet
from mpipar.formats.star import read_particles, write_particles
from mpipar.formats.tables import read_tables
from tests.support.blocks import (
    noise_images,
    old_columns,
    optics_columns,
    particle_columns,
    write_mrc,
    write_star,
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a stack of 8 images, as current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    write_mrc(folder / "particles.mrcs", noise_images(8, 16))
    monkeypatch.chdir(folder)
    return folder


def new_star(optics: Any = None, **columns: Any) -> Path:
    tables = {"optics": optics or optics_columns(), "particles": particle_columns(4, **columns)}
    return write_star(Path("particles.star"), tables)


def old_star(**columns: Any) -> Path:
    return write_star(Path("particles.star"), {"": old_columns(4, **columns)})


def write_again(particles: ParticleSet, path: Path, **changes: Any) -> None:
    poses: dict[str, Any] = {
        "angles": np.zeros((particles.count, 3)),
        "origins": np.zeros((particles.count, 2)),
        "half": np.ones(particles.count, int),
    }
    write_particles(path, particles, **{**poses, **changes})


def test_a_new_file_is_read(project: Path) -> None:
    particles = read_particles(new_star(rlnRandomSubset=[1, 2, 2, 1]))
    assert particles.count == 4
    assert particles.stacks == (project / "particles.mrcs",)
    assert particles.slice.tolist() == [0, 1, 2, 3]
    assert particles.voltage.tolist() == [300] * 4
    assert particles.spherical_aberration.tolist() == [2.7] * 4
    assert particles.amplitude_contrast.tolist() == [0.1] * 4
    assert particles.defocus_u.tolist() == [10000, 10001, 10002, 10003]
    assert particles.defocus_v.tolist() == [9000, 9001, 9002, 9003]
    assert particles.defocus_angle.tolist() == [0, 1, 2, 3]
    assert particles.half.tolist() == [1, 2, 2, 1]
    assert (particles.pixel_size, particles.angles, particles.origins) == (2.0, None, None)
    assert particles.warnings == ()


def test_both_generations_mean_the_same() -> None:
    poses = {f"rlnAngle{name}": [1.0, 2.0, 3.0, 4.0] for name in ("Rot", "Tilt", "Psi")}
    pixels = {"rlnOriginX": [1.0, 2.0, 3.0, 4.0], "rlnOriginY": [0.5] * 4}
    angstroms = {"rlnOriginXAngst": [2.0, 4.0, 6.0, 8.0], "rlnOriginYAngst": [1.0] * 4}
    old = read_particles(old_star(**poses, **pixels))
    new = read_particles(new_star(**poses, **angstroms))
    for field in dataclasses.fields(ParticleSet):
        if field.name not in ("path", "table", "optics"):
            np.testing.assert_array_equal(
                getattr(old, field.name), getattr(new, field.name), err_msg=field.name
            )
    assert old.origins is not None
    assert old.origins[:, 0].tolist() == [2, 4, 6, 8]


def test_an_old_file_of_two_microscopes_has_two_optics_groups() -> None:
    particles = read_particles(old_star(rlnVoltage=[200.0, 300.0, 300.0, 200.0]))
    assert particles.optics_group.tolist() == [1, 2, 2, 1]
    assert particles.optics["rlnVoltage"].tolist() == ["200.000000", "300.000000"]
    assert particles.voltage.tolist() == [200, 300, 300, 200]


def test_optics_groups_may_be_numbered_anyhow() -> None:
    optics = optics_columns(2, rlnOpticsGroup=[7, 3], rlnVoltage=[300.0, 200.0])
    particles = read_particles(new_star(optics, rlnOpticsGroup=[3, 7, 7, 3]))
    assert particles.optics_group.tolist() == [3, 7, 7, 3]
    assert particles.voltage.tolist() == [200, 300, 300, 200]


def test_groups_without_particles_do_not_matter() -> None:
    optics = optics_columns(2, rlnOpticsGroup=[9, 3], rlnImagePixelSize=[7.0, 2.0])
    particles = read_particles(new_star(optics, rlnOpticsGroup=[3] * 4))
    assert particles.pixel_size == 2.0
    assert particles.optics["rlnOpticsGroup"].tolist() == ["3"]


def test_an_optics_block_without_loop_is_one_group() -> None:
    path = new_star()
    body = path.read_text().split("data_particles")[1]
    head = "data_optics\n\n" + "".join(f"_{k} {v[0]}\n" for k, v in optics_columns().items())
    path.write_text(f"{head}\ndata_particles{body}")
    assert read_particles(path).voltage.tolist() == [300] * 4


def test_windows_line_ends_comments_and_tabs_are_read() -> None:
    path = new_star()
    text = (
        path.read_text()
        .replace("#4", "#4 [a comment]")
        .replace("cs\n", "cs  # groups\n", 1)
        .replace(" 1 ", " \t1\t ")
    )
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert read_particles(path).defocus_u.tolist() == [10000, 10001, 10002, 10003]


def lines(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "changes",
    [
        [("loop_", "loop_ # columns"), ("data_optics", "data_optics # groups")],
        [("loop_", "LOOP_"), ("data_", "DATA_")],
        [("\n\nloop_\n", " loop_ # columns\n")],
        [(" #", "#")],
        [("loop_\n", "loop_ ")],
        [(" #1\n", " "), (" #2\n", " ")],
        [("data_optics", "\ufeffdata_optics"), ("data_particles", "\ufeffdata_particles")],
        [("loop_\n", "loop_\n\n# a comment\n")],
        [("00000", "'00000"), ("particles.mrcs", "particles.mrcs'")],
        [("mic0000.mrc", "\n;mic0000.mrc\n;\n"), ("mic0001.mrc", "\n;mic0001.mrc\n; ")],
    ],
)
def test_other_lawful_spellings_mean_the_same(changes: list[tuple[str, str]]) -> None:
    path = new_star()
    usual = read_particles(path)
    path.write_text(lines(path.read_text().rstrip(), *changes))
    other = read_particles(path)
    for table in ("table", "optics"):
        assert getattr(other, table).to_dict("list") == getattr(usual, table).to_dict("list")
    assert other.warnings == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([("data_particles\n", "data_particles\n_rlnA 5\n")], id="pairs and a loop"),
        pytest.param([("data_optics\n", "data_optics\nloop_\n_rlnA\n1\n2\n")], id="two loops"),
        pytest.param([("\n\ndata_p", "\nloop_\n_rlnA\n1\ndata_p")], id="a loop behind"),
        pytest.param([("\n\ndata_p", "\nstop_\n\ndata_p")], id="stop_"),
        pytest.param([("\n\ndata_p", "\nSTOP_ # end\nloop_ _rlnA\n1\ndata_p")], id="both"),
    ],
)
def test_a_block_may_have_several_tables(changes: list[tuple[str, str]]) -> None:
    path = new_star()
    usual = read_particles(path)
    path.write_text(lines(path.read_text(), *changes))
    other = read_particles(path)
    for table in ("table", "optics"):
        assert getattr(other, table).to_dict("list") == getattr(usual, table).to_dict("list")
    assert other.warnings == ()


def test_rows_may_stand_on_several_lines() -> None:
    path = new_star()
    usual = read_particles(path)
    text = path.read_text()
    path.write_text(lines(text, (" mic0001", "\n   mic0001"), (" 1 10", " # c\n\n1\n10")))
    with pytest.raises(InputError, match="5 values for the 9 columns"):
        read_particles(path)  # RELION takes no comments behind values
    path.write_text(lines(text, (" mic0001", "\n   mic0001"), (" 1 10", "\n\n1\n10")))
    other = read_particles(path)
    assert other.table.to_dict("list") == usual.table.to_dict("list")
    (warning,) = other.warnings
    assert warning.startswith("rows of data_particles go on in the next line (lines ")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1@a 1\n2@a 2\n", "line 6 has 2 values for the 3 columns of data_; a value is missing"),
        ("1@a 1\n2@a 2 3\n", "line 6 has 2 values for the 3 columns"),
        ("1@a 1\n2 3 4\n", "line 6 has 2 values"),
        ("1@a\n2@a\n3\n", "line 6 has 1 value"),
        ("1@a 1 2\n2@a 2", "line 7 has 2 values"),
        ("1@a b c 1 2\n", "line 6 has 5 values .*; a value with blanks needs quotes"),
        ("1@a 1 2 2@a 1 2\n", "line 6 has 6 values .*; each row needs a line of its own"),
        ("1@a 1\n\ndata_x\n", "line 6 has 2 values"),
        ("1@a 1\nloop_\n_rlnD\n", "line 6 has 2 values"),
        ("1@a 1\n_rlnD 5\n", "line 6 has 2 values"),
        ("1@a 1\nstop_\n", "line 6 has 2 values"),
        ("1@a 1 2\nsave_x\n_rlnD 5\nsave_\n", "line 7 has save_x: a save frame"),
        ("1@a 1 2\nstop_\n2@a 1 2\n", "line 8 has values below the word stop_"),
        ("stop_\n", "line 6 has the word stop_, .* below no row"),
        ("1@a 1 2\n_rlnD 5\n", "line 7 has the label _rlnD below rows; a table begins with"),
    ],
)
def test_a_row_that_may_be_damaged_is_named(rows: str, message: str) -> None:
    path = Path("a.star")
    path.write_text("data_\nloop_\n_rlnA\n_rlnB\n_rlnC\n" + rows)
    with pytest.raises(InputError, match=message):
        read_tables(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("a.star", bytes(9000), "it is no text", id="zeros"),
        pytest.param("a.star", "data_x".encode("utf-16-le"), "it seems to be UTF-16", id="utf-16"),
        pytest.param("a.star", "data_x".encode("utf-32-be"), "it seems to be UTF-16", id="utf-32"),
        pytest.param("a.star", b"\x93NUMPY" + bytes(99), "a NumPy or cryoSPARC file", id="numpy"),
        pytest.param("a.star", b"\x89HDF" + bytes(99), "give the STAR file that lists", id="hdf5"),
        pytest.param("a.star", b"II*\0" + b"1\n" * 99, "a TIFF file; images alone", id="tiff"),
        pytest.param("a.star", bytes(208) + b"MAP DD", "it is an MRC file; images", id="mrc"),
        pytest.param("a.star", b"#LSX\n#\n1\tp.hdf\n", "e2refinetorelion3", id="eman2"),
        pytest.param("a.star", b"<html>", "a web page; the download has failed", id="page"),
        pytest.param("a.par", b"C PSI\n1 0.0\n", "list of FREALIGN .* par2star", id="frealign"),
        pytest.param("a.star", b"data_\nloop_\n_image\n1@a\n", "kind: it has image", id="xmipp"),
        pytest.param("a.star", b"data_\nloop_\n_atom_site.id\n1\n", "atomic model", id="atoms"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, data: bytes, message: str) -> None:
    Path(name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_particles(Path(name))
    assert name in str(caught.value)


def test_a_message_about_many_tables_is_short() -> None:
    Path("a.star").write_text("".join(f"data_{i}\nloop_\n_a{i}\n1\n" for i in range(99)))
    with pytest.raises(InputError, match="; and 96 more tables") as caught:
        read_particles(Path("a.star"))
    assert len(str(caught.value)) < 500


def test_a_single_value_may_stand_below_its_label_or_in_lines_of_its_own() -> None:
    path = Path("a.star")
    path.write_text("data_x\n_rlnA\n 1\n_rlnB\n;two\nlines\n;\n_rlnC # none yet\n'3 4'\n")
    assert read_tables(path)["x"].to_dict("list") == {
        "rlnA": ["1"],
        "rlnB": ["two\nlines"],
        "rlnC": ["3 4"],
    }


@pytest.mark.parametrize("blank", ["\xa0", "\u3000", "\u2003", "\x85", "\x1c"])
def test_only_the_blanks_of_star_part_values(project: Path, blank: str) -> None:
    folder = project / f"a{blank}b"
    folder.mkdir()
    (project / "particles.mrcs").rename(folder / "particles.mrcs")
    path = new_star(rlnImageName=[f"{i}@a{blank}b/particles.mrcs" for i in range(1, 5)])
    particles = read_particles(path)
    assert particles.stacks == (folder / "particles.mrcs",)
    write_again(particles, Path("out.star"))
    assert read_particles(Path("out.star")).stacks == particles.stacks


def test_a_comment_that_looks_like_a_row_is_said_aloud() -> None:
    path = write_star(Path("a.star"), {"": old_columns(4)})
    rows = path.read_text()
    path.write_text(rows.replace("000002@", "#000002@"))
    particles = read_particles(path)
    assert particles.count == 3
    assert "taken for comments in data_: 1 line with # in front" in particles.warnings[0]
    path.write_text(rows.replace("000002@", "# 000002@"))
    assert read_particles(path).warnings == ()


def test_rows_that_are_switched_off_are_left_out() -> None:
    particles = read_particles(new_star(rlnEnabled=[1, -1, 1, 0]))
    assert particles.slice.tolist() == [0, 2]
    (warning,) = particles.warnings
    assert warning.startswith("left out: 2 particles, whose rlnEnabled is 0 or less")
    assert "(rows 2, 4)" in warning
    with pytest.raises(InputError, match="switches all 4 particles off"):
        read_particles(new_star(rlnEnabled=[0] * 4))


@pytest.mark.parametrize("where", [".", "Refine3D", "Refine3D/job012", "Refine3D/job012/run"])
def test_stacks_are_found_beside_and_above_the_file(
    project: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / where
    folder.mkdir(parents=True, exist_ok=True)
    path = new_star().rename(folder / "p.star")
    monkeypatch.chdir("/")
    assert read_particles(path).stacks == (project / "particles.mrcs",)


def test_the_current_folder_comes_first(project: Path) -> None:
    (project / "job").mkdir()
    write_mrc(project / "job" / "particles.mrcs", noise_images(8, 12))
    path = new_star().rename(project / "job" / "p.star")
    assert read_particles(path).stacks == (project / "particles.mrcs",)


def test_a_place_without_a_file_says_what_is_there(project: Path) -> None:
    for name, make, message in (
        ("folder.mrcs", Path.mkdir, "a folder"),
        ("pipe.mrcs", os.mkfifo, "neither a file nor a folder"),
        ("link.mrcs", lambda path: path.symlink_to("far/away"), "a link to far/away, which"),
    ):
        make(project / name)
        with pytest.raises(MissingInputError, match=rf"{name} \({message}"):
            read_particles(new_star(rlnImageName=[f"{i}@{name}" for i in range(1, 5)]))


def test_a_stack_of_another_format_is_named() -> None:
    with pytest.raises(InputError, match=r"is marked as :spi; stacks can be read"):
        read_particles(new_star(rlnImageName=[f"{i}@particles.mrcs:spi" for i in range(1, 5)]))


def test_a_missing_stack_lists_the_places_tried(project: Path) -> None:
    names = ["1@gone.mrcs", "1@particles.mrcs", "2@gone.mrcs", "1@lost.mrcs"]
    (project / "job").mkdir()
    path = new_star(rlnImageName=names).rename(project / "job" / "p.star")
    with pytest.raises(MissingInputError) as caught:
        read_particles(path)
    message = str(caught.value)
    assert "gone.mrcs and 1 more stacks not found, needed by 3 particles (rows 1, 3, 4)" in message
    for place in (project, project / "job", project.parent):
        assert f"\n    {place / 'gone.mrcs'}\n" in message
    assert message.count("    ") == 4


def test_image_names_may_be_marked_or_bare(project: Path) -> None:
    write_mrc(project / "a@b.mrc", noise_images(3, 16))
    write_mrc(project / "single.mrc", noise_images(1, 16))
    names = ["2@particles.mrcs", "000003@a@b.mrc", f"1@{project}/a@b.mrc:mrcs", "single.mrc"]
    particles = read_particles(new_star(rlnImageName=names))
    files = ["particles.mrcs", "a@b.mrc", "single.mrc"]
    assert particles.stacks == tuple(project / file for file in files)
    assert particles.stack.tolist() == [0, 1, 1, 2]
    assert particles.slice.tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0@particles.mrcs", "particle 3 .*images count from 1"),
        ("x@particles.mrcs", "particle 3 has rlnImageName = x@particles.mrcs; it must read like"),
        ("-1@particles.mrcs", "particle 3 has"),
        ("5@", "particle 3 has"),
        (f"{10**20}@particles.mrcs", "particle 3 has"),
        ("\u0663@particles.mrcs", "particle 3 has"),
    ],
)
def test_an_unreadable_image_name_is_named(name: str, message: str) -> None:
    good = "1@particles.mrcs"
    with pytest.raises(InputError, match=message):
        read_particles(new_star(rlnImageName=[good, good, name, good]))


def test_a_file_that_the_system_refuses_is_one_message(project: Path) -> None:
    (project / "circle.mrcs").symlink_to("circle.mrcs")
    for name, message in (
        ("1@" + "x" * 300 + ".mrcs", "shorter name"),
        ("1@circle.mrcs", "symbolic links"),
        ("1@a\0b.mrcs", "cannot be the name of a file"),
        ("1@.", "not found"),
    ):
        with pytest.raises(MissingInputError, match=message):
            read_particles(new_star(rlnImageName=[name] * 4))


def test_a_compressed_stack_beside_a_missing_one_is_named(project: Path) -> None:
    (project / "particles.mrcs").rename(project / "particles.mrcs.gz")
    with pytest.raises(MissingInputError, match=r"particles\.mrcs\.gz is there: decompress it"):
        read_particles(new_star())


@pytest.mark.parametrize("value", ["1.5", "99999999999", "-1e12"])
@pytest.mark.parametrize("label", ["rlnOpticsGroup", "rlnImageSize"])
def test_what_counts_is_a_whole_number(label: str, value: str) -> None:
    columns: dict[str, Any] = {label: [value] * 4} if label == "rlnOpticsGroup" else {}
    other: dict[str, Any] = {} if columns else {label: [value]}
    optics = optics_columns(**other)
    with pytest.raises(InputError, match=f"{label} = {value}, which is not a whole number"):
        read_particles(new_star(optics, **columns))


def test_a_number_may_be_missing_and_marks_are_known(project: Path) -> None:
    (project / "particles.mrcs").rename(project / "p.mrc")
    names = ["000001@p.mrc:mrcs", "2@p.mrc", "p.mrc:mrc", "3@p.mrc:mrcs"]
    particles = read_particles(new_star(rlnImageName=names))
    assert particles.stacks == (project / "p.mrc",)
    assert particles.marked == {project / "p.mrc"}
    assert particles.unnumbered.tolist() == [False, False, True, False]
    assert particles.slice.tolist() == [0, 1, 0, 2]


def test_repeated_images_are_said_aloud() -> None:
    names = [f"{i}@particles.mrcs" for i in (1, 2, 1, 2)]
    (warning,) = read_particles(new_star(rlnImageName=names)).warnings
    assert warning.startswith(
        "2 particles name an image that stands in the list already (rows 3, 4)"
    )


def test_absent_ctf_columns_get_usual_values_said_aloud() -> None:
    absent = (
        "rlnDefocusV",
        "rlnDefocusAngle",
        "rlnPhaseShift",
        "rlnCtfBfactor",
        "rlnCtfScalefactor",
    )
    optics = optics_columns(rlnAmplitudeContrast=())
    particles = read_particles(new_star(optics, **dict.fromkeys(absent, ())))
    assert particles.amplitude_contrast.tolist() == [0.1] * 4
    assert particles.defocus_v.tolist() == particles.defocus_u.tolist()
    assert particles.phase_shift.tolist() == [0] * 4
    assert particles.ctf_scale.tolist() == [1] * 4
    assert particles.warnings == (
        "rlnAmplitudeContrast is not in the file: 0.1 is assumed",
        (
            "not in the file and taken as usual: rlnDefocusV = rlnDefocusU, rlnDefocusAngle = 0 "
            "degrees, rlnPhaseShift = 0 degrees, rlnCtfBfactor = 0 A^2, rlnCtfScalefactor = 1"
        ),
    )


def test_columns_left_with_the_particles_are_accepted() -> None:
    optics = optics_columns(rlnVoltage=(), rlnImagePixelSize=())
    path = new_star(optics, rlnVoltage=[200.0] * 4, rlnPixelSize=[1.5] * 4)
    particles = read_particles(path)
    assert (particles.voltage.tolist(), particles.pixel_size) == ([200] * 4, 1.5)


@pytest.mark.parametrize("write", [old_star, new_star])
def test_a_missing_defocus_is_an_error_that_lists_what_was_found(write: Any) -> None:
    with pytest.raises(InputError, match=r"rlnDefocusU is missing.*found rlnImageName, rlnMicro"):
        read_particles(write(rlnDefocusU=()))


def test_a_missing_microscope_is_an_error_that_lists_all_that_is_missing() -> None:
    wanted = (
        r"lacks rlnVoltage, rlnSphericalAberration, rlnImagePixelSize \(or .* or --apix\); found"
    )
    none = ("rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize")
    with pytest.raises(InputError, match=f"data_optics {wanted} rlnOpticsGroup, "):
        read_particles(new_star(optics_columns(1, **dict.fromkeys(none, ()))))
    none = ("rlnVoltage", "rlnSphericalAberration", "rlnMagnification")
    with pytest.raises(InputError, match=f"table of particles {wanted} rlnImageName, "):
        read_particles(old_star(**dict.fromkeys(none, ())))


def test_the_users_pixel_size_wins_and_is_said_aloud() -> None:
    particles = read_particles(new_star(), pixel_size=1.9)
    assert particles.pixel_size == 1.9
    assert particles.optics["rlnImagePixelSize"].tolist() == ["1.900000"]
    assert "1.9 A of --apix is used; the file says 2 A" in particles.warnings[0]
    without = optics_columns(rlnImagePixelSize=())
    assert read_particles(new_star(without), pixel_size=1.9).pixel_size == 1.9
    assert read_particles(old_star(rlnMagnification=()), pixel_size=1.9).pixel_size == 1.9


def test_a_microscope_that_two_tables_disagree_about_is_said_aloud() -> None:
    path = new_star(rlnVoltage=[300.0, 200.0, 300.0, 200.0], rlnSphericalAberration=[2.7] * 4)
    particles = read_particles(path)
    assert particles.voltage.tolist() == [300.0] * 4
    (warning,) = particles.warnings
    assert warning == (
        "rlnVoltage is 200.0 in the table of particles (rows 2, 4), but 300 in data_optics, which "
        "is used"
    )


@pytest.mark.parametrize("label", ["rlnImageName", "rlnDefocusU", "rlnVoltage"])
def test_a_label_in_other_capitals_is_named(label: str) -> None:
    path = new_star()
    path.write_text(path.read_text().replace(label, label.lower()))
    with pytest.raises(InputError, match=rf"\(capitals count: {label.lower()}\)"):
        read_particles(path)


@pytest.mark.parametrize("size", ["0", "-1", "nan", "1e30", "none", "200.5"])
def test_a_pixel_size_that_cannot_be_is_refused_unless_the_user_gives_one(size: str) -> None:
    for path in (
        new_star(optics_columns(rlnImagePixelSize=[size])),
        old_star(rlnDetectorPixelSize=[size] * 4, rlnMagnification=["1e4"] * 4),
    ):
        with pytest.raises(InputError, match=r"rln(Image|Detector)PixelSize = .*"):
            read_particles(path)
        particles = read_particles(path, pixel_size=1.9)
        assert particles.pixel_size == 1.9
        assert "1.9 A of --apix is used; " in particles.warnings[0]


@pytest.mark.parametrize(
    ("optics", "message"),
    [
        ({"rlnImagePixelSize": [2.0, 2.1]}, r"pixel size \(1 \(opticsGroup1\) 2 A, 2 .* 2.1 A\)"),
        ({"rlnImageSize": [16, 20]}, r"image size in pixels \(1 \(opticsGroup1\) 16, 2 .* 20\)"),
        (
            {"rlnImagePixelSize": [0.0, 0.0]},
            "rlnImagePixelSize = 0; give the pixel size with --apix",
        ),
        (
            {"rlnVoltage": [300000.0, 300.0]},
            "optics group 1 .* rlnVoltage = 300000 kV; it must lie",
        ),
        ({"rlnAmplitudeContrast": [0.1, 10.0]}, "optics group 2 .* rlnAmplitudeContrast = 10"),
        (
            {"rlnSphericalAberration": [2.7, "nan"]},
            "optics group 2 .* = nan, which is not a finite",
        ),
        ({"rlnOpticsGroup": [1, 1]}, "lists the same rlnOpticsGroup twice"),
        (
            {"rlnOpticsGroup": [5, 6]},
            r"particle 1 is of optics group 1, but .* lists only \[5, 6\]",
        ),
        ({"rlnImageDimensionality": [3, 3]}, "only flat images"),
        ({"rlnCtfDataAreCtfPremultiplied": [0, 1]}, "images multiplied by their CTF cannot"),
        ({"rlnCtfDataArePhaseFlipped": [0, 1]}, "images with flipped phases cannot"),
    ],
)
def test_unusable_optics_are_named(optics: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_particles(new_star(optics_columns(2, **optics), rlnOpticsGroup=[1, 2, 1, 2]))


def test_groups_with_stacks_of_different_boxes_are_named(project: Path) -> None:
    write_mrc(project / "other.mrcs", noise_images(8, 20))
    names = ["1@particles.mrcs", "1@other.mrcs", "2@particles.mrcs", "2@other.mrcs"]
    path = new_star(optics_columns(2), rlnOpticsGroup=[1, 2, 1, 2], rlnImageName=names)
    with pytest.raises(InputError, match=r"image size in pixels \(1 .* 16, 2 .* 20\)"):
        read_particles(path)


def test_particles_without_group_belong_to_the_only_one() -> None:
    assert read_particles(new_star(rlnOpticsGroup=())).optics_group.tolist() == [1] * 4
    with pytest.raises(InputError, match="no rlnOpticsGroup, but data_optics lists 2 groups"):
        read_particles(new_star(optics_columns(2), rlnOpticsGroup=()))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.2.3", "None"])
@pytest.mark.parametrize("column", ["rlnDefocusV", "rlnAngleTilt", "rlnOriginYAngst"])
def test_a_number_that_is_none_is_named_with_its_row(column: str, value: str) -> None:
    labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    columns: dict[str, Any] = {label: [1.0] * 4 for label in labels}
    columns[column] = [1.0, 1.0, value, value]
    message = (
        rf"particle 3 \(row 3 of its table\) has {column} = {value}, which is.*and 1 more rows"
    )
    with pytest.raises(InputError, match=message):
        read_particles(new_star(**columns))


def test_half_sets_are_1_and_2_or_not_given() -> None:
    assert read_particles(new_star()).half.tolist() == [0] * 4
    for value in (1, 2):
        same = read_particles(new_star(rlnRandomSubset=[value] * 4))
        assert same.half.tolist() == [0] * 4
        assert f"rlnRandomSubset is {value} for all particles" in same.warnings[0]
    with pytest.raises(InputError, match=r"particle 2 has rlnRandomSubset = 3.*\(2 such rows\)"):
        read_particles(new_star(rlnRandomSubset=[1, 3, 2, 0]))


def test_what_is_not_used_is_said_aloud() -> None:
    zero = "[0,0,0,0]"
    optics = optics_columns(
        2,
        rlnBeamTiltX=[0.0, 0.2],
        rlnBeamTiltY=[0.0, 0.0],
        rlnOddZernike=[zero, zero],
        rlnEvenZernike=[zero, "[0,0.3,0]"],
        rlnMagMat00=[1.0, 1.01],
        rlnMagMat11=[1.0, 1.0],
    )
    path = new_star(optics, rlnHelicalTubeID=[1] * 4, rlnOpticsGroup=[1, 2, 1, 2])
    particles = read_particles(path)
    (warning,) = particles.warnings
    assert warning == (
        "ignored: beam tilt (rlnBeamTiltX), even aberrations (rlnEvenZernike), anisotropic "
        "magnification (rlnMagMat00), rlnHelicalTubeID"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no 'data_' block"),
        ("loop_\n_rlnA\n1\ndata_x\n", "line 1 has loop_ before any line data_NAME"),
        ("data_x\nloop_\n_rlnA\n;a\nb\n", "line 4 has a text after ; that is never ended"),
        ("hello\nworld\n", "no 'data_' block"),
        ("data_\n", "no 'data_' block"),
        ("data_\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n", "lists no particles"),
        ("data_\nloop_\n_rlnMicrographName #1\nm.mrc\n", "list of another kind: it has rlnMicro"),
        ("data_x\nloop_\n_rlnVoltage #1\n300\n", "found data_x with 1 row and the columns rlnVol"),
        ("data_\nloop_\n_rlnImageName #1\n_rlnB #2\n1@a 1 2\n", "line 5 has 3 values for the 2"),
        (
            "data_x\nloop_\n_rlnImageName #1\n_rlnB #2\n1@a 1\n1@a\n",
            "line 6 has 1 value for the 2",
        ),
        ("data_x\n_rlnImageName 1@a\n1@a\n", "line 3 has 1 value "),
        ("data_x\n_rlnImageName\n", "line 2 has no value after _rlnImageName"),
        ("data_x\nloop_\n_rlnB\n_rlnB\n", "line 4 has the label _rlnB twice"),
        ("data_x\nloop_\n_rlnB\nloop_\n", "line 4 has a second loop in data_x"),
        ("data_x\n\ndata_x\n", "line 3 has a second block data_x"),
        (
            "data_a\nloop_\n_rlnImageName #1\nx\ndata_b\nloop_\n_rlnImageName #1\nx\n",
            "more than one",
        ),
    ],
)
def test_a_file_that_lists_no_particles_is_named(text: str, message: str) -> None:
    path = Path("bad.star")
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_particles(path)
    assert "bad.star" in str(caught.value)


def test_files_of_other_programs_are_recognised() -> None:
    with pytest.raises(InputError, match=r"not a STAR file; convert the cryoSPARC file"):
        read_particles(Path("particles.cs"))
    with pytest.raises(InputError, match="give the STAR file that lists them"):
        read_particles(Path("particles.mrcs"))
    Path("binary.star").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match="is not a STAR file"):
        read_particles(Path("binary.star"))


def test_a_file_that_is_not_there_is_a_missing_input(project: Path) -> None:
    with pytest.raises(MissingInputError, match="does not exist"):
        read_particles(Path("none.star"))
    with pytest.raises(MissingInputError, match="cannot be read"):
        read_particles(project)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("_loop_data \n\t#1@'\"ab.\0")) | st.text())
def test_no_text_makes_anything_but_a_clear_error(text: str) -> None:
    path = Path("any.star")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MpiparError):
        read_particles(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 900), text=st.text(st.sampled_from("_loop_data \n#1@'\".")))
def test_a_damaged_file_is_read_or_refused(position: int, text: str) -> None:
    path = new_star()
    whole = path.read_text()
    path.write_text(whole[:position] + text + whole[position + 1 :])
    try:
        assert read_particles(path).count > 0
    except MpiparError as error:
        assert "particles.star" in str(error)  # noqa: PT017 - either outcome is right


cells = st.text(st.characters(exclude_categories=["C"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.lists(st.tuples(*[st.floats(-360, 360)] * 3), min_size=4, max_size=4),
    origins=st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=4, max_size=4),
    half=st.lists(st.sampled_from([1, 2]), min_size=4, max_size=4).filter(lambda h: len({*h}) > 1),
    names=st.lists(cells, min_size=4, max_size=4),
    old=st.booleans(),
)
def test_what_is_written_is_read(
    angles: Any, origins: Any, half: list[int], names: list[str], old: bool
) -> None:
    particles = read_particles((old_star if old else new_star)())
    particles.table["rlnSomething"] = names
    poses = {"angles": np.array(angles), "origins": np.array(origins), "half": np.array(half)}
    write_again(particles, Path("out.star"), **poses)
    again = read_particles(Path("out.star"))
    assert again.angles is not None
    assert again.origins is not None
    np.testing.assert_allclose(again.angles, poses["angles"], atol=5.1e-7)
    np.testing.assert_allclose(again.origins, poses["origins"], atol=5.1e-7)
    assert again.half.tolist() == half
    assert again.table["rlnSomething"].tolist() == names
    for name in ("stacks", "stack", "slice", "voltage", "defocus_u", "pixel_size", "optics_group"):
        np.testing.assert_array_equal(getattr(again, name), getattr(particles, name))


def test_an_old_file_is_written_as_a_new_one(project: Path) -> None:
    origins = {"rlnOriginX": [1.0] * 4, "rlnOriginY": [1.0] * 4}
    particles = read_particles(old_star(**origins, rlnVoltage=[200.0, 300.0, 300.0, 200.0]))
    write_again(particles, Path("out.star"), extra={"rlnMaxValueProbDistribution": [0.5] * 4})
    tables = read_tables(Path("out.star"))
    assert list(tables) == ["optics", "particles"]
    assert tables["optics"].to_dict("list") == {
        "rlnOpticsGroupName": ["opticsGroup1", "opticsGroup2"],
        "rlnOpticsGroup": ["1", "2"],
        "rlnVoltage": ["200.000000", "300.000000"],
        "rlnSphericalAberration": ["2.700000"] * 2,
        "rlnAmplitudeContrast": ["0.100000"] * 2,
        "rlnImagePixelSize": ["2.000000"] * 2,
        "rlnImageSize": ["16"] * 2,
        "rlnImageDimensionality": ["2"] * 2,
    }
    table = tables["particles"]
    assert table["rlnImageName"].iloc[1] == f"000002@{project}/particles.mrcs"
    assert table["rlnMicrographName"].tolist() == ["mic0000.mrc"] * 2 + ["mic0001.mrc"] * 2
    assert table["rlnMaxValueProbDistribution"].tolist() == ["0.500000"] * 4
    gone = {"rlnVoltage", "rlnMagnification", "rlnDetectorPixelSize", "rlnOriginX", "rlnOriginY"}
    assert not gone & set(table.columns)


def test_the_same_particles_give_the_same_bytes() -> None:
    particles = read_particles(new_star())
    write_again(particles, Path("a.star"))
    write_again(read_particles(Path("a.star")), Path("b.star"))
    assert Path("a.star").read_bytes() == Path("b.star").read_bytes()


def test_a_stack_that_relion_takes_for_a_volume_is_marked(project: Path) -> None:
    (project / "particles.mrcs").rename(project / "particles.mrc")
    names = [f"{i}@particles.mrc" for i in range(1, 5)]
    write_again(read_particles(new_star(rlnImageName=names)), Path("out.star"))
    written = read_tables(Path("out.star"))["particles"]["rlnImageName"].iloc[0]
    assert written == f"000001@{project}/particles.mrc:mrcs"
    assert read_particles(Path("out.star")).stacks == (project / "particles.mrc",)


def test_names_with_blanks_are_quoted(project: Path) -> None:
    folder = project / "my data"
    folder.mkdir()
    (project / "particles.mrcs").rename(folder / "particles.mrcs")
    names = [f'"{i}@my data/particles.mrcs"' for i in range(1, 5)]
    write_again(read_particles(new_star(rlnImageName=names)), Path("out.star"))
    assert read_particles(Path("out.star")).stacks == (folder / "particles.mrcs",)


ODD_CELLS = (
    "#m",
    "_m",
    ";m",
    "'m",
    '"m',
    "data_m",
    "LOOP_",
    "",
    "a b",
    "a' b\" c",
    "a\nb",
    "stop_",
)


@pytest.mark.parametrize("cell", ODD_CELLS)
def test_a_row_survives_whatever_its_first_value_begins_with(cell: str) -> None:
    particles = read_particles(new_star())
    particles.table.insert(0, "rlnSomething", [cell, "x", cell, "x"])
    write_again(particles, Path("out.star"))
    again = read_particles(Path("out.star"))
    assert again.table["rlnSomething"].tolist() == [cell, "x", cell, "x"]
    assert again.slice.tolist() == particles.slice.tolist()


def test_names_keep_their_odd_signs(project: Path) -> None:
    folder = project / "grid#2 O'Brien\xe9"
    folder.mkdir()
    (project / "particles.mrcs").rename(folder / "particles.mrcs")
    text = new_star(rlnImageName=["1@FOLDER/particles.mrcs"] * 4).read_text()
    quoted = text.replace("1@FOLDER", '"1@FOLDER').replace(".mrcs ", '.mrcs" ')
    Path("in.star").write_text(quoted.replace("FOLDER", folder.name))
    write_again(read_particles(Path("in.star")), Path("out.star"))
    assert read_particles(Path("out.star")).stacks == (folder / "particles.mrcs",)


def test_a_name_that_is_not_utf_8_comes_back_byte_for_byte() -> None:
    path = new_star(rlnMicrographName=["m\xe4\xdf.mrc"] * 4)
    path.write_bytes(path.read_text().encode("latin-1"))
    write_again(read_particles(path), Path("out.star"))
    assert Path("out.star").read_bytes().count(b" m\xe4\xdf.mrc ") == 4


def test_a_folder_that_is_not_utf_8_is_written_and_read(project: Path) -> None:
    folder = project / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (project / "particles.mrcs").rename(folder / "particles.mrcs")
    path = new_star().rename(folder / "p.star")
    particles = read_particles(path)
    write_again(particles, Path("out.star"))
    assert read_particles(Path("out.star")).stacks == (folder / "particles.mrcs",)


def test_other_programs_read_what_is_written() -> None:
    particles = read_particles(old_star())
    write_again(particles, Path("out.star"), origins=np.full((4, 2), -1.5))
    tables = starfile.read("out.star")
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [2.0]
    assert tables["particles"]["rlnOriginXAngst"].tolist() == [-1.5] * 4
    assert tables["particles"]["rlnDefocusU"].tolist() == particles.defocus_u.tolist()


def test_columns_of_the_wrong_length_are_refused() -> None:
    particles = read_particles(new_star())
    with pytest.raises(ValueError, match="rlnRandomSubset has 3 values for 4 particles"):
        write_again(particles, Path("out.star"), half=np.ones(3, int))


@pytest.mark.parametrize("with_ctf", [True, False])
def test_a_list_of_subtomograms_is_refused_as_such(with_ctf: bool) -> None:
    columns: dict[str, Any] = {"rlnTomoParticleName": [f"TS_01/{i}" for i in range(4)]}
    if not with_ctf:
        columns |= {"rlnDefocusU": (), "rlnDefocusV": (), "rlnDefocusAngle": ()}
    with pytest.raises(InputError, match="is a list of tomography: it has rlnTomoParticleName"):
        read_particles(new_star(**columns))
    flag: dict[str, Any] = {"rlnTomoSubTomosAre2DStacks": ["1"]}
    tables = {"general": flag, "optics": optics_columns(), "particles": particle_columns(4)}
    with pytest.raises(InputError, match="tomography: it has rlnTomoSubTomosAre2DStacks"):
        read_particles(write_star(Path("tomo.star"), tables))
