"""Write winequality-sample.csv: 200 made-up wines in the format of the real data, for where there is no internet.

Usage: python sample.py > winequality-sample.csv

Each column is drawn around the real one's mean and deviation (P. Cortez et al., 2009) and kept within its range; the
quality grows with alcohol and sulphates and falls with volatile acidity, as it does there. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

ROWS = 200
SEED = 2009
# name, mean, standard deviation, least, most, digits; g/dm³, for the sulphur dioxides mg/dm³, for alcohol % by volume
COLUMNS = (
    ("fixed acidity", 8.32, 1.74, 4.6, 15.9, 1),
    ("volatile acidity", 0.528, 0.179, 0.12, 1.58, 2),
    ("citric acid", 0.271, 0.195, 0.0, 1.0, 2),
    ("residual sugar", 2.54, 1.41, 0.9, 15.5, 1),
    ("chlorides", 0.0875, 0.0471, 0.012, 0.611, 3),
    ("free sulfur dioxide", 15.87, 10.46, 1.0, 72.0, 0),
    ("total sulfur dioxide", 46.47, 32.9, 6.0, 289.0, 0),
    ("density", 0.99675, 0.00189, 0.99007, 1.00369, 5),
    ("pH", 3.311, 0.154, 2.74, 4.01, 2),
    ("sulphates", 0.658, 0.17, 0.33, 2.0, 2),
    ("alcohol", 10.42, 1.066, 8.4, 14.9, 1),
)
# How much one standard deviation of these moves the quality, which has 0.8 itself.
EFFECTS = {"alcohol": 0.4, "volatile acidity": -0.25, "sulphates": 0.15}


def lines() -> Iterator[str]:
    """Yield the lines of the file, the same ones each time."""
    draw = random.Random(SEED)
    yield ";".join(f'"{name}"' for name in [*(column[0] for column in COLUMNS), "quality"])
    for _ in range(ROWS):
        fields = []
        quality = 5.64 + draw.gauss(0, 0.6)
        for name, mean, deviation, least, most, digits in COLUMNS:
            value = min(most, max(least, draw.gauss(mean, deviation)))
            quality += EFFECTS.get(name, 0.0) * (value - mean) / deviation
            fields.append(f"{value:.{digits}f}")
        yield ";".join([*fields, str(min(8, max(3, round(quality))))])


if __name__ == "__main__":
    print("\n".join(lines()))
