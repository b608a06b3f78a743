"""Verification of a forecast that is larger than what a process may hold, against xskillscore on dask.

    python benchmarks/bench_verify.py [--small] [--rounds 2]

Both read the same zarr store lazily, map by map, and compute the same five scores, weighted with cos(latitude), by
lead: CRPS, RMSE of the ensemble mean, spread, Brier score of one threshold, rank histogram. xskillscore computes the
biased estimators and no others; its CRPS is properscoring's, here without numba, which this project does not depend on.
*Over imports* is the peak resident size minus that of a process that only imports the same packages: what a forecast
costs. Neither may hold more than 1.5 GB of data, less than the forecast has. The store is written without compression,
so that reading it weighs little. One thread each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import Row, medians, print_rows, timed, write_rows

SIZE = {"init_time": 40, "lead_time": 10, "member": 20, "latitude": 181, "longitude": 360}
SMALL = {"init_time": 3, "lead_time": 2, "member": 5, "latitude": 19, "longitude": 36}
CONTENDERS = ("relent", "xskillscore")
THRESHOLD = 1.0
LIMIT = 1_500_000_000
"""Bytes of data that a contender may hold (RLIMIT_DATA)."""
STEP = np.timedelta64(12, "h")


def write_stores(folder: Path, size: dict[str, int]) -> None:
    """A forecast (a map of all members a chunk) and its truth, Gaussian."""
    import xarray as xr
    import zarr

    generator = np.random.default_rng(0)
    n, leads = size["init_time"], size["lead_time"]
    times = np.datetime64("2018-01-01", "ns") + np.arange(n + leads) * STEP
    grid = {
        "latitude": np.linspace(-90, 90, size["latitude"]),
        "longitude": np.arange(size["longitude"]) * 360 / size["longitude"],
    }
    shape = (n + leads, size["latitude"], size["longitude"])
    true = generator.normal(size=shape).astype("float32")
    truth = xr.Dataset({"t": (("time", "latitude", "longitude"), true)}, {"time": times, **grid})
    truth.to_zarr(folder / "truth.zarr", consolidated=False, encoding={"t": {"chunks": (1, *shape[1:])}})
    lead_time = np.arange(1, leads + 1) * STEP.astype("timedelta64[ns]")
    coordinates = {"init_time": times[:n], "lead_time": lead_time, "member": np.arange(size["member"]), **grid}
    xr.Dataset(coords=coordinates).to_zarr(folder / "forecast.zarr", consolidated=False)
    array = zarr.open_group(folder / "forecast.zarr").create_array(
        "t",
        shape=tuple(size.values()),
        chunks=(1, 1, *list(size.values())[2:]),
        dtype="float32",
        compressors=None,
        dimension_names=tuple(size),
    )
    for i in range(n):
        for k in range(leads):
            noise = generator.normal(size=(size["member"], *shape[1:]))
            array[i, k] = (0.7 * true[i + k + 1] + 0.7 * noise).astype("float32")


def run_relent(folder: Path) -> dict[str, Any]:
    import dask
    import torch

    from relent.scores.streaming import Brier, Crps, MeanRmse, RankFrequencies, Spread
    from relent.verify import engine, layout, regions, report, truth
    from relent.verify.statistics import Entry

    torch.set_num_threads(1)
    dask.config.set(scheduler="synchronous")
    scores = [Crps(estimator="biased"), MeanRmse(), Spread(), Brier(threshold=THRESHOLD, fair=False), RankFrequencies()]
    engine.entries = lambda *_: [
        Entry(name, s) for name, s in zip(("crps", "rmse", "spread", "brier", "ranks"), scores)
    ]
    engine.FEWEST_POINTS = 10**9  # no spectra: the peer has none
    forecast = layout.as_forecast(layout.open_dataset(folder / "forecast.zarr"), "forecast")
    known = truth.open_truth(folder / "truth.zarr", forecast)
    grid = forecast["latitude"].values, forecast["longitude"].values
    weights = regions.region_weights([regions.Region("globe")], *grid, known.topology)
    found = engine.verify(forecast, known, weights)
    rows = [row for row in report.score_rows(found, None) if row["lead_hours"] == 12]
    ranks = [row["frequency"] for row in report.rank_rows(found, [0])]
    return {row["score"]: row["value"] for row in rows} | {"ranks": ranks}


def run_xskillscore(folder: Path) -> dict[str, Any]:
    import dask
    import xarray as xr
    import xskillscore as xs

    dask.config.set(scheduler="synchronous")
    forecast = xr.open_zarr(folder / "forecast.zarr", consolidated=False)["t"]
    truth = xr.open_zarr(folder / "truth.zarr", consolidated=False)["t"]
    valid = (forecast["init_time"] + forecast["lead_time"]).values
    shape = valid.shape
    observed = truth.sel(time=xr.DataArray(valid.ravel(), dims="pair")).data
    observed = observed.reshape(*shape, *observed.shape[1:]).rechunk((1, 1, -1, -1))
    dims = ("init_time", "lead_time", "latitude", "longitude")
    observed = xr.DataArray(observed, {d: forecast[d] for d in dims}, dims)
    weights = np.cos(np.deg2rad(forecast["latitude"])).clip(min=0)
    weights = weights * xr.ones_like(observed)
    over = ["init_time", "latitude", "longitude"]
    mean = forecast.mean("member")
    results = {
        "crps": xs.crps_ensemble(observed, forecast, dim=over, weights=weights),
        "rmse": np.sqrt(((mean - observed) ** 2).weighted(weights).mean(over)),
        "spread": np.sqrt(forecast.var("member", ddof=1).weighted(weights).mean(over)),
        "brier": xs.threshold_brier_score(observed, forecast, THRESHOLD, dim=over, weights=weights),
        "ranks": xs.rank_histogram(observed, forecast, dim=over),
    }
    computed = dask.compute(results)[0]
    found = {name: float(computed[name][0]) for name in ("crps", "rmse", "spread", "brier")}
    ranks = computed["ranks"][0].values
    return found | {"ranks": (ranks / ranks.sum()).tolist()}


IMPORTS = {
    "relent": "import torch, dask, xarray, zarr, relent.verify.engine, relent.verify.report",
    "xskillscore": "import dask, xarray, zarr, xskillscore",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny forecast, one round; replaces no results")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(globals()[f"run_{options.contender}"](options.folder)))
        return
    size = SMALL if options.small else SIZE
    megabytes = 4 * float(np.prod(list(size.values()))) / 2**20
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        write_stores(Path(name), size)
        scores = {}
        for contender in CONTENDERS:
            base = timed([sys.executable, "-c", IMPORTS[contender]]).peak_mb
            samples = []
            for _ in range(1 if options.small else options.rounds):
                limited = ["prlimit", f"--data={LIMIT}", sys.executable, __file__]
                done = timed([*limited, "--contender", contender, "--folder", name])
                samples.append({"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_mb": done.peak_mb})
                scores[contender] = json.loads(done.stdout.splitlines()[-1])
            row = medians(samples)
            rows.append(
                {
                    "name": f"forecast of {megabytes:.0f} MB",
                    "contender": contender,
                    **row,
                    "over_imports_mb": row["peak_mb"] - base,
                    "forecast_mb": megabytes,
                    "crps": scores[contender]["crps"],
                }
            )
        for key, value in scores["relent"].items():
            # Ranks are counted without weights by the peer.
            if key != "ranks":
                np.testing.assert_allclose(scores["xskillscore"][key], value, rtol=1e-4, err_msg=key)
    print_rows(rows, ["name", "contender", "seconds", "cpu_seconds", "peak_mb", "over_imports_mb", "crps"])
    write_rows("verify", rows, options.small)


if __name__ == "__main__":
    main()
