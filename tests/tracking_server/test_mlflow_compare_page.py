"""MLflow's pages in a real browser, on the store of a smoke comparison: what a user sees and clicks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import MlflowServer, mlflow_server

from workflow.conftest import SmallProject

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
TWO = ("pld s0", "knowledge_distillation s0")
WAIT = 60_000


@pytest.fixture(scope="module")
def pages(compared: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """What `make ui` starts, on another port."""
    store = f"sqlite:///{compared.folder}/mlflow/mlflow.db"
    with mlflow_server(tmp_path_factory.mktemp("pages"), store) as server:
        yield server


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser's tab."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 1560})
        yield tab
        browser.close()


def open_runs(page: Any, pages: MlflowServer, more: str = "") -> None:
    """The list of runs of the task, reached from the list of experiments."""
    page.goto(f"{pages.uri}/#/experiments")
    page.get_by_role("link", name="patterns").first.click(timeout=WAIT)
    page.wait_for_url("**/experiments/*/**", timeout=WAIT)
    experiment = page.url.split("/experiments/")[1].split("/")[0].split("?")[0]
    page.get_by_text("Model training", exact=True).first.dispatch_event(
        "click"
    )  # the pages offer what chat applications want too
    page.goto(f"{pages.uri}/#/experiments/{experiment}/runs{more}")
    page.get_by_text("pld s0", exact=True).first.wait_for(timeout=WAIT)
    if page.get_by_text("MLflow Assistant").count():
        page.get_by_label("Close", exact=True).first.click()


def picture(page: Any, name: str) -> None:
    """Keep a screenshot for the docs where RELENT_SCREENSHOTS names a folder."""
    if folder := os.environ.get("RELENT_SCREENSHOTS"):
        page.wait_for_timeout(2000)
        page.screenshot(path=Path(folder) / name)


def test_two_methods_are_compared(page: Any, pages: MlflowServer) -> None:
    """Select a run of each, press Compare: parameters that differ, scores side by side, a chart of a metric."""
    open_runs(page, pages)
    for name in TWO:
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first
        row.locator(".ag-checkbox-input").first.check(force=True)
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for(timeout=WAIT)
    for name in TWO:
        assert page.get_by_text(name, exact=True).first.is_visible()

    # The chart above the tables: parameters that differ on its axes, and the first score.
    chart = page.locator(".js-plotly-plot").first
    chart.wait_for(timeout=WAIT)
    axes = chart.inner_text()
    assert "run.method" in axes
    assert "test/accuracy" in axes

    # Only what differs, of parameters and of metrics.
    assert page.get_by_text("batch_size", exact=True).count() == 1
    for switch in page.get_by_role("switch").all():
        switch.click()
    page.get_by_text("batch_size", exact=True).wait_for(state="detached", timeout=WAIT)
    shown = page.locator("main, body").first.inner_text()
    for parameter, value in (("run.method", "pld"), ("teacher_temperature", "1.0"), ("alpha", "0.1")):
        assert parameter in shown
        assert value in shown
    for same in ("batch_size", "learning_rate", "run.seed", "data.per_class"):
        assert same not in shown
    for metric in ("test/nll", "cost/training_seconds"):
        assert page.get_by_role("link", name=metric, exact=True).count() == 1
    page.get_by_text("Comparing 2 Runs").scroll_into_view_if_needed()
    picture(page, "mlflow_compare.png")

    # A metric's own page: one line a run over the steps.
    loss = page.get_by_role("link", name="train/loss", exact=True)
    table = page.get_by_role("link", name="test/nll", exact=True)
    for _ in range(20):  # the table draws the rows that are in sight
        if loss.count():
            break
        table.first.hover()
        page.mouse.wheel(0, 120)
        page.wait_for_timeout(200)
        table = page.locator("a[href*='/metric/']")
    loss.click()
    lines = page.locator(".js-plotly-plot .scatterlayer .trace .js-line")
    lines.nth(1).wait_for(timeout=WAIT)
    for name in TWO:
        page.get_by_text(f"{name} (train/loss)").first.wait_for(timeout=WAIT)


def test_all_runs_are_charted(page: Any, pages: MlflowServer) -> None:
    """Charts in groups: scores as bars, losses by step; nothing private, nothing of the comparison among them."""
    open_runs(page, pages, "?compareRunsMode=CHART")
    for metric in ("cost/training_seconds", "test/accuracy", "test/class_overlap"):
        page.get_by_text(metric, exact=True).first.wait_for(timeout=WAIT)
    page.locator(".js-plotly-plot .barlayer .bars").first.wait_for(timeout=WAIT)
    shown = page.locator("body").inner_text()
    assert "Generated patterns" in shown
    assert str(Path.home()) not in shown
    picture(page, "mlflow_charts.png")
