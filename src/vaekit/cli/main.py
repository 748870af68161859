"""The command line: one typed function a verb, which tyro turns into flags. Imports torch only inside a verb."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from ..settings.analysis import EvaluateConfig
from ..settings.catalog import MODELS, ModelEntry
from ..support.errors import UserError, one_line
from ..support.version import __version__
from . import data as cli_data
from . import runs as cli_see
from . import train as cli_train
from .errors import reject, resumes

RunArgument = Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]


def evaluate(
    run: RunArgument,
    settings: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    data_dir: str | None = None,
    json: bool = False,
) -> None:
    """Measure a run: likelihoods, how it uses its latent, images redrawn and new, labels and clusters in the latent.

    For example:
      vaekit evaluate runs/vae-mnist-1
      vaekit evaluate runs/vae-mnist-1 --metrics nll --samples 5000 --limit 10000
      vaekit evaluate runs/mmdvae-mnist-1 --metrics nll --estimator ais
      vaekit evaluate runs/vae-mnist-1 --split validation --json

    Args:
        run: Run directory.
        data_dir: Folder that holds the data set's files.
        json: Print evaluation.json instead of the table.
    """
    from rich.console import Console

    from ..evaluation.evaluate import evaluate as measure
    from ..evaluation.metrics import as_table

    result = measure(run, data_dir=data_dir, progress=True, **asdict(settings))
    file = Path(run) / "evaluation.json"
    if json:
        print(file.read_text(), end="")
    else:
        Console(highlight=False).print(as_table(result))
        print(f"written to {file}")


def generate(
    run: RunArgument,
    count: int | None = None,
    label: int | None = None,
    cluster: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    latent: str | None = None,
    data_dir: str | None = None,
    out: str | None = None,
) -> None:
    """Draw new images from a run's prior, of one label or cluster, or decode one point of its latent.

    Without --label or --cluster, a cvae gives a row for each label, a gmvae one for each cluster. A model of
    --condition quadrants completes test images.

    For example:
      vaekit generate runs/vae-mnist-1 --count 100 --temperature 0.8
      vaekit generate runs/cvae-mnist-1 --label 3
      vaekit generate runs/gmvae-mnist-1 --cluster 0
      vaekit generate runs/vae-mnist-1 --latent 0.3,-1.2 --out point.png

    Args:
        run: Run directory.
        count: Images to draw, 64 by default; where there are rows, images in each, 10 by default.
        label: Label to draw images of (a model with --condition label).
        cluster: Component of the prior's mixture to draw from.
        temperature: Below 1, closer to the prior's mean: cleaner and less varied.
        seed: Seed of the draws.
        latent: One point to decode, numbers with commas.
        data_dir: Folder that holds the data set's files, where images are completed.
        out: Picture to write, PNG, PDF or SVG; RUN/pictures/samples.png by default.
    """
    from .. import pictures
    from ..inference import generation
    from ..runs.directory import Run
    from ..runs.load import load

    place = Run(run)
    model = load(place)
    name, columns, names = "samples.png", 0, list[str]()
    in_row = 10 if count is None else count
    if latent is not None:
        if cluster is not None or count is not None:
            raise UserError("--latent is one point to decode; leave out --cluster and --count")
        images, name = generation.decode_point(model, latent, label), "point.png"
    elif place.blueprint.settings.condition.startswith("quadrants"):
        if label is not None or cluster is not None:
            raise UserError("the model completes images and has neither --label nor --cluster")
        seen = generation.inputs(place, (), "test", 10, data_dir, notice).images
        images = generation.completions(model, seen, in_row, temperature, seed)
        columns = in_row + 2
    elif generation.has_rows(model) and label is None and cluster is None:
        images, names = generation.generate_rows(model, in_row, temperature, seed)
        columns = in_row
    else:
        images = generation.generate(
            model, 64 if count is None else count, temperature, seed, label, cluster
        )
    figure = pictures.image_grid(images, columns or max(1, round(len(images) ** 0.5)), names)
    print(pictures.save(figure, Path(out) if out else place.pictures / name))


def reconstruct(
    run: RunArgument,
    images: Positional[tuple[Path, ...]] = (),
    split: Literal["train", "validation", "test"] = "test",
    count: int = 40,
    label: int | None = None,
    analogies: bool = False,
    data_dir: str | None = None,
    out: str | None = None,
) -> None:
    """Draw images above their reconstructions: your own files and folders, or a run's test images.

    With --analogies (a cvae), each image stands beside what its latent becomes with every label in turn.

    For example:
      vaekit reconstruct runs/vae-mnist-1
      vaekit reconstruct runs/vae-mnist-1 digit.png photos/ --out pairs.png
      vaekit reconstruct runs/cvae-mnist-1 --analogies --count 10

    Args:
        run: Run directory.
        images: Image files or folders; images from all over the split where none are given.
        split: Images to take where none are given.
        count: How many of these.
        label: Label of the image files, where the model is conditional on labels.
        analogies: Decode with every label instead.
        data_dir: Folder that holds the data set's files.
        out: Picture to write, PNG, PDF or SVG; RUN/pictures/reconstructions.png by default.
    """
    from .. import pictures
    from ..inference import generation
    from ..runs.directory import Run
    from ..runs.load import load

    place = Run(run)
    model = load(place)
    if label is not None and not images:
        raise UserError("--label is that of your own image files; a run's images have theirs")
    given = generation.inputs(place, images, split, count, data_dir, notice, label)
    if analogies:
        rows = generation.analogies(model, given.images, given.labels)
        figure = pictures.image_grid(rows, model.blueprint.classes + 1)
    else:
        found = generation.reconstruct(model, given.images, given.labels)
        figure = pictures.pairs(given.images, found)
    name = "analogies.png" if analogies else "reconstructions.png"
    print(pictures.save(figure, Path(out) if out else place.pictures / name))


def cluster(
    run: RunArgument,
    split: Literal["train", "validation", "test"] = "test",
    samples: int = 10,
    seed: int = 0,
    data_dir: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Assign images to the clusters of a run's mixture; with labels, say how well the two agree.

    Writes RUN/clusters-SPLIT.csv, a line for each image, and RUN/clusters-SPLIT.json.

    For example:
      vaekit cluster runs/gmvae-mnist-1
      vaekit cluster runs/gmvae-mnist-1 --split validation --json

    Args:
        run: Run directory.
        split: Images to assign.
        samples: Draws an image.
        seed: Seed of the draws.
        data_dir: Folder that holds the data set's files.
        device: auto, cpu, cuda, cuda:1, mps.
        json: Print the .json instead of the table.
    """
    from rich.console import Console

    from ..evaluation.clustering import as_table
    from ..evaluation.clustering import cluster as assign

    result = assign(run, split, samples, seed, data_dir=data_dir, device=device)
    file = Path(run) / f"clusters-{split}.json"
    if json:
        print(file.read_text(), end="")
    else:
        Console(highlight=False).print(as_table(result))
        print(f"written to {file.with_suffix('.csv')} and {file.name}")


