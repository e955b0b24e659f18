"""Who may ask for what, and how often: API keys and tokens, rates, and shares of what there is."""
