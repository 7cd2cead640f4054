"""Markdown from a model to HTML for a page. Model output is hostile input: it is sanitised after rendering.

Three walls, each enough by itself: raw HTML is text for the Markdown parser; code and math become markup made here; what
comes out passes an allow-list of elements, attributes, classes and URL schemes; and the site's CSP runs no inline code.

Time and size are bounded by counting before the work, never by a clock: the same text always looks the same. Whatever
exceeds a bound is shown whole, as it is, in <pre>: nothing that a reader must judge is left out.
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

MAX_CHARS = 100_000  # longer texts are shown as they are; so are those above the next four
MAX_LINES = 10_000
MAX_MARKUP = 20_000  # characters that mean something in Markdown: each may make the parser look far ahead
MAX_ADDRESSES = 200_000  # characters of all links together: one definition can be referred to 10,000 times
MAX_NESTING = 20  # deeper, the parser drops what it reads
# Lexers look ahead from every token: their time grows with the square of the length. Sum over the code of a text.
MAX_CODE_SQUARES = 8_000**2
MAX_CODE_LINE = 1_000  # characters
MAX_CODE_LINES = 400
MAX_BLANK = re.compile(r"\s{300}")
MAX_MATH_CHARS = 2_000  # of one formula
MAX_MATH_TOTAL = 20_000  # of all formulas together
MAX_MATH_DEPTH = 30
MARKUP = "[]!*_`<>&$\\|~#"
# Left-to-right and right-to-left overrides make a text look like another one; no language needs them. In code, neither do
# embeddings and isolates (Boucher & Anderson 2021, "Trojan Source: Invisible Vulnerabilities").
OVERRIDES = {code: f"[U+{code:04X}]" for code in (0x202D, 0x202E)}
BIDI_CONTROLS = {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def _words(text: str) -> set[str]:
    return set(text.split())


# Lexers are programs of regular expressions: only ones of common languages meet hostile text.
LANGUAGES = _words(
    "bash c c++ cpp cs csharp css diff docker dockerfile go graphql html http ini java javascript js json jsx julia kotlin"
    " latex lua markdown md perl php powershell py python python3 r rb rs ruby rust scala sh shell sql swift"
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
    "a": {"href"},
    "pre": {"data-language"},
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
HOST = re.compile(r"\s*(?:https?:/*)?(?:www\.)?((?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,})(?![\w.@-])", re.IGNORECASE)
AUTHORITY = re.compile(r"https?://(?P<before>[^/?#]*@)?(?P<host>[^/?#:]*)", re.IGNORECASE)
LENGTHS = _words(
    "width height depth lspace rspace voffset minsize maxsize linethickness rowspacing columnspacing scriptlevel"
)
LENGTH = re.compile(
    r"-?\d?(?:\.\d+)?(?:em|ex)?|-?\d{1,2}(?:\.\d+)?(?:px|pt|mu)|(?:negative)?(?:thin|medium|thick)mathspace"
)
SCHEMES = {"http", "https", "mailto"}
# What latex2mathml raises on input that is not LaTeX: its own exceptions, and those that escape from its parser.
MATH_ERRORS: tuple[type[Exception], ...] = (
    *(e for e in vars(latex_exceptions).values() if isinstance(e, type) and issubclass(e, Exception)),
    LookupError, ValueError, TypeError, AttributeError, ArithmeticError, StopIteration, RuntimeError, ParseError,
)  # fmt: skip


def to_html(text: str) -> SafeString:
    """Sanitised HTML of a Markdown text (CommonMark, tables, strikethrough, code, $…$ and \\(…\\) math).

    Any string is allowed; what exceeds a bound above comes back as preformatted text. Classes are pygments' short ones.
    """
    text = text.encode("utf-8", "replace").decode().translate(OVERRIDES)  # a lone surrogate is no text for a page
    env: EnvType = {"code": MAX_CODE_SQUARES, "math": MAX_MATH_TOTAL}
    tokens = [] if _is_too_much(text) else _markdown.parse(text, env)
    if not tokens or _is_excessive(tokens):
        return mark_safe(f"<pre>{escape(text)}</pre>" if text.strip() else "")  # noqa: S308 - escaped here
    return mark_safe(_sanitised(_markdown.renderer.render(tokens, _markdown.options, env)))  # noqa: S308 - sanitised here


def _is_too_much(text: str) -> bool:
    """Whether parsing it might take longer than a reader waits."""
    return (
        len(text) > MAX_CHARS
        or text.count("\n") + text.count("\r") > MAX_LINES
        or sum(map(text.count, MARKUP)) > MAX_MARKUP
    )


def _is_excessive(tokens: list[Token]) -> bool:
    """Whether the parser dropped what was too deep, or the page would be many times longer than the text."""
    inline = [child for token in tokens for child in token.children or ()]
    addresses = sum(len(str(child.attrs.get("href") or child.attrs.get("src") or "")) for child in inline)
    return addresses > MAX_ADDRESSES or max(token.level for token in tokens) >= MAX_NESTING - 1


def _sanitised(html: str) -> str:
    return nh3.clean(
        html,
        tags=TEXT_TAGS | MATH_TAGS,
        attributes=ATTRIBUTES,
        # Alignment of table cells arrives as style="text-align:…", which the CSP would refuse: it is left out.
        allowed_classes={"span": CODE_CLASSES},
        attribute_filter=_kept,
        url_schemes=SCHEMES,
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        clean_content_tags={"script", "style"},
    )


def _kept(_tag: str, name: str, value: str) -> str | None:
    """The attribute's value, or None when it is a length by which a formula could cover what is not its own."""
    if name in LENGTHS and not all(LENGTH.fullmatch(part) for part in value.split()):
        return None
    return value


