"""All settings, from environment variables only; docs/operations.md lists every one (a test compares).

`ALIGNAPP_MODE=local` (the default) needs nothing: secrets are made once and kept in `VAR_DIR`.
`ALIGNAPP_MODE=production` refuses to start until every secret and host is given.
"""

import contextlib
import secrets
from pathlib import Path
from urllib.parse import unquote

import environ
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

env = environ.Env()
BASE_DIR = Path(__file__).resolve().parent.parent

# --- mode and places -------------------------------------------------------------------------------------------------
MODE = env.str("ALIGNAPP_MODE", default="local")
if MODE not in {"local", "production"}:
    raise ImproperlyConfigured(f"ALIGNAPP_MODE is {MODE!r}; it must be 'local' or 'production'.")
IS_PRODUCTION = MODE == "production"
DEBUG = env.bool("DEBUG", default=False)
VAR_DIR = Path(env.str("VAR_DIR", default=str(BASE_DIR / "var"))).resolve()
ARTIFACTS_DIR = Path(env.str("ARTIFACTS_DIR", default=str(VAR_DIR / "artifacts"))).resolve()
ADAPTERS_DIR = ARTIFACTS_DIR / "adapters"
SNAPSHOTS_DIR = ARTIFACTS_DIR / "snapshots"
RUNS_DIR = ARTIFACTS_DIR / "runs"
REWARD_MODELS_DIR = ARTIFACTS_DIR / "reward_models"
SCORINGS_DIR = ARTIFACTS_DIR / "scorings"


def _secret(name: str) -> str:
    """The variable; locally, a random value made once and kept in VAR_DIR (mode 0600); in production, required."""
    value = env.str(name, default="")
    if IS_PRODUCTION:
        if len(value) < 32 or value.startswith("change-me"):
            raise ImproperlyConfigured(f"Set {name} to at least 32 random characters: ALIGNAPP_MODE is production.")
        return value
    if value:
        return value
    path = VAR_DIR / name.lower()
    if not path.exists():
        VAR_DIR.mkdir(parents=True, exist_ok=True)
        candidate = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        candidate.touch(mode=0o600)
        candidate.write_text(secrets.token_urlsafe(48))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(candidate)  # atomic: of two processes starting at once, the first one's secret stays
        candidate.unlink()
    return path.read_text().strip()


SECRET_KEY = _secret("SECRET_KEY")

# --- web -------------------------------------------------------------------------------------------------------------
HOST = env.str("HOST", default="127.0.0.1")
PORT = env.int("PORT", default=8000)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=[] if IS_PRODUCTION else ["127.0.0.1", "localhost", "[::1]"])
if IS_PRODUCTION and not ALLOWED_HOSTS:
    raise ImproperlyConfigured("Set ALLOWED_HOSTS to the host names of this site: ALIGNAPP_MODE is production.")
if HOST not in {"127.0.0.1", "localhost", "::1", "0.0.0.0"} and HOST not in ALLOWED_HOSTS:  # noqa: S104
    ALLOWED_HOSTS.append(HOST)
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
# Whose X-Forwarded-For is believed: of a request from anybody else, the address is the one that it came from.
FORWARDED_ALLOW_IPS = env.str("FORWARDED_ALLOW_IPS", default="127.0.0.1")
SECURE_PROXY_SSL_HEADER = (
    ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("BEHIND_TLS_PROXY", default=IS_PRODUCTION) else None
)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("SECURE_COOKIES", default=IS_PRODUCTION)
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008"]  # HSTS and the redirect to https are the TLS proxy's part
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = env.int("MAX_UPLOAD_BYTES", default=32 * 1024 * 1024)

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "axes",
    "csp",
    "django_celery_beat",
    "django_htmx",
    "rest_framework",
    "drf_spectacular",
    "alignapp",
    "serving",
    "labeling",
    "training",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "alignapp.static.StaticFilesMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "alignapp.headers.SecurityHeadersMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "alignapp.urls"
ASGI_APPLICATION = "alignapp.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
# The path of its host that the site lies below. The proxy takes it off, uvicorn puts it before each request's path again.
FORCE_SCRIPT_NAME = "/" + prefix if (prefix := env.str("PATH_PREFIX", default="").strip("/")) else None
STATIC_URL = "static/"  # below it
STATICFILES_DIRS = [BASE_DIR / "static"]
# Static files are served from where they lie: no collectstatic, and so no copy that can be out of date.
WHITENOISE_USE_FINDERS = True
WHITENOISE_MAX_AGE = 300 if IS_PRODUCTION else 0
WHITENOISE_ALLOW_ALL_ORIGINS = False
# Scripts and styles are files of this site: nothing inline, so no nonce and no exception for anything in a page.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
        "object-src": [NONE],
    },
}
# The admin's theme sets styles from its scripts and evaluates expressions in attributes; inline scripts stay forbidden.
ADMIN_CONTENT_SECURITY_POLICY = {
    "script-src": [SELF, UNSAFE_EVAL],
    "style-src": [SELF, UNSAFE_INLINE],
    "img-src": [SELF, "data:"],
}
SECURITY_HEADERS = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(
        f"{feature}=()"
        for feature in (
            "accelerometer", "autoplay", "browsing-topics", "camera", "clipboard-read", "display-capture",
            "encrypted-media", "fullscreen", "geolocation", "gyroscope", "hid", "magnetometer", "microphone", "midi",
            "payment", "picture-in-picture", "publickey-credentials-get", "screen-wake-lock", "serial", "usb",
            "xr-spatial-tracking",
        )
    ),
}  # fmt: skip

