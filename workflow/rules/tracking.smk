# Tracking: one writer replays all run folders into MLflow. The address may hold a secret: the Snakefile puts it into the
# environment, so that it stands in no command line.


rule track:
    input:
        scores=[f"{folder}/scores.json" for folder in PROJECT.tracked_runs()],
        pages=[PROJECT.page(comparison.task) for comparison in PROJECT.tracked()]
        + [PROJECT.overview(group) for group in PROJECT.tracked_groups()],
    output:
        receipt=PROJECT.tracking_receipt,
    log:
        "logs/track.log",
    benchmark:
        "logs/track.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(2000),
        runtime=CLUSTER.minutes(60),
    params:
        runs=PROJECT.tracked_runs(),
        comparisons=[
            part
            for c in PROJECT.tracked()
            for part in ("--comparison", str(Path(PROJECT.page(c.task)).parent))
        ],
        overviews=[
            part
            for group in PROJECT.tracked_groups()
            for part in ("--overview", str(Path(PROJECT.overview(group)).parent))
        ],
        artifacts=(
            ["--artifacts", PROJECT.config.tracking.artifacts]
            if PROJECT.config.tracking.artifacts
            else []
        ),
    shell:
        "relent track {params.runs:q} {params.comparisons:q} {params.overviews:q} {params.artifacts:q}"
        " --receipt {output.receipt:q} > {log:q} 2>&1"
