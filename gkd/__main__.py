"""`python -m gkd VERB`: see gkd/jobs/command_line.py."""

import sys

from gkd.jobs.signals import quick_interrupt

if __name__ == "__main__":
    with quick_interrupt():
        from gkd.jobs.supervisor import main
    sys.exit(main())
