"""Known variables: CF names, units and plausible values, under the names that ERA5 stores give them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """What is known about a quantity.

    Its values must lie within `lowest` and `highest`, in `units`; wide enough for any weather, narrow enough to tell
    another unit.
    """

    names: tuple[str, ...]
    long_name: str
    standard_name: str
    units: str
    lowest: float
    highest: float


_T = (150.0, 350.0)
_KNOWN = (
    Variable(("temperature", "t"), "temperature", "air_temperature", "K", *_T),
    Variable(("2m_temperature", "t2m", "2t"), "temperature at 2 m", "air_temperature", "K", *_T),
    Variable(("2m_dewpoint_temperature", "d2m", "2d"), "dew point at 2 m", "dew_point_temperature", "K", *_T),
    Variable(("skin_temperature", "skt"), "skin temperature", "surface_temperature", "K", 150, 380),
    Variable(("sea_surface_temperature", "sst"), "sea surface temperature", "sea_surface_temperature", "K", 260, 320),
    Variable(("geopotential", "z"), "geopotential", "geopotential", "m2 s-2", -2e4, 6e5),
    Variable(("geopotential_height", "gh"), "geopotential height", "geopotential_height", "m", -2e3, 6e4),
    Variable(
        ("geopotential_at_surface", "orography", "zs"),
        "surface geopotential",
        "surface_geopotential",
        "m2 s-2",
        -6e3,
        9e4,
    ),
    Variable(("u_component_of_wind", "u"), "eastward wind", "eastward_wind", "m s-1", -250, 250),
    Variable(("v_component_of_wind", "v"), "northward wind", "northward_wind", "m s-1", -250, 250),
    Variable(("10m_u_component_of_wind", "u10", "10u"), "eastward wind at 10 m", "eastward_wind", "m s-1", -120, 120),
    Variable(("10m_v_component_of_wind", "v10", "10v"), "northward wind at 10 m", "northward_wind", "m s-1", -120, 120),
    Variable(
        ("100m_u_component_of_wind", "u100", "100u"), "eastward wind at 100 m", "eastward_wind", "m s-1", -150, 150
    ),
    Variable(
        ("100m_v_component_of_wind", "v100", "100v"), "northward wind at 100 m", "northward_wind", "m s-1", -150, 150
    ),
    Variable(("10m_wind_speed", "ws10", "10si"), "wind speed at 10 m", "wind_speed", "m s-1", 0, 120),
    Variable(("vertical_velocity", "w"), "vertical velocity", "lagrangian_tendency_of_air_pressure", "Pa s-1", -60, 60),
    Variable(("specific_humidity", "q"), "specific humidity", "specific_humidity", "kg kg-1", -0.01, 0.06),
    Variable(("relative_humidity", "r"), "relative humidity", "relative_humidity", "1", -0.3, 2.0),
    Variable(
        ("mean_sea_level_pressure", "msl", "prmsl"),
        "pressure at mean sea level",
        "air_pressure_at_mean_sea_level",
        "Pa",
        8e4,
        1.15e5,
    ),
    Variable(("surface_pressure", "sp"), "surface pressure", "surface_air_pressure", "Pa", 3e4, 1.15e5),
    Variable(
        (
            "total_precipitation",
            "tp",
            "total_precipitation_6hr",
            "total_precipitation_24hr",
            "total_precipitation_12hr",
        ),
        "precipitation",
        "lwe_thickness_of_precipitation_amount",
        "m",
        -1e-3,
        2.0,
    ),
    Variable(
        ("total_column_water_vapour", "tcwv"),
        "column water vapour",
        "atmosphere_mass_content_of_water_vapor",
        "kg m-2",
        -1,
        150,
    ),
    Variable(("total_cloud_cover", "tcc"), "cloud cover", "cloud_area_fraction", "1", -0.01, 1.01),
    Variable(("sea_ice_cover", "siconc", "ci"), "sea ice cover", "sea_ice_area_fraction", "1", -0.01, 1.01),
    Variable(("land_sea_mask", "lsm"), "land fraction", "land_area_fraction", "1", -0.01, 1.01),
    Variable(("toa_incident_solar_radiation", "tisr"), "solar radiation at the top", "", "J m-2", -1, 3e7),
    Variable(("surface_solar_radiation_downwards", "ssrd"), "solar radiation, downwards", "", "J m-2", -10, 3e7),
    Variable(("surface_net_solar_radiation", "ssr"), "net solar radiation", "", "J m-2", -10, 3e7),
    Variable(("top_net_thermal_radiation", "ttr"), "net thermal radiation at the top", "", "J m-2", -3e7, 1e5),
)
BY_NAME = {name: variable for variable in _KNOWN for name in variable.names}


def known(name: str) -> Variable | None:
    """What is known of a variable; `z_500` is `z` at a level."""
    head, _, tail = name.rpartition("_")
    return BY_NAME.get(name) or (BY_NAME.get(head) if tail.isdigit() else None)


_G = 9.80665
CONVERSIONS: dict[tuple[str, str], tuple[float, float]] = {
    ("degC", "K"): (1.0, 273.15),
    ("hPa", "Pa"): (100.0, 0.0),
    ("m", "m2 s-2"): (_G, 0.0),
    ("m2 s-2", "m"): (1 / _G, 0.0),
    ("km", "m"): (1000.0, 0.0),
    ("mm", "m"): (1e-3, 0.0),
    ("cm", "m"): (1e-2, 0.0),
    ("kg m-2", "m"): (1e-3, 0.0),
    ("mm", "kg m-2"): (1.0, 0.0),
    ("g kg-1", "kg kg-1"): (1e-3, 0.0),
    ("%", "1"): (1e-2, 0.0),
    ("knot", "m s-1"): (0.514444, 0.0),
    ("km h-1", "m s-1"): (1 / 3.6, 0.0),
    ("hPa s-1", "Pa s-1"): (100.0, 0.0),
}
"""(from, to) → (factor, offset): to = factor · from + offset."""

_SPELLINGS = {
    "kelvin": "K",
    "degk": "K",
    "deg_k": "K",
    "c": "degC",
    "°c": "degC",
    "celsius": "degC",
    "deg_c": "degC",
    "degree_celsius": "degC",
    "degrees_celsius": "degC",
    "degc": "degC",
    "pascal": "Pa",
    "pascals": "Pa",
    "mb": "hPa",
    "mbar": "hPa",
    "millibar": "hPa",
    "millibars": "hPa",
    "hpa": "hPa",
    "gpm": "m",
    "metre": "m",
    "meter": "m",
    "metres": "m",
    "meters": "m",
    "m of water equivalent": "m",
    "kt": "knot",
    "kts": "knot",
    "knots": "knot",
    "percent": "%",
    "(0 - 1)": "1",
    "0-1": "1",
    "dimensionless": "1",
    "fraction": "1",
    "-": "1",
    "~": "1",
    "kg/kg": "kg kg-1",
    "g/kg": "g kg-1",
    "kg/m2": "kg m-2",
    "kg/m^2": "kg m-2",
    "m/s": "m s-1",
    "km/h": "km h-1",
    "m2/s2": "m2 s-2",
    "m^2/s^2": "m2 s-2",
    "pa/s": "Pa s-1",
    "j/m2": "J m-2",
}


def normal_units(units: str) -> str:
    """One spelling for units that are written in several ways (`m s**-1`, `m/s`, `m.s-1`)."""
    text = re.sub(r"\s+", " ", units.strip())
    found = _SPELLINGS.get(text.lower())
    if found is None:
        text = re.sub(r"\*\*|\^", "", text).replace(".", " ")
        found = _SPELLINGS.get(text.lower(), text)
    return found
