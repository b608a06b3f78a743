# Comparison: runs → table, verdicts, figures, page. All steps of one task share the same runs.


rule compare:
    input:
        lambda w: PROJECT.comparison_inputs(w.task),
    output:
        table=report(
            f"{RESULTS}/{{task}}/comparison.csv",
            caption="../report/table.rst",
            category="{task}",
            labels={"result": "table of all scores"},
        ),
        json=f"{RESULTS}/{{task}}/comparison.json",
    log:
        "logs/compare/{task}.log",
    benchmark:
        "logs/compare/{task}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(1000),
        runtime=CLUSTER.minutes(10),
    params:
        runs=lambda w: list(PROJECT.labels(w.task)),
        settings=lambda w: PROJECT.comparison_json(w.task),
        code=lambda w: PROJECT.step_code(w.task, "compare"),
        confidence=PROJECT.config.confidence,
    shell:
        "relent compare {wildcards.task:q} {params.runs:q} --code {params.code:q} --confidence {params.confidence:q}"
        " > {log:q} 2>&1"


rule claims:
    input:
        lambda w: PROJECT.comparison_inputs(w.task),
    output:
        f"{RESULTS}/{{task}}/claims.json",
    log:
        "logs/claims/{task}.log",
    benchmark:
        "logs/claims/{task}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(1000),
        runtime=CLUSTER.minutes(10),
    params:
        runs=lambda w: list(PROJECT.labels(w.task)),
        settings=lambda w: PROJECT.comparison_json(w.task),
        claims=lambda w: PROJECT.claims_json(w.task),
        code=lambda w: PROJECT.step_code(w.task, "claims"),
        confidence=PROJECT.config.confidence,
    shell:
        "relent claims {wildcards.task:q} {params.runs:q} --code {params.code:q} --confidence {params.confidence:q}"
        " > {log:q} 2>&1"


rule figures:
    input:
        lambda w: PROJECT.comparison_inputs(w.task),
    output:
        report(
            directory(f"{RESULTS}/{{task}}/figures"),
            patterns=["{figure}.png"],
            caption="../report/figure.rst",
            category="{task}",
            labels={"result": "figure: {figure}"},
        ),
    log:
        "logs/figures/{task}.log",
    benchmark:
        "logs/figures/{task}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(2000),
        runtime=CLUSTER.minutes(10),
    params:
        runs=lambda w: list(PROJECT.labels(w.task)),
        settings=lambda w: PROJECT.comparison_json(w.task),
        code=lambda w: PROJECT.step_code(w.task, "figures"),
    shell:
        "relent figures {wildcards.task:q} {params.runs:q} --code {params.code:q} > {log:q} 2>&1"


rule page:
    input:
        rules.compare.output,
        rules.claims.output,
        rules.figures.output,
    output:
        report(
            f"{RESULTS}/{{task}}/comparison.html",
            caption="../report/page.rst",
            category="{task}",
            labels={"result": "comparison and verdicts"},
        ),
    log:
        "logs/page/{task}.log",
    benchmark:
        "logs/page/{task}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(1000),
        runtime=CLUSTER.minutes(10),
    params:
        folder=lambda w, output: str(Path(output[0]).parent),
        code=lambda w: PROJECT.step_code(w.task, "page"),
    shell:
        "relent page {params.folder:q} --code {params.code:q} > {log:q} 2>&1"
