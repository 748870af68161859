"""`vaekit demo`: train, evaluate and plot on MNIST."""

from __future__ import annotations

from ..data import load as load_data
from ..evaluation.evaluate import evaluate
from ..evaluation.metrics import as_table
from ..gallery.context import PictureContext
from ..gallery.draw import write_pictures
from ..model.build import build
from ..settings.analysis import PlotConfig
from ..support.console import PlainConsole
from ..training.job import train

METRICS = ("elbo", "nll", "reconstruction", "probes", "clusters")


def demo(epochs: int, out: str | None) -> None:
    """Train the default VAE on MNIST, evaluate it, write pictures and print where they are."""
    console = PlainConsole()
    data = load_data("mnist")
    console.print(f"Training a VAE with 20 latent dimensions on MNIST for {epochs} epochs.")
    run = train(build("vae", data), data, epochs=epochs, out=out, name="demo")
    console.print(as_table(evaluate(run, data=data, progress=True, metrics=METRICS)))

    for _ in write_pictures(PictureContext.of(run, PlotConfig()), (), run.pictures):
        pass
    console.print(f"""
Everything is in {run}:
  pictures/samples.png          new digits, sampled from the prior
  pictures/reconstructions.png  test digits above their reconstructions
  pictures/latents-z.png        test digits in the latent space
  pictures/traversals.png       effect of each latent dimension on a digit
  pictures/curves.png           ELBO, log-likelihood and KL by epoch
  pictures/...                  the others; `vaekit plot --list` explains them
  evaluation.json, metrics.jsonl, config.json, model.safetensors
Next: vaekit evaluate {run.arguments}
      vaekit report {run.arguments}
      vaekit train convvae --epochs 20""")
