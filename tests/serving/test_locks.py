import threading

from serving.locks import only_one


def test_it_has_one_holder_at_a_time() -> None:
    found: list[bool] = []

    def ask(name: str) -> None:
        with only_one(name) as is_mine:
            found.append(is_mine)

    with only_one("one") as is_mine:
        assert is_mine
        for name in ("one", "another"):
            thread = threading.Thread(target=ask, args=[name])
            thread.start()
            thread.join()
    ask("one")
    assert found == [False, True, True]
