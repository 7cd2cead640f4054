from django.urls import path

from serving import key_views, views

urlpatterns = [
    path("chat/", views.chat_page, name="chat"),
    path("chat/start/", views.chat_start, name="chat_start"),
    path("chat/current/", views.chat_current, name="chat_current"),
    path("chat/<uuid:pk>/", views.conversation, name="conversation"),
    path("chat/<uuid:pk>/messages/", views.message_create, name="message_create"),
    path("chat/<uuid:pk>/rename/", views.conversation_rename, name="conversation_rename"),
    path("chat/<uuid:pk>/delete/", views.conversation_delete, name="conversation_delete"),
    path("chat/messages/<uuid:pk>/", views.message, name="message"),
    path("chat/messages/<uuid:pk>/stream/", views.message_stream, name="message_stream"),
    path("chat/messages/<uuid:pk>/regenerate/", views.message_regenerate, name="message_regenerate"),
    path("chat/messages/<uuid:pk>/rate/", views.message_rate, name="message_rate"),
    path("chat/messages/<uuid:pk>/choose/", views.comparison_choose, name="comparison_choose"),
    path("keys/", key_views.api_keys, name="api_keys"),
    path("keys/<int:pk>/rotate/", key_views.api_key_rotate, name="api_key_rotate"),
    path("keys/<int:pk>/revoke/", key_views.api_key_revoke, name="api_key_revoke"),
]
