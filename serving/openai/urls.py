from django.urls import path, re_path

from serving.openai import views

urlpatterns = [
    path("v1/chat/completions", views.chat_completions, name="v1_chat_completions"),
    path("v1/completions", views.completions, name="v1_completions"),
    path("v1/models", views.models, name="v1_models"),
    path("v1/models/<path:name>", views.model, name="v1_model"),
    re_path(r"^v1(?:/[\s\S]*)?$", views.nothing_here, name="v1_nothing_here"),
]
