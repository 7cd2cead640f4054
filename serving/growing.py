"""Markdown that is still being written, made fit to be shown: nothing appears that looks otherwise a moment later.

A marker that stands alone waits for what it marks, a table for its second line, a formula and the address of a link for
their ends; bold, code and their like are closed. A finished text needs none of this.
"""

import re

OPENING = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})")
# Alone on the last line these may become a list, a heading, a rule, a fence, or underline the paragraph above.
ALONE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(?:[-=*_#`~|:+]+|\d{1,9}[.)]?)?\s*")
ROW = re.compile(r"[\s>]*\|")
DELIMITER = re.compile(r"[\s>|:-]*")
BLOCK = re.compile(r"\s*(?:[-*+>#|]|\d{1,9}[.)]\s)")  # begins a block of its own
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
MATH = re.compile(
    r"\$\$.{,2000}?\$\$|\\\(.{,2000}?\\\)|\\\[.{,2000}?\\\]|(?<![\w$\\])\$(?=[^\s$])[^$\n]*(?<=\S)\$(?!\d)", re.DOTALL
)
OPEN_MATH = re.compile(r"(?:\$\$|\\\(|\\\[|(?<![\w$\\])\$(?=[A-Za-z\\({])[^\n]).*\Z", re.DOTALL)
OPEN_ADDRESS = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\Z")
OPEN_LINK = re.compile(r"(?<!\\)!?\[([^\[\]]*)\]?\Z")
MARK = re.compile(r"(?<!\\)(?:\*{1,3}|_{1,3}|~~)")
MAX_PARAGRAPH = 10_000  # characters; a longer one is shown as it is
HIDDEN = "\x00"  # stands for a character of code or math, in which marks mean nothing


def presentable(text: str) -> str:
    """The text as it may be shown now. Takes time in proportion to its length."""
    lines = text.split("\n")
    fence = _open_fence(lines[:-1])
    if fence:
        return "\n".join(lines[:-1] if _may_close(lines[-1], fence) else lines)
    lines = lines[: len(lines) - _n_waiting(lines)]
    start = _paragraph_start(lines)
    return "\n".join([*lines[:start], _closed("\n".join(lines[start:]))])


def _open_fence(lines: list[str]) -> str:
    """The fence of the code that the text stands in; empty outside of code."""
    fence = ""
    for line in lines:
        if fence:
            fence = "" if _closes(line, fence) else fence
        elif match := OPENING.match(line):
            fence = match[1]
    return fence


def _closes(line: str, fence: str) -> bool:
    said = line.strip(" \t>")
    return len(said) >= len(fence) and set(said) == {fence[0]}


def _may_close(line: str, fence: str) -> bool:
    said = line.strip(" \t>")
    return bool(said) and set(said) == {fence[0]}


def _n_waiting(lines: list[str]) -> int:
    """How many lines at the end do not yet say what they are."""
    last, before = lines[-1], lines[-2] if len(lines) > 1 else ""
    is_second = bool(ROW.match(before)) and not (len(lines) > 2 and ROW.match(lines[-3]))
    if is_second and DELIMITER.fullmatch(last):
        return 2  # the first row of a table, whose second is missing
    if ALONE.fullmatch(last) or OPENING.match(last):
        return 1
    return int(bool(ROW.match(last)) and not ROW.match(before))


def _paragraph_start(lines: list[str]) -> int:
    """The number of the line with which the last paragraph, item or row begins."""
    for i in range(len(lines) - 1, -1, -1):
        if not lines[i].strip():
            return i + 1
        if BLOCK.match(lines[i]):
            return i
    return 0


def _closed(paragraph: str) -> str:
    if len(paragraph) > MAX_PARAGRAPH:
        return paragraph
    paragraph = _without_open_code(paragraph)
    shape = MATH.sub(_hide, CODE.sub(_hide, paragraph))
    if match := OPEN_MATH.search(shape):
        paragraph, shape = paragraph[: match.start()], shape[: match.start()]
    for pattern in (OPEN_ADDRESS, OPEN_LINK):
        if match := pattern.search(shape):
            kept = slice(match.start(1), match.end(1))
            paragraph = paragraph[: match.start()] + paragraph[kept]
            shape = shape[: match.start()] + shape[kept]
    while shape and (shape[-1] in "*_~$\\" or shape[-1].isspace()):
        shape = shape[:-1]
    return paragraph[: len(shape)] + "".join(reversed(_open_marks(shape)))


def _without_open_code(paragraph: str) -> str:
    """Code that is not closed yet is closed; a backtick with nothing behind it waits."""
    shape = CODE.sub(_hide, paragraph)
    if (match := re.search(r"`+", shape)) is None:
        return paragraph
    code = paragraph[match.end() :].rstrip().rstrip("`")
    return paragraph[: match.end()] + code + match[0] if code else paragraph[: match.start()]


def _hide(match: re.Match[str]) -> str:
    return HIDDEN * len(match[0])


def _open_marks(shape: str) -> list[str]:
    """Bold, italic and struck marks that are not closed, in their order."""
    found: list[str] = []
    for match in MARK.finditer(shape):
        before, after = shape[match.start() - 1 : match.start()], shape[match.end() : match.end() + 1]
        if found and found[-1] == match[0] and before and not before.isspace():
            found.pop()
        elif after and not after.isspace() and not before.isalnum():
            found.append(match[0])
    return found
