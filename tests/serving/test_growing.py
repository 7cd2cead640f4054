"""A text that grows: what is shown of it on the way never has to be taken back."""

import re

import pytest
from django.utils.html import strip_tags
from hypothesis import given
from hypothesis import strategies as st

from serving.growing import presentable
from serving.rendering import to_html

ANSWER = r"""# Sorting in *Python*

A **list** sorts with `sorted(x)`, and ***in place*** with [`list.sort`](https://docs.python.org/3/). ~~Bubble sort~~ is slow,
about \(n^2\) steps, where $n \log n$ suffices:

$$
n \log_2 n
$$

- first **bold item**
- second, with `code` in it
  1. nested

| name | steps | stable |
|------|:-----:|--------|
| bubble | n² | **yes** |
| quick | `n log n` | no |

```python
def f(x):
    return "```" * x  # a fence inside

print(f(2))
```

2 * 3 * 4 costs $5, says foo_bar_baz.

> quoted, *twice*

---

The end."""


@pytest.mark.parametrize("length", range(1, len(ANSWER) + 1))
def test_it_shows_no_mark_that_will_be_markup(length: int) -> None:
    html = to_html(presentable(ANSWER[:length]))
    shown = re.sub(r"<pre.*?</pre>|<math.*?</math>", "", html, flags=re.DOTALL)
    text = strip_tags(shown).replace("2 * 3 * 4", "").replace("2 * 3 *", "").replace("2 * 3", "").replace("$5", "")
    assert not re.search(r"[*`|~\[\]\\$#]|---|\]\(", text), (ANSWER[:length][-40:], text[-60:])
    assert "<h1>A " not in html
    assert "<h2>" not in html  # a paragraph above a dash that begins a list is no heading


@pytest.mark.parametrize("length", range(1, len(ANSWER) + 1))
def test_it_keeps_nearly_all_that_was_written(length: int) -> None:
    """What waits is the first line of a table, or a formula; never more."""
    assert len(presentable(ANSWER[:length])) >= length - 60


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("", ""),
        ("a **bold", "a **bold**"),
        ("a **bold ", "a **bold**"),
        ("a **bold*", "a **bold**"),
        ("a **", "a"),
        ("*a **b", "*a **b***"),
        ("`x", "`x`"),
        ("a `", "a"),
        ("``x` y", "``x` y``"),
        ("see [this pa", "see this pa"),
        ("see [page](https://exa", "see page"),
        ("words\n-", "words"),
        ("words\n==", "words"),
        ("words\n1", "words"),
        ("text\n\n| a | b |", "text"),
        ("text\n\n| a | b |\n|--", "text"),
        ("| a | b |\n|---|---|\n| 1", "| a | b |\n|---|---|\n| 1"),
        ("```py", ""),
        ("```python\nx = 1\n``", "```python\nx = 1"),
        ("```python\nx = '**", "```python\nx = '**"),
        ("```\na\n```\n**b", "```\na\n```\n**b**"),
        ("sum \\(a + ", "sum"),
        ("sum $$a +", "sum"),
        ("snake_case_name", "snake_case_name"),
        ("2 * 3", "2 * 3"),
        ("costs $5 and", "costs $5 and"),
    ],
)
def test_it_closes_what_is_open_and_waits_for_what_is_not_clear(written: str, shown: str) -> None:
    assert presentable(written).rstrip() == shown


@given(st.text(alphabet="ab \n`*_~[]()!|-#>$\\1.:", max_size=120))
def test_it_takes_any_text(text: str) -> None:
    to_html(presentable(text))
