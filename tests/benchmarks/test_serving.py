"""The benchmark's own parts: prompts, contenders as processes, and the tables made of their turns."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks import serving, serving_peers
from benchmarks.serving_load import Prompt
from benchmarks.serving_peers import Missing, Server
from benchmarks.site import REPOSITORY

# A server of one answer: healthy, and every completion is the word "yes".
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
        event = {"choices": [{"text": "yes"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        for data in ("data: " + json.dumps(event) + "\\n\\n", ""):
            self.wfile.write(f"{len(data):x}\\r\\n{data}\\r\\n".encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def letters() -> Tokenizer:
    """A token a byte."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def test_it_cuts_prompts_of_one_length_that_begin_differently(letters: Tokenizer) -> None:
    text = "".join(f"{i} is a number, é a letter; " for i in range(200))
    prompts = list(serving.cut(letters, text))
    assert len(prompts) > 100
    assert {len(prompt.ids) for prompt in prompts} == {serving.N_PROMPT}
    assert all(letters.encode(prompt.text).ids == list(prompt.ids) for prompt in prompts)
    assert len({prompt.ids[:8] for prompt in prompts}) == len(prompts)
    assert prompts == list(serving.cut(letters, text))


def test_it_has_no_prompts_of_a_short_text(letters: Tokenizer) -> None:
    assert list(serving.cut(letters, "short")) == []


