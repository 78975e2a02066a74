"""`python -m pure_batching`: the batching tutorial's training with both strategies side by side."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

from ._tutorial.options import check_extras, parse_options
from .errors import PureBatchingError

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the main job.

    Args:
      arguments: in place of those of the process.

    Returns:
      the exit code: 0, or 2 after a sentence or two on stderr that say what is wrong.
    """
    try:
        options = parse_options(arguments)
        check_extras(options)
        from ._tutorial.job import run_job  # noqa: PLC0415 - needs the extras

        run_job(options)
    except PureBatchingError as error:
        sys.stderr.write(f"{_wrapped(str(error))}\n")
        return USAGE_ERROR
    return 0


def _wrapped(text: str) -> str:
    """A text in lines as wide as the terminal, in which what one may want to copy stays whole."""
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
