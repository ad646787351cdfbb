"""The deployable worker as it is deployed: its files held against each other, against their programs, and against workers."""
