"""The replicas behind the gateway: TensorFlow Serving's gRPC API, health, choice and retries."""
