"""A manifest can neither make a rule run a text of its own nor write outside its folder: names, paths, shell lines."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue
from relent.manifest.models import Folder, Method, Name, Plugin, Source, Task
from relent.manifest.paths import RESERVED, RULES, Layout
from synthetic_patterns import TASK

ROOT = Path(__file__).resolve().parents[2]
METHOD = {
    "name": "evil",
    "title": "Evil",
    "family": "distillation",
    "implementation": "relent.methods.distillation.pld:PLD",
    "tasks": ["classification"],
}
SOURCE = {
    "name": "evil",
    "title": "Evil",
    "registry": "pypi-wheel",
    "package": "evil",
    "version": "1.0",
    "files": {"evil/data.csv": "0" * 64},
    "licence": "none",
}
HOSTILE = [
    "../x",
    "/etc/passwd",
    "a/b",
    ".",
    "..",
    "",
    " ",
    "$(touch made)",
    "`touch made`",
    "a; touch made",
    "a\ntouch made",
    "a\n",
    "a\r",
    "a\x00b",
    "a|b",
    "a&b",
    "a>b",
    "*",
    "{task}",
    "-rf",
    "--config",
    "~",
    "a'b",
    'a"b',
    "a\\b",
    "a b",
    "a\u202egpj",
    "a\u2028b",
    "\uff0e\uff0e/x",
    "\u0430dmin",
    "ﬁgures",
    "é",
    "x" * 200,
    "A",
    "1a",
    "a:b",
    "a.b",
]
hostile = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=12),
    st.text(alphabet="ab/.$()`;'\"\\\n {}-~*|&<>\u202e\u2028", max_size=12),
    st.tuples(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), st.sampled_from(HOSTILE)).map("".join),
)
many = settings(max_examples=200, deadline=None)


def accepts(model, values) -> bool:
    try:
        model.model_validate(values)
    except ValidationError:
        return False
    return True


@many
@given(hostile)
def test_a_name_is_a_plain_word_or_refused(text):
    try:
        TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,59}", text)
    layout = Layout()
    for path in (
        layout.source(text),
        layout.dataset(text, "smoke"),
        layout.teacher(text, text, "smoke"),
        layout.run(text, text, text, "smoke", 0),
        layout.comparison(text),
    ):
        assert os.path.normpath(path) == path
        assert path.split("/")[0] in ("data", "teachers", "results")
        assert shlex.split(path) == [path]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_name_in_a_manifest_is_checked(text):
    stage, teacher = {"inputs": ["data"]}, TASK["teachers"]["wide"]
    metric = {"title": "A", "direction": "higher"}
    for change in (
        {"name": text},
        {"family": text},
        {"tasks": [text]},
        {"stages": {text: stage}},
        {"variants": {"default": {}, text: {}}},
        {"default_variant": text, "variants": {text: {}}},
        {"stages": {"student": {"inputs": [text]}}},
        {"implementation": f"{text}:PLD"},
        {"implementation": f"relent.methods.distillation.{text}:PLD"},
        {"implementation": f"relent.methods.distillation.pld:{text}"},
        {"implementation": f"../{text}.py:PLD"},
        {"implementation": f"/{text}.py:PLD"},
    ):
        accepted = accepts(Method, METHOD | change)
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) and "implementation" in change
        dotted = change.get("implementation") == "relent.methods.distillation.a.b:PLD"
        assert not accepted or (plain and "/" not in change["implementation"]) or dotted, change
    for change in (
        {"name": text},
        {"kind": text},
        {"data_module": text},
        {"data_module": f"relent.data.{text}/x"},
        {"sources": [text]},
        {"baseline": text},
        {"teachers": {text: teacher}},
        {"teachers": {"wide": teacher | {"method": text}}},
        {"metrics": TASK["metrics"] | {text: metric}},
        {"scales": {text: TASK["scales"]["smoke"]}},
    ):
        assert not accepts(Task, TASK | change), change
    for change in ({"name": text}, {"registry": text}, {"files": {f"{text}/../x": "0" * 64}}):
        assert not accepts(Source, SOURCE | change), change
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text) or not text[0].isalnum():
        assert not accepts(Source, SOURCE | {"package": text})


def test_the_models_accept_what_is_right():
    assert accepts(Method, METHOD)
    assert accepts(Method, METHOD | {"implementation": "evil.py:PLD"})
    assert accepts(Task, TASK)
    assert accepts(Source, SOURCE)


@many
@given(hostile)
@example("a/../../b")
@example("a/.hidden")
@example("a/")
@example("-x")
def test_a_file_of_a_source_stays_in_its_folder(text):
    if not accepts(Source, SOURCE | {"files": {text: "0" * 64}}):
        return
    name = text.rsplit("/", 1)[-1]
    assert os.path.normpath(text) == text
    assert not text.startswith(("/", "-", "."))
    assert Path("folder", name).parent == Path("folder")
    assert name != "receipt.json"


def test_files_of_a_source_do_not_overwrite_each_other():
    twice = {"a/data.csv": "0" * 64, "b/data.csv": "1" * 64}
    assert not accepts(Source, SOURCE | {"files": twice})
    assert not accepts(Source, SOURCE | {"files": {"a/receipt.json": "0" * 64}})


@many
@given(hostile)
@example('a\'b "c" $(touch made); `x` & | > y')
def test_a_folder_is_one_word_of_a_shell_and_no_wildcard(text):
    try:
        TypeAdapter(Folder).validate_python(text)
    except ValidationError:
        return
    assert shlex.split(shlex.quote(text)) == [text]
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert not set(text) & set("{}")
    assert text[0] not in "-~"
    # As the Snakefile and the rules make patterns of it.
    assert f"{text}/{{task}}/comparison.html".format(task="images") == f"{text}/images/comparison.html"


@pytest.mark.parametrize("text", ["", " ", "/", "a\nb", "{x}", "-x", "~/x", "a\u202eb", "a ", "a\tb", "a\xa0b"])
def test_a_folder_that_cannot_be_carried_is_refused_in_words(text):
    with pytest.raises(ValidationError, match="a folder's path"):
        TypeAdapter(Folder).validate_python(text)


def test_a_plugin_folder_holds_no_separator():
    with pytest.raises(ValidationError, match="may not hold ':'"):
        TypeAdapter(Plugin).validate_python("mine:yours")


def rule_texts() -> dict[str, str]:
    return {path.name: path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]}


def test_everything_in_a_shell_line_is_quoted():
    """`launch` is a word of the profile and not of a manifest; threads are a number."""
    seen = 0
    for name, text in rule_texts().items():
        for block in re.findall(r'\n    shell:\n((?: {8}"[^\n]*\n)+)', text):
            for field in re.findall(r"\{([^{}]+)\}", block):
                seen += 1
                assert field.endswith(":q") or field in ("threads", "resources.launch"), f"{name}: {{{field}}}"
    assert seen > 40


def test_no_rule_runs_anything_but_a_command_of_the_package():
    for name, text in rule_texts().items():
        commands = re.findall(r'\n    shell:\n {8}"([^\n]*)', text)
        assert text.count("    shell:") == len(commands), name
        for command in commands:
            assert re.match(r"(exec )?(\{resources\.launch\} )?relent [a-z-]+ ", command), f"{name}: {command}"
        assert not re.search(r"^\s+(run|script|notebook|wrapper|cwl):", text, flags=re.M), name


def test_reserved_names_are_the_rules_of_the_workflow():
    texts = rule_texts().values()
    assert {rule for text in texts for rule in re.findall(r"^rule (\w+):", text, flags=re.M)} == set(RULES)


@pytest.mark.parametrize("name", sorted(RESERVED["task"]))
def test_a_task_does_not_take_the_name_of_a_rule(tmp_path, name):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / f"{name}.yaml").write_text(_yaml(TASK | {"name": name}))
    with pytest.raises(ConfigError, match=f"'{name}' is taken"):
        Catalogue.load(tmp_path)


def test_a_method_does_not_take_the_folder_of_the_figures(tmp_path):
    folder = tmp_path / "methods" / "distillation"
    folder.mkdir(parents=True)
    (folder / "figures.yaml").write_text(_yaml(METHOD | {"name": "figures"}))
    with pytest.raises(ConfigError, match="'figures' is taken"):
        Catalogue.load(tmp_path)


def _yaml(values: dict) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False)
