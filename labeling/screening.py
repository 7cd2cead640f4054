"""What to look at before people see a text: pure functions from a text to warning codes.

identity_leak: the text says which model or vendor wrote it, so whoever judges it is no longer blind (FastChat drops such
battles too). error_banner: the text is an error message of a server, or breaks off at a typing cursor. private_data: it
holds something that is likely to identify a person or open an account. Warnings are for people: nothing is changed.

Each pattern is linear in the text's length. Few false alarms matter more than finding everything: a warning that is
usually wrong is not read.
"""

import re

IDENTITY_LEAK, ERROR_BANNER, PRIVATE_DATA = "identity_leak", "error_banner", "private_data"

# --- who wrote it ----------------------------------------------------------------------------------------------------
_VENDORS = (
    "OpenAI|Open AI|Anthropic|Google(?: DeepMind| AI)?|DeepMind|Meta(?: AI)?|Mistral(?: AI)?|Microsoft|xAI|Cohere|"
    "Alibaba(?: Cloud)?|DeepSeek|Moonshot(?: AI)?|Zhipu(?: AI)?|Baidu|Tencent|ByteDance|LMSYS(?: Org)?|Stability AI|"
    "Databricks|Hugging ?Face|NVIDIA|Amazon|Allen Institute for AI|AI2|Nomic(?: AI)?|Technology Innovation Institute|"
    "LAION|Together(?: AI| Computer)?|Inflection(?: AI)?|AI21(?: Labs)?|01\\.AI|IBM|Salesforce|EleutherAI"
)
_MODELS = (
    "ChatGPT|GPT-?[345](?:\\.5|o)?|Claude|Gemini|Bard|LLaMA|Llama|Vicuna|Alpaca|Koala|Dolly|Mixtral|Mistral|Qwen|"
    "Tongyi Qianwen|DeepSeek|Grok|Kimi|Copilot|Bing(?: Chat)?|Sydney|Falcon|Open ?Assistant|StableLM|PaLM|Command R|"
    "ChatGLM|GLM-?4|ERNIE(?: Bot)?|Gemma|Guanaco|WizardLM|Zephyr|SmolLM|Baize|Phi-?[1234]|RWKV|Yi|Nous-Hermes|Tulu"
)
_AI = r"(?:large |open-source |helpful |virtual |friendly )*(?:AI|artificial intelligence|(?:AI )?language model|LLM|chat ?bot|assistant)"
_MADE = r"(?:made|created|developed|trained|built|designed|fine-tuned|powered|released)"
_IDENTITY = [
    # "As an AI developed by OpenAI", "I am a language model trained by Google"
    rf"(?i:\b(?:as|i am|i['’]m|being) (?:an? |the )?{_AI}(?:[ ,]{{1,2}}[\w-]+){{0,4}}?,? {_MADE} by )(?:{_VENDORS})\b",
    rf"(?i:\bI (?:was|am|have been) {_MADE} (?:and [a-z]+ )?by )(?:(?:researchers|engineers|the team) (?:at|from) )?(?:{_VENDORS})\b",
    rf"(?i:\bmy (?:creators?|developers?|makers?) (?:is|are|at) )(?:{_VENDORS})\b",
    # "I am ChatGPT", "My name is Claude, an AI", "this is Bard"
    rf"(?i:\b(?:i am|i['’]m|my name is|call me) )(?:(?i:an? |the )?(?:{_MODELS})\b)(?! (?:and|or) (?:my|the|we)\b)(?=[,.!:;)]| (?i:an? |the |and I|from|by|model|here)|\s*$)",
    rf"(?i:\bas )(?:{_MODELS})(?i:, (?:i|an? {_AI})\b)",
    # Other languages: "je suis ChatGPT", "Ich bin ein KI-Modell von OpenAI", "soy un modelo … de OpenAI"
    rf"(?i:\b(?:je suis|ich bin|soy|sono|sou|eu sou|ik ben) )(?:{_MODELS})\b",
    rf"(?i:\b(?:développé|entraîné|créé|entwickelt|trainiert|desarrollado|entrenado|creado|sviluppato|addestrato|desenvolvido|treinado|ontwikkeld)"
    rf"(?:e|a|o)?(?: wurde)? (?:par|von|por|da|pela|door) )(?:{_VENDORS})\b",
    rf"(?i:\bvon )(?:{_VENDORS})(?i: (?:entwickelt|trainiert|erstellt)\b)",
    rf"(?:我是|我是由|由)(?:{_VENDORS}|{_MODELS})(?:开发|训练|創建|创建)?",
]
_IDENTITY_LEAK = re.compile("|".join(f"(?:{pattern})" for pattern in _IDENTITY))

