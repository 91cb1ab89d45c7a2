"""The worker: fetch, stack, infer, encode, verify, store, confirm."""
