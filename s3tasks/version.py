"""Which version this is, for everything that says so.

It never says more: what changed is told in the README.
"""

__version__ = "0.1.0"
