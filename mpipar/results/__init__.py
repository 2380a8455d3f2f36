"""What a run has found: opened for looking at, by `mpipar.open`, and exported (docs/looking.md)."""
