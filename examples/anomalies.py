"""Which digits are not what the model was trained on? Anomaly scores from log p(x), beside scikit-learn's own.

    python examples/anomalies.py [--epochs 100]

Trains on the 8 x 8 digits 0 to 4, half of them, and ranks the other half among the digits 5 to 9: the area under the
ROC curve is the chance that one of those looks more unusual than one of these (0.5: no better than guessing).
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
    given = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    known, unknown = images[labels < 5], images[labels >= 5]
    train, test = train_test_split(known, test_size=0.5, random_state=0)
    truth = [0] * len(test) + [1] * len(unknown)
    models = {
        "vaekit VAE": VAETransformer(
            latent_dim=10, hidden_dim=200, epochs=given.epochs, batch_size=20, random_state=0
        ),
        "IsolationForest": IsolationForest(random_state=0),
        "GaussianMixture": GaussianMixture(5, reg_covar=1.0, random_state=0),
        "KernelDensity": GridSearchCV(KernelDensity(), {"bandwidth": [1, 2, 3, 4, 6, 8]}),
    }
    for name, model in models.items():
        model.fit(train)
        unusual = [*-model.score_samples(test), *-model.score_samples(unknown)]
        print(f"{name:16} {roc_auc_score(truth, unusual):.3f}")


if __name__ == "__main__":
    main()
