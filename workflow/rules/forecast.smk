# Forecasts and their verification, on demand: asked for by the name of the file, for any run, lead (steps) and number of
# members. `snakemake results/TASK/METHOD/VARIANT/SCALE/seedN/verification-60steps-50members/scores.csv`


FORECAST = f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}"


rule forecast:
    input:
        data=lambda w: PROJECT.evaluation_inputs(w.task, w.scale)["data"],
        config=rules.student.output.config,
        weights=rules.student.output.weights,
    output:
        directory(f"{FORECAST}/forecast-{{leads}}steps-{{members}}members.zarr"),
    log:
        "logs/forecast/{task}/{method}/{variant}/{scale}/seed{seed}/{leads}steps-{members}members.log",
    benchmark:
        "logs/forecast/{task}/{method}/{variant}/{scale}/seed{seed}/{leads}steps-{members}members.tsv"
    wildcard_constraints:
        leads=r"[1-9][0-9]*",
        members=r"[1-9][0-9]*",
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(4000),
        runtime=CLUSTER.minutes(120),
    params:
        folder=lambda w, input: str(Path(input.config).parent),
        dataset=lambda w, input: str(Path(input.data).parent),
        code=lambda w: CATALOGUE.code("relent.tasks.ensemble_forecast.rollout"),
    shell:
        "relent forecast {params.folder:q} --from test --leads {wildcards.leads:q} --members {wildcards.members:q}"
        " --out {output:q} --dataset {params.dataset:q} --threads {threads} --code {params.code:q} > {log:q} 2>&1"


rule verify:
    input:
        data=lambda w: PROJECT.evaluation_inputs(w.task, w.scale)["data"],
        forecast=rules.forecast.output,
    output:
        scores=f"{FORECAST}/verification-{{leads}}steps-{{members}}members/scores.csv",
        json=f"{FORECAST}/verification-{{leads}}steps-{{members}}members/scores.json",
        totals=directory(
            f"{FORECAST}/verification-{{leads}}steps-{{members}}members/totals.zarr"
        ),
        figures=directory(
            f"{FORECAST}/verification-{{leads}}steps-{{members}}members/figures"
        ),
    log:
        "logs/verify/{task}/{method}/{variant}/{scale}/seed{seed}/{leads}steps-{members}members.log",
    benchmark:
        "logs/verify/{task}/{method}/{variant}/{scale}/seed{seed}/{leads}steps-{members}members.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(2000),
        runtime=CLUSTER.minutes(60),
    params:
        folder=lambda w, output: str(Path(output.scores).parent),
        dataset=lambda w, input: str(Path(input.data).parent),
        confidence=PROJECT.config.confidence,
        code=lambda w: CATALOGUE.code("relent.verify.command"),
    shell:
        "relent verify {input.forecast:q} {params.dataset:q} --out {params.folder:q} --threads {threads}"
        " --confidence {params.confidence:q} --code {params.code:q} > {log:q} 2>&1"
