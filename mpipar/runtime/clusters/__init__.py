"""How a set of ranks comes up and ends: threads of one process, MPI, TCP."""
