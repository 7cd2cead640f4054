"""What is served: immutable adapter versions, the aliases that point at them, and the conversations held with them."""

import uuid
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils import timezone


class Adapter(models.Model):
    """One immutable version of the model: the base itself (`is_base`), or the base with one LoRA adapter.

    Written only by `serving.versions`. `name` holds number and hash (`adapter-42-1a2b3c`, `base-9f8e7d`), so a restored
    database never meets another's file.
    """

    class Status(models.TextChoices):
        REGISTERED = "registered"
        READY = "ready"  # loaded once and passed the engine's self-test
        REJECTED = "rejected"  # failed the self-test; publishing it repeats the test

    name = models.CharField(max_length=80, unique=True)
    is_base = models.BooleanField(default=False)
    status = models.CharField(max_length=12, choices=Status, default=Status.REGISTERED)
    sha256 = models.CharField(max_length=64, help_text="of adapter_model.safetensors; for the base, of its source file")
    base_sha256 = models.CharField(max_length=64, help_text="identity of the base model that it belongs to")
    manifest = models.JSONField(default=dict, blank=True)
    notes = models.TextField(blank=True)
    error = models.TextField(blank=True)
    self_test = models.JSONField(default=dict, blank=True, help_text="slope, correlation, … as measured on the engine")
    wanted_until = models.DateTimeField(
        null=True, blank=True, help_text="kept loaded until then, though no alias points at it"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["sha256", "base_sha256"], name="adapter_unique_content"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def engine_name(self) -> str:
        """The model name that the engine knows this version by."""
        return settings.BASE_MODEL_NAME if self.is_base else self.name

    @property
    def folder(self) -> Path:
        """The PEFT folder; meaningless for the base."""
        return settings.ADAPTERS_DIR / self.name


class Deployment(models.Model):
    """An alias (`current`) and the version that it points at. Written only by `serving.aliases`."""

    alias = models.SlugField(unique=True)
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, related_name="deployments")
    previous = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    generation = models.PositiveIntegerField(default=1)
    updated_at = models.DateTimeField(auto_now=True)
    canary = models.ForeignKey(
        Adapter,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="canaries",
        help_text="answers a share of the conversations, on trial",
    )
    canary_share = models.FloatField(default=0.0, help_text="of conversations that the canary answers, 0 to 1")
    canary_since = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.alias} → {self.adapter} (generation {self.generation})"


class DeploymentEvent(models.Model):
    """The audit log: who did what with a version, when and why. Append-only; written only by `serving.events`.

    What is done to an alias has the alias and the generation that it made; what is done to a version on an engine has
    neither. The actor of what the site did by itself is None.
    """

    class Kind(models.TextChoices):
        PUBLISHED = "published"
        ROLLED_BACK = "rolled back"
        CANARY_STARTED = "canary started"
        CANARY_CHANGED = "canary share changed"
        CANARY_PROMOTED = "canary promoted"
        CANARY_STOPPED = "canary stopped"
        ALIAS_REMOVED = "alias removed"
        LOADED = "loaded"
        LOAD_FAILED = "load failed"
        SELF_TEST_PASSED = "self-test passed"
        SELF_TEST_FAILED = "self-test failed"
        UNLOADED = "unloaded"

    # After these the alias points at the event's adapter; the others leave it where it is.
    MOVES = (Kind.PUBLISHED, Kind.ROLLED_BACK, Kind.CANARY_PROMOTED)
    ENDS = (*MOVES, Kind.ALIAS_REMOVED)  # after these it points no more at what it did before

    alias = models.SlugField(blank=True)
    kind = models.CharField(max_length=24, choices=Kind, default=Kind.PUBLISHED)
    share = models.FloatField(null=True, help_text="of conversations that the canary answers from then on")
    generation = models.PositiveIntegerField(null=True)
    engine = models.CharField(max_length=200, blank=True, help_text="on which this happened; empty: on none alone")
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, related_name="events")
    previous = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, related_name="+")
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    reason = models.TextField(blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["alias", "generation"], name="one_event_per_generation"),
            models.CheckConstraint(
                condition=models.Q(alias="", generation=None) | (~models.Q(alias="") & models.Q(generation__gt=0)),
                name="an_alias_has_its_generation",
            ),
        ]


