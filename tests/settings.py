"""The settings that the tests run with: those of the site, in a temporary VAR_DIR made before anything is read.

pytest-django loads this module before any conftest, so no test and no process that a test starts ever sees the
`var/` of a checkout. DATABASE_URL and REDIS_URL stay as given: `python -m tests.services` sets both.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ["ALIGNAPP_MODE"] = "local"
os.environ["VAR_DIR"] = tempfile.mkdtemp(prefix="alignapp-test-")
os.environ.pop("ARTIFACTS_DIR", None)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads that wait for each other cost more
os.environ.setdefault("MODEL", str(REPOSITORY / "var" / "models" / "smollm2-135m-instruct"))
atexit.register(shutil.rmtree, os.environ["VAR_DIR"], ignore_errors=True)

from alignapp.settings import *  # noqa: E402, F403
from alignapp.settings import DATABASES, IS_SQLITE, VAR_DIR  # noqa: E402

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast; the site keeps Django's default
WHITENOISE_AUTOREFRESH = True  # every test client would list all static files anew; the site lists them at its start
if IS_SQLITE:
    # A file, as in use: an in-memory database has no WAL and locks differently between threads.
    DATABASES["default"]["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