# --- people ----------------------------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = reverse_lazy("login")
LOGIN_REDIRECT_URL = reverse_lazy("home")
LOGOUT_REDIRECT_URL = reverse_lazy("login")
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False
AXES_LOCKOUT_TEMPLATE = "registration/locked.html"
ADMIN_USERNAME = env.str("ADMIN_USERNAME", default="admin")
ADMIN_PASSWORD = env.str("ADMIN_PASSWORD", default="")

# --- database --------------------------------------------------------------------------------------------------------
# Synchronous requests that run at a time in a web process. More only take turns at the interpreter's lock.
WEB_THREADS = env.int("WEB_THREADS", default=8)
WEB_PROCESSES = env.int("WEB_PROCESSES", default=1)
DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{VAR_DIR / 'db.sqlite3'}")}
IS_SQLITE = DATABASES["default"]["ENGINE"].endswith("sqlite3")
# Of PostgreSQL. One for each web thread, and for each thread of serving.database.
DATABASE_POOL = env.int("DATABASE_POOL", default=0) or WEB_THREADS + 8
if IS_SQLITE:
    # Immediate transactions: a writer waits its turn at BEGIN instead of failing in the middle with "database is locked".
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-20000;",
    }
else:
    # Under ASGI each request may run in its own thread: without a pool, each would open a connection.
    DATABASES["default"]["OPTIONS"] = {"pool": {"min_size": 1, "max_size": DATABASE_POOL, "timeout": 10}}
    DATABASES["default"]["HOST"] = unquote(DATABASES["default"]["HOST"])  # a socket's folder is written with %2F
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- celery ----------------------------------------------------------------------------------------------------------
REDIS_URL = env.str("REDIS_URL", default="")
BROKER_DIR = VAR_DIR / "broker"
CELERY_BROKER_URL = REDIS_URL or "files://localhost"
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {"visibility_timeout": 24 * 3600} if REDIS_URL else {"folder": str(BROKER_DIR), "polling_interval": 0.1}
)
CELERY_TASK_IGNORE_RESULT = True  # rows hold every result
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {
    "training.tasks.supervise": {"queue": "train"},
    "training.tasks.score_by_reward_models": {"queue": "train"},
}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = TIME_ZONE = "UTC"
CELERY_BEAT_SCHEDULER = "alignapp.beat:Scheduler"
# Each looks at all there is to do: one that waited until the next was sent is dropped, so that none pile up.
# (`expire_seconds` is the database scheduler's name for Celery's `expires`.)
CELERY_BEAT_SCHEDULE = {
    name: {"task": task, "schedule": seconds, "options": {"expire_seconds": seconds}}
    for name, task, seconds in (
        ("sweep runs", "training.tasks.sweep", 10),
        ("check training policies", "training.tasks.check_policies", 15),
        ("generate candidates", "training.tasks.generate_candidates", 30),
        ("plan campaigns", "labeling.tasks.plan_campaigns", 60),
        ("score responses", "training.tasks.score_responses", 30),
        ("reconcile deployments", "serving.tasks.reconcile", 15),
        ("refresh statistics", "labeling.tasks.refresh_statistics", 20),
        ("go on with imports", "labeling.tasks.sweep_imports", 30),
    )
}

# --- engine and model ------------------------------------------------------------------------------------------------
MODEL = env.str("MODEL", default=str(VAR_DIR / "models" / "smollm2-135m-instruct"))
ENGINE_HOST = env.str("ENGINE_HOST", default="127.0.0.1")
ENGINE_PORT = env.int("ENGINE_PORT", default=8001)
ENGINE_URLS = env.list("ENGINE_URLS", default=[])
HAS_EMBEDDED_ENGINE = not ENGINE_URLS
if HAS_EMBEDDED_ENGINE:
    ENGINE_URLS = [f"http://127.0.0.1:{ENGINE_PORT}"]
