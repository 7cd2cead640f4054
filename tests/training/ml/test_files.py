"""Files that others write at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.ml import files


def test_it_lets_others_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: files.write_json(path, {"by": i}, durable=False), range(200)))
    assert [found.name for found in tmp_path.iterdir()] == ["scores.json"]
