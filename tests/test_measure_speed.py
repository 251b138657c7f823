"""Tokens per second: what llama.cpp is asked, what is made of its answers, and how it may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantmill import cli
from quantmill.measure.errors import MeasureError
from quantmill.measure.record import from_json
from quantmill.measure.speed import (
    Speed,
    SpeedOptions,
    SpeedTest,
    measure_speed,
    parse_tests,
    tokens_per_second,
)
from tests.support.measure_models import tiny


def test_speed_tests_are_read() -> None:
    assert parse_tests("pp512,tg128,pp1024+tg1024") == (
        SpeedTest(512, 0),
        SpeedTest(0, 128),
        SpeedTest(1024, 1024),
    )
    assert [test.name for test in parse_tests("pp512,tg128,pp16+tg8")] == ["pp512", "tg128", "pp16+tg8"]
    for wrong in ("", "512", "pp", "tg128+pp4", "pp512tg4", "pp512,"):
        with pytest.raises(MeasureError, match="write pp512"):
            parse_tests(wrong)


def test_tokens_per_second_leaves_out_the_free_token() -> None:
    assert tokens_per_second(SpeedTest(512, 0), 1000.0, 5.0) == 512
    assert tokens_per_second(SpeedTest(0, 128), 10.0, 1000.0) == 127
    assert tokens_per_second(SpeedTest(100, 101), 1000.0, 1000.0) == 100


def fake_bench(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport json, os, signal, sys\n{body}\n")
    path.chmod(0o755)
    return path


def test_llama_bench_is_asked_and_read(tmp_path: Path) -> None:
    bench = fake_bench(
        tmp_path / "llama-bench",
        "open(sys.argv[0] + '.args', 'w').write(' '.join(sys.argv[1:]))\n"
        "rows = [(8, 0, 80.0), (0, 4, 4.0), (8, 4, 12.5)]\n"
        "print(json.dumps([{'n_prompt': p, 'n_gen': n, 'avg_ts': a, 'stddev_ts': 0.5} for p, n, a in rows]))",
    )
    options = SpeedOptions(parse_tests("pp8,tg4,pp8+tg4"), repeats=3, threads=2, repack=False, bench=bench)
    found = measure_speed(tiny("Q4_0"), options)
    assert found == (Speed("pp8", 80.0, 0.5, 3), Speed("tg4", 4.0, 0.5, 3), Speed("pp8+tg4", 12.5, 0.5, 3))
    asked = (tmp_path / "llama-bench.args").read_text()
    assert asked == f"-m {tiny('Q4_0')} -r 3 -o json -t 2 --repack 0 -p 8 -n 4 -pg 8,4"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.stderr.write('noise\\nerror: no room\\n'); sys.exit(1)", "llama.cpp failed .error: no room"),
        (
            "sys.stderr.write('error: no room\\n0.01 I ~Server: exited\\n'); sys.exit(1)",
            "llama.cpp failed .error: no room",
        ),
        (
            "os.kill(os.getpid(), signal.SIGILL)",
            "killed by SIGILL; on machines with AMX, --no-repack may help",
        ),
        (
            "os.kill(os.getpid(), signal.SIGFPE)",
            "killed by SIGFPE; it is a fault of this build; --bench takes another",
        ),
        ("", "llama.cpp failed .without a word"),
    ],
)
def test_a_bench_that_fails_says_so(body: str, message: str, tmp_path: Path) -> None:
    bench = fake_bench(tmp_path / "llama-bench", body)
    with pytest.raises(MeasureError, match=message):
        measure_speed(tiny("Q4_0"), SpeedOptions(bench=bench))


def test_speed_through_xllamacpp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    command = [
        "evaluate",
        "speed",
        tiny("Q4_0"),
        "--tests",
        "pp32,tg8,pp16+tg8",
        "-r",
        2,
        "-t",
        1,
        "--no-repack",
    ]
    assert cli.main([*map(str, command), "-o", str(path)]) == 0
    found = from_json(path).models[0].speed
    assert [speed.test for speed in found] == ["pp32", "tg8", "pp16+tg8"]
    assert all(speed.mean > 0 and speed.runs == 2 for speed in found)
    assert "pp16+tg8 t/s" in capsys.readouterr().out


def test_timed_files_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the second file is timed: with --resume the first is not timed again."""
    rows = "print(json.dumps([{'n_prompt': 8, 'n_gen': 0, 'avg_ts': 80.0, 'stddev_ts': 0.5}]))"
    count = "open(sys.argv[0] + '.count', 'a').write('.')\n"
    bench = fake_bench(
        tmp_path / "bench",
        count + "if 'Q8_0' in sys.argv[2] and len(open(sys.argv[0] + '.count').read()) == 2:\n"
        "    os.kill(os.getppid(), signal.SIGTERM); signal.pause()\n" + rows,
    )
    path = tmp_path / "speed.json"
    command = [
        "evaluate",
        "speed",
        tiny("Q4_0"),
        tiny("Q8_0"),
        "--tests",
        "pp8",
        "--bench",
        bench,
        "-o",
        path,
    ]
    words = [str(word) for word in command]
    assert cli.main(words) == 130
    assert "interrupted; what was finished is in" in capsys.readouterr().err
    assert not path.exists()
    assert cli.main([*words, "--resume"]) == 0
    assert (tmp_path / "bench.count").read_text() == "..."
    assert [result.speed[0].mean for result in from_json(path).models] == [80.0, 80.0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench", "bench.count", "speed.json"]
