import pytest

from training.ml import behaviour

END = 2


def test_it_counts_tokens_and_responses_that_ran_to_the_limit() -> None:
    responses = [[5, 6, END], [5, 6, 7, 8, 9], [END]]
    assert behaviour.mean_length(responses) == 3
    assert behaviour.unfinished(responses, END) == pytest.approx(1 / 3)


def test_it_counts_n_grams_that_stood_in_the_same_response_before() -> None:
    looping = [1, 2, 3] * 4  # 9 four-grams, three of them different
    assert behaviour.repetition([looping]) == pytest.approx(6 / 9)
    assert behaviour.repetition([looping, list(range(20, 32))]) == pytest.approx(6 / 18)
    assert behaviour.repetition([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0  # two responses may say the same
    assert behaviour.repetition([[1, 2], [END]]) == 0


def test_it_counts_different_n_grams_over_all_responses() -> None:
    assert behaviour.distinct([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert behaviour.distinct([[END]]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry but that is not something I do.",
        "I cannot provide instructions for this.",
        "As an AI language model, I do not have opinions and cannot answer.",
        "Thank you for asking. I must decline.",
        "I am unable to answer this question.",
        "That is against my guidelines.",
        "I won't answer that.",
        "",
        " …\n",
    ],
)
def test_it_knows_a_refusal(text: str) -> None:
    assert behaviour.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Canberra is the capital of Australia.",
        "I am sorry to hear that; tell her that you are there for her.",
        "You cannot help everybody, but you can listen.",
        "7",
        "Bonjour !",
        "An AI is a program. It can do many things that a person does.",
        "Boil it for six minutes. " * 12 + "I cannot help but wonder.",
    ],
)
def test_it_does_not_take_an_answer_for_a_refusal(text: str) -> None:
    assert not behaviour.is_refusal(text)


def test_it_gives_the_share_of_refusals() -> None:
    assert behaviour.refusal_rate(["I can't help with that.", "Paris.", "Rome.", ""]) == 0.5
