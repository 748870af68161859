"""The command line: one typed function per command, which tyro turns into flags. Torch is imported only inside."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import SubcommandApp

from ..settings.catalog import MODELS, ModelEntry
from ..settings.training import require_one_length
from ..support.errors import UserError, command_line_messages, one_line
from ..support.version import __version__
from . import anomalies, data, images, runs, train
from .config import Config, expand_config
from .errors import explain_parse_error, is_resume
from .words import flags_of, print_stderr


def presets() -> None:
    """List the presets: settings of published experiments, for `vaekit train --preset NAME`.

    For example:
      vaekit presets
      vaekit train --preset aevb-mnist --epochs 20
      vaekit train --preset aevb-mnist --help
    """
    from ..settings.presets import as_table
    from ..support.console import PlainConsole

    PlainConsole().print(as_table())


def demo(epochs: int = 15, out: str | None = None) -> None:
    """Train a VAE on MNIST, evaluate it, draw pictures and explain the numbers: about two minutes.

    Args:
        epochs: Passes over the training images.
        out: Run directory to make, instead of runs/vae-mnist-demo-<n>.
    """
    from .demo import demo as show

    show(epochs, out)


def completion(shell: Positional[Literal["bash", "zsh", "fish", "tcsh"]]) -> None:
    """Print a shell script that completes vaekit's commands and flags.

    For example:
      vaekit completion bash > ~/.local/share/bash-completion/completions/vaekit
      vaekit completion zsh > ~/.zfunc/_vaekit

    Args:
        shell: Your shell.
    """
    run_app(["--tyro-print-completion", shell])


HELP = f"""vaekit {__version__}: variational autoencoders for images.

For example:
  vaekit demo                           train, evaluate and plot on MNIST, two minutes
  vaekit train vae --latent-dim 20      writes runs/vae-mnist-1
  vaekit evaluate runs/vae-mnist-1      ELBO, NLL, reconstruction, clusters and more
  vaekit generate runs/vae-mnist-1      samples from the prior
  vaekit plot runs/vae-mnist-1          latents, manifold, traversals, curves ...
  vaekit report runs/vae-mnist-1        all of that in one HTML file
  vaekit plan photos/                   your own images: proposes a training, in plan.toml
  vaekit train --config plan.toml       carries it out
"""
TRAIN_SUMMARY = """Train a model and save it in a run directory.

For example:
  vaekit train vae
  vaekit train convvae --epochs 20 --seed 1
  vaekit train vae --help               all settings
  vaekit train --preset aevb-mnist      the settings of a published experiment (`vaekit presets` lists them)
  vaekit train --config plan.toml       the settings of a file, such as one of `vaekit plan`; flags here win
  vaekit train --resume runs/vae-mnist-1    resume after an interruption
"""
SWEEP_SUMMARY = """Train a model with many settings, evaluate and compare them; resumes after an interruption.

For example:
  vaekit sweep vae --latent-dim 2,5,10,20 --seed 0,1,2
  vaekit sweep vae,vampprior --data fashionmnist --epochs 20
  vaekit sweep --preset aevb-mnist --optimizer adam,adagrad
"""
MAX_MESSAGE = 2000  # characters
VERBS: dict[str, Callable[..., None]] = {
    **runs.VERBS,
    **images.VERBS,
    **anomalies.VERBS,
    "plan": train.plan,
    "presets": presets,
    "reproduce": train.reproduce,
    "demo": demo,
    "completion": completion,
    **{f"data {name}": verb for name, verb in data.VERBS.items()},
}


def make_app(
    arguments: list[str], models: Mapping[str, ModelEntry], found: list[train.SweepRequest]
) -> SubcommandApp:
    """The tree of commands. Its lists show one sentence for each; the help page of a command shows its examples too."""

    def add(app: SubcommandApp, name: str, verb: Any, text: str) -> None:
        shown = text.partition("Args:")[0] if name in arguments else text.partition("\n")[0]
        app.command(name=name, help=shown.strip())(verb)

    app, train_app, data_app = SubcommandApp(), SubcommandApp(), SubcommandApp()
    for name, entry in models.items():
        verb = train.make_train(name, entry)
        add(train_app, name, verb, verb.__doc__ or "")
    add(app, "train", train_app, TRAIN_SUMMARY)
    sweep_app = SubcommandApp()
    # They are as many flags again as those of train, take time to build, and are rarely needed.
    every = "sweep" in arguments or "--tyro-print-completion" in arguments
    for name, entry in (models if every else dict(list(models.items())[:1])).items():
        verb = train.make_sweep(name, entry, found)
        add(sweep_app, name, verb, verb.__doc__ or "")
    add(app, "sweep", sweep_app, SWEEP_SUMMARY)
    for name, verb in VERBS.items():
        group, _, word = name.rpartition(" ")
        add(data_app if group else app, word, verb, inspect.getdoc(verb) or "")
    add(app, "data", data_app, data.SUMMARY)
    return app


def run_app(arguments: list[str], found: list[train.SweepRequest] | None = None) -> None:
    arguments = with_channel_axis(arguments)
    if arguments[:1] in (["train"], ["sweep"]):
        require_one_length([flag.removeprefix("--") for flag in flags_of(arguments)])
    if arguments[:1] == ["sweep"] and found is None:
        return train.sweep(arguments, run_app)
    if is_resume(arguments):
        tyro.cli(train.resume, prog="vaekit train", args=arguments[1:])
        return None
    arguments, models = expand_preset(arguments)
    make_app(arguments, models, [] if found is None else found).cli(
        prog="vaekit", description=HELP, args=arguments, config=(OmitArgPrefixes,)
    )


def with_channel_axis(arguments: list[str]) -> list[str]:
    """`--channels first` and `last` as `--channel-axis`: a number with --channels is of the networks."""
    words = list(arguments)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        value = value if equals else "".join(words[i + 1 : i + 2])
        if flag == "--channels" and value in ("first", "last"):
            words[i] = f"--channel-axis{equals}{value if equals else ''}"
    return words


def expand_preset(arguments: list[str]) -> tuple[list[str], Mapping[str, ModelEntry]]:
    """Replace `--preset NAME` by the name of its model; return the arguments, and the models with its settings."""
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


@command_line_messages()
def main() -> None:
    """Run the command line. Bad input: one line on the standard error, exit code 2."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"vaekit {__version__}")
        return
    try:
        arguments, config = expand_config(VERBS, arguments)
        with tyro._errors.on_parse_error(partial(explain, arguments, config)):
            run_app(arguments or ["--help"])
    except UserError as error:
        sys.exit(report_error(str(error)))
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os._exit(0)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        sys.exit(report_error(f"{named}{error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        sys.exit(report_error("not enough memory; make the model, the batch or the count smaller"))
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal", None)
        if number is not None:  # a training that has saved a checkpoint
            print_stderr(f"vaekit: {stop}")
            sys.exit(128 + number)
        print_stderr("vaekit: interrupted; the files saved so far are complete")
        sys.exit(130)


def explain(arguments: list[str], config: Config | None, event: Any) -> None:
    """Raise UserError with one line for what tyro could not parse, and the file that it comes from, if any."""
    try:
        explain_parse_error(VERBS, arguments, event)
    except UserError as error:
        raise UserError(config.locate(str(error)) if config else str(error)) from None


def report_error(message: str) -> int:
    text = one_line(message)
    if len(text) > MAX_MESSAGE:  # such as an argument of 100,000 numbers
        text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
    print_stderr(f"vaekit: {text}")
    return 2
