"""A container's numbers, read as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]
"""A sample's name and labels."""
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


class Scrape:
    """One reading of `/metrics`."""

    def __init__(self, exposition: bytes | str) -> None:
        text = exposition.decode() if isinstance(exposition, bytes) else exposition
        self._families = list(text_string_to_metric_families(text))
        self._values: dict[Series, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self._families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The value of the sample with this name and exactly these labels."""
        return self._values[name, frozenset(labels.items())]

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of this name that are not 0, by the label's value."""
        return {
            dict(labels)[label]: value for (found, labels), value in self._values.items() if found == name and value
        }

    def series(self) -> set[Series]:
        """Every sample's name and labels."""
        return set(self._values)

    def metrics(self) -> dict[str, set[str]]:
        """Every metric, with the names that its samples have."""
        return {family.name: {family.name + suffix for suffix in SUFFIXES[family.type]} for family in self._families}
