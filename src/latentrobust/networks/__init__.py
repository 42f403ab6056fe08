"""Plain ``nn.Module`` networks; nothing here knows Lightning, data sets or perturbation sets."""
