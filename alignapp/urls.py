"""Every address of the site: one line per package."""

from django.contrib import admin
from django.urls import include, path

from alignapp import views

urlpatterns = [
    path("healthz", views.healthz, name="healthz"),
    path("admin/", admin.site.urls),
    path("", include("labeling.urls")),
    path("", include("serving.urls")),
    path("", include("training.urls")),
]
