"""A deterministic forecast with the network of FuXi-ENS: no latent, one member, trained by the absolute error."""

from __future__ import annotations

from relent.methods.weather.config import ForecastConfig
from relent.methods.weather.deterministic import DeterministicForecast


class Config(ForecastConfig):
    """Nothing of its own."""


class DeterministicL1(DeterministicForecast):
    """Nothing beside what deterministic forecasters share."""

    config: Config
