"""scikit-learn's estimator checks on vaekit's estimators: the status of each.

python benchmarks/estimator_checks.py
"""

from __future__ import annotations

import time
import warnings

import sklearn
from sklearn.utils.estimator_checks import check_estimator
from speed import print_row, processor

from vaekit.sklearn import VAEClusterer, VAETransformer

ESTIMATORS = [
    VAETransformer(latent_dim=2, hidden_dim=8, epochs=2, samples=5),
    # One check clusters fifty points in two dimensions and expects a Rand index of at least 0.4.
    VAEClusterer(
        3, latent_dim=2, hidden_dim=16, epochs=10, learning_rate=3e-3, settings={"start_epochs": 60},
        samples=5,
    ),
]  # fmt: skip


def main() -> None:
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, scikit-learn {sklearn.__version__}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statuses = [
            {
                each["check_name"]: each["status"]
                for each in check_estimator(estimator, on_skip=None, on_fail=None)
            }
            for estimator in ESTIMATORS
        ]
    print_row(["check", *(type(estimator).__name__ for estimator in ESTIMATORS)])
    print_row(["---"] * 3)
    for name in sorted({name for each in statuses for name in each}):
        print_row([name, *(each.get(name, "-") for each in statuses)])


if __name__ == "__main__":
    main()
