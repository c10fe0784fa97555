"""What the drop-ins for diffusers' pipelines and schedulers are made of."""
