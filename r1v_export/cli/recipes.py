"""`r1v-export recipes`: how a model can be quantized."""

from __future__ import annotations

import click

from r1v_export.cli.output import common_options, print_json, wrapped_table


@click.group(short_help="List or show quantization recipes.")
def command() -> None:
    """The shipped recipes, which `build --recipe` takes by name; `show` prints one to start your own from."""


@command.command("list", short_help="All shipped recipes.")
@common_options
def list_recipes(format_: str) -> None:
    """All shipped recipes, with the precision that each is the default of."""
    from r1v_export.quantization.recipe import PRESETS, load, names

    precisions = {recipe: precision for precision, recipe in PRESETS.items()}
    recipes = [load(name) for name in names()]
    if format_ == "json":
        print_json(
            [{"name": r.name, "precision": precisions.get(r.name), "description": r.description} for r in recipes]
        )
    else:
        rows = [(recipe.name, precisions.get(recipe.name, ""), recipe.description) for recipe in recipes]
        click.echo(wrapped_table([("recipe", "--precision", ""), *rows]))


@command.command("show", short_help="One recipe.")
@click.argument("recipe")
@common_options
def show(recipe: str, format_: str) -> None:
    """RECIPE (a name, or a YAML file) with every default written out."""
    from r1v_export.quantization.recipe import load

    loaded = load(recipe)
    if format_ == "json":
        print_json(loaded.model_dump(mode="json"))
    else:
        click.echo(loaded.to_yaml(), nl=False)
