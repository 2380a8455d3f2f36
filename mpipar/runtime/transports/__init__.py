"""Messages between ranks: within a process, over MPI, over TCP."""
