from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeDoneView, PasswordChangeView
from django.urls import path

from labeling import api, views

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", LoginView.as_view(redirect_authenticated_user=False), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("invite/<str:token>/", views.invitation, name="invitation"),
    path("account/password/", PasswordChangeView.as_view(), name="password_change"),
    path("account/password/done/", PasswordChangeDoneView.as_view(), name="password_change_done"),
    path("campaigns/<slug:slug>/label/", views.label, name="label"),
    path("api/campaigns/<slug:slug>/leases/", api.LeaseClaim.as_view(), name="lease_claim"),
    path("api/campaigns/<slug:slug>/import/", api.ImportPairs.as_view(), name="import_pairs"),
    path("api/leases/<uuid:pk>/renew/", api.LeaseRenew.as_view(), name="lease_renew"),
    path("api/leases/<uuid:pk>/release/", api.LeaseRelease.as_view(), name="lease_release"),
    path("api/judgments/", api.JudgmentCreate.as_view(), name="judgment_create"),
    path("api/judgments/undo/", api.JudgmentUndo.as_view(), name="judgment_undo"),
    path("api/comparisons/chat/", api.ChatComparison.as_view(), name="chat_comparison"),
]
