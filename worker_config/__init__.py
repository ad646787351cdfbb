"""The deployable worker: `celery -A worker_config worker`, configured by the environment (see env.example).

It never holds tasks of its own: name your modules in CELERY_IMPORTS.
"""

from worker_config.app import app, s3

__all__ = ["app", "s3"]
