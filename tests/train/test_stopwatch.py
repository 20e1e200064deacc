"""What a run has taken: wall-clock and device-seconds that belong together."""

from train.checkpoint_files import RunState
from train.stopwatch import Stopwatch


def test_the_charge_is_the_time_on_the_clock_times_the_devices():
    for devices in (0.25, 2.0):  # powers of two, so that the product is exact
        taken = Stopwatch(None, devices, RunState(), None).taken
        assert taken.device_seconds == taken.wall_seconds * devices > 0
