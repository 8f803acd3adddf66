"""The marimo application behind `ddln explore`: one page for networks, one for finished runs."""
