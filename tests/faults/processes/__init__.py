"""Real processes under real faults: workers, Redis, S3, and what is between them.

It never patches the package: signals, a TCP proxy before Redis and an HTTP proxy before S3 are all it has.
"""
