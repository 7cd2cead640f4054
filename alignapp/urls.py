"""Every address of the site: one line per package; most of training's pages are part of the admin."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from alignapp import api_docs, views

urlpatterns = [
    path("healthz", views.healthz, name="healthz"),
    # One way in: with the lockout and the words of the site's own page.
    path("admin/login/", RedirectView.as_view(pattern_name="login", query_string=True)),
    path("admin/", admin.site.urls),
    path("api/schema/", SpectacularAPIView.as_view(), name="api_schema"),
    path("api/docs/", api_docs.api_docs, name="api_docs"),
    path("", include("serving.openai.urls")),
    path("", include("labeling.urls")),
    path("", include("serving.urls")),
    path("", include("training.urls")),
]
