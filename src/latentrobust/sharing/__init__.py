"""Sets and models for others: cards, the Hugging Face hub, claims that can be repeated, and exported programs."""
