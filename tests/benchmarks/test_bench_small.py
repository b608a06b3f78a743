"""The machinery of the benchmarks: timed processes, dry-run tables, and the page; no benchmark is run."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_timed_counts_wall_cpu_and_memory(load):
    common = load("common")
    code = "import time; block = bytearray(80_000_000); sum(range(3_000_000)); time.sleep(0.2); print('done')"
    done = common.timed([sys.executable, "-c", code])
    assert done.stdout == "done\n"
    assert done.seconds > 0.2
    assert 0 < done.cpu_seconds < done.seconds + 0.05
    assert done.peak_mb > 76


def test_timed_shows_what_a_failing_command_wrote(load):
    with pytest.raises(RuntimeError, match=r"exit 3\n(.|\n)*no such thing"):
        load("common").timed([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])


def test_a_quick_check_never_replaces_results(load):
    common = load("common")
    assert common.results_path("crps", small=True) != common.results_path("crps", small=False)


def test_planned_jobs_reads_the_total(load):
    assert load("bench_workflow").planned_jobs("job      count\n-----  -----\nall  1\ntotal          510\n") == 510


def test_job_times_reads_rules_and_seconds(load, tmp_path):
    table = "s\th:m:s\tmax_rss\tcpu_time\n2.50\t0:00:02\t480.0\t{cpu}\n"
    for name, cpu in (("student/images/pld/seed0.tsv", "1.25"), ("track.tsv", "NA")):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(table.format(cpu=cpu))
    jobs = load("bench_workflow").job_times(tmp_path)
    assert set(jobs) == {"student", "track"}
    start, end, cpu = jobs["student"][0]
    assert end - start == pytest.approx(2.5, abs=1e-6)
    assert cpu == 1.25


def test_page_shows_losing_cells_and_dates_old_rows(load, tmp_path, monkeypatch):
    run = load("run")
    where = {"cpu": "Some CPU", "cores": 2, "threads": 1, "load_average": [0.5, 0.4, 0.3]}
    times = {"loop": 2.0, "relent": 3.0}
    rows = [
        {"name": "a training step", "contender": name, "seconds": value, "cpu_seconds": value, "machine": where}
        for name, value in times.items()
    ]
    path = tmp_path / "training.json"
    path.write_text(json.dumps(rows))
    monkeypatch.setattr(run, "results_path", lambda name, small: tmp_path / f"{name}.json")
    text = "\n".join(run.section("training"))
    assert "Better than *relent* — faster: loop (0.67×); fewer CPU seconds: loop (0.67×)." in text
    assert "| loop | 2.00 | 2.00 |" in text
    assert "Some CPU, 2 cores, threads: 1, load 0.5, 0.4, 0.3 (1, 5, 15 minutes)" in text
    assert all(len(row["date"]) == 10 for row in json.loads(path.read_text()))
    assert "Not measured yet" in "\n".join(run.section("clone"))


def test_page_names_a_script_for_every_benchmark(load):
    run = load("run")
    assert {benchmark.script for benchmark in run.BENCHMARKS.values()} == {
        path.name for path in [*FOLDER.glob("bench_*.py"), FOLDER / "soak.py"]
    }
