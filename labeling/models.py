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

    class Rationale(models.TextChoices):
        OFF = "off", "not asked for"
        OPTIONAL = "optional", "optional"
        REQUIRED = "required", "required on a strong preference and on a tie"

    class Strategy(models.TextChoices):
        RANDOM = "random", "random order"
        DIVERSITY = "diversity", "diversity: prompts far from those judged (k-centre)"
        DIFFERENT = "different", "the most different responses of good quality"
        UNCERTAINTY = "uncertainty", "what the newest model is least certain of"
        D_OPTIMAL = "d_optimal", "D-optimal: what teaches a reward model most"

    class Keeps(models.TextChoices):
        BEST = "best", "the best by the reward model"
        UNCERTAIN = "uncertain", "those that the reward model can hardly tell apart"

    name = models.CharField(max_length=120)
    slug = models.SlugField(unique=True)
    description = models.TextField(blank=True)
    guidelines = models.TextField(blank=True, help_text="Markdown, one click away while labeling")
    guidelines_version = models.PositiveIntegerField(default=1, editable=False)
    status = models.CharField(max_length=8, choices=Status, default=Status.ACTIVE)
    scale = models.CharField(max_length=8, choices=Scale, default=Scale.SEVEN)
    allow_tie = models.BooleanField(default=True)
    allow_both_bad = models.BooleanField(default=True)
    criteria = models.JSONField(
        default=list,
        blank=True,
        help_text='asked after the choice: [{"key": "truth", "label": "Truthful", "scale": "seven"}]; scales: seven, '
        "three, binary (which response is better), rating (1 to 5 for each)",
    )
    reason_tags = models.JSONField(
        default=list, blank=True, help_text='short reasons to tick, like ["clearer", "safer"]'
    )
    rationale = models.CharField(max_length=8, choices=Rationale, default=Rationale.OFF)
    allow_edit = models.BooleanField(default=False, help_text="the chosen response can be improved by hand")
    group_size = models.PositiveSmallIntegerField(
        default=2, help_text="responses on one screen: 2 compares pairs; 3 or 4 are ranked, ties allowed"
    )
    overlap = models.PositiveSmallIntegerField(default=1, help_text="judgments wanted per comparison (k)")
    max_overlap = models.PositiveSmallIntegerField(
        default=0, help_text="where people disagree, judgments are added up to this many; 0 = never more than k"
    )
    gold_share = models.FloatField(
        default=0, help_text="share of pairs with a known answer among those shown, 0 to 0.5"
    )
    repeat_share = models.FloatField(
        default=0, help_text="share of pairs shown again later with the sides swapped, 0 to 0.5"
    )
    practice_pairs = models.PositiveSmallIntegerField(
        default=0, help_text="gold pairs with feedback that a newcomer judges first"
    )
    strategy = models.CharField(max_length=12, choices=Strategy, default=Strategy.RANDOM)
    random_share = models.FloatField(
        default=0.2, help_text="share of pairs drawn at random under any strategy, 0.2 to 1"
    )
    plan_wanted_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="since when the order should be planned anew; labeling.plans"
    )
    planned_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="last, by labeling.plans")
    lease_seconds = models.PositiveIntegerField(default=120)
    min_dwell_ms = models.PositiveIntegerField(
        default=600, help_text="keys are ignored until a pair was shown this long"
    )
    # How candidates are sampled from the engine
    n_candidates = models.PositiveSmallIntegerField(default=4, help_text="responses per prompt; 0 = none are sampled")
    n_samples = models.PositiveSmallIntegerField(
        default=0,
        help_text="best of n: so many are sampled, and a reward model keeps n_candidates of them; 0 = all are kept",
    )
    keeps = models.CharField(
        max_length=9, choices=Keeps, default=Keeps.BEST, help_text="which of the n are kept; of random_share, any"
    )
    max_tokens = models.PositiveIntegerField(default=256)
    temperatures = models.JSONField(
        default=list, blank=True, help_text="one per candidate, repeated when there are fewer"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Guidelines(models.Model):
    """One published version of a campaign's guidelines; `Campaign.guidelines` is the text of the newest."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="guidelines_versions")
    number = models.PositiveIntegerField()
    text = models.TextField(blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["campaign", "number"], name="guidelines_number_once")]


class Membership(models.Model):
    class Role(models.TextChoices):
        ANNOTATOR = "annotator"
        REVIEWER = "reviewer"
        MANAGER = "manager"

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.ANNOTATOR)
    practised_at = models.DateTimeField(null=True, blank=True, help_text="when the practice round was done")
    paused_at = models.DateTimeField(
        null=True, blank=True, help_text="since when this person is given no pairs; what they judged stays"
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["campaign", "user"], name="one_membership_per_person")]

    def __str__(self) -> str:
        return f"{self.user} ({self.get_role_display()})"


class Preferences(models.Model):
    """How one person likes to work."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="preferences")
    keys = models.JSONField(default=dict, blank=True, help_text="action → key, where it differs from the default")
    break_minutes = models.PositiveSmallIntegerField(default=30, help_text="a break is proposed after; 0 = never")
    chat_consent_at = models.DateTimeField(
        null=True, blank=True, help_text="since when this person's choices and thumbs in chat may be learned from"
    )


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
    warnings = models.JSONField(default=list, blank=True, help_text="what screening found, like private_data")
    candidates_state = models.CharField(
        max_length=10,
        choices=[
            ("none", "none wanted"),
            ("wanted", "wanted"),
            ("claimed", "claimed"),
            ("sampled", "sampled, to be chosen from"),
            ("done", "done"),
            ("failed", "failed"),
        ],
        default="none",
    )
    candidates_claimed_at = models.DateTimeField(null=True, blank=True)
    candidates_attempts = models.PositiveSmallIntegerField(default=0)
    candidates_round = models.PositiveSmallIntegerField(
        default=0, help_text="how often candidates were asked for again; seeds go by it"
    )
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
    warnings = models.JSONField(default=list, blank=True, help_text="what screening found, like identity_leak")
    edited_from = models.ForeignKey(
        "self",
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="edits",
        help_text="for an annotator's edit",
    )
    reward = models.FloatField(null=True, blank=True, help_text="in logits, by who scored it last")
    rewarded_by = models.ForeignKey(
        Adapter,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="implicit, by this version",
    )
    reward_model = models.CharField(
        max_length=64, blank=True, help_text="sha256 of the reward model that scored it, if one did"
    )
    is_kept = models.BooleanField(default=True, help_text="false: sampled, but left out by best of n")
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
        default=0, help_text="those that count towards k; kept by labeling.judgments"
    )
    n_wanted = models.PositiveSmallIntegerField(default=1, help_text="k, raised where people disagree; kept likewise")
    is_open = models.BooleanField(default=True, help_text="more judgments are wanted; kept likewise")
    is_disputed = models.BooleanField(
        default=False, help_text="judgments that count contradict each other, and nobody has decided; kept likewise"
    )
    gold_ranks = models.JSONField(
        null=True,
        blank=True,
        help_text="the known answer, response id → rank; such a pair measures, it is not learned from",
    )
    sort_key = models.PositiveIntegerField(default=0, help_text="the order in which pairs are given out")
    arm = models.CharField(
        max_length=8, default="random", help_text="random or active: who chose its place in the order"
    )
    propensity = models.FloatField(null=True, blank=True, help_text="probability of being chosen for that place")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["campaign", "content_key"], name="comparison_once_per_campaign")]
        indexes = [
            models.Index(fields=["campaign", "sort_key", "id"], condition=Q(is_open=True), name="open_comparisons"),
            models.Index(fields=["campaign", "id"], condition=Q(gold_ranks__isnull=False), name="gold_comparisons"),
            models.Index(fields=["campaign", "id"], condition=Q(is_disputed=True), name="disputed_comparisons"),
        ]

    @property
    def is_gold(self) -> bool:
        return self.gold_ranks is not None


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


