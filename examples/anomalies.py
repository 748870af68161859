"""Anomaly detection on digits with scores log p(x), compared with scikit-learn's estimators.

    python examples/anomalies.py [--epochs 100]

Trains on half of the 8 x 8 digits 0 to 4 and scores the other half and the digits 5 to 9. The area under the ROC curve
is the probability that a digit 5 to 9 has a lower log p(x) than a digit 0 to 4 (0.5: chance).
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity

from vaekit.sklearn import VAETransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    normal, anomalies = images[labels < 5], images[labels >= 5]
    train, test = train_test_split(normal, test_size=0.5, random_state=0)
    truth = [0] * len(test) + [1] * len(anomalies)
    models = {
        "vaekit VAE": VAETransformer(
            latent_dim=10, hidden_dim=200, epochs=arguments.epochs, batch_size=20, random_state=0
        ),
        "IsolationForest": IsolationForest(random_state=0),
        "GaussianMixture": GaussianMixture(5, reg_covar=1.0, random_state=0),
        "KernelDensity": GridSearchCV(KernelDensity(), {"bandwidth": [1, 2, 3, 4, 6, 8]}),
    }
    for name, model in models.items():
        model.fit(train)
        scores = [*-model.score_samples(test), *-model.score_samples(anomalies)]
        print(f"{name:16} {roc_auc_score(truth, scores):.3f}")


if __name__ == "__main__":
    main()
