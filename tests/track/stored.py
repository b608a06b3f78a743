"""What a user finds in a store, by MLflow's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Store:
    """The active runs of a store."""

    def __init__(self, uri: str):
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)

    def runs(self, query: str = "", experiment: str = "images") -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([found.experiment_id], filter_string=query))

    def content(self, query: str = "") -> dict[str, Any]:
        """Everything that the active runs hold, without the store's own ids."""
        found: dict[str, Any] = {}
        for run in self.runs(query):
            assert run.data.tags["relent.run_id"] not in found, "a run stands twice"
            found[run.data.tags["relent.run_id"]] = self._content(run)
        return found

    def _content(self, run: Any) -> dict[str, Any]:
        history = {
            key: [(m.step, repr(m.value), m.timestamp) for m in self.client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        files = self._files(run)
        times = (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time)
        return {"params": run.data.params, "tags": run.data.tags, "history": history, "files": files, "info": times}

    def _files(self, run: Any) -> dict[str, bytes]:
        """Bytes of the artifacts; of a server's the sizes."""
        if run.info.artifact_uri.startswith("mlflow-artifacts:"):
            top = self.client.list_artifacts(run.info.run_id)
            nested = [f for d in top if d.is_dir for f in self.client.list_artifacts(run.info.run_id, d.path)]
            return {f.path: b"%d" % f.file_size for f in [*top, *nested] if not f.is_dir}
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
