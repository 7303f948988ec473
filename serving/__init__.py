"""The data plane: model server, prediction records, scoring."""
