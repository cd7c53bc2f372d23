"""The buckets of the histograms of metrics."""

# Buckets in seconds, the same as vLLM's, for its dashboards.
# fmt: off
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)
PER_TOKEN = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80,
)
# fmt: on
REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20)
WAIT_ERROR = (-60, -30, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 30, 60)


def one_two_five(limit: int) -> list[float]:
    """Return 1, 2, 5, 10, 20, 50 ... up to `limit`."""
    buckets: list[float] = []
    power = 1
    while power <= limit:
        buckets += [float(power * digit) for digit in (1, 2, 5) if power * digit <= limit]
        power *= 10
    return buckets
