"""Snapshots of judgments, the runs that learn from them, and what was measured."""

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import Q
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from labeling.models import Campaign, Judgment, Retraction
from serving.models import Adapter


class Snapshot(models.Model):
    """Judgments frozen into files below SNAPSHOTS_DIR/<sha256>/. Never changed."""

    campaign = models.ForeignKey(Campaign, on_delete=models.PROTECT, related_name="snapshots")
    sha256 = models.CharField(max_length=64)
    judgments = models.ManyToManyField(Judgment, related_name="snapshots")
    counts = models.JSONField(default=dict, help_text="judgments, pairs, train, heldout, prompts, left out and why")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["campaign", "sha256"], name="snapshot_once")]

    @property
    def folder(self) -> Path:
        return settings.SNAPSHOTS_DIR / self.sha256


class Run(models.Model):
    """One training run. The row is the truth; only `training.runs` writes `status`."""

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class Trigger(models.TextChoices):
        MANUAL = "manual"
        POLICY = "policy"
        RETRY = "retry"

    ACTIVE = (Status.QUEUED, Status.RUNNING)

    campaign = models.ForeignKey(Campaign, on_delete=models.PROTECT, related_name="runs")
    snapshot = models.ForeignKey(Snapshot, on_delete=models.PROTECT, null=True, blank=True, related_name="runs")
    method = models.CharField(max_length=40)
    params = models.JSONField(default=dict, help_text="checked against training.catalog")
    status = models.CharField(max_length=10, choices=Status, default=Status.QUEUED)
    trigger = models.CharField(max_length=8, choices=Trigger, default=Trigger.MANUAL)
    phase = models.CharField(max_length=40, blank=True, help_text="what it is doing now, in words")
    step = models.PositiveIntegerField(default=0)
    n_steps = models.PositiveIntegerField(default=0)
    seconds_left = models.FloatField(null=True, blank=True)
    attempt = models.PositiveSmallIntegerField(default=0)
    fencing_token = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=120, blank=True)
    trainer_pid = models.PositiveIntegerField(null=True, blank=True)
    trainer_started = models.FloatField(
        null=True, blank=True, help_text="the process's start in unix seconds: a reused pid is never killed"
    )
    n_lost = models.PositiveSmallIntegerField(
        default=0, help_text="attempts that ended without a word; RUN_MAX_ATTEMPTS of them fail the run"
    )
    is_cancel_requested = models.BooleanField(default=False)
    incumbent = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="+")
    # Not one-to-one: the same judgments, parameters and seed give the same bytes, hence the same version, twice.
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, blank=True, related_name="runs")
    retry_of = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="retries")
    without = models.ForeignKey(
        Retraction,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="runs",
        help_text="`retry_of` once more, on a new snapshot, since these judgments were retracted",
    )
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    error = models.TextField(blank=True)
    notes = models.TextField(blank=True, help_text="what people want to remember of it")
    tags = models.JSONField(default=list, blank=True, help_text="words to find it by")
    system = models.JSONField(default=dict, blank=True, help_text="the trainer's last figures: rss_mb, cpu_percent, …")
    timings = models.JSONField(default=dict, blank=True, help_text="seconds per stage")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["campaign"], condition=Q(status__in=["queued", "running"]), name="one_active_run_per_campaign"
            )
        ]

    def __str__(self) -> str:
        return f"run {self.pk}"

    @property
    def folder(self) -> Path:
        return settings.RUNS_DIR / str(self.pk)


class Metric(models.Model):
    """One line of a trainer's metrics.jsonl."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    values = models.JSONField()

    class Meta:
        ordering = ["step"]
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="one_metric_per_step")]


class Evaluation(models.Model):
    """The gate's evidence on one adapter, kept for ever."""

    run = models.OneToOneField(Run, on_delete=models.PROTECT, related_name="evaluation")
    adapter = models.ForeignKey(Adapter, on_delete=models.PROTECT, related_name="evaluations")
    incumbent = models.ForeignKey(Adapter, on_delete=models.PROTECT, null=True, related_name="+")
    is_passed = models.BooleanField()
    verdict = models.TextField(help_text="in words")
    evidence = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)


class RewardModel(models.Model):
    """What a run with a method of output "reward_model" left behind. Its files are never changed.

    `training.reward_models` writes these rows.
    """

    campaign = models.ForeignKey(Campaign, on_delete=models.PROTECT, related_name="reward_models")
    run = models.OneToOneField(Run, on_delete=models.PROTECT, related_name="reward_model")
    sha256 = models.CharField(max_length=64, help_text="of all of its files; its scores are kept by it")
    base_sha256 = models.CharField(max_length=64)
    figures = models.JSONField(default=dict, help_text="reward.json: temperature, accuracy, calibration, …")
    is_passed = models.BooleanField(help_text="agrees with held-out judgments better than chance")
    verdict = models.TextField(help_text="in words")
    evidence = models.JSONField(default=dict)
    is_active = models.BooleanField(default=False, help_text="the one that scores its campaign's responses")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["campaign"], condition=Q(is_active=True), name="one_active_reward_model_per_campaign"
            )
        ]

    def __str__(self) -> str:
        return f"reward model {self.pk}"

    @property
    def folder(self) -> Path:
        return settings.REWARD_MODELS_DIR / self.sha256


class Scoring(models.Model):
    """One job that scores responses with a reward model. Only `training.scorings` writes `status`."""

    class Status(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    reward_model = models.ForeignKey(RewardModel, on_delete=models.CASCADE, related_name="scorings")
    status = models.CharField(max_length=10, choices=Status, default=Status.RUNNING)
    n_responses = models.PositiveIntegerField(default=0)
    attempt = models.PositiveSmallIntegerField(default=1, help_text="also the fencing token")
    lease_until = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=120, blank=True)
    trainer_pid = models.PositiveIntegerField(null=True, blank=True)
    trainer_started = models.FloatField(null=True, blank=True, help_text="as in Run")
    is_cancel_requested = models.BooleanField(default=False)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["reward_model"], condition=Q(status="running"), name="one_running_scoring_per_reward_model"
            )
        ]

    @property
    def folder(self) -> Path:
        return settings.SCORINGS_DIR / f"{self.pk}-{self.attempt}"


class Policy(models.Model):
    """When a campaign trains and publishes by itself."""

    campaign = models.OneToOneField(Campaign, on_delete=models.CASCADE, related_name="policy")
    is_enabled = models.BooleanField(default=False)
    every_n = models.PositiveIntegerField(
        default=50, help_text="train when this many new judgments wait; 0 = never by count"
    )
    crontab = models.ForeignKey(
        CrontabSchedule,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        help_text="and at these times, if any judgment is new",
    )
    periodic_task = models.OneToOneField(
        PeriodicTask, on_delete=models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )
    method = models.CharField(max_length=40, default="dpo")
    params = models.JSONField(default=dict, blank=True)
    publishes = models.BooleanField(default=False, help_text="publish by itself when the gate passes")
    updated_at = models.DateTimeField(auto_now=True, help_text="runs that ended before it are not published by it")
    min_heldout_pairs = models.PositiveIntegerField(default=20, help_text="the gate needs at least this many")
    rules = models.JSONField(
        default=dict, blank=True, help_text="what differs from the defaults of training.rules.Rules"
    )

    class Meta:
        verbose_name_plural = "policies"
