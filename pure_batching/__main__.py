"""`python -m pure_batching`: the batching tutorial's training with both strategies side by side."""

import sys
from collections.abc import Sequence

from ._tutorial.options import check_extras, parse_options
from .errors import PureBatchingError

USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the main job.

    Args:
      arguments: in place of those of the process.

    Returns:
      the exit code: 0, or 2 after one line on stderr that says what is wrong.
    """
    try:
        options = parse_options(arguments)
        check_extras()
        from ._tutorial.job import run_job  # noqa: PLC0415 - needs the extras

        run_job(options)
    except PureBatchingError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
