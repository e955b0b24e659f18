"""Protocol definitions, and the descriptor sets compiled from them (`make protos`).

- `sluice/v1/*.proto`: Sluice's own services.
- `tensorflow_serving.binpb`: TensorFlow Serving's API, as the installed `tensorflow-serving-api` says it.
- `sluice.binpb`: Sluice's own, compiled.

A descriptor set is a serialised `google.protobuf.FileDescriptorSet`; `serving.protos` loads both.
"""