def test_it_reads_prompts_of_both_kinds(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello"}, {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    assert serving.texts_of(tmp_path / "pairs.jsonl.gz") == ["Hello", "a\nb"]


def test_it_stops_a_contender_between_its_turns(tmp_path: Path) -> None:
    peer = Server(lambda port: [sys.executable, "-c", SERVER, str(port)], lambda prompt, n: {"prompt": prompt.text})
    peer.start(tmp_path / "log.txt")
    process = psutil.Process(peer.process.pid)
    try:
        assert process.status() == psutil.STATUS_STOPPED
        assert [(a.text, a.error) for a in peer.ask([Prompt("one", (1,)), Prompt("two", (2,))], 1)] == [("yes", "")] * 2
        assert process.status() == psutil.STATUS_STOPPED
    finally:
        peer.end()
    assert not process.is_running()


# A benchmark with one contender: says its process id, then waits.
BENCHMARK = """
import pathlib, sys, time
from benchmarks import serving_peers
serving_peers.exit_on_sigterm()
peer = serving_peers.Server(lambda port: [sys.executable, "-c", sys.argv[1], str(port)], lambda prompt, n: {})
try:
    peer.start(pathlib.Path(sys.argv[2]))
    print(peer.process.pid, flush=True)
    time.sleep(60)
finally:
    peer.end()
"""


def test_it_leaves_no_contender_behind_when_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BENCHMARK, SERVER, str(tmp_path / "log.txt")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        contender = int(benchmark.stdout.readline())
        assert psutil.pid_exists(contender)
        benchmark.terminate()
        assert benchmark.wait(30) == 143
    assert not psutil.pid_exists(contender)


def test_it_says_why_a_contender_is_missing(tmp_path: Path) -> None:
    peer = Server(lambda port: [sys.executable, "-c", "raise SystemExit('no such model')"], lambda prompt, n: {})
    with pytest.raises(Missing, match="no such model"):
        peer.start(tmp_path / "log.txt")
    with pytest.raises(Missing, match="--llama-server"):
        serving_peers.llama_server(None, tmp_path, 2)
    with pytest.raises(Missing, match="there is no"):
        serving_peers.llama_server(tmp_path / "llama-server", tmp_path / "weights.gguf", 2)


def test_it_takes_medians_and_adds_failures_up() -> None:
    turns: list[serving.Figures] = [
        {"tok_s": 1.0, "decode_tok_s": float("nan"), "failed": 1},
        {"tok_s": 5.0, "decode_tok_s": 7.0, "failed": 0},
        {"tok_s": 3.0, "itl_ms": float("nan"), "failed": 2},
        {"failed": 8},
    ]
    assert serving.median(turns) == {"tok_s": 3.0, "decode_tok_s": 7.0, "failed": 11}


MEDIANS: dict[tuple[str, int], serving.Figures] = {
    ("ours", 8): {
        "tok_s": 200.0,
        "decode_tok_s": 220.0,
        "ttft_ms": 50.0,
        "itl_ms": 9.0,
        "itl_p99_ms": 12.0,
        "failed": 0,
    },
    ("llamacpp", 8): {
        "tok_s": 160.0,
        "decode_tok_s": 110.0,
        "ttft_ms": 100.0,
        "itl_ms": 9.5,
        "itl_p99_ms": 30.0,
        "failed": 0,
    },
    ("peft", 8): {"failed": 8},
}


def test_it_names_figures_by_contender_and_streams() -> None:
    found = serving.summary(MEDIANS)
    assert (found["tok_s_8"], found["llamacpp_tok_s_8"], found["llamacpp_ttft_ms_8"]) == (200.0, 160.0, 100.0)
    assert (found["llamacpp_ratio_8"], found["llamacpp_decode_ratio_8"]) == (1.25, 2.0)
    assert (found["peft_failed_8"], "peft_ratio_8" in found) == (8, False)


def test_it_names_every_figure_that_it_always_names_as_it_is_measured() -> None:
    whole = {(name, n): {"tok_s": 1.0, "ttft_ms": 1.0, "failed": 0.0} for name in serving.NAMES for n in (1, 4, 8, 32)}
    of_the_swap = {"swap_stall_ms", "publish_to_token_ms", "itl_p99_swap_ratio", "failed", "torn"}
    assert set(serving.NAMED) - of_the_swap <= set(serving.summary(whole))


def test_it_shows_ratios_and_failures_in_the_table() -> None:
    _, ours, llamacpp, peft = serving.table(MEDIANS, [8])
    assert re.split(" +", llamacpp.strip()) == ["8", "llamacpp", "160.0", "110.0", "100.0", "9.5", "30.0", "1.25"]
    assert ours.strip().endswith("12.0")
    assert "8 failed" in peft


def test_it_bounds_few_streams_by_memory_and_many_by_products(tmp_path: Path) -> None:
    card = {
        "num_hidden_layers": 1,
        "hidden_size": 10,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 10,
    }
    (tmp_path / "config.json").write_text(json.dumps(card | {"intermediate_size": 20, "vocab_size": 100}))
    (tmp_path / "model.safetensors").write_bytes(bytes(4000))
    asked = serving.parse(["--model", str(tmp_path), "--streams", "1,32", "--tokens", "10"])
    fast_products = serving.limits(asked, gb_s=1e-6, gflop_s=1e9)  # 1,000 bytes/s; 4,000 of weights, 40 of 133 tokens
    assert fast_products["bytes_per_step"] == 4000 + 40 * 133
    assert fast_products["limit_tok_s_1"] == pytest.approx(1 / 9.32)
    assert fast_products["limit_decode_tok_s_1"] == pytest.approx(1 / 9.32)
    assert fast_products["limit_tok_s_32"] == pytest.approx(32 / (4 + 32 * 5.32))
    fast_memory = serving.limits(
        asked, gb_s=1e9, gflop_s=1e-6
    )  # 1,000 a second; 2,000 a token and 2,000 for its logits
    assert fast_memory["limit_tok_s_1"] == fast_memory["limit_tok_s_32"] == pytest.approx(10 / (2 * 128 + 10 * 4))


def test_it_shortens_figures_to_what_json_has() -> None:
    found = [serving.short(value) for value in (1234.567, 0.00012345, 7, "why", float("nan"))]
    assert found == [1235.0, 0.0001234, 7, "why", None]


def test_it_knows_its_contenders(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.parse(["--only", "peft,ours", "--streams", "1,32"]).names == ["ours", "peft"]
    assert "llamacpp" not in serving.parse(["--without", "llamacpp"]).names
    for words in (["--only", "vllm"], ["--streams", "64"]):
        with pytest.raises(SystemExit):
            serving.parse(words)
    assert "there is no vllm" in capsys.readouterr().err
