"""The main job from end to end: `vaekit demo`."""

from __future__ import annotations

from rich.console import Console

from . import generation, pictures
from .data import load as load_data
from .evaluation import as_table, evaluate, evaluation_images
from .models import build, load
from .training import train


def demo(epochs: int, out: str | None) -> None:
    """Train the default VAE on MNIST, evaluate it, write pictures, say where they are."""
    console = Console(highlight=False, markup=False)
    data = load_data("mnist")
    console.print(f"Training a VAE with 20 latent dimensions on MNIST for {epochs} epochs.")
    run = train(build("vae", data), data, epochs=epochs, out=out, name="demo")
    console.print(as_table(evaluate(run, data=data, progress=True)))

    model = load(run)
    test = evaluation_images(run, "test", data, None)[:40].images
    folder = run.pictures
    for name, figure in [
        ("samples", pictures.image_grid(generation.generate(model), columns=8)),
        ("reconstructions", pictures.pairs(test, generation.reconstruct(model, test))),
        ("curves", pictures.curves(run.metrics)),
    ]:
        pictures.save(figure, folder / f"{name}.png")
    console.print(f"""
Everything is in {run}:
  pictures/samples.png          new digits, drawn from the prior
  pictures/reconstructions.png  test digits above what the model makes of them
  pictures/curves.png           ELBO, log-likelihood and KL by epoch
  evaluation.json, metrics.jsonl, config.json, model.safetensors
Next: vaekit generate {run} --temperature 0.7
      vaekit train convvae --epochs 20""")