ENGINE_TOKEN = _secret("ENGINE_TOKEN")
ENGINE_THREADS = env.int("ENGINE_THREADS", default=0)  # 0: all cores
# Limits of the embedded engine; 0: its own default, which for memory is none.
ENGINE_MEMORY_MIB = env.int("ENGINE_MEMORY_MIB", default=0)
ENGINE_MAX_ADAPTERS = env.int("ENGINE_MAX_ADAPTERS", default=0)
ENGINE_MAX_TOKENS = env.int("ENGINE_MAX_TOKENS", default=0)
ENGINE_CONTEXT = env.int("ENGINE_CONTEXT", default=0)
BASE_MODEL_NAME = env.str("BASE_MODEL_NAME", default="base")  # the engine's name for the model without an adapter
REQUEST_LOG_DAYS = env.int("REQUEST_LOG_DAYS", default=30)
MAX_PROMPT_BYTES = env.int("MAX_PROMPT_BYTES", default=2 * 1024 * 1024)
# What one key may ask models for, unless it has limits of its own; 0: no limit.
KEY_REQUESTS_PER_MINUTE = env.int("KEY_REQUESTS_PER_MINUTE", default=600)
KEY_TOKENS_PER_MINUTE = env.int("KEY_TOKENS_PER_MINUTE", default=400_000)
KEY_MAX_CONCURRENT = env.int("KEY_MAX_CONCURRENT", default=64)

# --- training --------------------------------------------------------------------------------------------------------
TRAIN_THREADS = env.int("TRAIN_THREADS", default=0)  # 0: all cores
TRAIN_PROCESSES = env.int("TRAIN_PROCESSES", default=0)  # of one run; 0: one for each GPU
# Campaign's slug or method → the Celery queue of its runs, as "dpo=train-gpu,poems=train-gpu"; without, "train".
TRAIN_QUEUES = env.dict("TRAIN_QUEUES", default={})
TRAIN_WORKER_QUEUES = env.str("TRAIN_WORKER_QUEUES", default="train")  # that train-workers of this machine take from
TRAIN_NICE = env.int("TRAIN_NICE", default=10)  # training yields to chat
RUN_LEASE_SECONDS = env.int("RUN_LEASE_SECONDS", default=30)
RUN_MAX_ATTEMPTS = env.int("RUN_MAX_ATTEMPTS", default=3)

# --- API, language, logs ---------------------------------------------------------------------------------------------
# Throttles count here. In memory, each web process counts for itself; Redis counts for all of them.
# Celery's name for a socket is redis+socket://, redis-py's is unix://.
CACHE_URL = REDIS_URL.replace("redis+socket://", "unix://", 1)
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": CACHE_URL, "KEY_PREFIX": "cache"}
    if REDIS_URL
    else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 10_000}}
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "serving.authentication.KeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated", "serving.authentication.HasScope"],
    "DEFAULT_THROTTLE_CLASSES": ["serving.throttles.PerKeyOrPerson"],
    "DEFAULT_THROTTLE_RATES": {
        "labeling": env.str("THROTTLE_LABELING", default="3000/minute"),
        "reading": env.str("THROTTLE_READING", default="600/minute"),
        "writing": env.str("THROTTLE_WRITING", default="240/minute"),
        "transfers": env.str("THROTTLE_TRANSFERS", default="60/minute"),
    },
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "alignapp.api_docs.Operations",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Alignapp",
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api",
    "SERVERS": [{"url": FORCE_SCRIPT_NAME or "/"}],
    "ENUM_NAME_OVERRIDES": {
        "Verdict": "labeling.models.Judgment.Verdict",
        "GivenVerdict": "labeling.api.judgments.GivenVerdict",
        "Scale": "labeling.models.Campaign.Scale",
        "CriterionScale": "labeling.choices.CRITERION_SCALES",
        "Role": "labeling.models.Membership.Role",
    },
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "alignapp.api_docs.add_errors"],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
}
LANGUAGE_CODE = "en"
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_TZ = True
LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{", "datefmt": "%H:%M:%S"}
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    # One line for every task that beat sends, a worker receives and ends would bury everything else.
    "loggers": {
        name: {"level": "DEBUG" if LOG_LEVEL == "DEBUG" else "WARNING"}
        for name in ("httpx", "axes", "celery", "django_celery_beat")
    },
}
UNFOLD = {
    "SITE_TITLE": "Alignapp",
    "SITE_HEADER": "Alignapp",
    "SITE_URL": "/",
    "SITE_SYMBOL": "balance",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("favicon.svg")}],
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "DASHBOARD_CALLBACK": "training.dashboard.callback",
    "STYLES": [lambda request: static("run.css")],
    "SIDEBAR": {"navigation": "training.dashboard.navigation"},
    # The accent of static/site.css as a ramp; unfold makes its buttons and links of it.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 264)",
            "100": "oklch(93.5% .03 264)",
            "200": "oklch(88% .06 264)",
            "300": "oklch(80.5% .1 264)",
            "400": "oklch(72% .14 264)",
            "500": "oklch(63% .18 264)",
            "600": "oklch(51% .19 264)",
            "700": "oklch(46% .18 264)",
            "800": "oklch(40% .15 264)",
            "900": "oklch(35% .12 264)",
            "950": "oklch(26% .08 264)",
        },
    },
}
