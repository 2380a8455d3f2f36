"""Tasks in supervised child processes."""
