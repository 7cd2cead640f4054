"""What people compare, and what they said. Judgments are append-only: undo and revision are new rows."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q

from serving.models import Adapter


class Campaign(models.Model):
    class Status(models.TextChoices):
        ACTIVE = "active"
        PAUSED = "paused"
        CLOSED = "closed"

    class Scale(models.TextChoices):
        SEVEN = "seven", "7 grades (much / better / slightly, tie, …)"
        THREE = "three", "left, tie, right"
        BINARY = "binary", "left or right"

    name = models.CharField(max_length=120)
    slug = models.SlugField(unique=True)
    description = models.TextField(blank=True)
    guidelines = models.TextField(blank=True, help_text="Markdown, one click away while labeling")
    status = models.CharField(max_length=8, choices=Status, default=Status.ACTIVE)
    scale = models.CharField(max_length=8, choices=Scale, default=Scale.SEVEN)
    allow_tie = models.BooleanField(default=True)
    allow_both_bad = models.BooleanField(default=True)
    overlap = models.PositiveSmallIntegerField(default=1, help_text="judgments wanted per comparison (k)")
    lease_seconds = models.PositiveIntegerField(default=120)
    min_dwell_ms = models.PositiveIntegerField(
        default=600, help_text="keys are ignored until a pair was shown this long"
    )
    # How candidates are sampled from the engine
    n_candidates = models.PositiveSmallIntegerField(default=4, help_text="responses per prompt; 0 = none are sampled")
    max_tokens = models.PositiveIntegerField(default=256)
    temperatures = models.JSONField(
        default=list, blank=True, help_text="one per candidate, repeated when there are fewer"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    class Role(models.TextChoices):
        ANNOTATOR = "annotator"
        REVIEWER = "reviewer"
        MANAGER = "manager"

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.ANNOTATOR)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["campaign", "user"], name="one_membership_per_person")]

    def __str__(self) -> str:
        return f"{self.user} ({self.get_role_display()})"


class Invitation(models.Model):
    """A link that makes one account. Only its hash is stored; `role` administrator means the whole site."""

    class Role(models.TextChoices):
        ANNOTATOR = "annotator"
        REVIEWER = "reviewer"
        MANAGER = "manager"
        ADMINISTRATOR = "administrator"

    token_sha256 = models.CharField(max_length=64, unique=True, editable=False)
    role = models.CharField(max_length=14, choices=Role, default=Role.ANNOTATOR)
    campaigns = models.ManyToManyField(Campaign, blank=True, help_text="none chosen: every active campaign")
    note = models.CharField(max_length=120, blank=True, help_text="for whom")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    used_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    def __str__(self) -> str:
        return self.note or self.get_role_display()


class Prompt(models.Model):
    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="prompts")
    messages = models.JSONField(help_text='[{"role": "user", "content": "…"}], ending with a user turn')
    sha256 = models.CharField(max_length=64, help_text="of the canonical messages; splits and duplicates go by it")
    domain = models.CharField(max_length=40, blank=True)
    source = models.CharField(max_length=40, blank=True)
    candidates_state = models.CharField(
        max_length=10,
        choices=[
            ("none", "none wanted"),
            ("wanted", "wanted"),
            ("claimed", "claimed"),
            ("done", "done"),
            ("failed", "failed"),
        ],
        default="none",
    )
    candidates_claimed_at = models.DateTimeField(null=True, blank=True)
    candidates_attempts = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["campaign", "sha256"], name="prompt_once_per_campaign")]
        indexes = [models.Index(fields=["candidates_state", "id"])]

    def __str__(self) -> str:
        return self.excerpt

    @property
    def excerpt(self) -> str:
        """The start of the question, for lists."""
        text = self.messages[-1]["content"]
        return text if len(text) <= 100 else f"{text[:99]}…"


class Response(models.Model):
    """One answer to a prompt; `adapter` is the version that wrote it, null when it came from outside."""

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="responses")
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="responses")
    text = models.TextField()
    sha256 = models.CharField(max_length=64)
    source = models.CharField(max_length=40, default="engine", help_text="engine, chat, import, …")
    generator = models.CharField(
        max_length=80, blank=True, help_text="an outside author's name; never shown while labeling"
    )
    sampling = models.JSONField(default=dict, blank=True)
    finish_reason = models.CharField(max_length=16, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["prompt", "sha256"], name="response_once_per_prompt")]


class Comparison(models.Model):
    """One thing to judge: 1 to 4 responses to one prompt."""

    class Source(models.TextChoices):
        CAMPAIGN = "campaign"
        CHAT = "chat"
        IMPORT = "import"

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="comparisons")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="comparisons")
    responses = models.ManyToManyField(Response, through="ComparisonItem", related_name="comparisons")
    source = models.CharField(max_length=10, choices=Source, default=Source.CAMPAIGN)
    content_key = models.CharField(
        max_length=64, help_text="hash of the sorted response ids: the same set is compared once"
    )
    n_judgments = models.PositiveIntegerField(
        default=0, help_text="in force, skips left out; kept by labeling.judgments"
    )
    is_open = models.BooleanField(default=True, help_text="more judgments are wanted; kept by labeling.judgments")
    sort_key = models.PositiveIntegerField(default=0, help_text="random order, fixed at creation")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["campaign", "content_key"], name="comparison_once_per_campaign")]
        indexes = [
            models.Index(fields=["campaign", "sort_key", "id"], condition=Q(is_open=True), name="open_comparisons")
        ]


class ComparisonItem(models.Model):
    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="items")
    response = models.ForeignKey(Response, on_delete=models.CASCADE, related_name="items")
    index = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ["index"]
        constraints = [
            models.UniqueConstraint(fields=["comparison", "index"], name="one_item_per_index"),
            models.UniqueConstraint(fields=["comparison", "response"], name="response_once_per_comparison"),
        ]


class Lease(models.Model):
    """The right of one person to judge one comparison until `expires_at`, in the order that they are shown.

    Written only by `labeling.leases`. `order` holds response ids from left to right.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="leases")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="leases")
    order = models.JSONField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True, help_text="judged, skipped or released")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["comparison", "annotator"], name="one_lease_per_person")]
        indexes = [models.Index(fields=["comparison", "expires_at"]), models.Index(fields=["annotator", "expires_at"])]


