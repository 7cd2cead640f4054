"""Addresses of training's pages for those who manage a campaign, below /campaigns/<slug>/; the others are in the admin."""

from django.urls import path

from training import retraction_views

urlpatterns = [
    path("campaigns/<slug:slug>/retractions/", retraction_views.campaign_retractions, name="campaign_retractions"),
    path("campaigns/<slug:slug>/retractions/new/", retraction_views.retraction_start, name="retraction_start"),
    path("campaigns/<slug:slug>/retractions/<int:pk>/", retraction_views.retraction_detail, name="retraction_detail"),
    path(
        "campaigns/<slug:slug>/retractions/<int:pk>/runs/<int:run_id>/again/",
        retraction_views.run_again,
        name="run_again",
    ),
    path(
        "campaigns/<slug:slug>/retractions/<int:pk>/reward-models/<int:reward_model_id>/put-away/",
        retraction_views.reward_model_put_away,
        name="reward_model_put_away",
    ),
]
