"""Every address of the site: one line per package."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("labeling.urls")),
    path("", include("serving.urls")),
    path("", include("training.urls")),
]
