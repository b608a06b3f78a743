# Tracking: one writer replays all run folders into MLflow. The address may hold a secret: the Snakefile puts it into the
# environment, so that it stands in no command line.


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
    conda:
        "../../envs/cpu.yaml"
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
    shell:
        "relent track {params.runs:q} {params.comparisons} {params.artifacts} --receipt {output.receipt:q}"
        " > {log:q} 2>&1"
