"""The only place that imports aioquic."""
