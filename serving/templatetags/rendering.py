"""`{% load rendering %} {{ text|markdown }}`: a model's Markdown as sanitised HTML."""

from django import template
from django.utils.safestring import SafeString

from serving.rendering import to_html

register = template.Library()


@register.filter
def markdown(text: str) -> SafeString:
    return to_html(text)
