"""The addresses under /api/."""

from django.urls import path

from labeling.api import chat, imports, judgments, leases

urlpatterns = [
    path("campaigns/<slug:slug>/leases/", leases.LeaseClaim.as_view(), name="lease_claim"),
    path("campaigns/<slug:slug>/import/", imports.ImportPairs.as_view(), name="import_pairs"),
    path("leases/<uuid:pk>/renew/", leases.LeaseRenew.as_view(), name="lease_renew"),
    path("leases/<uuid:pk>/release/", leases.LeaseRelease.as_view(), name="lease_release"),
    path("judgments/", judgments.JudgmentCreate.as_view(), name="judgment_create"),
    path("judgments/revise/", judgments.JudgmentRevise.as_view(), name="judgment_revise"),
    path("judgments/undo/", judgments.JudgmentUndo.as_view(), name="judgment_undo"),
    path("comparisons/chat/", chat.ChatComparison.as_view(), name="chat_comparison"),
]