class Judgment(models.Model):
    """What one person said of one comparison. Append-only; in force while nothing supersedes it and it is no retraction.

    `ranks` maps response id (as text) to rank, 1 best, equal ranks are ties; `strength` 1 slightly, 2 better, 3 much.
    """

    class Verdict(models.TextChoices):
        PREFERENCE = "preference"
        TIE = "tie"
        BOTH_BAD = "both_bad"
        SKIP = "skip"
        RETRACTED = "retracted"  # an undo: the row it supersedes no longer counts

    comparison = models.ForeignKey(Comparison, on_delete=models.PROTECT, related_name="judgments")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="judgments")
    lease = models.ForeignKey(Lease, on_delete=models.SET_NULL, null=True, blank=True, related_name="judgments")
    client_key = models.UUIDField(help_text="made by the client: a retry never doubles")
    verdict = models.CharField(max_length=10, choices=Verdict)
    ranks = models.JSONField(default=dict, blank=True)
    strength = models.PositiveSmallIntegerField(null=True, blank=True)
    order = models.JSONField(help_text="response ids as shown, left to right")
    reason = models.TextField(blank=True)
    shown_ms = models.PositiveIntegerField(null=True, blank=True, help_text="from painted to judged")
    supersedes = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="superseded_by"
    )
    created_at = models.DateTimeField()
    frozen_at = models.DateTimeField(
        null=True, blank=True, help_text="first snapshot that holds it; no undo after that"
    )

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["annotator", "client_key"], name="judgment_once_per_client_key")]
        indexes = [models.Index(fields=["comparison", "annotator"]), models.Index(fields=["annotator", "-id"])]

    def __str__(self) -> str:
        return f"{self.get_verdict_display()} by {self.annotator}"
