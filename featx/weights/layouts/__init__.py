"""One file per program: `LAYOUTS`, a Layout for each family it shares with us."""
