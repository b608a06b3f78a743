# Teachers: trained once; what they yield is stored and read by every student.


rule teacher:
    input:
        unpack(lambda w: PROJECT.stage_inputs(w)),
    output:
        config=f"{TEACHERS}/{{task}}/{{teacher}}/{{scale}}/config.json",
        metrics=f"{TEACHERS}/{{task}}/{{teacher}}/{{scale}}/metrics.csv",
        weights=f"{TEACHERS}/{{task}}/{{teacher}}/{{scale}}/weights.safetensors",
        outputs=directory(f"{TEACHERS}/{{task}}/{{teacher}}/{{scale}}/outputs.zarr"),
    log:
        "logs/teacher/{task}/{teacher}/{scale}.log",
    benchmark:
        "logs/teacher/{task}/{teacher}/{scale}.tsv"
    conda:
        lambda w: PROJECT.environment(w)
    threads: lambda w: PROJECT.resources(w).threads
    resources:
        **CLUSTER.training(PROJECT.asked),
    params:
        settings=lambda w: PROJECT.spec(w).settings_json(),
        plan=lambda w: PROJECT.spec(w).plan(),
    shell:
        "exec {resources.launch} relent train {wildcards.task:q} --teacher {wildcards.teacher:q} --scale {wildcards.scale:q}"
        " --plan {params.plan:q} --threads {threads} > {log:q} 2>&1"
