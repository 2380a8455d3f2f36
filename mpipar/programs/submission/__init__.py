"""Runs as batch jobs: the script, the scheduler's commands, and what is kept in `job/`."""
