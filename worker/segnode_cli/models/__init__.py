"""`segnode models`: what an installation has, and how a model from elsewhere gets in."""
