"""What is averaged between two lines of metrics."""

from __future__ import annotations


class Window:
    """The steps since the last line of metrics."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = self._images = 0
        self._seconds = self._waited = 0.0

    def add(self, values: dict[str, float], images: int, seconds: float, waited: float) -> None:
        """Add a step: its losses, its images, how long it took and how much of that it waited for data."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._images += images
        self._seconds += seconds
        self._waited += waited

    @property
    def rate(self) -> float:
        """Images a second."""
        return self._images / max(self._seconds, 1e-9)

    @property
    def waiting(self) -> str:
        """Share of waiting for data, in words."""
        return f"{100 * self._waited / max(self._seconds, 1e-9):.0f}%"

    def means(self) -> dict[str, float]:
        """Average for a line of metrics."""
        terms = {name: total / self._steps for name, total in self._sums.items()}
        return {
            "loss": sum(terms.values()),
            **terms,
            "images_per_s": self.rate,
            "data_wait": self._waited / max(self._seconds, 1e-9),
        }
