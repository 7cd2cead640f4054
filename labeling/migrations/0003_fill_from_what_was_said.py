"""What judgments that were made before 0002 mean in its columns."""

from django.db import migrations
from django.db.models import OuterRef, Subquery


def fill(apps, schema_editor):
    campaign = apps.get_model("labeling", "Campaign")
    comparison = apps.get_model("labeling", "Comparison")
    guidelines = apps.get_model("labeling", "Guidelines")
    judgment = apps.get_model("labeling", "Judgment")
    overlap = campaign.objects.filter(pk=OuterRef("campaign")).values("overlap")
    comparison.objects.update(n_wanted=Subquery(overlap))
    judgment.objects.filter(comparison__source="chat").update(purpose="chat")
    judgment.objects.update(guidelines_version=1)
    guidelines.objects.bulk_create(
        guidelines(campaign=row, number=1, text=row.guidelines, created_at=row.created_at)
        for row in campaign.objects.all()
    )


class Migration(migrations.Migration):
    dependencies = [("labeling", "0002_judgments_in_full")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
