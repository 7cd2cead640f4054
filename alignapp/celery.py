"""The Celery application. Rows hold the truth; a message only says "look at this row".

Workers and beat touch a file in `VAR_DIR/run/` every two seconds while they are at work (alignapp/liveness.py): the
supervisor and the container health checks look at its age.
"""

import os
import warnings

from celery import Celery
from celery.exceptions import SecurityWarning
from kombu.transport import TRANSPORT_ALIASES

from alignapp.liveness import ReportLiveness

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "alignapp.settings")
TRANSPORT_ALIASES["files"] = "alignapp.broker:Transport"

# Celery advises against root because of pickled messages; CELERY_ACCEPT_CONTENT takes JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)

app = Celery("alignapp")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["consumer"].add(ReportLiveness)