CODE_CLASSES = {name for name in STANDARD_TYPES.values() if name}


# --- code -------------------------------------------------------------------------------------------------------------
def _code(code: str, language: str, env: EnvType) -> str:
    """Spans with pygments' classes for a language that we know; escaped text for all others and beyond the bounds."""
    code = code.translate(BIDI_CONTROLS)
    if language not in LANGUAGES or not _is_ordinary(code) or not _spend(env, "code", len(code) ** 2):
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return colour(code, lexer, HtmlFormatter(nowrap=True))


def _is_ordinary(code: str) -> bool:
    lines = code.split("\n")
    return len(lines) <= MAX_CODE_LINES and max(map(len, lines)) <= MAX_CODE_LINE and not MAX_BLANK.search(code)


def _spend(env: EnvType, budget: str, cost: int) -> bool:
    """Whether this text may still cost so much; what it may is counted down in `env`."""
    if cost > env[budget]:
        return False
    env[budget] -= cost
    return True


# --- math -------------------------------------------------------------------------------------------------------------
def _math(source: str, display: str, env: EnvType) -> str:
    """MathML; what is not LaTeX, or is too long or deep, comes back as code."""
    source = source.strip()
    is_small = len(source) <= MAX_MATH_CHARS and _depth(source) <= MAX_MATH_DEPTH
    if source and is_small and _spend(env, "math", len(source)):
        try:
            return convert(source, display=display)
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
        token.meta = {"display": "block" if opening == "\\[" else "inline"}
    state.pos = end + 2
    return True


# --- rules of the renderer --------------------------------------------------------------------------------------------
def _render_bracket_math(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    return _math(tokens[index].content, tokens[index].meta["display"], env)


def _render_dollar_math(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    html = _math(tokens[index].content, "inline" if tokens[index].type == "math_inline" else "block", env)
    return f"<p>{html}</p>" if tokens[index].type == "math_block" else html


def _render_image(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """A link instead of the picture: loading it would tell its server who reads what, and when."""
    token = tokens[index]
    alt = self.renderInlineAsText(token.children or [], options, env) or "image"
    address = str(token.attrs.get("src", ""))
    return f'<a href="{escape(address)}">{escape(alt)}</a>{_real_host(alt, address)}'


def _render_link_open(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    env["link"] = index
    return f'<a href="{escape(str(tokens[index].attrs.get("href", "")))}">'


def _render_link_close(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    shown = "".join(token.content for token in tokens[env["link"] + 1 : index])
    return f"</a>{_real_host(shown, str(tokens[env['link']].attrs.get('href', '')))}"


def _real_host(shown: str, address: str) -> str:
    """Where a link leads, in plain words to stand after it, when its text names another site, or one that only looks
    the same (the address is in punycode), or when the address has a name before an @ that may look like a site.
    """
    parts = AUTHORITY.match(address)
    if not parts:
        return ""
    before, host = parts["before"], parts["host"].lower().removeprefix("www.")
    named = HOST.match(shown)
    return f" ({escape(host)})" if before or (named and named[1].lower() != host) else ""


def _render_fence(_self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType) -> str:
    """Of the text only the name of a language that we know becomes an attribute."""
    token = tokens[index]
    language = (token.info.split() or [""])[0].lower()
    named = f' data-language="{language}"' if language in LANGUAGES else ""
    return f"<pre{named}><code>{_code(token.content, language, env)}</code></pre>\n"


def _render_code_inline(
    _self: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType
) -> str:
    return f"<code>{_code(tokens[index].content, '', env)}</code>"


def _parser() -> MarkdownIt:
    options = {"html": False, "maxNesting": MAX_NESTING}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    parser.inline.ruler.before("escape", "bracket_math", _bracket_math)
    parser.validateLink = lambda url: bool(URL.match(url))  # type: ignore[method-assign]
    parser.add_render_rule("bracket_math", _render_bracket_math)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(kind, _render_dollar_math)
    parser.add_render_rule("image", _render_image)
    parser.add_render_rule("link_open", _render_link_open)
    parser.add_render_rule("link_close", _render_link_close)
    parser.add_render_rule("code_inline", _render_code_inline)
    for kind in ("fence", "code_block"):
        parser.add_render_rule(kind, _render_fence)
    return parser


_markdown = _parser()
