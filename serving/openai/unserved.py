"""Parameters that clients know and no model here serves. Many clients always send them: a value that asks for nothing is
taken for absent, any other is refused with a sentence. The embedded engine has the same rules.
"""

from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

NO_TOOLS = _("the models here call no tools; leave it out, or set tool_choice to none.")
NO_FUNCTIONS = _("the models here call no functions.")
ONLY_TEXT = _("the models here read and answer text only.")
NO_SPECIAL_TOKENS = _("texts hold no special tokens.")
# The values that ask for nothing, and a sentence for the others.
UNSERVED: dict[str, tuple[tuple[Any, ...], str | Promise]] = {
    "audio": ((), ONLY_TEXT),
    "bad_words": (([],), _("no words can be forbidden; use logit_bias.")),
    "best_of": ((1,), _("every answer that is made is returned; use n.")),
    "chat_template_kwargs": (({},), _("the model's own template is used, which takes no arguments.")),
    "documents": (([],), _("the model's own template is used, which takes no documents.")),
    "echo": ((False,), _("only /v1/completions repeats a prompt.")),
    "function_call": (("none", "auto"), NO_FUNCTIONS),
    "functions": (([],), NO_FUNCTIONS),
    "length_penalty": ((1,), _("it belongs to beam search, which is not done here.")),
    "modalities": ((["text"],), ONLY_TEXT),
    "priority": ((0,), _("every caller gets the same.")),
    "skip_special_tokens": ((True,), NO_SPECIAL_TOKENS),
    "spaces_between_special_tokens": ((True,), NO_SPECIAL_TOKENS),
    "tool_choice": (("none", "auto"), _("the models here call no tools; it may be none or auto.")),
    "tools": (([],), NO_TOOLS),
    "truncation_side": (("left",), _("a prompt that is too long is refused, not cut.")),
    "use_beam_search": ((False,), _("answers are sampled.")),
    "web_search_options": ((), _("nothing is searched here.")),
}


def asks_for_nothing(name: str, value: Any, body: dict[str, Any]) -> bool:
    """Whether the parameter may be left out of `body`, the request that it stands in."""
    if value is None:
        return True
    if name == "tools" and body.get("tool_choice") == "none":  # named, though none is to be called
        return isinstance(value, list)
    neutral = UNSERVED[name][0] if name in UNSERVED else ()
    if name == "best_of":
        neutral = (*neutral, body.get("n"))
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)
