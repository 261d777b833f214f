"""A whole set of facts, as a run writes them, for the tests of the report."""

import math
from typing import Any

from rich.table import Table

from prunus.report import card, html, tables
from prunus.report.facts import RunFacts

__all__ = ["example_facts", "model_card", "render_html", "summary_table"]


def render_html(facts: dict[str, Any]) -> str:
    """The page of a file that holds ``facts``."""
    return html.render_html(RunFacts.of_json(facts))


def summary_table(facts: dict[str, Any]) -> Table:
    return tables.summary_table(RunFacts.of_json(facts))


def model_card(facts: dict[str, Any]) -> str:
    return card.model_card(RunFacts.of_json(facts))


def example_facts(layers: int = 2, points: int = 50) -> dict[str, Any]:
    hidden, inner = 8, 32
    shapes = {
        "attention.self.query": [hidden, hidden],
        "attention.self.key": [hidden, hidden],
        "attention.self.value": [hidden, hidden],
        "attention.output.dense": [hidden, hidden],
        "intermediate.dense": [inner, hidden],
        "output.dense": [hidden, inner],
    }
    tensors = []
    for layer in range(layers):
        for i, (part, shape) in enumerate(shapes.items()):
            weights = shape[0] * shape[1]
            zero_units = (weights // 4) * (5 + i) // 11
            tensors.append(
                {
                    "name": f"bert.encoder.layer.{layer}.{part}.weight",
                    "shape": shape,
                    "pattern": "4x1",
                    "weights": weights,
                    "zeros": 4 * zero_units,
                    "sparsity": 4 * zero_units / weights,
                    "units": weights // 4,
                    "zero_units": zero_units,
                    "planned": 0.8125,
                }
            )
    steps = range(10, 10 * points + 1, 10)
    return {
        "format": 1,
        "prunus": "0.1.0",
        "status": "finished",
        "recipe": {"name": "quickstart", "pruning": [{"pattern": "4x1", "target": 0.8}], "learning_rate": 5e-5},
        "command": "prunus run quickstart",
        "model": {
            "name": "org/tiny",
            "base_model": "org/tiny",
            "architecture": "BertForSequenceClassification",
            "parameters": 22713217,
        },
        "task": {
            "name": "sst2",
            "head": "classification",
            "metric": "accuracy",
            "train_examples": 16001,
            "validation_examples": 872,
            "notes": ["16,001 of 67,349 training examples (seed 0)"],
            "baselines": {"majority class": {"accuracy": 0.50917}},
        },
        "environment": {"python": "3.11.7", "torch": "2.13.0", "cpu": "AMD EPYC", "cores": 2},
        "seed": 4242,
        "dense": {
            "metrics": {"f1": 0.91312, "accuracy": 0.91061},
            "sparsity": 0.00011,
            "sparsity_all": 0.00022,
            "bytes": 90868376,
            "seconds": 312.0,
            "cached": True,
        },
        "sparse": {
            "metrics": {"f1": 0.90423, "accuracy": 0.90145},
            "sparsity": 0.79997,
            "sparsity_all": 0.37412,
            "bytes": 81868376,
            "seconds": 7512.0,
        },
        "target_sparsity": 0.8,
        "tensors": tensors,
        "skipped": [{"name": "embeddings.weight", "shape": [30522, 8], "reason": "not a linear layer"}],
        "history": {
            "sparsity": [
                {"step": s, "due": 0.8 * s / (10 * points), "measured": 0.79 * s / (10 * points)} for s in steps
            ],
            "loss": [
                {
                    "step": s,
                    "loss": math.exp(-s / 100) + 0.1 * math.sin(s),
                    "hard_loss": math.exp(-s / 90),
                    "distill_loss": math.exp(-s / 80),
                    "learning_rate": 5e-5 * (1 - s / (10 * points)),
                }
                for s in steps
            ],
            "metrics": [
                {"step": s, "metrics": {"accuracy": 0.9 - 1 / s}, "sparsity": 0.4} for s in steps if s % 50 == 0
            ],
        },
        "speed": {
            "processor": "AMD EPYC",
            "isa": "avx2",
            "threads": 2,
            "rounds": 15,
            "versions": {"torch": "2.13"},
            "cases": {
                "1 x 128": {
                    "torch float32": {"ms": 28.12, "ratio": 14.1, "quartiles": [14.0, 14.2]},
                    "prunus int8": {"ms": 1.994, "ratio": 1.0, "quartiles": [1.0, 1.0]},
                }
            },
        },
        "warnings": ["the loss was scaled"],
        "not_measured": ["the dense model's metrics: evaluate_dense is false"],
    }
