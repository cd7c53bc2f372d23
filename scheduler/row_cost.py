"""RowCost: an estimate of how long a model takes for a number of rows, from its runs so far."""

FIXED_COST_ROWS = 10  # fixed cost of a run in rows, before the first measurement
FORGETTING = 0.98  # factor on the weight of all earlier runs with each new one
PRIOR_SPREAD = 1.0  # rows; standard deviation at which the measured slope counts as much as the assumed one


class RowCost:
    """A line through the latest runs: seconds = fixed + rows * row_seconds.

    Weighted least squares, drawn towards a slope of 1 / (FIXED_COST_ROWS + rows) of the mean: runs that have all the
    same number of rows do not show what one more costs.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._rows_rows = self._seconds = self._rows_seconds = 0.0  # weighted sums

    def observe(self, num_rows: int, seconds: float) -> None:
        """Learn from one run of at least one row."""
        seconds = max(seconds, 1e-9)  # a clock may not have moved
        self._weight = FORGETTING * self._weight + 1
        self._rows = FORGETTING * self._rows + num_rows
        self._rows_rows = FORGETTING * self._rows_rows + num_rows * num_rows
        self._seconds = FORGETTING * self._seconds + seconds
        self._rows_seconds = FORGETTING * self._rows_seconds + num_rows * seconds

    @property
    def is_known(self) -> bool:
        """Whether a run was measured."""
        return self._weight > 0

    @property
    def row_seconds(self) -> float:
        """What one more row takes; 0 if nothing was measured."""
        if not self._weight:
            return 0.0
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows_rows / self._weight - mean_rows**2
        together = self._rows_seconds / self._weight - mean_rows * mean_seconds
        assumed = mean_seconds / (FIXED_COST_ROWS + mean_rows)
        slope = (together + PRIOR_SPREAD**2 * assumed) / (spread + PRIOR_SPREAD**2)
        return min(max(slope, assumed / FIXED_COST_ROWS), mean_seconds / mean_rows)

    @property
    def fixed_rows(self) -> float:
        """The fixed cost of a run, in rows; FIXED_COST_ROWS if nothing was measured."""
        return max(self.seconds(0), 0.0) / self.row_seconds if self._weight else FIXED_COST_ROWS

    def seconds(self, num_rows: float) -> float:
        """Return what a run with this number of rows takes; 0 if nothing was measured."""
        if not self._weight:
            return 0.0
        return (self._seconds + self.row_seconds * (self._weight * num_rows - self._rows)) / self._weight
