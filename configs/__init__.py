"""Recipes: experiment/NAME.yaml is what +experiment=NAME selects. Imported as areal_mega.configs."""
