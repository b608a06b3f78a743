# Students: one run is one job; a method with several stages has one more job for each stage before the last.


rule stage:
    input:
        unpack(lambda w: PROJECT.stage_inputs(w)),
    output:
        config=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/stages/{{stage}}/config.json",
        metrics=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/stages/{{stage}}/metrics.csv",
        weights=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/stages/{{stage}}/weights.safetensors",
    log:
        "logs/stage/{task}/{method}/{variant}/{scale}/seed{seed}/{stage}.log",
    benchmark:
        "logs/stage/{task}/{method}/{variant}/{scale}/seed{seed}/{stage}.tsv"
    conda:
        lambda w: PROJECT.environment(w)
    threads: lambda w: PROJECT.resources(w).threads
    resources:
        **CLUSTER.training(PROJECT.asked),
    params:
        settings=lambda w: PROJECT.spec(w).settings_json(),
        plan=lambda w: PROJECT.spec(w).plan(),
    shell:
        "exec {resources.launch} relent train {wildcards.task:q} {wildcards.method:q}"
        " --variant {wildcards.variant:q} --scale {wildcards.scale:q}"
        " --seed {wildcards.seed:q} --stage {wildcards.stage:q} --plan {params.plan:q} --threads {threads}"
        " > {log:q} 2>&1"


rule student:
    input:
        unpack(lambda w: PROJECT.stage_inputs(w)),
    output:
        config=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/config.json",
        metrics=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/metrics.csv",
        weights=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/weights.safetensors",
        predictions=directory(
            f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/predictions.zarr"
        ),
    log:
        "logs/student/{task}/{method}/{variant}/{scale}/seed{seed}.log",
    benchmark:
        "logs/student/{task}/{method}/{variant}/{scale}/seed{seed}.tsv"
    conda:
        lambda w: PROJECT.environment(w)
    threads: lambda w: PROJECT.resources(w).threads
    resources:
        **CLUSTER.training(PROJECT.asked),
    params:
        settings=lambda w: PROJECT.spec(w).settings_json(),
        plan=lambda w: PROJECT.spec(w).plan(),
    shell:
        "exec {resources.launch} relent train {wildcards.task:q} {wildcards.method:q}"
        " --variant {wildcards.variant:q} --scale {wildcards.scale:q}"
        " --seed {wildcards.seed:q} --plan {params.plan:q} --threads {threads} > {log:q} 2>&1"
