"""The programs, imported as areal_mega.tools: python -m areal_mega.tools.train_ppo --help."""