def presets() -> None:
    """List the presets: settings of published experiments, for `vaekit train --preset NAME`.

    For example:
      vaekit presets
      vaekit train --preset aevb-mnist --epochs 20
      vaekit train --preset aevb-mnist --help
    """
    from rich.console import Console

    from ..settings.presets import as_table

    Console(highlight=False).print(as_table())


def demo(epochs: int = 15, out: str | None = None) -> None:
    """Train a VAE on MNIST, measure it, draw pictures, and say what the numbers mean: about two minutes.

    Args:
        epochs: Passes over the training images.
        out: Run directory to make, instead of runs/vae-mnist-demo-<n>.
    """
    from .demo import demo as show

    show(epochs, out)


def completion(shell: Positional[Literal["bash", "zsh", "fish", "tcsh"]]) -> None:
    """Print a script that completes vaekit's verbs and flags in a shell.

    For example:
      vaekit completion bash > ~/.local/share/bash-completion/completions/vaekit
      vaekit completion zsh > ~/.zfunc/_vaekit

    Args:
        shell: Your shell.
    """
    run_app(["--tyro-print-completion", shell])


def notice(text: str) -> None:
    print(text, file=sys.stderr)


HELP = f"""vaekit {__version__}: variational autoencoders for images.

For example:
  vaekit demo                           the main job from end to end, two minutes
  vaekit train vae --latent-dim 20      makes runs/vae-mnist-1
  vaekit evaluate runs/vae-mnist-1      what it is worth
  vaekit generate runs/vae-mnist-1      new images
  vaekit plot runs/vae-mnist-1          pictures of it: latents, manifold, traversals, curves ...
  vaekit report runs/vae-mnist-1        all of that in one HTML file
"""
TRAIN_SUMMARY = """Train a model and keep it in a run directory.

For example:
  vaekit train vae
  vaekit train convvae --epochs 20 --seed 1
  vaekit train vae --help               all settings
  vaekit train --preset aevb-mnist      the settings of a published experiment (`vaekit presets` lists them)
  vaekit train --resume runs/vae-mnist-1    go on where a training was killed or stopped
"""
SWEEP_SUMMARY = """Train a model with many settings, measure all, and compare; goes on after a kill.

For example:
  vaekit sweep vae --latent-dim 2,5,10,20 --seed 0,1,2
  vaekit sweep vae,vampprior --data fashionmnist --epochs 20
  vaekit sweep --preset aevb-mnist --optimizer adam,adagrad
"""
VERBS: dict[str, Callable[..., None]] = {
    "evaluate": evaluate,
    "generate": generate,
    "reconstruct": reconstruct,
    "cluster": cluster,
    **cli_see.VERBS,
    "presets": presets,
    "reproduce": cli_train.reproduce,
    "demo": demo,
    "completion": completion,
    **{f"data {name}": verb for name, verb in cli_data.VERBS.items()},
}


