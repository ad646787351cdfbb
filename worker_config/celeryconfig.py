"""Celery's settings for a worker whose broker, result backend and ledger are one Redis; each with its reason.

It never holds a secret: URLs come from the environment.
"""

import os

# One Redis is enough: broker, results and (unless S3TASKS_LEDGER_URL says otherwise) the ledger.
broker_url = os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0")
result_backend = os.environ.get("CELERY_RESULT_BACKEND", broker_url)

# Modules with your own tasks, divided by commas. Imported at start-up: later the worker's directory is no longer on the path.
imports = tuple(name for name in os.environ.get("CELERY_IMPORTS", "").split(",") if name)

# JSON only: a message from outside must never be unpickled.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"

# A worker that starts before Redis waits for it.
broker_connection_retry_on_startup = True

visibility_timeout_seconds = int(os.environ.get("CELERY_VISIBILITY_TIMEOUT_SECONDS", "3600"))
broker_transport_options = {
    # A message nobody acknowledged comes back after this long: longer than any countdown, time limit and prefetch wait together.
    "visibility_timeout": visibility_timeout_seconds,
    # Without these a publish on a dead connection waits for ever (kombu.transport.redis).
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    # kombu's own pool would end at 10, and a gevent worker with more tasks in flight could not acknowledge them.
    "max_connections": 1000,
    # Looks for messages to bring back every 10 s rather than every 100 s.
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    # Whoever looks holds a lock, in which a worker that is killed just then would leave all others for 300 s.
    "unacked_mutex_expire": 30,
}
# A backend that does not answer is given up after 5 s, rather than tried for ever.
result_backend_transport_options = {"retry_policy": {"timeout": 5.0}}
# Nor may a result that is stored or fetched hang on a dead connection.
redis_socket_timeout = 30
# A result that could not be stored while Redis was away is stored when it is back.
result_backend_always_retry = True
# Results sit in the Redis that is the broker: an hour is enough to fetch one.
result_expires = 3600
# A chain whose ignored step fails would otherwise leave whoever waits for its end hanging.
task_store_errors_even_if_ignored = True

# A message is acknowledged when its task is done: a killed worker's task is run again. The s3 tasks are made to be repeated.
task_acks_late = True
# A task whose process was killed is tried again at once, and counted, instead of failing with WorkerLostError.
task_retry_on_worker_lost = True
# Takes no more messages than it has processes: a message waiting in a busy worker helps nobody.
worker_prefetch_multiplier = 1

# No task may hold its process for ever. Well below the visibility timeout, or the task would be delivered twice.
task_soft_time_limit = int(os.environ.get("CELERY_TASK_SOFT_TIME_LIMIT_SECONDS", "600"))
task_time_limit = task_soft_time_limit + 30
# On SIGQUIT (and SIGTERM with REMAP_SIGTERM=SIGQUIT), running tasks get this long to finish, then they are given back at once.
worker_soft_shutdown_timeout = float(os.environ.get("CELERY_SOFT_SHUTDOWN_TIMEOUT_SECONDS", "30"))
# After a lost connection the broker delivers the unacknowledged again: do not run the same task twice at once.
worker_cancel_long_running_tasks_on_connection_loss = True
# A web application that shares this configuration must not wait for ever for a connection.
broker_pool_acquire_timeout = 10

# What probe.py reads to tell a worker that hangs from one that waits for Redis; without it no file is written.
heartbeat_file = os.environ.get("CELERY_HEARTBEAT_FILE", "")
