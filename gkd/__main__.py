"""`python -m gkd VERB`: see gkd/jobs/command_line.py."""

import sys

from gkd.jobs.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
