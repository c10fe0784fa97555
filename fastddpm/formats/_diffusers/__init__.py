"""What `fastddpm.formats.diffusers` is made of: a folder's files, its scheduler, its network."""
