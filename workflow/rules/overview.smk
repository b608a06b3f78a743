# Overview: the comparisons of a group → what to use when, a table of methods and tasks, average ranks over tasks.


rule overview:
    input:
        lambda w: PROJECT.overview_inputs(w.group),
    output:
        page=report(
            f"{RESULTS}/{{group}}/overview.html",
            caption="../report/overview.rst",
            category="{group}",
            labels={"result": "what to use when"},
        ),
        table=report(
            f"{RESULTS}/{{group}}/overview.csv",
            caption="../report/overview_table.rst",
            category="{group}",
            labels={"result": "table of all tasks"},
        ),
        json=f"{RESULTS}/{{group}}/overview.json",
    log:
        "logs/overview/{group}.log",
    benchmark:
        "logs/overview/{group}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(1000),
        runtime=CLUSTER.minutes(10),
    params:
        settings=lambda w: PROJECT.overview_json(w.group),
        code=lambda w: PROJECT.overview_code(),
    shell:
        "relent overview {wildcards.group:q} --settings {params.settings:q} --code {params.code:q} > {log:q} 2>&1"
