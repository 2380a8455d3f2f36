"""Interfaces of other projects, on the workers of the job: Executor, joblib's backend, IMP."""
