"""LightningModules that learn a perturbation set."""
