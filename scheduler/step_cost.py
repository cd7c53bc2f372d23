"""StepCost: an estimate of how long a step takes, from the steps so far."""

FORGETTING = 0.98  # factor on the weight of all earlier steps with each new one
FIRST_TOKEN_SECONDS = 1e-3  # of a prefill token, before the first measurement
LEAST_SPREAD = 16.0  # tokens; standard deviation of prefill sizes below which the slope is not fitted


class StepCost:
    """A line through the latest steps: seconds = step_seconds + prefill_seconds * prefill tokens.

    Weighted least squares. The cost of decoding is part of the constant: its rows change slowly from step to step, and
    old steps lose their weight fast.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._xx = self._y = self._xy = 0.0
        self._slope = FIRST_TOKEN_SECONDS

    def observe(self, num_prefill_tokens: int, seconds: float) -> None:
        """Learn from one step."""
        x = float(num_prefill_tokens)
        self._weight = FORGETTING * self._weight + 1
        self._x = FORGETTING * self._x + x
        self._xx = FORGETTING * self._xx + x * x
        self._y = FORGETTING * self._y + seconds
        self._xy = FORGETTING * self._xy + x * seconds
        spread = self._xx / self._weight - (self._x / self._weight) ** 2
        if spread > LEAST_SPREAD**2:
            together = self._xy / self._weight - self._x * self._y / self._weight**2
            self._slope = max(together / spread, 1e-6)
        elif x >= LEAST_SPREAD:  # all steps are alike: what is not known of the constant goes to the tokens
            self._slope = max(min(self._slope, seconds / x), 1e-6)

    @property
    def prefill_seconds(self) -> float:
        """What a prefill token adds to a step."""
        return self._slope

    @property
    def step_seconds(self) -> float:
        """What a step takes without prefill."""
        if not self._weight:
            return 0.0
        return max((self._y - self._slope * self._x) / self._weight, 0.0)

    def max_prefill_tokens(self, seconds: float) -> int:
        """Return how many prefill tokens fit into a step of `seconds` seconds; it may be 0."""
        return max(int((seconds - self.step_seconds) / self._slope), 0)
