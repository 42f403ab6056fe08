"""Pure batched tensor functions: random draws by key, affine warps, noise. Used by the data and by the exact sets."""
