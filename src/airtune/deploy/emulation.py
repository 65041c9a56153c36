"""A device that takes another's time: its answer is held back until that time has passed.

The work is done at this machine's speed and the profile says how long it counts:
flops / effective_flops, as in simulation. So a slow board's 13 s are 13 s whatever the cores of
this machine do meanwhile, and what is tried out is the round. Where the work itself took longer,
nothing can be held back: the update says so, and the round's times do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from airtune.errors import InputError, first_of
from airtune.models.devices import PROFILES, DeviceProfile, compute_s, profile_of
from airtune.scenario import DeviceSection, Scenario

OWN = "scenario"
"""Names the profile that the scenario gives the client."""
OVERRUN = 0.01
"""A time this share above the counted one is an overrun: no sleep ends to the millisecond."""


class Emulated:
    """Holds answers back.

    Args:
        profile: whose time is taken.
        clock, sleep: tests replace them.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile = profile
        self._clock, self._sleep = clock, sleep

    def hold(self, begin_s: float, flops: float) -> float:
        """Wait until the time of `flops` has passed since `begin_s`; return that time, s."""
        counted_s = compute_s(flops, self.profile)
        if (left_s := begin_s + counted_s - self._clock()) > 0:
            self._sleep(left_s)
        return counted_s


def overran(compute_s: float, emulated_s: float | None) -> bool:
    """Say whether a device's work took longer than the time that it counts."""
    return emulated_s is not None and compute_s > emulated_s * (1 + OVERRUN)


def emulated_profile(name: str, scenario: Scenario, client: str) -> DeviceProfile:
    """Return the profile to emulate: a built-in one, a JSON file, or the scenario's own.

    Raises:
        InputError: it is none of these.
    """
    if name == OWN:
        names = scenario.client_names
        if client not in names:
            raise InputError(
                f"client '{client}' is not in the scenario: its {len(names):,} clients are "
                f"{first_of(names)}"
            )
        return profile_of(scenario.client_devices[names.index(client)])
    return PROFILES[name] if name in PROFILES else profile_of(DeviceSection(profile=name))
