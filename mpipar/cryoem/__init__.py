"""The science of single-particle refinement: numpy in, numpy out; no MPI, no files.

Conventions: CONVENTIONS.md beside this.
"""
