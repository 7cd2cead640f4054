"""Measured besides on 15,966 texts of public data sets: 14 warnings, of which 3 at most are wrong."""

import pytest

from labeling import screening
from labeling.texts import MAX_CHARS


@pytest.mark.parametrize("text", [
    "As an AI language model developed by OpenAI, I cannot do that.",
    "I'm a large language model, trained by Google.",
    "I am an AI assistant created by Anthropic to be helpful.",
    "Sure! I was trained by researchers at Meta AI on public data.",
    "Hello, I am ChatGPT, how can I help?",
    "My name is Vicuna, and I'm a language model trained by LMSYS.",
    "I’m Claude, an AI assistant.",
    "I am Bard",
    "My creator is DeepSeek.",
    "Je suis ChatGPT, un assistant.",
    "Ich bin ein Sprachmodell, von OpenAI entwickelt.",
    "Soy un modelo de lenguaje desarrollado por OpenAI.",
    "我是Qwen，很高兴认识你。",
])  # fmt: skip
def test_it_finds_a_text_that_says_who_wrote_it(text):
    assert screening.screen_response(text) == ["identity_leak"]


@pytest.mark.parametrize("text", [
    "ChatGPT is a chat bot that was developed by OpenAI.",
    "As an AI, I have no feelings.",
    "I am a language model, so I cannot taste it.",
    "I am Google's biggest fan.",
    "Claude Monet was a painter; Gemini is a sign of the zodiac.",
    "I was hired by Google in 2015 and trained by the team lead.",
    "You can ask Claude or Llama instead.",
    "I am a bard and sing for the king.",
])  # fmt: skip
def test_it_lets_people_talk_about_models(text):
    assert screening.screen_response(text) == []


@pytest.mark.parametrize("text", [
    "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**",
    "Rate limit reached for requests per minute.",
    "Error: 429 Too Many Requests",
    "HTTP 502 Bad Gateway",
    "You exceeded your current quota, please check your plan.",
    'Traceback (most recent call last):\n  File "x.py", line 1\nKeyError',
    "CUDA out of memory. Tried to allocate 20 MiB",
    "$MODERATION$ YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES.",
    "The answer is not available (error_code: 50004)",
    "An error occurred.",
    "Loading…",
    "The capital of France is▌",
])  # fmt: skip
def test_it_finds_error_messages(text):
    assert screening.screen_response(text) == ["error_banner"]


@pytest.mark.parametrize("text", [
    "A rate limit protects a server: when it is exceeded, it answers 429 Too Many Requests.",
    "The error “CUDA out of memory” means that the batch is too large. " + "Make it smaller. " * 10,
    "If you see “Traceback (most recent call last):”, read its last line.",
    "Sorry, I do not know.",
    "Thinking of you is nice.",
    "An error occurring twice is a pattern.",
])  # fmt: skip
def test_it_lets_answers_speak_of_errors(text):
    assert screening.screen_response(text) == []


@pytest.mark.parametrize("text", [
    "Write to maria.kowalska@gmail.com about it.",
    "Call me: +49 170 9876501.",
    "My number is (212) 867-5309.",
    "Pay with 4539 1488 0343 6467, please.",
    "IBAN NL91 ABNA 0417 1643 00",
    "Her social security number is 859-56-0028.",
    "DNI 54362315K",
    "CPF 529.982.247-25",
    "NIR 2 55 08 14 168 025 38",
    "NI number JG 12 34 56 C",
    "key = AKIAIOSFODNN7ABCDEFG",
])  # fmt: skip
def test_it_finds_what_is_likely_to_be_private(text):
    assert screening.screen_response(text) == ["private_data"]
    assert screening.screen_prompt(text) == ["private_data"]


@pytest.mark.parametrize("text", [
    "Write to john.doe@gmail.com or you@example.com or info@zoo.org.",
    "git@github.com:someone/project.git and user@host.local",
    "Call 1-800-273-8255 or (212) 555-0134 or 123-456-7890.",
    "The test card is 4111 1111 1111 1111; 1234 5678 9012 3456 is none.",
    "The sum is 4539148803436468.",
    "3.14159265358979 and 2,718,281,828 and 1990-05-12 and 10.20.30.40",
    "The format is 123-45-6789.",
    "GB82 WEST 1234 5698 7654 32 is the example, GB00 WEST 1234 5698 7654 32 is wrong.",
    "DNI 54362315A",
    "CPF 529.982.247-26",
    "ISBN 978-3-16-148410-0",
    "0xDEADBEEFDEADBEEF, 550e8400-e29b-41d4-a716-446655440000",
])  # fmt: skip
def test_it_lets_examples_and_other_numbers_pass(text):
    assert screening.screen_response(text) == []


def test_it_lists_codes_in_one_order():
    text = "I am ChatGPT, write to maria.kowalska@gmail.com▌"
    assert screening.screen_response(text) == ["identity_leak", "error_banner", "private_data"]


@pytest.mark.parametrize("piece", [
    "as an AI ", "a", "1", "1 ", "12-", "a.", "a@", "@a.", "+1 ", "(", "+", "Error: ", "AB12 ", "I am a large ", "- ", "\n",
])  # fmt: skip
def test_it_is_linear_in_the_length_of_hostile_texts(piece):
    """A pattern that backtracks would not come to an end here before the test run's own time limit."""
    assert isinstance(screening.screen_response((piece * MAX_CHARS)[:MAX_CHARS]), list)