def make_app(
    arguments: list[str], models: Mapping[str, ModelEntry], found: list[cli_train.Asked]
) -> SubcommandApp:
    """The tree of verbs. Its lists show a sentence of each; a verb's own page shows its examples too."""

    def add(app: SubcommandApp, name: str, verb: Any, text: str) -> None:
        shown = text.partition("Args:")[0] if name in arguments else text.partition("\n")[0]
        app.command(name=name, help=shown.strip())(verb)

    app, train_app, data_app = SubcommandApp(), SubcommandApp(), SubcommandApp()
    for name, entry in models.items():
        verb = cli_train.make_train(name, entry)
        add(train_app, name, verb, verb.__doc__ or "")
    add(app, "train", train_app, TRAIN_SUMMARY)
    sweep_app = SubcommandApp()
    # As many flags again as train has: they take time to build, and few command lines want them.
    every = "sweep" in arguments or "--tyro-print-completion" in arguments
    for name, entry in (models if every else dict(list(models.items())[:1])).items():
        verb = cli_train.make_sweep(name, entry, found)
        add(sweep_app, name, verb, verb.__doc__ or "")
    add(app, "sweep", sweep_app, SWEEP_SUMMARY)
    for name, verb in VERBS.items():
        group, _, word = name.rpartition(" ")
        add(data_app if group else app, word, verb, inspect.getdoc(verb) or "")
    add(app, "data", data_app, cli_data.SUMMARY)
    return app


def run_app(arguments: list[str], found: list[cli_train.Asked] | None = None) -> None:
    if arguments[:1] == ["sweep"] and found is None:
        return cli_train.sweep(arguments, run_app)
    if resumes(arguments):
        tyro.cli(cli_train.resume, prog="vaekit train", args=arguments[1:])
        return None
    arguments, models = take_preset(arguments)
    make_app(arguments, models, [] if found is None else found).cli(
        prog="vaekit", description=HELP, args=arguments, config=(OmitArgPrefixes,)
    )


def take_preset(arguments: list[str]) -> tuple[list[str], Mapping[str, ModelEntry]]:
    """Arguments whose `--preset NAME` is replaced by its model's name, and the models, that one with its settings."""
    given = [i for i, word in enumerate(arguments) if word.split("=")[0] == "--preset"]
    if arguments[:1] not in (["train"], ["sweep"]) or not given:
        return arguments, MODELS
    from ..settings.presets import preset

    if len(given) > 1:
        raise UserError("--preset is given twice; choose one")
    at = given[0]
    _, joined, name = arguments[at].partition("=")
    rest = arguments[1:at] + arguments[at + (1 if joined else 2) :]
    if not joined:
        name = "".join(arguments[at + 1 : at + 2])
    if not name or name.startswith("-"):
        raise UserError("--preset lacks its name; `vaekit presets` lists them")
    chosen = preset(name)
    if rest and rest[0] in MODELS:
        if rest[0] != chosen.model:
            raise UserError(f"--preset {name} is of the model {chosen.model}, not {rest[0]}")
        rest = rest[1:]
    return [arguments[0], chosen.model, *rest], {**MODELS, chosen.model: chosen.entry}


def main() -> None:
    """Run the command line. Bad input: one line on the standard error, exit code 2."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"vaekit {__version__}")
        return
    try:
        with tyro._errors.on_parse_error(partial(reject, VERBS, arguments)):
            run_app(arguments or ["--help"])
    except UserError as error:
        sys.exit(fail(str(error)))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os._exit(0)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        sys.exit(fail(f"{named}{error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        sys.exit(fail("not enough memory; make the model, the batch or the count smaller"))
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal", None)
        if number is not None:  # a training that has kept its state
            notice(f"vaekit: {stop}")
            sys.exit(128 + number)
        notice("vaekit: interrupted; what was saved so far is whole")
        sys.exit(130)


def fail(message: str) -> int:
    notice(f"vaekit: {one_line(message)}")
    return 2
