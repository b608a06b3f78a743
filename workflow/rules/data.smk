# Data: the only rules that touch a network. `snakemake data` runs them alone.


rule data:
    input:
        PROJECT.datasets(),


rule fetch:
    output:
        receipt=f"{DATA}/sources/{{source}}/receipt.json",
    log:
        "logs/fetch/{source}.log",
    benchmark:
        "logs/fetch/{source}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(500),
        runtime=CLUSTER.minutes(20),
    params:
        source=lambda w: PROJECT.source_json(w.source),
    shell:
        "relent fetch {wildcards.source:q} > {log:q} 2>&1"


rule prepare:
    input:
        lambda w: PROJECT.data_inputs(w.task, w.scale),
    output:
        receipt=f"{DATA}/{{task}}/{{scale}}/receipt.json",
    log:
        "logs/prepare/{task}/{scale}.log",
    benchmark:
        "logs/prepare/{task}/{scale}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: PROJECT.config.dask.job_threads
    resources:
        mem_mb=CLUSTER.memory(max(2000, PROJECT.config.dask.job_mb)),
        runtime=CLUSTER.minutes(60),
    params:
        options=lambda w: PROJECT.data_json(w.task, w.scale),
        code=lambda w: PROJECT.data_code(w.task),
    shell:
        "relent prepare {wildcards.task:q} --scale {wildcards.scale:q} --code {params.code:q} > {log:q} 2>&1"
