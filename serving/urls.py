from django.urls import path

from serving import conversation_views, key_views, views

urlpatterns = [
    path("chat/", views.chat_page, name="chat"),
    path("chat/start/", views.chat_start, name="chat_start"),
    path("chat/current/", views.chat_current, name="chat_current"),
    path("chat/versions/", views.chat_versions, name="chat_versions"),
    path("chat/context/", views.chat_context, name="chat_context"),
    path("chat/settings/", conversation_views.chat_settings, name="chat_settings"),
    path("chat/conversations/", conversation_views.conversations, name="conversations"),
    path("chat/<uuid:pk>/", views.conversation, name="conversation"),
    path("chat/<uuid:pk>/messages/", views.message_create, name="message_create"),
    path("chat/<uuid:pk>/rename/", conversation_views.conversation_rename, name="conversation_rename"),
    path("chat/<uuid:pk>/delete/", conversation_views.conversation_delete, name="conversation_delete"),
    path("chat/<uuid:pk>/settings/", conversation_views.conversation_settings, name="conversation_settings"),
    path(
        "chat/<uuid:pk>/export.json",
        conversation_views.conversation_export,
        {"extension": "json"},
        name="conversation_json",
    ),
    path(
        "chat/<uuid:pk>/export.md",
        conversation_views.conversation_export,
        {"extension": "md"},
        name="conversation_markdown",
    ),
    path("chat/messages/<uuid:pk>/", views.message, name="message"),
    path("chat/messages/<uuid:pk>/stream/", views.message_stream, name="message_stream"),
    path("chat/messages/<uuid:pk>/stop/", views.message_stop, name="message_stop"),
    path("chat/messages/<uuid:pk>/continue/", views.message_continue, name="message_continue"),
    path("chat/messages/<uuid:pk>/go-on/", views.message_go_on, name="message_go_on"),
    path("chat/messages/<uuid:pk>/regenerate/", views.message_regenerate, name="message_regenerate"),
    path("chat/messages/<uuid:pk>/challenge/", views.message_challenge, name="message_challenge"),
    path("chat/messages/<uuid:pk>/rate/", views.message_rate, name="message_rate"),
    path("chat/messages/<uuid:pk>/choose/", views.comparison_choose, name="comparison_choose"),
    path("chat/messages/<uuid:pk>/versions/", views.message_versions, name="message_versions"),
    path(
        "chat/messages/<uuid:pk>/versions/<int:version>/", views.message_version_stream, name="message_version_stream"
    ),
    path("keys/", key_views.api_keys, name="api_keys"),
    path("keys/<int:pk>/rotate/", key_views.api_key_rotate, name="api_key_rotate"),
    path("keys/<int:pk>/revoke/", key_views.api_key_revoke, name="api_key_revoke"),
]
