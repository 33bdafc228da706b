"""Feed each reader many broken inputs: what is not accepted must be refused in one line.

    python tests/fuzz/fuzz.py --inputs 100000 [--reader trace] [--seed 1] [--out fuzzing.json]

Inputs are mutations of real files, guided by the branches of kvab that they reach (atheris). Each
reader runs in a process of its own, two at a time, because a fuzzer never gives its process back.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kvab"]):
    from readers import READERS

from kvab.errors import InputError

LONGEST = 1 << 15  # bytes of an input
HANG_S = 30
COLUMNS = ("inputs", "accepted", "refused", "crashed", "slowest_ms", "peak_mb", "seconds")
WORD = re.compile(rb"-?\d+(?:\.\d+)?|true|false|null|[A-Za-z_-]{2,}|\"[^\"\n]{0,80}\"")
ODD = (
    b"0", b"-1", b"0.5", b"1e308", b"1e999", b"NaN", b"-Infinity", b"2147483648", b"1" + 20 * b"0",
    b"9223372036854775807", b"1" + 400 * b"0", b"null", b"true", b"[]", b"{}", b"[[]]", b"\"\"",
    b"\"x\"", b"\"../../x\"", b"\"/etc/hostname\"", b"\"\\u0000\"", b"\"\\ud800\"", b"\xff\xfe",
    b"!!python/object/apply:os.system [true]", b"&a [*a]", b"<<: *a", 500 * b"[", 1500 * b"{\"a\":",
    b"\"2026-02-30T00:00:00Z\"", b"\"session_999999999999\"", b"session_3", b"\r\n", b"\x00",
)  # fmt: skip


def mutated(data, most, number, seeds):
    """Return an input made from another: bytes, words, lines or parts of it changed."""
    choose = random.Random(number)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        way = choose.randrange(6)
        if way == 0:
            data = atheris.Mutate(data, most)
        elif way in (1, 2) and (words := list(WORD.finditer(data))):
            at = choose.choice(words)
            new = choose.choice((choose.choice(ODD), choose.choice(words)[0]))
            data = data[: at.start()] + new + data[at.end() :]
        elif way in (3, 4):
            lines = data.splitlines(keepends=True) or [b""]
            at, to = choose.randrange(len(lines)), choose.randrange(len(lines))
            lines[at : at + 1] = choose.choice(([], [lines[at], lines[at]], [lines[to]]))
            data = b"".join(lines)
        else:
            other = choose.choice(seeds)
            cut = choose.randrange(len(other) + 1)
            data = choose.choice((data[:cut], data[:cut] + other[cut:], other))
    return data[:most]


class Count:
    """The tally of one reader, and what made it crash."""

    def __init__(self, reader, inputs):
        self.reader, self.inputs = reader, inputs
        self.told = dict.fromkeys(COLUMNS, 0) | {"slowest_ms": 0.0}
        self.crashes = {}
        self.began_s = time.perf_counter()

    def take(self, data):
        """Feed one input; an exception that is no refusal of one line is a crash."""
        start_s = time.perf_counter()
        try:
            self.reader.read(data)
            outcome = "accepted"
        except InputError as error:
            outcome = "refused" if len(str(error).splitlines()) == 1 else "crashed"
            if outcome == "crashed":
                self.note(error, data)
        except Exception as error:
            outcome = "crashed"
            self.note(error, data)
        took_ms = 1e3 * (time.perf_counter() - start_s)
        self.told["inputs"] += 1
        self.told[outcome] += 1
        self.told["slowest_ms"] = max(self.told["slowest_ms"], round(took_ms, 1))

    def note(self, error, data):
        """Keep the first input of each kind of crash."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        if kind not in self.crashes and len(self.crashes) < 50:
            self.crashes[kind] = f"{error!s:.200}", data
            trace = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(
                error.__traceback__)]  # fmt: skip
            print(f"CRASH {kind}: {error!s:.200} via {' '.join(trace[-6:])}\n  {data[:300]!r}",
                  file=sys.stderr, flush=True)  # fmt: skip

    def done(self):
        """Return the tally."""
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = round(time.perf_counter() - self.began_s, 1)
        return self.told | {"peak_mb": round(peak_kib / 1024), "seconds": seconds}


def fuzz(name, inputs, seed, out):
    """Feed one reader and write its tally; the process ends with it."""
    with tempfile.TemporaryDirectory(prefix="kvab-fuzz-", dir=memory()) as folder:
        tempfile.tempdir = folder
        reader = READERS[name](Path(folder) / "files")
        seeds = list(reader.seeds())
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(seeds):
            assert len(content) < LONGEST, f"{name}: the seed {number} is too long"
            reader.read(content)
            (corpus / str(number)).write_bytes(content)
        count = Count(reader, inputs)

        def one(data):
            count.take(data)
            if count.told["inputs"] == inputs:
                out.write_text(json.dumps(count.done()))
                sys.stderr.flush()
                os._exit(0)

        options = [f"-seed={seed}", f"-max_len={LONGEST}", f"-timeout={HANG_S}", "-verbosity=0",
                   "-rss_limit_mb=2048", f"-artifact_prefix={folder}/", str(corpus)]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], one,
                      custom_mutator=lambda *given: mutated(*given, seeds))  # fmt: skip
        atheris.Fuzz()


def memory():
    """Return a folder in memory, if this machine has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def in_process(name, inputs, seed):
    """Return the tally of a reader that was fuzzed in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="kvab-fuzz-", dir=memory()) as folder:
        out = Path(folder) / "tally.json"
        command = [sys.executable, __file__, "--only", "--reader", name, "--inputs", str(inputs),
                   "--seed", str(seed), "--out", str(out)]  # fmt: skip
        ended = subprocess.run(command, env={**os.environ, "TMPDIR": folder})
        if not out.exists():
            raise SystemExit(f"{name}: the process ended with {ended.returncode}: a crash or hang")
        return json.loads(out.read_text())


def main():
    """Fuzz the readers that are asked for, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="for each reader")
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/fuzzing.json"))
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        fuzz(given.reader, given.inputs, given.seed, given.out)
    names = [given.reader] if given.reader else list(READERS)
    with ThreadPoolExecutor(2) as pool:
        tallies = pool.map(lambda name: in_process(name, given.inputs, given.seed), names)
        told = dict(zip(names, tallies, strict=True))
    print(f"{'reader':<10}" + "".join(f"{name:>12}" for name in COLUMNS))
    for name, tally in told.items():
        print(f"{name:<10}" + "".join(f"{tally[column]:>12,}" for column in COLUMNS))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"seed": given.seed, "readers": told}, indent=1) + "\n")
    return sum(tally["crashed"] for tally in told.values())


if __name__ == "__main__":
    raise SystemExit(1 if main() else 0)
