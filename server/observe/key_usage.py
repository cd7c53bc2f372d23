"""KeyUsage: requests and tokens of each API key."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter

_TEXTS = {
    "requests": "Generation requests, by API key.",
    "prompt_tokens": "Prompt tokens, by API key.",
    "generation_tokens": "Tokens generated, by API key.",
}


class KeyUsage:
    """Three counters with the label `key`; a server without keys has none of them."""

    def __init__(self, registry: CollectorRegistry, model_name: str, key_names: Iterable[str]) -> None:
        self._registry = registry
        self._model_name = model_name
        self._families: list[Counter] = []
        self._by_key: dict[str, list[Counter]] = {}
        self.add(key_names)

    def add(self, key_names: Iterable[str]) -> None:
        """Add series for keys that have none yet; those of former keys stay."""
        names = [*key_names]
        if names and not self._families:
            labels = ["model_name", "key"]
            self._families = [
                Counter(f"caravan_key_{name}", text, labels, registry=self._registry) for name, text in _TEXTS.items()
            ]
        for name in names:
            if name not in self._by_key:
                self._by_key[name] = [family.labels(self._model_name, name) for family in self._families]

    def count(self, key_name: str, num_prompt_tokens: int, num_generation_tokens: int) -> None:
        """Count a generation request and its tokens for its key, if the server has keys."""
        counters = self._by_key.get(key_name, ())
        for counter, number in zip(counters, (1, num_prompt_tokens, num_generation_tokens), strict=False):
            counter.inc(number)
