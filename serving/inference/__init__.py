"""The inference sidecar: models beside the serving process, behind the Open Inference Protocol. A process of its own.

Knows no feature, store or registry: tensors come in, tensors go out. What feeds it is `serving.predict`.
"""
