"""The addresses under /api/."""

from django.urls import path

from labeling.api import (
    base,
    campaigns,
    chat,
    comparisons,
    imports,
    judgments,
    leases,
    members,
    preferences,
    prompts,
    statistics,
)

urlpatterns = [
    path("campaigns/", campaigns.CampaignList.as_view(), name="campaign_list"),
    path("campaigns/<slug:slug>/", campaigns.CampaignDetail.as_view(), name="campaign_detail"),
    path("campaigns/<slug:slug>/guidelines/", members.GuidelinesList.as_view(), name="guidelines_list"),
    path("campaigns/<slug:slug>/members/", members.MemberList.as_view(), name="member_list"),
    path("campaigns/<slug:slug>/members/<str:username>/", members.MemberDetail.as_view(), name="member_detail"),
    path("campaigns/<slug:slug>/prompts/", prompts.PromptList.as_view(), name="prompt_list"),
    path("campaigns/<slug:slug>/responses/", prompts.CampaignResponses.as_view(), name="campaign_responses"),
    path("campaigns/<slug:slug>/comparisons/", comparisons.ComparisonList.as_view(), name="comparison_list"),
    path("campaigns/<slug:slug>/judgments/", judgments.CampaignJudgments.as_view(), name="campaign_judgments"),
    path("campaigns/<slug:slug>/statistics/", statistics.CampaignStatistics.as_view(), name="campaign_statistics"),
    path("campaigns/<slug:slug>/leases/", leases.LeaseClaim.as_view(), name="lease_claim"),
    path("campaigns/<slug:slug>/import/", imports.ImportPairs.as_view(), name="import_pairs"),
    path("prompts/<int:pk>/responses/", prompts.PromptResponses.as_view(), name="prompt_responses"),
    path("comparisons/<int:pk>/", comparisons.ComparisonDetail.as_view(), name="comparison_detail"),
    path("comparisons/<int:pk>/gold/", comparisons.ComparisonGold.as_view(), name="comparison_gold"),
    path("comparisons/<int:pk>/decide/", comparisons.ComparisonDecide.as_view(), name="comparison_decide"),
    path("comparisons/chat/", chat.ChatComparison.as_view(), name="chat_comparison"),
    path("chat/ratings/", chat.ChatRating.as_view(), name="chat_rating"),
    path("chat/consent/", chat.ChatConsent.as_view(), name="chat_consent"),
    path("leases/<uuid:pk>/renew/", leases.LeaseRenew.as_view(), name="lease_renew"),
    path("leases/<uuid:pk>/release/", leases.LeaseRelease.as_view(), name="lease_release"),
    path("judgments/", judgments.JudgmentList.as_view(), name="judgment_create"),
    path("judgments/revise/", judgments.JudgmentRevise.as_view(), name="judgment_revise"),
    path("judgments/undo/", judgments.JudgmentUndo.as_view(), name="judgment_undo"),
    path("preferences/", preferences.OwnPreferences.as_view(), name="own_preferences"),
    path("<path:rest>", base.nothing_here, name="api_nothing_here"),
]
