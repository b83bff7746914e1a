"""`python -m gkd VERB`, and the installed command `gkd`: see gkd/cli/command_line.py."""

from __future__ import annotations

import sys

from gkd.runs.signals import quick_interrupt


def main() -> int:
    """Runs the process's command, under the supervisor; returns its exit code."""
    with quick_interrupt():  # also while modules are imported
        from gkd.cli import supervisor
    return supervisor.main()


if __name__ == "__main__":
    sys.exit(main())
