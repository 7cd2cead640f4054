"""Addresses of the pages of managers and reviewers; all of them below /campaigns/<slug>/."""

from django.urls import path

from labeling import adjudication_views, dashboard_views, exchange_views, manage_views

urlpatterns = [
    path("dashboard/", dashboard_views.campaign_dashboard, name="campaign_dashboard"),
    path("annotators/", dashboard_views.campaign_annotators, name="campaign_annotators"),
    path("annotators/<int:pk>/", dashboard_views.campaign_annotator, name="campaign_annotator"),
    path("leaderboard/", dashboard_views.campaign_leaderboard, name="campaign_leaderboard"),
    path("disputes/", adjudication_views.campaign_disputes, name="campaign_disputes"),
    path("disputes/<int:pk>/", adjudication_views.adjudicate, name="adjudicate"),
    path("disputes/<int:pk>/undo/", adjudication_views.decision_undo, name="decision_undo"),
    path("disputes/<int:pk>/gold/", adjudication_views.gold_set, name="gold_set"),
    path("gold/", adjudication_views.campaign_gold, name="campaign_gold"),
    path("import/", exchange_views.campaign_import, name="campaign_import"),
    path("imports/<int:pk>/", exchange_views.import_detail, name="import_detail"),
    path("imports/<int:pk>/start/", exchange_views.import_start, name="import_start"),
    path("imports/<int:pk>/discard/", exchange_views.import_discard, name="import_discard"),
    path("imports/<int:pk>/problems/", exchange_views.import_problems, name="import_problems"),
    path("export/", exchange_views.campaign_export, name="campaign_export"),
    path("export/file/", exchange_views.export_file, name="export_file"),
    path("settings/", manage_views.campaign_settings, name="campaign_settings"),
    path("settings/delete/", manage_views.campaign_delete, name="campaign_delete"),
    path("guidelines/", manage_views.campaign_guidelines, name="campaign_guidelines"),
    path("guidelines/<int:number>/", manage_views.guidelines_version, name="guidelines_version"),
    path("members/", manage_views.campaign_members, name="campaign_members"),
    path("members/invite/", manage_views.member_invite, name="member_invite"),
    path("members/<int:pk>/", manage_views.member_change, name="member_change"),
    path("invitations/<int:pk>/", manage_views.invitation_revoke, name="invitation_revoke"),
]
