"""A script to be run with -m; some of its words are numbers."""

from __future__ import annotations

import sys

from mpipar import Executor


def square(word: str) -> int:
    return int(word) ** 2


if __name__ == "__main__":
    with Executor() as executor:
        squares = list(executor.map(square, sys.argv[1:]))
        print(squares, __spec__.name, sys.argv[0] == __file__)
