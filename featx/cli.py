"""The command-line interface."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

import featx
from featx.commands.bench import bench
from featx.commands.export import export
from featx.commands.extract import extract, index_folder
from featx.commands.folders import convert as convert_maps
from featx.commands.folders import merge, stats
from featx.commands.options import Size, err, out
from featx.commands.probe import probe
from featx.commands.show import show
from featx.commands.tile import tile
from featx.describe import describe
from featx.errors import escaped, escaped_lines
from featx.meta_init import init_empty_weights
from featx.registry import Variant, lookup, suggestion
from featx.webui.serve import view
from featx.whole_files import local

if TYPE_CHECKING:
    UsageError = typer.BadParameter
else:
    UsageError = typer.BadParameter.__mro__[1]  # a class of click, of which newer versions of typer contain a copy

app = typer.Typer(no_args_is_help=True, help=featx.__doc__)
weights_app = typer.Typer(no_args_is_help=True, help="Inspect and convert files of weights.")
app.add_typer(weights_app, name="weights")
WeightsFile = Annotated[str, typer.Argument(help="A file, a folder, a URL or hf-hub:owner/repo.", metavar="FILE")]
ForModel = Annotated[str | None, typer.Option("--model", help="Name of a model to load the weights into.")]
Layout = Annotated[str | None, typer.Option(help="Program that wrote the weights; detected by default.")]
Container = Annotated[str | None, typer.Option(help="Entry of a training checkpoint, such as model_ema or teacher.")]


@app.command("list")
def list_(pattern: Annotated[str, typer.Argument(help="Shell-style pattern, such as 'resnet*'.")] = "*") -> None:
    """List all models, with the tags of their published weights, the default tag first.

    If the output is not a terminal, each line has a name and its tags, separated by spaces.
    """
    names = _matching(pattern)
    if "/" in pattern:
        for name in names:
            out.print(name, soft_wrap=True)
        return
    rows = [(name, _tags(name)) for name in names]
    if not out.is_terminal:
        for name, tags in rows:
            out.print(f"{name} {tags}", soft_wrap=True)
        return
    table = Table(box=None)
    table.add_column("model", no_wrap=True, style="bold")
    table.add_column("published weights")
    for name, tags in rows:
        table.add_row(name, tags)
    out.print(table)


def _tags(name: str) -> str:
    entry = lookup(name)
    return " ".join(entry.weights) if isinstance(entry, Variant) and entry.weights else "none"


@app.command()
def info(name: Annotated[str, typer.Argument(help="Name of a model.")], size: Size = None) -> None:
    """Show the levels of a model: channels, reduction, map size, and the cost of an extractor up to the level."""
    with init_empty_weights():
        model = featx.create_model(name)
    config = featx.FeatureExtractWrapper(model).data_config or featx.DataConfig()
    default = config.size
    shown = (size, size) if size else default
    table = Table(
        title=name,
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption="params and GMACs: of an extractor that ends at the level",
    )
    map_columns = [f"map@{side}" for side in dict.fromkeys((default[0], shown[0]))]
    for column in ("index", "name", "chs", "stride", *map_columns, "params", f"GMACs@{shown[0]}"):
        table.add_column(column, justify="left" if column == "name" else "right", no_wrap=True)
    for index, (cost, used) in enumerate(zip(describe(model, default), describe(model, shown), strict=True)):
        maps = dict.fromkeys(f"{height}×{width}" for height, width in (cost.map_size, used.map_size))
        facts = (f"{cost.level.chs}", f"{cost.level.reduction}", *maps, f"{cost.parameters:,}")
        table.add_row(f"{index}", cost.level.name, *facts, f"{used.macs / 1e9:.3f}")
    out.print(table)
    out.print(f"whole classifier: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    out.print(f"images: {_expected_images(config)}", soft_wrap=True)


def _expected_images(config: featx.DataConfig) -> str:
    height, width = config.size
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (config.mean, config.std))
    order = "" if config.channel_order == "rgb" else ", channels in the order BGR"
    cropped = f"{height}×{width} pixels, {config.crop_mode} crop of {config.crop:.4g}, {config.interpolation}"
    return f"{cropped}, mean {mean}, std {std}{order}"


@app.command()
def verify(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Names or shell-style patterns, such as 'resnet*' or 'timm/swin*'.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All native models of featx.")] = False,
    values: Annotated[
        bool, typer.Option(help="Also compute maps: results are deterministic, and positions agree with the image.")
    ] = False,
) -> None:
    """Verify the contract of models, by default on shapes only. The exit status is 1 if a model breaks it."""
    if every == bool(patterns):
        raise featx.ArgumentError("name models, or pass --all")
    broken = 0
    for name in [name for pattern in patterns or ["*"] for name in _expand(pattern)]:
        try:
            with torch.device("cpu" if values else "meta"):
                proof = featx.verify(featx.create_model(name), values=values)
        except featx.UnknownModelError:
            raise
        except featx.FeatxError as error:
            broken += 1
            out.print(Text.assemble((f"{name}: ", "bold"), ("broken ", "red"), str(error)), soft_wrap=True)
        else:
            levels = ", ".join(f"{level.chs} at 1/{level.reduction}" for level in proof.levels)
            sizes = len(proof.sizes)
            out.print(
                Text.assemble((f"{name}: ", "bold"), ("holds ", "green"), f"at {sizes} sizes: {levels}"), soft_wrap=True
            )
            if proof.places:
                places = ", ".join(f"{height}x{width}" for height, width in proof.places)
                out.print(f"  changes of the image are in their place at {places}", soft_wrap=True)
            for correction in proof.corrections:
                out.print(f"  {correction}", soft_wrap=True)
            for (height, width), reason in proof.refused.items():
                out.print(f"  takes no images of {height}x{width}: {reason}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _expand(pattern: str) -> list[str]:
    """The names that match a pattern; a name without wildcards is returned unchanged, and checked by create_model."""
    return _matching(pattern) if set(pattern) & set("*?[") else [pattern]


def _matching(pattern: str) -> list[str]:
    names = featx.list_models(pattern, features_only=True)
    if not names:
        hint = suggestion(pattern.rstrip("*?"), "'featx list' shows all names")
        raise featx.UnknownModelError(f"no model matches {pattern!r}; {hint}")
    return names


app.command()(extract)
app.command("index")(index_folder)
app.command()(merge)
app.command()(stats)
app.command("convert")(convert_maps)
app.command()(show)
app.command()(tile)
app.command()(probe)
app.command()(export)
app.command()(view)
app.command()(bench)


@weights_app.command()
def inspect(file: WeightsFile, model: ForModel = None, layout: Layout = None, container: Container = None) -> None:
    """Show the content of a checkpoint, and with --model the result of loading it."""
    from featx.weights.checkpoint import LoadOptions
    from featx.weights.convert import dry_run
    from featx.weights.convert import inspect as look

    if model is not None:
        out.print(str(dry_run(file, model, LoadOptions(layout=layout, container=container))), soft_wrap=True)
        return
    found = look(file, container)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    size = f"{found.values:,} values, {found.nbytes / 2**20:.1f} MiB"
    out.print(f"{file}: {found.tensors} tensors ({dtypes}), {size}", soft_wrap=True)
    out.print(f"names such as {', '.join(map(escaped, found.first))}", soft_wrap=True)
    for family, system in found.systems.items():
        out.print(f"layout: {system}, for the family {family}")
    if not found.systems:
        out.print("layout: no other program's; --model NAME tells whether it fits a model")
    for name in found.not_finite:
        out.print(f"holds infinite values or NaN: {escaped(name)}", style="red")


@weights_app.command()
def convert(
    file: WeightsFile,
    target: Annotated[Path, typer.Argument(help="File to write: .safetensors, or .pt or .pth for PyTorch's.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model of the weights.")],
    to: Annotated[
        str, typer.Option(help="Layout to write: native (timm's names), torchvision, transformers, …")
    ] = "native",
    layout: Layout = None,
    container: Container = None,
) -> None:
    """Write a checkpoint in another layout. It must contain all tensors of the model."""
    from featx.weights.checkpoint import LoadOptions
    from featx.weights.convert import convert as converted
    from featx.weights.serialization import write_checkpoint

    target = local(target)
    state = converted(file, model, to, LoadOptions(layout=layout, container=container))
    write_checkpoint(state, target)
    out.print(f"{target}: {len(state)} tensors in the layout {to}", soft_wrap=True)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show:
        out.print(f"featx {featx.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line.

    A user's mistake is one message and exit status 2, not a traceback; Ctrl-C ends with status 130 and no message.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may contain undecodable bytes
    try:
        status = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except UsageError as error:
        status = _print_usage_error(error)
    except featx.FeatxError as error:
        status = _print_error(f"{error}")
    sys.exit(status)


def _print_usage_error(error: UsageError) -> int:
    """Print an error of the command-line arguments, and the usage of the command; return the exit status."""
    if message := error.format_message():  # a command without arguments has already printed its help
        if error.ctx is not None:
            err.print(f"{error.ctx.get_usage()}\nhelp: {error.ctx.command_path} --help", soft_wrap=True)
        _print_error(message)
    return error.exit_code


def _print_error(message: str) -> int:
    err.print(Text.assemble(("error:", "red"), f" {escaped_lines(message)}"), soft_wrap=True)
    return 2
