"""A refinement of imported particles has the bits of one of the originals."""

from __future__ import annotations

from mpipar.programs.particle_import import import_particles
from tests.support.refine_runs import digests, run_here


def test_imported_particles_are_refined_to_the_same_bits(made, finished, tmp_path):
    import_particles(made.star, tmp_path / "set", "float32", lambda text: None)
    words = ["--input", tmp_path / "set" / "particles.star", "--model", made.model, "--iter", 4]
    done = run_here(["mpipar", "refine", *words, "--path", tmp_path / "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.txt"}
    found, expected = digests(tmp_path / "run"), digests(finished)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
