"""What users see: progress while a run goes on, pictures of its result."""

from __future__ import annotations

from mpipar.views.progress import View, open_view

__all__ = ["View", "open_view"]