# --- what is no answer -----------------------------------------------------------------------------------------------
_BANNER = re.compile(
    r"""\s*(?:\*\*|["'`\[({<]|error:?\s)*\s*(?:
        network\ error(?:\ due\ to|\b.{0,40}(?:refresh|regenerate|try\ again)|[.!:]?\s*$)
      | (?:error:?\ )?(?:http\ (?:status\ )?)?(?:429|500|502|503|504)\ ?[:-]?\ (?:too\ many|internal|bad\ gateway|service\ unav|gateway)
      | (?:api\ |openai\ |you(?:['’]ve|\ have)\ (?:hit|reached|exceeded)\ (?:the|your|our)\ )?rate.?limit(?:ed|s)?(?:\ (?:error|reached|exceeded|for)|[.!:]|\s*$)
      | you\ exceeded\ your\ current\ quota
      | too\ many\ requests
      | internal\ server\ error
      | bad\ gateway | service\ (?:is\ )?(?:temporarily\ )?unavailable | gateway\ time-?out | request\ timed?\ ?out
      | traceback\ \(most\ recent\ call\ last\)
      | (?:torch\.)?(?:cuda\.)?(?:outofmemoryerror|cuda\ out\ of\ memory)
      | \$moderation\$ | your\ input\ violates\ our\ content\ moderation
      | (?:that|the|this)\ model\ is\ (?:currently|temporarily)\ (?:overloaded|unavailable|loading)
      | (?:an?\ )?(?:unknown\ |unexpected\ )?error\ (?:has\ )?occurr?ed(?:\ while|[.!:,]|\s*$)
      | (?:something|sorry,\ something)\ went\ wrong(?:[.!,]|\s*$)
      | (?:connection\ (?:error|refused|reset)|could\ not\ connect\ to|max\ retries\ exceeded)
      | error[_ ]code:?\ ?\d{3,}
      | api[_ ](?:error|request\ error)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_STATUS = re.compile(r"\s*(?:loading|thinking|generating|typing|please wait)\s*(?:…|\.{3})?\s*", re.IGNORECASE)
_CURSORS = ("▌", "▍", "█", "▋", "▊", "▎", "▏")
_ERROR_CODE = re.compile(r"\(error_code: ?\d+\)", re.IGNORECASE)
BANNER_CHARS = 600  # an error message is short, an answer about one begins in other words or goes on for longer

# --- what is private -------------------------------------------------------------------------------------------------
_EMAIL = re.compile(r"(?<![\w.+/@-])([a-zA-Z0-9][\w.+-]{0,63})@((?:[a-zA-Z0-9-]{1,63}\.){1,6}[a-zA-Z]{2,12})(?![\w@-])")
_NO_DOMAIN = re.compile(
    r"(?:^|\.)(?:example|sample|test|localhost|invalid|domain|company|yourdomain|yourcompany|mydomain|website|yourwebsite|"
    r"xyz|abc|mail|email|acme|site|host|server|foo|bar|somewhere|placeholder|corp|business|organization|school|university)"
    r"(?:\.[a-z]{2,4}){0,2}$|\.(?:test|example|invalid|local|png|jpg|jpeg|gif|svg|py|js|java|html|md)$",
    re.IGNORECASE,
)
_NO_PERSON = re.compile(
    r"^(?:(?:no-?)?reply|info|support|contact|help|sales|admin|webmaster|postmaster|abuse|press|office|hello|hr|jobs|"
    r"careers|service|customerservice|feedback|your.*|my|me|user\w*|test\w*|name|(?:first|last|full)?[._]?name.*|"
    r"email|someone|somebody|john|jane|j(?:ohn|ane)?[._]?(?:doe|smith)\d*|foo|bar|alice|bob|git|root|username|recipient|sender)$",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.,/#=+-])(?:"
    r"(?P<international>\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4})"
    r"|(?P<american>(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4})"
    r")(?![\w/-]|[.,]\d)"
)
_PUBLIC_LINE = re.compile(
    r"^1?(?:8(?:00|33|44|55|66|77|88)|900)|^1?\d{3}555|^1?555|^1?(\d)\1{9}$|^1?2345678|^1?9876543"
)
_CARD = re.compile(
    r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\w-]|\.\d)|(?<![\w.-])3[47]\d{2}[ -]?\d{6}[ -]?\d{5}(?![\w-])"
)
_TEST_CARDS = {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "4012888888881881",
               "5105105105105100", "6011111111111117", "4000056655665556", "371449635398431", "30569309025904"}  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_TEST_IBANS = {
    "GB82WEST12345698765432",
    "GB29NWBK60161331926819",
    "DE89370400440532013000",
    "FR1420041010050500013M02606",
}
_IBAN_LENGTHS = {"AD": 24, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
                 "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IS": 26, "IT": 27,
                 "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25,
                 "RO": 24, "SE": 24, "SI": 19, "SK": 24, "TR": 26, "AE": 23, "SA": 24, "IL": 23, "UA": 29}  # fmt: skip
_SSN = re.compile(r"(?<![\w.-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)")
_TEST_SSNS = {"123-45-6789", "078-05-1120", "219-09-9999", "987-65-4321", "111-11-1111", "555-55-5555", "123-45-6780"}
_DNI = re.compile(r"(?<![\w.-])([XYZ]?)(\d{7,8})-?([A-HJ-NP-TV-Z])(?![\w-])")
_CPF = re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-])")
_NIR = re.compile(r"(?<![\w.-])[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?![\w-]|\.\d)")
_NINO = re.compile(
    r"(?<![\w.-])(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![\w-])"
)
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}|(?<!\w)AKIA[0-9A-Z]{16}(?!\w)|(?<!\w)ghp_[A-Za-z0-9]{36}(?!\w)"
    r"|(?<![\w-])sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}(?!\w)|(?<!\w)xox[bap]-[0-9A-Za-z-]{20,}"
)


def screen_prompt(text: str) -> list[str]:
    """Codes for what somebody asked: only private data matters there."""
    return [PRIVATE_DATA] if holds_private_data(text) else []


def screen_response(text: str) -> list[str]:
    """Codes for what a model is said to have answered, in a fixed order."""
    checks = {IDENTITY_LEAK: leaks_identity, ERROR_BANNER: is_error_banner, PRIVATE_DATA: holds_private_data}
    return [code for code, is_true in checks.items() if is_true(text)]


def leaks_identity(text: str) -> bool:
    """Whether the text claims, in the first person, to be a certain model or to be made by a certain vendor."""
    return _IDENTITY_LEAK.search(text) is not None


def is_error_banner(text: str) -> bool:
    """Whether the whole text is a server's error message or status, or ends in a typing cursor."""
    if text.rstrip().endswith(_CURSORS):
        return True
    if len(text) > BANNER_CHARS and not text.lstrip().startswith("Traceback (most recent call last)"):
        return False
    return bool(_BANNER.match(text) or _STATUS.fullmatch(text) or _ERROR_CODE.search(text))


def holds_private_data(text: str) -> bool:
    """Whether there is an e-mail address, phone, card, account or identity number that could be somebody's, or a key.

    Numbers with a checksum must pass it; those kept for examples, and lines of the public (0800 …), are none.
    """
    return (
        any(_is_email(found[1], found[2]) for found in _EMAIL.finditer(text))
        or any(_is_phone(found) for found in _PHONE.finditer(text))
        or any(_is_card(found[0]) for found in _CARD.finditer(text))
        or any(_is_iban(found[0]) for found in _IBAN.finditer(text))
        or _holds_identity_number(text)
        or _SECRET.search(text) is not None
    )


def _is_email(user: str, domain: str) -> bool:
    return not _NO_DOMAIN.search(domain) and not _NO_PERSON.match(user)


def _is_phone(found: re.Match[str]) -> bool:
    digits = _digits(found[0])
    if not 8 <= len(digits) <= 15 or len(set(digits)) < 4:
        return False
    is_north_american = found["american"] or (digits.startswith("1") and len(digits) == 11)
    return not (is_north_american and _PUBLIC_LINE.match(digits)) and "123456" not in digits


def _is_card(written: str) -> bool:
    digits = _digits(written)
    return 13 <= len(digits) <= 19 and digits not in _TEST_CARDS and len(set(digits)) > 3 and luhn(digits)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812: every second digit from the right counts double, its digits summed; the sum ends in 0."""
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_iban(written: str) -> bool:
    code = written.replace(" ", "")
    length = _IBAN_LENGTHS.get(code[:2])
    return (
        length is not None and len(code) >= length and code[:length] not in _TEST_IBANS and iban_is_valid(code[:length])
    )


def iban_is_valid(code: str) -> bool:
    """ISO 13616: with the first four characters moved to the end and letters as numbers from 10, it is 1 modulo 97."""
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def _holds_identity_number(text: str) -> bool:
    """US social security, Spanish DNI and NIE, Brazilian CPF, French NIR, British national insurance."""
    return (
        any(found[0] not in _TEST_SSNS for found in _SSN.finditer(text))
        or any(_is_dni(*found.groups()) for found in _DNI.finditer(text))
        or any(_is_cpf(_digits(found[0])) for found in _CPF.finditer(text))
        or any(_is_nir(_digits(found[0])) for found in _NIR.finditer(text))
        or any(found[0].replace(" ", "") not in ("QQ123456C", "AB123456C") for found in _NINO.finditer(text))
    )


def _is_dni(prefix: str, digits: str, letter: str) -> bool:
    if len(digits) != (7 if prefix else 8) or digits in ("12345678", "00000000", "1234567"):
        return False
    number = int((str("XYZ".index(prefix)) if prefix else "") + digits)
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == letter


def _is_cpf(digits: str) -> bool:
    if len(set(digits)) == 1 or digits.startswith("123456789"):
        return False
    for n in (9, 10):
        rest = sum(int(digit) * (n + 1 - at) for at, digit in enumerate(digits[:n])) * 10 % 11 % 10
        if rest != int(digits[n]):
            return False
    return True


def _is_nir(digits: str) -> bool:
    return len(digits) == 15 and int(digits[13:]) == 97 - int(digits[:13]) % 97


def _digits(written: str) -> str:
    return "".join(character for character in written if character.isdigit())
