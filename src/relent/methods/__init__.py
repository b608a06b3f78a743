"""Methods by family, one module a paper: objective (a pure function), Config, LightningModule."""
