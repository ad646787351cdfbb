"""For a person: the command `s3tasks`; the only rooms that print.

It never holds logic that a program would want too.
"""

from s3tasks.cli.entry import main

__all__ = ["main"]
