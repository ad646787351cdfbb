"""The Celery app of the deployable worker, with the s3 tasks on it.

It never sets anything itself: Celery's settings are in celeryconfig.py, s3tasks' own come from S3TASKS_* variables.
"""

from celery import Celery

from s3tasks import S3Tasks
from worker_config import celeryconfig
from worker_config.heartbeat import Heartbeat

app = Celery("s3tasks-worker")
app.config_from_object(celeryconfig)
app.steps["consumer"].add(Heartbeat)
s3 = S3Tasks(app)
