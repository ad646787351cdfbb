"""Reading metrics as Prometheus does: over HTTP, in its text format."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

Scraped = dict[tuple[str, tuple[str, ...]], float]


def scrape(port: int) -> Scraped:
    """Every sample, by name and label values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read().decode())


def parsed(text: str) -> Scraped:
    """Every sample of a page of metrics, by name and label values."""
    families = text_string_to_metric_families(text)
    return {(sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples}


def total(scraped: Scraped, name: str, *labels: str) -> float:
    """The sum of all samples of the name whose first label values are these."""
    return sum(value for (found, values), value in scraped.items() if found == name and values[: len(labels)] == labels)


def scraped_until(port: int, condition: Callable[[Scraped], bool], seconds: float = 30.0) -> Scraped:
    """The first scrape for which the condition holds, or the last one before the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        said = scrape(port)
        if condition(said) or time.monotonic() > deadline:
            return said
        time.sleep(0.05)
