"""Kubeflow pipelines: components, compiled documents and their runners."""
