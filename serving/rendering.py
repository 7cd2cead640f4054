"""Markdown from a model to HTML for a page. Model output is hostile input: it is sanitised after rendering.

Three walls, each enough by itself: raw HTML is text for the Markdown parser; code and math become markup made here; what
comes out passes an allow-list of elements, attributes, classes and URL schemes; and the site's CSP runs no inline code.
"""

import re
from collections.abc import Sequence
from xml.etree.ElementTree import ParseError

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from latex2mathml import exceptions as latex_exceptions
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight as colour
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

MAX_CHARS = 100_000  # longer texts are shown as they are
MAX_CODE_CHARS = 20_000
MAX_MATH_CHARS = 2_000
MAX_MATH_DEPTH = 30


def _words(text: str) -> set[str]:
    return set(text.split())


# Lexers are programs of regular expressions: only ones of common languages meet hostile text.
LANGUAGES = _words(
    "bash c c++ cpp cs csharp css diff docker dockerfile go graphql html http ini java javascript js json jsx julia kotlin"
    " latex lua make makefile markdown md perl php powershell py python python3 r rb rs ruby rust scala sh shell sql swift"
    " tex toml ts tsx typescript xml yaml yml zsh"
)
TEXT_TAGS = _words(
    "p br hr h1 h2 h3 h4 h5 h6 strong em s del code pre blockquote ul ol li a table thead tbody tr th td span"
)
MATH_TAGS = _words(
    "math semantics mrow mi mn mo ms mtext mspace msup msub msubsup mover munder munderover mfrac msqrt mroot mtable mtr"
    " mtd mstyle mpadded mphantom mmultiscripts mprescripts none menclose"
)
ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "math": {"display"},
    "mo": {
        "stretchy",
        "fence",
        "form",
        "separator",
        "lspace",
        "rspace",
        "minsize",
        "maxsize",
        "movablelimits",
        "accent",
    },
    "mi": {"mathvariant"},
    "mn": {"mathvariant"},
    "mspace": {"width", "height", "depth"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mfrac": {"linethickness"},
    "mover": {"accent"},
    "munder": {"accentunder"},
    "mtable": {"columnalign", "rowspacing", "columnspacing"},
    "mtd": {"columnalign"},
    "menclose": {"notation"},
    "mpadded": {"width", "height", "depth", "lspace", "voffset"},
}
URL = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
SCHEMES = {"http", "https", "mailto"}
# What latex2mathml raises on input that is not LaTeX: its own exceptions, and those that escape from its parser.
MATH_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(latex_exceptions).values() if isinstance(e, type) and issubclass(e, Exception)),
    LookupError, ValueError, TypeError, AttributeError, ArithmeticError, StopIteration, RuntimeError, ParseError,
)  # fmt: skip


def to_html(text: str) -> SafeString:
    """Sanitised HTML of a Markdown text (CommonMark, tables, strikethrough, code, $…$ and \\(…\\) math).

    Any string is allowed; texts above MAX_CHARS come back as preformatted text. Classes are pygments' short ones.
    """
    if len(text) > MAX_CHARS:
        return mark_safe(f"<pre>{escape(text)}</pre>")  # noqa: S308 - escaped here
    return mark_safe(_sanitised(_markdown.render(text)))  # noqa: S308 - sanitised here


def _sanitised(html: str) -> str:
    return nh3.clean(
        html,
        tags=TEXT_TAGS | MATH_TAGS,
        attributes=ATTRIBUTES,
        # Alignment of table cells arrives as style="text-align:…", which the CSP would refuse: it is left out.
        allowed_classes={"span": CODE_CLASSES},
        url_schemes=SCHEMES,
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        clean_content_tags={"script", "style"},
    )


CODE_CLASSES = {name for name in STANDARD_TYPES.values() if name}


# --- code -------------------------------------------------------------------------------------------------------------
def _code(code: str, language: str, _attributes: str) -> str:
    """Spans with pygments' classes for a language that we know; escaped text for all others."""
    if language.lower() not in LANGUAGES or len(code) > MAX_CODE_CHARS:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language.lower(), stripnl=False)
    except ClassNotFound:
        return escape(code)
    return colour(code, lexer, HtmlFormatter(nowrap=True))


# --- math -------------------------------------------------------------------------------------------------------------
def _math(source: str, options: dict[str, bool]) -> str:
    """MathML; what is not LaTeX, or is too long or deep, comes back as code."""
    source = source.strip()
    if source and len(source) <= MAX_MATH_CHARS and _depth(source) <= MAX_MATH_DEPTH:
        try:
            return convert(source, display="block" if options["display_mode"] else "inline")
        except MATH_ERRORS:
            pass
    return f"<code>{escape(source)}</code>"


def _depth(source: str) -> int:
    """How deep braces and commands that open something can nest; the converter recurses once for each."""
    deepest = depth = 0
    for character in source:
        depth += (character in "{[(") - (character in "}])")
        deepest = max(deepest, depth)
    return max(deepest, *(source.count(command) for command in ("\\left", "\\begin", "\\sqrt", "\\frac")))


def _bracket_math(state: StateInline, silent: bool) -> bool:
    """The inline rule for \\( … \\) and \\[ … \\]."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in ("\\(", "\\["):
        return False
    closing = "\\)" if opening == "\\(" else "\\]"
    # Bounded: else a text of opening brackets alone would take quadratic time.
    end = state.src.find(closing, state.pos + 2, min(state.posMax, state.pos + MAX_MATH_CHARS))
    if end < 0:
        return False
    if not silent:
        token = state.push("bracket_math", "math", 0)
        token.content = state.src[state.pos + 2 : end]
        token.meta = {"display_mode": opening == "\\["}
    state.pos = end + 2
    return True


# --- rules of the renderer --------------------------------------------------------------------------------------------
def _render_bracket_math(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    return _math(tokens[index].content, tokens[index].meta)


def _render_dollar_math(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    html = _math(tokens[index].content, {"display_mode": tokens[index].type != "math_inline"})
    return f"<p>{html}</p>" if tokens[index].type == "math_block" else html


def _render_image(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """A link instead of the picture: loading it would tell its server who reads what, and when."""
    token = tokens[index]
    alt = self.renderInlineAsText(token.children or [], options, env) or "image"
    return f'<a href="{escape(str(token.attrs.get("src", "")))}">{escape(alt)}</a>'


def _render_fence(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType
) -> str:
    """No attribute comes from the text: the language only chooses the lexer."""
    token = tokens[index]
    language = (token.info.split() or [""])[0]
    return f"<pre><code>{_code(token.content, language, '')}</code></pre>\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    parser.inline.ruler.before("escape", "bracket_math", _bracket_math)
    parser.validateLink = lambda url: bool(URL.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("bracket_math", _render_bracket_math)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(kind, _render_dollar_math)
    parser.add_render_rule("image", _render_image)
    parser.add_render_rule("fence", _render_fence)
    return parser


_markdown = _parser()
