"""The command as `python -m s3tasks.cli`.

It never does anything else than start it.
"""

import sys

from s3tasks.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
