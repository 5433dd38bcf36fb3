"""What the user asks for: the recipe's schema, how it is read, and how a commented one is written."""

from tunesmith.recipe.load import differences, dump, load_recipe, parse_recipe
from tunesmith.recipe.presets import preset_names, preset_text
from tunesmith.recipe.render import render_commented
from tunesmith.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "differences",
    "dump",
    "load_recipe",
    "parse_recipe",
    "preset_names",
    "preset_text",
    "render_commented",
]
