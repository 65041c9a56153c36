"""The radio cell and its devices, as a scenario describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from airtune.scenario import bounds
from airtune.scenario.section import (
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


class CellSection(Section):
    """The radio cell: geometry, propagation, bandwidth and link quality."""

    channel: str | None = None
    """A name from `airtune methods`; default: `table` where there is one, else `statistical`."""
    table: str | None = None
    """A CSV file of each client's SNR or rate in each round: docs/channel.md."""
    path_loss: Literal["umi", "uma", "classic"] = "umi"
    """3GPP TR 38.901 urban micro or macro, or 128.1 + 37.6 log10(d_km)."""
    radius_m: Annotated[PositiveFloat, bounds.DISTANCE_M] = 250.0
    """Radius of the cell."""
    min_distance_m: Annotated[PositiveFloat, bounds.DISTANCE_M] = 10.0
    """Least distance of a device to the base station."""
    carrier_hz: Annotated[float, Field(ge=0.5e9, le=100e9)] = 3.5e9
    """Carrier frequency."""
    base_station_height_m: Annotated[PositiveFloat, bounds.DISTANCE_M] | None = None
    """Default: 10 m (umi), 25 m (uma)."""
    device_height_m: Annotated[PositiveFloat, bounds.DISTANCE_M] = 1.5
    """Height of the devices' antennas."""
    shadowing: bool = True
    """Log-normal shadowing, drawn once per run."""
    shadowing_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] | None = None
    """Standard deviation; default: the path-loss model's own (8 dB for classic)."""
    fading: Literal["none", "rayleigh", "rician"] = "rayleigh"
    """Block fading, redrawn every round."""
    rician_k_db: FiniteFloat = 6.0
    """The K factor, for `rician` alone."""
    uplink_bandwidth_hz: Annotated[PositiveFloat, bounds.BANDWIDTH_HZ] = 20e6
    """Band that the clients' uplinks share."""
    downlink_bandwidth_hz: Annotated[PositiveFloat, bounds.BANDWIDTH_HZ] = 20e6
    """Band of the adapter's broadcast."""
    base_station_power_dbm: Annotated[FiniteFloat, bounds.POWER_DBM] = 44.0
    """Transmit power of the downlink."""
    noise_density_dbm_hz: Annotated[FiniteFloat, bounds.NOISE_DBM_HZ] = -174.0
    """Thermal noise."""
    base_station_noise_figure_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] = 5.0
    """Of the uplink's receiver."""
    device_noise_figure_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] = 9.0
    """Of the downlink's receivers."""
    gap_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] = 0.0
    """Gap to capacity: the SNR is divided by it."""
    max_spectral_efficiency: Annotated[PositiveFloat, bounds.EFFICIENCY] | None = None
    """bit/s/Hz that the best modulation and coding carries; none: Shannon's rate."""
    subcarrier_spacing_hz: Literal[15000, 30000, 60000] | None = None
    """Given: bandwidth is handed out in whole 5G NR resource blocks of 12 subcarriers."""

    csi_error_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] = 0.0
    """Standard deviation, in dB, of the uplink's channel during the upload around what the plan
    knew of it (log-normal): docs/cohorts.md."""
    csi_margin_db: Annotated[NonNegativeFloat, bounds.SPREAD_DB] = 0.0
    """The plan counts with an uplink channel that is weaker by this than what it knows."""
    outage_probability: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of each upload, whatever its channel: the update is lost, and what was sent is billed."""

    @model_validator(mode="after")
    def _distances(self) -> CellSection:
        if self.min_distance_m >= self.radius_m:
            raise ValueError(
                f"min_distance_m = {self.min_distance_m:g} must be below "
                f"radius_m = {self.radius_m:g}"
            )
        if self.channel == "table" and self.table is None:
            raise ValueError("channel = 'table' needs table, the path of a CSV file")
        if self.table is not None and self.channel not in (None, "table"):
            raise ValueError(
                f"table = '{self.table}' is allowed with channel = 'table' only, "
                f"not with channel = '{self.channel}'"
            )
        return self


class DeviceSection(Section):
    """One kind of device and how many of it take part."""

    profile: str
    """A name from `airtune methods --devices`, or the file that `airtune profile` wrote."""
    count: Annotated[PositiveInt, bounds.COUNT_OF_CLIENTS] = 1
    """Clients of this kind."""
    utilisation: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the peak that fine-tuning reaches; default: the profile's."""
    memory_bytes: Annotated[PositiveFloat, bounds.MEMORY_BYTES] | None = None
    """Memory of one device; default: the profile's."""
    only_labels: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Labels of the training examples, by name, that these clients alone hold (together with
    other kinds that name them); with partition.kind = "dirichlet"."""
    lora_rank: Annotated[PositiveInt, bounds.RANK] | None = None
    """Rank of its clients' adapters; default: training.lora_rank, which is the largest allowed."""
    power_dbm: Annotated[FiniteFloat, bounds.POWER_DBM] = 23.0
    """Transmit power of the uplink."""
    radio: Literal["amplifier", "lte", "5g-low-band", "mmwave"] = "amplifier"
    """What sending draws: power_dbm through an amplifier, or a line fitted to measured phones."""
    energy_budget_j: PositiveFloat | None = None
    """The most that computing and sending may draw in a round, J; planned for."""
    distance_m: Annotated[PositiveFloat, bounds.DISTANCE_M] | None = None
    """Fixed distance to the base station; default: drawn uniformly over the cell."""
    uplink_trace: str | None = None
    """A trace that replaces the uplink's channel model: mahimahi's, a table of time and rate, or
    `generated-drive`, which is built in."""
    downlink_trace: str | None = None
    """A trace that replaces the downlink's channel model, in the same formats."""
