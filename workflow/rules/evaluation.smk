# Evaluation: stored predictions → scores and the run's figures.


rule evaluate:
    input:
        unpack(lambda w: PROJECT.evaluation_inputs(w.task, w.scale)),
        config=rules.student.output.config,
        predictions=rules.student.output.predictions,
    output:
        scores=f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/scores.json",
        figures=directory(
            f"{RESULTS}/{{task}}/{{method}}/{{variant}}/{{scale}}/seed{{seed}}/figures"
        ),
    log:
        "logs/evaluate/{task}/{method}/{variant}/{scale}/seed{seed}.log",
    benchmark:
        "logs/evaluate/{task}/{method}/{variant}/{scale}/seed{seed}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=CLUSTER.memory(2000),
        runtime=CLUSTER.minutes(20),
    params:
        folder=lambda w, output: str(Path(output.scores).parent),
        dataset=lambda w, input: str(Path(input.data).parent),
        teacher=lambda w, input: (
            ["--teacher-outputs", str(Path(input.teacher).parent)]
            if "teacher" in input.keys()
            else []
        ),
        options=lambda w: PROJECT.evaluation_json(w.task, w.scale),
        code=lambda w: PROJECT.step_code(w.task, "evaluate"),
    shell:
        "relent evaluate {params.folder:q} --dataset {params.dataset:q} {params.teacher:q} --threads {threads}"
        " --code {params.code:q} > {log:q} 2>&1"
