"""Tables for looking: pandas' DataFrame, under a type that checkers know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["frame_of"]


def frame_of(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return a table from its columns, or from its rows; `columns` gives their order."""
    table: pd.DataFrame = pd.DataFrame(data, columns=None if columns is None else list(columns))
    return table
