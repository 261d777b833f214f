"""Several processes that train one model: who writes, parameters gathered from shards, what DeepSpeed allows."""
