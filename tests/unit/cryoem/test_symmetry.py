"""Point groups: orders, closure, and the axes of RELION's settings."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import symmetry
from mpipar.cryoem.symmetry import canonical_name, in_asymmetric_unit, operators, settings_of
from mpipar.cryoem.symmetry_check import fitting_setting, symmetry_correlation
from mpipar.errors import ProtocolError, UsageError
from tests.support import naive

ORDERS = {
    "C1": 1, "C2": 2, "C7": 7, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24,
    "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60,
}  # fmt: skip
G, H, S = 0.8506508083520399, 0.5257311121191336, 0.816496580927726

# Axes as `relion_refine --print_symmetry_ops` has them.
AXES = [
    ("C7", 7, (0, 0, 1)),
    ("D7", 7, (0, 0, 1)),
    ("D7", 2, (1, 0, 0)),
    ("T", 3, (0, 0, 1)),
    ("T", 2, (0, S, 0.5773502691896258)),
    ("O", 4, (0, 0, 1)),
    ("O", 4, (1, 0, 0)),
    ("O", 3, (1, 1, 1)),
    ("I", 5, (H, 0, G)),
    ("I1", 5, (G, 0, -H)),
    ("I1", 5, (0, H, G)),
    ("I2", 5, (H, 0, G)),
    ("I2", 5, (0, G, H)),
    ("I3", 5, (0, 0, 1)),
    ("I3", 2, (-H, 0, G)),
    ("I4", 5, (0, 0, 1)),
    ("I4", 2, (H, 0, G)),
]


def contains(group: np.ndarray, operator: np.ndarray, tolerance: float = 1e-6) -> bool:
    return bool((np.abs(group - operator).max(axis=(1, 2)) < tolerance).any())


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_group_has_its_order_and_is_closed(name, order):
    group = operators(name)
    assert len(group) == order
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.det(group), 1)
    products = np.einsum("aij,bjk->abik", group[:8], group).reshape(-1, 3, 3)
    assert all(contains(group, product) for product in products)


@pytest.mark.parametrize(("name", "order", "axis"), AXES)
def test_axes_are_where_relion_has_them(name, order, axis):
    turn = Rotation.from_rotvec(2 * np.pi / order * np.array(axis) / np.linalg.norm(axis))
    assert contains(operators(name), turn.as_matrix())


@pytest.mark.parametrize(
    ("name", "order", "axis"),
    [
        ("D7", 2, (0, 1, 0)),
        ("I1", 5, (H, 0, G)),
        ("I2", 5, (G, 0, H)),
        ("I3", 2, (H, 0, G)),
        ("T", 2, (0, 0, 1)),
    ],
)
def test_axes_of_other_settings_are_absent(name, order, axis):
    turn = Rotation.from_rotvec(2 * np.pi / order * np.array(axis, float))
    assert not contains(operators(name), turn.as_matrix())


@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
@pytest.mark.parametrize("name", ORDERS)
def test_operators_are_relions(name):
    command = ["relion_refine", "--sym", name, "--print_symmetry_ops"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    theirs = [
        [[float(word) for word in line.split()] for line in part.splitlines()[1:4]]
        for part in told.split("R(")[1:]
    ]
    ours = operators(name)
    assert len(theirs) == ORDERS[name]
    assert all(contains(ours, np.array(operator), 1e-4) for operator in theirs)


@pytest.mark.parametrize("name", ["C0", "c", "D", "X3", "I5", "H", "", "C1000", "C-1", "C2x"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UsageError, match="unknown symmetry"):
        operators(name)


def test_names_may_be_written_small():
    assert canonical_name(" d7 ") == "D7"
    assert settings_of("i") == ("I2", "I1", "I3", "I4")
    assert settings_of("t") == ("T", "T222")
    assert settings_of("C5") == ("C5",)


@pytest.mark.parametrize("name", ["C1", "C5", "D3", "T", "O", "I2"])
def test_each_direction_has_one_mate_in_the_asymmetric_unit(name):
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    group = operators(name)
    inside = [in_asymmetric_unit(directions @ operator.T, group) for operator in group]
    np.testing.assert_array_equal(np.sum(inside, axis=0), 1)


def symmetric_volume(name: str, box: int = 24) -> np.ndarray:
    one = naive.Blobs(np.array([[3.0, 1.0, 7.0], [1.0, 4.0, 5.0]]), np.array([1.0, 2.0]), 1.2)
    places = np.concatenate([one.places @ operator.T for operator in operators(name)])
    weights = np.tile(one.weights, len(operators(name)))
    return naive.Blobs(places, weights, one.width).volume(box)


@pytest.mark.parametrize(("name", "other"), [("C3", "C2"), ("D2", "C3"), ("O", "C5")])
def test_symmetric_volume_correlates_with_its_mates(name, other):
    volume = symmetric_volume(name)
    assert symmetry_correlation(volume, operators(name)) > 0.9
    assert symmetry_correlation(volume, operators(other)) < 0.6


@pytest.mark.parametrize("setting", ["I1", "I2", "I3", "I4"])
def test_setting_of_an_icosahedral_volume_is_found(setting):
    found, correlation = fitting_setting(symmetric_volume(setting), "I")
    assert correlation > 0.6
    group, truth = operators(found), operators(setting)
    assert all(contains(group, operator) for operator in truth)


def test_a_ball_has_every_symmetry():
    ball = naive.Blobs(np.zeros((1, 3)), np.ones(1), 4.0).volume(24)
    assert symmetry_correlation(ball, operators("O")) == pytest.approx(1, abs=1e-3)


def test_a_molecule_without_symmetry_is_told():
    assert symmetry_correlation(naive.blobs(24).volume(24), operators("D7")) < 0.3


def test_c1_fits_everything():
    assert fitting_setting(symmetric_volume("C3"), "C1") == ("C1", 1.0)


def test_rotations_that_make_no_finite_group_are_an_error(monkeypatch):
    monkeypatch.setattr(symmetry, "LARGEST_GROUP", 50)
    monkeypatch.setitem(symmetry.GENERATORS, "O", ((4, (0, 0, 1)), (3, (1, 1, 0.5))))
    with pytest.raises(ProtocolError, match="2 rotations give no finite group"):
        operators("O")
