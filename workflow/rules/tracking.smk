# Tracking: one writer replays all run folders into MLflow. The address may hold a secret: it goes by environment.


rule track:
    input:
        scores=[f"{PROJECT.run_folder(run)}/scores.json" for run in PROJECT.runs()],
        pages=[PROJECT.page(comparison.task) for comparison in PROJECT.comparisons],
    output:
        receipt=PROJECT.tracking_receipt,
    log:
        "logs/track.log",
    benchmark:
        "logs/track.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        runs=[PROJECT.run_folder(run) for run in PROJECT.runs()],
        comparisons=[
            f"--comparison {Path(PROJECT.page(c.task)).parent}"
            for c in PROJECT.comparisons
        ],
        artifacts=lambda w: (
            f"--artifacts {PROJECT.config.tracking.artifacts}"
            if PROJECT.config.tracking.artifacts
            else ""
        ),
    run:
        environment = dict(
            os.environ, RELENT_TRACKING_URI=PROJECT.config.tracking.uri
        )
        command = f"relent track {' '.join(map(shlex.quote, params.runs))} {' '.join(params.comparisons)}"
        command += f" {params.artifacts} --receipt {shlex.quote(output.receipt)}"
        with open(log[0], "w") as handle:
            done = subprocess.run(
                shlex.split(command),
                env=environment,
                stdout=handle,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            sys.exit(Path(log[0]).read_text())