class Purpose(models.TextChoices):
    """Why somebody is shown a comparison. Only `label` counts towards k; annotators are not told which it is."""

    LABEL = "label"
    GOLD = "gold"  # the answer is known
    REPEAT = "repeat"  # judged before by the same person, now with the sides swapped
    PRACTICE = "practice"  # a newcomer's first round on gold, with feedback
    ADJUDICATION = "adjudication"  # a reviewer decides what others disagree on
    IMPORT = "import"  # judged elsewhere
    CHAT = "chat"  # chosen in chat, by the person whose chat it is


class Lease(models.Model):
    """The right of one person to judge one comparison until `expires_at`, in the order that they are shown.

    Written only by `labeling.leases`. `order` holds response ids from left to right; `repeat` is 0, and 1 for the
    swapped repeat.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="leases")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="leases")
    repeat = models.PositiveSmallIntegerField(default=0)
    purpose = models.CharField(max_length=12, choices=Purpose, default=Purpose.LABEL)
    order = models.JSONField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True, help_text="judged, skipped or released")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["comparison", "annotator", "repeat"], name="one_lease_each")]
        indexes = [models.Index(fields=["comparison", "expires_at"]), models.Index(fields=["annotator", "expires_at"])]


class Retraction(models.Model):
    """A manager's decision that one judgment, or everything that one person said in a campaign, no longer counts, though
    models may have learned from it. Written only by `labeling.judgments`; its rows are retracting judgments.
    """

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="retractions")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", help_text="whose judgments they were"
    )
    is_everything = models.BooleanField(default=False, help_text="all that this person had said, not one judgment")
    reason = models.TextField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"retraction {self.pk}"


class Judgment(models.Model):
    """What one person said of one comparison. Append-only; in force while nothing supersedes it and it is no retraction.

    `ranks` maps response id (as text) to rank, 1 best, equal ranks are ties; `strength` 1 slightly, 2 better, 3 much.
    `criteria` maps a criterion's key to −3 … 3 (positive: the first of `order` is better) or, for ratings, to a rating
    per response id. `edit` is the chosen response as the annotator improved it.
    """

    class Verdict(models.TextChoices):
        PREFERENCE = "preference"
        TIE = "tie"
        BOTH_BAD = "both_bad"
        SKIP = "skip"
        GOOD = "good"  # thumbs, on a single response
        BAD = "bad"
        RETRACTED = "retracted"  # an undo: the row it supersedes no longer counts

    comparison = models.ForeignKey(Comparison, on_delete=models.PROTECT, related_name="judgments")
    annotator = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="judgments")
    lease = models.ForeignKey(Lease, on_delete=models.SET_NULL, null=True, blank=True, related_name="judgments")
    purpose = models.CharField(max_length=12, choices=Purpose, default=Purpose.LABEL)
    repeat = models.PositiveSmallIntegerField(default=0)
    is_surplus = models.BooleanField(default=False, help_text="came after its place was given on: kept, never counted")
    client_key = models.UUIDField(help_text="made by the client: a retry never doubles")
    verdict = models.CharField(max_length=10, choices=Verdict)
    ranks = models.JSONField(default=dict, blank=True)
    strength = models.PositiveSmallIntegerField(null=True, blank=True)
    order = models.JSONField(help_text="response ids as shown, left to right")
    reason = models.TextField(blank=True, help_text="the rationale, in the annotator's words")
    tags = models.JSONField(default=list, blank=True)
    criteria = models.JSONField(default=dict, blank=True)
    edit = models.ForeignKey(Response, on_delete=models.PROTECT, null=True, blank=True, related_name="edited_in")
    flags = models.JSONField(default=list, blank=True, help_text="unsafe, private_data, broken_prompt")
    skip_reason = models.CharField(max_length=16, blank=True)
    guidelines_version = models.PositiveIntegerField(null=True, blank=True, help_text="the version in force")
    shown_ms = models.PositiveIntegerField(null=True, blank=True, help_text="visible, from painted to judged")
    attention = models.JSONField(default=dict, blank=True, help_text="milliseconds per pane, switches between them")
    supersedes = models.OneToOneField(
        "self", on_delete=models.PROTECT, null=True, blank=True, related_name="superseded_by"
    )
    retraction = models.ForeignKey(
        Retraction,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="rows",
        help_text="of a row that retracts: by which decision; none where its author took it back",
    )
    created_at = models.DateTimeField()
    frozen_at = models.DateTimeField(
        null=True, blank=True, help_text="first snapshot that holds it; from then on it can only be retracted"
    )

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["annotator", "client_key"], name="judgment_once_per_client_key")]
        indexes = [models.Index(fields=["comparison", "annotator"]), models.Index(fields=["annotator", "-id"])]

    def __str__(self) -> str:
        return f"{self.get_verdict_display()} by {self.annotator}"


class Import(models.Model):
    """One file on its way in. Written only by `labeling.exchange`; the row is the truth, a killed import goes on from
    `position`.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="imports")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    client_key = models.UUIDField(default=uuid.uuid4, help_text="sent again, an upload is the same import")
    filename = models.CharField(max_length=200, help_text="as the person calls it; never a path")
    format = models.CharField(max_length=24)
    options = models.JSONField(default=dict, blank=True)
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    claimed_at = models.DateTimeField(null=True, blank=True)
    position = models.PositiveBigIntegerField(default=0, help_text="records dealt with")
    n_added = models.PositiveIntegerField(default=0)
    n_duplicates = models.PositiveIntegerField(default=0)
    n_refused = models.PositiveIntegerField(default=0)
    n_warnings = models.PositiveIntegerField(default=0)
    message = models.TextField(blank=True, help_text="why it failed, and what to do")
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["created_by", "client_key"], name="import_once_per_client_key")]

    def __str__(self) -> str:
        return self.filename


class ImportProblem(models.Model):
    """A record that was refused, or taken with a warning, and why."""

    of = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="problems")
    line = models.PositiveBigIntegerField(help_text="from 1")
    is_refused = models.BooleanField(default=True)
    why = models.TextField()
    excerpt = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["line", "id"]


class Statistics(models.Model):
    """A campaign's figures as last computed (labeling.statistics), from judgments up to `last_judgment`."""

    campaign = models.OneToOneField(Campaign, on_delete=models.CASCADE, related_name="statistics")
    data = models.JSONField(default=dict)
    last_judgment = models.PositiveBigIntegerField(default=0)
    computed_at = models.DateTimeField()
