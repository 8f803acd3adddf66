"""The `ddln` command: `main` defines the verbs, `output` prints, `signals` handles interruption."""
