"""Runs the Python blocks of a page: `python -m helpers.run_page PAGE [FILE]`.

They run in their order in one namespace, as a reader types them. With FILE,
the last block is written there and not run: a test file has to be a file.
"""

import sys
from pathlib import Path

from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser


def main(page: str, file: str | None = None) -> None:
    """Runs the blocks; what one of them raises ends the program."""
    document = Sybil([PythonCodeBlockParser()]).parse(Path(page))
    examples = list(document.examples())
    if not examples:
        sys.exit(f"{page} has no Python blocks")
    if file is not None:
        Path(file).write_text(str(examples.pop().parsed), encoding="utf-8")
    for example in examples:
        example.evaluate()


if __name__ == "__main__":
    main(*sys.argv[1:])
