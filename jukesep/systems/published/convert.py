"""Convert a .th file of demucs to safetensors.

    python -m jukesep.systems.published.convert FILE.th -o FILE.safetensors --run-code

A .th file is a pickle: to read it is to run the code in it, and whoever made the file chose that
code. Do this only with a file whose sha256 you trust, at best as a user who owns nothing. The eight
hex digits in the file's name are compared first. The new file holds the tensors, and the class and
its arguments as JSON in the form of demucs 4.1, and is read without running code.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.errors import UserError, reported
from ...base.files import atomic
from .catalogue import checked, refuse

CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")


def convert(source: Path, target: Path) -> None:
    """Read a .th file, which runs the code in it, and write a safetensors file.

    UserError if the file is refused (`catalogue.checked`), cannot be read, or does not hold a model
    of demucs with plain tensors.
    """
    import torch
    from safetensors.torch import save

    sha256 = checked(source)
    try:
        package = torch.load(source, map_location="cpu", weights_only=False)
        klass = f"{package['klass'].__module__}.{package['klass'].__qualname__}"
        state, args, kwargs = (package[name] for name in ("state", "args", "kwargs"))
        tensors = {name: value.contiguous().clone() for name, value in state.items()}
    except Exception as error:  # whatever its code raises
        raise UserError(
            f"{source}: not a model of demucs with plain tensors ({type(error).__name__}: "
            f"{error}). Quantized models (mdx_q) cannot be converted."
        ) from error
    if klass not in CLASSES:
        raise UserError(f"{source}: holds a {klass}, where one of {', '.join(CLASSES)} belongs.")
    about = {
        "klass": klass,
        "args": json.dumps(list(args), default=_encoded),
        "kwargs": json.dumps(kwargs, default=_encoded),
        "converted_from": sha256,
    }
    content = save(tensors, about)
    with atomic(target) as unfinished:
        unfinished.write_bytes(content)


def _encoded(value: Any) -> Any:
    if isinstance(value, Fraction):
        return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
    raise UserError(f"an argument of the model is a {type(value).__name__}, not a plain value.")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    source: Annotated[Path, typer.Argument(help="The .th file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Allow the file to run its code, as yourself.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT.")] = False,
) -> None:
    """Convert one file."""
    refuse(source.name)
    if not run_code:
        raise UserError(
            f"{source}: reading a .th file runs the code in it, with all that you may do. If you "
            "trust where it comes from, pass --run-code."
        )
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: the name must end in .safetensors.")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: already exists. Pass --overwrite to replace it.")
    convert(source, output)
    typer.echo(output)


if __name__ == "__main__":
    with reported():
        app()
