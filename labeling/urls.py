from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeDoneView, PasswordChangeView
from django.urls import include, path

from labeling import dashboard_views, views

urlpatterns = [
    path("api/", include("labeling.api.urls")),
    path("", views.home, name="home"),
    path("login/", LoginView.as_view(redirect_authenticated_user=False), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("invite/<str:token>/", views.invitation, name="invitation"),
    path("account/password/", PasswordChangeView.as_view(), name="password_change"),
    path("account/password/done/", PasswordChangeDoneView.as_view(), name="password_change_done"),
    path("campaigns/<slug:slug>/label/", views.label, name="label"),
    path("campaigns/<slug:slug>/", include("labeling.campaign_urls")),
    path("statistics/", dashboard_views.my_statistics, name="my_statistics"),
    path("preferences/", views.preferences, name="preferences"),
]
