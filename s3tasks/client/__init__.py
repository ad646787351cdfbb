"""ConsistentS3: the verbs, over one process's connections, held against the ledger.

It never knows Celery; tasks, web applications and scripts all call the same verbs.
"""

from s3tasks.client.consistent import ConsistentS3
from s3tasks.client.sending import Progress

__all__ = ["ConsistentS3", "Progress"]
