"""fastddpm: fast DDPM sampling."""

__version__ = "0.1.0"
