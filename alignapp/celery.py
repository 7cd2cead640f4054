"""The Celery application. Rows hold the truth; a message only says "look at this row"."""

import os

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "alignapp.settings")
TRANSPORT_ALIASES["files"] = "alignapp.broker:Transport"

app = Celery("alignapp")
# Also for threads other than the importing one: under ASGI, messages are sent from a pool of them.
app.set_default()
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
