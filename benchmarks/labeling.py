"""How many judgments a second the site takes, and how long people wait for the next pair.

    python -m benchmarks.labeling [--pairs 50000] [--seconds 20] [--overlap 3] [--processes 2] [--profile] [--plans]

Real web processes on a real PostgreSQL (started here, from a wheel), 800-character responses. A vote is "next" (claim
one pair) and "submit" (judge it), sent over kept-alive connections by an event loop in this process, on the same
machine: 8 and 32 people without think time, then 1,000 who think for 15 s. At the end the judgments are counted: over
are pairs with more judgments than wanted, under closed ones with fewer. Then the preferences of
as many judged pairs, 50,000 at most, are exported. Prints a table and one JSON line last; --profile adds where the time goes in one vote, --plans the query
plan of a claim.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

from benchmarks import machine, voters
from benchmarks.site import OF_TESTS, REPOSITORY, free_port
from tests.services import postgresql

THINKING, THINK_SECONDS = 1_000, 15.0
EXPORT = "/api/campaigns/judged/exports/preference/"
COUNTED = """
SELECT count(*) FILTER (WHERE n > n_wanted), count(*) FILTER (WHERE NOT is_open AND n < n_wanted), sum(n)
FROM (SELECT c.n_wanted, c.is_open, count(j.id) AS n FROM labeling_comparison c
      LEFT JOIN labeling_judgment j ON j.comparison_id = c.id AND j.purpose = 'label' AND NOT j.is_surplus
      GROUP BY c.id) AS counted
"""


class Bench:
    """A database and the environment in which the site runs on it."""

    def __init__(self, database: str, folder: Path, processes: int) -> None:
        self.database, self.people_file, self.port = database, folder / "people.json", free_port()
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in OF_TESTS},
            "DATABASE_URL": database,
            "VAR_DIR": str(folder / "var"),
            "PORT": str(self.port),
            "WEB_PROCESSES": str(processes),
            "ENGINE_PORT": str(free_port()),
        }

    def manage(self, *arguments: str) -> None:
        command = [sys.executable, "manage.py", *arguments]
        subprocess.run(command, cwd=REPOSITORY, env=self.environment, check=True)

    def shell(self, code: str) -> None:
        start = "from pathlib import Path; from benchmarks import labeling_rows; labeling_rows."
        self.manage("shell", "--no-imports", "--verbosity", "0", "-c", start + code)

    @contextlib.contextmanager
    def web(self) -> Iterator[psutil.Process]:
        """The web process as `manage.py up` starts it; healthy when the block begins."""
        command = [sys.executable, "-m", "alignapp.processes", "web"]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment)
        try:
            deadline = time.monotonic() + 60
            while not self._answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("The web process does not start.")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/login/", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def count(self) -> dict[str, int]:
        with psycopg.connect(self.database.replace("postgres://", "postgresql://")) as database:
            row = database.execute(COUNTED).fetchone()
        assert row is not None
        return {"over": row[0], "under": row[1], "judgments": int(row[2])}

    def export(self, session: str) -> tuple[float, int, float]:
        """Seconds to the last byte, lines, and seconds to the first byte."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{EXPORT}", headers={"Cookie": f"sessionid={session}"}
        )
        started, n_lines, first = time.monotonic(), 0, 0.0
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            while block := answer.read(1 << 16):
                first = first or time.monotonic() - started
                n_lines += block.count(b"\n")
        return time.monotonic() - started, n_lines, first


def measure(bench: Bench, seconds: float) -> dict[str, float]:
    sessions = json.loads(bench.people_file.read_text())
    figures: dict[str, float] = {}
    with bench.web() as web:
        voters.run(bench.port, sessions[:8], 3)  # warm: connections, compiled templates and queries
        for n, think in ((8, 0.0), (32, 0.0), (THINKING, THINK_SECONDS)):
            before = cpu_seconds(web)
            measured = voters.run(bench.port, sessions[:n], seconds if not think else max(seconds, 3 * think), think)
            figures[f"web_cpu_ms_per_vote_{n}"] = 1000 * (cpu_seconds(web) - before) / max(1, len(measured.submit_ms))
            figures |= _figures(measured, n)
            print(f"{'':>6} {figures[f'web_cpu_ms_per_vote_{n}']:.1f} ms of processor time a vote in the web process")
            if measured.failures:
                print(f"  {n} clients, not answered well: {measured.failures}")
        figures |= bench.count()
        figures["export_50k_s"], figures["export_lines"], figures["export_first_s"] = bench.export(sessions[-1])
    return figures


def cpu_seconds(root: psutil.Process) -> float:
    """User and system time of a process and its children, which no other load on the machine inflates much."""
    times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def _figures(measured: voters.Measured, n: int) -> dict[str, float]:
    figures = {f"votes_per_s_{n}": measured.votes_per_s, f"failures_{n}": sum(measured.failures.values())}
    for name, values in (("next", measured.next_ms), ("submit", measured.submit_ms)):
        for share in (50, 95, 99):
            figures[f"{name}_p{share}_ms_{n}"] = voters.percentile(values, share / 100)
    print(
        f"{n:>6} clients  {measured.votes_per_s:7.1f} votes/s   next p50/p95/p99 "
        + " / ".join(f"{figures[f'next_p{share}_ms_{n}']:.0f}" for share in (50, 95, 99))
        + " ms   submit "
        + " / ".join(f"{figures[f'submit_p{share}_ms_{n}']:.0f}" for share in (50, 95, 99))
        + " ms"
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labeling", description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of the web (WEB_PROCESSES)")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--plans", action="store_true")
    options = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="alignapp-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, PostgreSQL's user must be able to enter
        with postgresql(folder) as database:
            bench = Bench(database, folder, options.processes)
            bench.manage("migrate", "--verbosity", "0")
            bench.shell(f"fill({options.pairs}, {options.overlap}, {THINKING}, Path({str(bench.people_file)!r}))")
            figures = measure(bench, options.seconds)
            if options.profile:
                bench.shell("profile(200)")
            if options.plans:
                bench.shell("plans()")
    print(f"over {figures['over']}, under {figures['under']} of {figures['judgments']} judgments")
    print(
        f"export: {figures['export_lines']} lines in {figures['export_50k_s']:.1f} s, first byte {figures['export_first_s']:.2f} s"
    )
    print(json.dumps({"benchmark": "labeling", "pairs": options.pairs, **{k: round(v, 3) for k, v in figures.items()}}))


if __name__ == "__main__":
    main()
