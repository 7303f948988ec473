"""The VirtualService document and the data planes that serve it."""