class Conversation(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    title = models.CharField(max_length=120, blank=True)
    system_prompt = models.TextField(blank=True)
    sampling = models.JSONField(default=dict, blank=True, help_text="what the owner set; the rest is sampling.DEFAULTS")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-updated_at"]


class Message(models.Model):
    """One turn. Answers hang under their question by `parent`; several answers to one question are siblings."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    class Status(models.TextChoices):
        PENDING = "pending"  # admitted: its version is pinned, nobody reads its stream yet
        STREAMING = "streaming"
        COMPLETE = "complete"
        STOPPED = "stopped"  # by the reader, or since nobody read any more: `stopped_at` tells
        FAILED = "failed"

    UNFINISHED = (Status.PENDING, Status.STREAMING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    parent = models.ForeignKey("self", on_delete=models.CASCADE, null=True, blank=True, related_name="children")
    role = models.CharField(max_length=10, choices=Role)
    content = models.TextField(blank=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.COMPLETE)
    adapter = models.ForeignKey(
        Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="messages", help_text="who answered"
    )
    system_prompt = models.TextField(blank=True, help_text="of an answer: as sent to the engine")
    sampling = models.JSONField(default=dict, blank=True, help_text="seed, temperature, … as sent to the engine")
    usage = models.JSONField(default=dict, blank=True)
    comparison = models.JSONField(
        default=dict,
        blank=True,
        help_text="of a question answered twice: message ids by side, and the choice; blind until there is one",
    )
    rating = models.SmallIntegerField(default=0, choices=[(-1, "down"), (0, "none"), (1, "up")])
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    asked_at = models.DateTimeField(default=timezone.now, help_text="of an answer: when it was asked for, or continued")
    ended_at = models.DateTimeField(null=True, blank=True, help_text="of an answer: when its writer was done with it")
    stopped_at = models.DateTimeField(null=True, blank=True, help_text="of an answer: when its reader pressed Stop")

    class Meta:
        ordering = ["created_at"]
        indexes = [models.Index(fields=["conversation", "created_at"])]

    @property
    def is_unfinished(self) -> bool:
        return self.status in self.UNFINISHED

    @property
    def was_left(self) -> bool:
        """It ended since its reader was gone: they reloaded, or lost the connection, and did not press Stop."""
        return self.status == self.Status.STOPPED and self.ended_at is not None and self.stopped_at is None

    @property
    def tokens_per_second(self) -> float | None:
        """While writing: the wait for the first token is left out. None for answers of a token or less."""
        n_tokens = self.usage.get("completion_tokens", 0)
        seconds = self.usage.get("seconds", 0.0) - self.usage.get("seconds_to_first_token", 0.0)
        return (n_tokens - 1) / seconds if n_tokens > 1 and seconds > 0 else None


class ApiKey(models.Model):
    """A person's key for programs. Written only by `serving.keys`; only its hash is stored."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=80, help_text="what it is for")
    prefix = models.CharField(max_length=12, help_text="the key's beginning, to tell keys apart")
    sha256 = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    # Limits of the model endpoints; null: the site's.
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    max_concurrent = models.PositiveIntegerField(null=True, blank=True, help_text="requests being answered at once")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class ServedRequest(models.Model):
    """The request log: one row for each answer that a version was asked for, by page or by key. No content is stored."""

    class Outcome(models.TextChoices):
        DONE = "done"
        CANCELLED = "cancelled"  # the reader left
        REFUSED = "refused"  # the request was at fault
        FAILED = "failed"  # the engine was: what a canary is judged by

    request_id = models.CharField(max_length=64, db_index=True)
    at = models.DateTimeField(db_index=True, help_text="when it was admitted")
    endpoint = models.CharField(max_length=24, help_text="page, chat.completions or completions")
    alias = models.SlugField(blank=True, help_text="the alias that was asked for; empty: a version by its own name")
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, related_name="requests")
    is_canary = models.BooleanField(default=False)
    engine = models.CharField(max_length=200, blank=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    key = models.ForeignKey(ApiKey, on_delete=models.SET_NULL, null=True, related_name="requests")
    outcome = models.CharField(max_length=10, choices=Outcome)
    status = models.PositiveSmallIntegerField(help_text="HTTP status")
    error = models.TextField(blank=True)
    seconds = models.FloatField(help_text="from admission to the last token")
    seconds_to_first_token = models.FloatField(null=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["adapter", "at"])]

    def __str__(self) -> str:
        return self.request_id


class IdempotentRequest(models.Model):
    """A creating request that was sent with an Idempotency-Key, and its answer: sent again, it gets the same one.

    Written only by `serving.idempotency`. `status` is null while the first one is being dealt with.
    """

    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=80)
    fingerprint = models.CharField(max_length=64, help_text="sha256 of method, path and body")
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["person", "key"], name="idempotency_key_once_per_person")]
