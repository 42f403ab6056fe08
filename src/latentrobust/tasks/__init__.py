"""LightningModules that test a perturbation set, or train and test a model under one."""
