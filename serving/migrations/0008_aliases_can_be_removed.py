from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("serving", "0007_when_answers_ended"),
    ]

    operations = [
        migrations.AlterField(
            model_name="deploymentevent",
            name="kind",
            field=models.CharField(
                choices=[
                    ("published", "Published"),
                    ("rolled back", "Rolled Back"),
                    ("canary started", "Canary Started"),
                    ("canary share changed", "Canary Changed"),
                    ("canary promoted", "Canary Promoted"),
                    ("canary stopped", "Canary Stopped"),
                    ("alias removed", "Alias Removed"),
                    ("loaded", "Loaded"),
                    ("load failed", "Load Failed"),
                    ("self-test passed", "Self Test Passed"),
                    ("self-test failed", "Self Test Failed"),
                    ("unloaded", "Unloaded"),
                ],
                default="published",
                max_length=24,
            ),
        ),
    ]
