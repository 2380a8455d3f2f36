"""`mpipar.Executor`, as concurrent.futures and mpi4py.futures define it, and joblib's backend."""
