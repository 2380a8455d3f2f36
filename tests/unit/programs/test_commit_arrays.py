"""Tables of text as arrays of a commit, and what stands at each array for people."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.programs.block_rows import ImageGeometry
from mpipar.programs.commit_arrays import NOTES, array_name, notes_of, text_arrays, text_table
from mpipar.store import Project, schema

CELLS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=9)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_any_text_comes_back(rows):
    table = pd.DataFrame(rows, columns=["rlnImageName", "_odd/label"], dtype=object)
    arrays = text_arrays("particles", table)
    schema.check_arrays(arrays)
    again = text_table("particles", list(table.columns), arrays)
    assert again.to_numpy().tolist() == table.to_numpy().tolist()


def test_names_that_are_not_utf8_come_back_from_a_project(tmp_path):
    odd = b"stack\xff.mrcs".decode("utf-8", "surrogateescape")
    table = pd.DataFrame({"a": [odd, "", "x" * 300], "b": ["", "", ""]}, dtype=object)
    with Project.create(tmp_path / "p", settings={}, kind="refine") as project:
        project.commit(0, text_arrays("t", table), {})
        again = text_table("t", ["a", "b"], project.latest().arrays)
    assert again.to_numpy().tolist() == table.to_numpy().tolist()


def test_one_long_cell_does_not_make_all_long():
    cells = ["", "y" * 5000, *["z"] * 20_000]
    arrays = text_arrays("t", pd.DataFrame({"a": cells}))
    assert sum(array.nbytes for array in arrays.values()) < 100_000
    assert text_table("t", ["a"], arrays)["a"].tolist() == cells


@pytest.mark.parametrize(
    ("label", "name"),
    [("rlnImageName", "p.rlnImageName"), ("a/b", "p.column 3"), ("é", "p.column 3")],
)
def test_labels_that_are_no_names_of_arrays_get_a_number(label, name):
    assert array_name("p", 3, label) == name


def test_notes_give_units_and_sampling():
    arrays = {name: np.zeros((2, 6, 6, 6)) for name in NOTES} | {"particles.x": np.zeros(1)}
    notes = notes_of(arrays, ImageGeometry(12, 2.5, 4.0))
    assert notes["map"]["voxel_size"] == pytest.approx(5.0)  # half the box, the same width
    assert notes["fsc"]["shell_width"] == pytest.approx(1 / 30)
    assert notes["shifts"]["units"] == "pixel"
    assert all({"axes", "meaning"} <= set(note) for note in notes.values())
