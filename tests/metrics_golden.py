"""Golden values of metrics: `python tests/metrics_golden.py` writes tests/golden/metrics/*.json.

Needs scikit-learn (made with the version that the files name). The metrics are tested against these files.
"""

import json
import pathlib
import random

import sklearn
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

FOLDER = pathlib.Path(__file__).parent / "golden" / "metrics"


def classes():
    draw = random.Random(1)
    cases = []
    # Labels that are never expected, never answered, or neither come in the second and third.
    for labels, rows, expected_of, answered_of in [
        (4, 60, range(4), range(4)),
        (5, 30, range(3), range(5)),
        (6, 25, [0, 2, 5], [0, 2]),
        (2, 7, [1], [0]),
    ]:
        expected = [draw.choice(list(expected_of)) for _ in range(rows)]
        answered = [e if draw.random() < 0.6 and e in answered_of else draw.choice(list(answered_of)) for e in expected]
        cases.append(
            {
                "labels": labels,
                "expected": expected,
                "answered": answered,
                "accuracy": accuracy_score(expected, answered),
                "macro_f1": f1_score(expected, answered, average="macro", zero_division=0),
                "confusion": confusion_matrix(expected, answered, labels=range(labels)).tolist(),
            }
        )
    return {"made_with": f"scikit-learn {sklearn.__version__}", "cases": cases}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "classes.json").write_text(json.dumps(classes(), indent=1) + "\n")
